"""Networks as graphs that run without this package: ONNX files and programs of torch.export."""

from openmvit.export.run import Exported, export

__all__ = ["Exported", "export"]

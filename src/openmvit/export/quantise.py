"""ONNX files with matrix products in 8 bits."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from openmvit.export.formats import write_card

PRODUCTS = ("MatMul", "Gemm")
"""What is quantised. Convolutions are a small share of the work, and lose time and accuracy there."""


def quantise(source: Path, path: Path, card: dict[str, Any]) -> None:
    """Write a copy whose weights of matrix products are int8, one scale per column; inputs are scaled as they come.

    Weights take 7 of the 8 bits, so that their products are exact on every processor.

    Raises:
        OSError: if the file cannot be written.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(
            str(source),
            str(path),
            op_types_to_quantize=list(PRODUCTS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Processors without VNNI add pairs of products in 16 bits, which 8-bit weights overflow: a single layer was
            # off by 0.29 of its largest output.
            reduce_range=True,
            # Its own inference of shapes does not know every type in the graph.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
    finally:
        logging.disable(before)
    model = onnx.load(str(path))
    write_card(model, card)
    onnx.save(model, str(path))

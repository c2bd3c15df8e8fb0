"""Detection and instance segmentation: pyramid, region proposals, 1..n box stages, masks."""

from openmvit.detection.config import DetectorConfig
from openmvit.detection.detections import Detections, Target
from openmvit.detection.detector import Detector
from openmvit.detection.settings import from_settings

__all__ = ["Detections", "Detector", "DetectorConfig", "Target", "from_settings"]

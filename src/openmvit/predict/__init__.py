"""Predictions with any run, file or released model: `openmvit.load(target).predict(sources)`."""

from openmvit.predict.answers import Prediction, Window, predictions_csv, predictions_text, timeline_csv
from openmvit.predict.detected import Detection, coco_document, detections_csv, detections_text
from openmvit.predict.drawing import draw_labels, draw_objects
from openmvit.predict.predictor import Predictor, load

__all__ = [
    "Detection",
    "Prediction",
    "Predictor",
    "Window",
    "coco_document",
    "detections_csv",
    "detections_text",
    "draw_labels",
    "draw_objects",
    "load",
    "predictions_csv",
    "predictions_text",
    "timeline_csv",
]

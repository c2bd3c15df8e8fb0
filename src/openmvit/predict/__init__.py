"""Predictions with any run, file or released model: `openmvit.load(target).predict(sources)`."""

from openmvit.predict.answers import Prediction, predictions_csv, predictions_text
from openmvit.predict.detected import Detection, coco_document, detections_csv, detections_text
from openmvit.predict.drawing import draw_labels, draw_objects
from openmvit.predict.predictor import Predictor, load
from openmvit.predict.timeline import Window, timeline_csv

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

"""Predictions with any run, file or released model: `openmvit.load(target).predict(sources)`."""

from openmvit.predict.answers import Prediction, Window, predictions_csv, predictions_text, timeline_csv
from openmvit.predict.drawing import draw_labels
from openmvit.predict.predictor import Predictor, load

__all__ = [
    "Prediction",
    "Predictor",
    "Window",
    "draw_labels",
    "load",
    "predictions_csv",
    "predictions_text",
    "timeline_csv",
]

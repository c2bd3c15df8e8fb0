"""Score a classifier on labelled images or videos: top-1, top-5 and every class, or mean average precision.

`validate` scores a run, file or released model by the protocol of its card; `results_text` shows what it found.
"""

from openmvit.validate.report import results_text
from openmvit.validate.run import validate
from openmvit.validate.scoring import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate", "results_text", "validate"]

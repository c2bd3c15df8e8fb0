"""Speed and memory against the package a user would pick instead: same weights, one process, taking turns.

Runs without the command line's libraries as `python -m openmvit.benchmark NAME --against timm`.
"""

from openmvit.benchmark.case import Case, make_case
from openmvit.benchmark.command import main
from openmvit.benchmark.measure import Result, Side, measure, peak_memory
from openmvit.benchmark.report import report

__all__ = ["Case", "Result", "Side", "main", "make_case", "measure", "peak_memory", "report"]

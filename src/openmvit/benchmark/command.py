"""`openmvit bench`, by the standard library alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from openmvit.benchmark.case import CHOICES, Case, make_case
from openmvit.benchmark.measure import measure
from openmvit.benchmark.report import report
from openmvit.benchmark.suite import SUITES, choose, run_suite
from openmvit.errors import UserError

HELP = {
    "against": "timm, torchvision, or timm:NETWORK for another network; default timm for images, torchvision for clips",
    "batch": "inputs per step; default 8 images, 1 clip",
    "precision": "fp32 or bf16",
    "mode": "eager, or best: each side takes the fastest of eager, compiled, and in bf16 bf16 weights",
    "step": "forward, or forward with backward and update",
    "without": "in mode best: variants not to try, by the start of their name, such as max-autotune",
    "pairs": "how often each side is timed, in turn",
    "device": "auto is CUDA where there is one",
    "clock": "processor time, on one thread, is for a machine that does other work",
}
"""Option -> what `--help` says."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message[:1].upper() + message[1:], "See openmvit bench --help")


def _parser() -> _Parser:
    parser = _Parser(prog="openmvit bench", description="Speed and memory against another package.", allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="model name")
    parser.add_argument(
        "--suite", choices=tuple(SUITES), help="all comparisons of such a machine; others choose among them"
    )
    defaults = {field.name: field.default for field in fields(Case)}
    for option, text in HELP.items():
        if option in CHOICES:
            text = f"{text} ({', '.join(CHOICES[option])}); default {defaults[option]}"
        parser.add_argument(f"--{option}", type=int if option in ("batch", "pairs") else str, help=text)
    parser.add_argument("--switch", action="store_true", help="also with oneDNN for all fp32 products of the process")
    return parser


def main(argv: Sequence[str]) -> int:
    """`openmvit bench NAME --against timm ...`, or `--suite cuda`; prints the table, returns 0.

    Raises:
        UserError: for a bad option, a missing peer, or outputs that differ.
    """
    options = vars(_parser().parse_args(argv))
    suite, name = options.pop("suite"), options.pop("name")
    if suite is not None:
        given = {k: v for k, v in {"name": name, **options}.items() if v is not None and v is not False}
        cases = SUITES[suite](given.pop("pairs", 15), given.pop("batch", None), given.pop("without", ""))
        run_suite(choose(cases, given))
        return 0
    if name is None:
        raise UserError("The name of a network is missing", "For example: openmvit bench mvitv2_small")
    case = make_case(name, **options)
    print(report(case, measure(case)), flush=True)
    return 0

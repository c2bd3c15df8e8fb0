"""Starts `train` in a process of its own: key=value arguments are recipe options, `@damage` breaks something."""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch
import yaml

from openmvit.errors import UserError
from openmvit.training import job, run
from openmvit.training.recipe_file import check_fields

RANK = int(os.environ.get("RANK", "0"))


def damage(words: list[str]) -> None:
    """Break at a step: `kill,RANK,STEP`, `hang,RANK,STEP`, `bug,RANK,STEP`, `nan,STEP`, `fsize,BYTES,STEP`."""
    kind, numbers = words[0], [int(w) for w in words[1:]]
    before_step = job.Job.before_step

    def broken(self: job.Job) -> None:
        before_step(self)
        step = self.progress.step
        if kind == "kill" and [RANK, step] == numbers:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang" and [RANK, step] == numbers:
            time.sleep(600)
        if kind == "bug" and [RANK, step] == numbers:
            raise ZeroDivisionError("a bug on one rank")
        if kind == "nan" and [step] == numbers:
            with torch.no_grad():
                next(self.task.model.parameters()).fill_(float("nan"))
        if kind == "fsize" and step == numbers[1]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (numbers[0], resource.RLIM_INFINITY))

    job.Job.before_step = broken


def main() -> int:
    torch.set_num_threads(1)
    options = dict(argument.split("=", 1) for argument in sys.argv[2:] if not argument.startswith("@"))
    (Path(sys.argv[1]) / f"pid{RANK}").write_text(str(os.getpid()))
    for argument in sys.argv[2:]:
        if argument.startswith("@"):
            damage(argument[1:].split(","))
    try:
        run.train(check_fields({key: yaml.safe_load(value) for key, value in options.items()}))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

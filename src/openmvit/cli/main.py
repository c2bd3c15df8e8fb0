"""The command `openmvit VERB ...`: one verb, one function elsewhere. Its help imports no torch."""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from openmvit import __version__
from openmvit.architectures import check_name
from openmvit.cli import data
from openmvit.cli.ablation import find_table, train_table
from openmvit.cli.arguments import STDOUT, Arguments, parse
from openmvit.cli.export import ExportOptions, export
from openmvit.cli.info import doctor, info, models
from openmvit.cli.options import (
    BenchOptions,
    CheckOptions,
    ConvertOptions,
    DemoOptions,
    InfoOptions,
    JsonOption,
    NoOptions,
    PredictOptions,
    PrepareOptions,
    TrainOptions,
    ValOptions,
)
from openmvit.cli.start import check_described, check_target, load_torch
from openmvit.cli.tables import TablesOptions, tables
from openmvit.errors import UserError, did_you_mean
from openmvit.screen import is_terminal, listening, say, wipe

_OUTPUTS = ("device", "json", "csv", "out", "classes", "verbose")
_LISTS = (".csv", ".jsonl", ".txt")
PRESETS = {
    "image": ("image/small", "images"),
    "video": ("video/small", "videos"),
    "detection": ("detection/small", "annotated images"),
}
"""What `train` starts from where no recipe is named, by task."""


def _demo(given: Arguments) -> int:
    from openmvit.demo import run_demo
    from openmvit.training.recipe_file import load_recipe
    from openmvit.training.run import train

    job = given.positional.get("job") or "image"
    run_demo(job, lambda recipe, changes: train(load_recipe(recipe, changes)), **given.options())
    return 0


def _train(given: Arguments) -> int:
    from openmvit.training.early import check_words
    from openmvit.training.recipe_file import check_fields, merge, read_fields

    flags = dict(given.flags)
    resume, config, recipe_name = flags.get("resume"), flags.pop("config", None), given.positional.get("recipe")
    if resume is not None:
        _resume_alone(flags, config is not None, recipe_name is not None)
    if recipe_name is not None:
        _no_data_as_recipe(recipe_name, flags)
    if (table := find_table(recipe_name, flags)) is not None:
        return train_table(table, flags, config)
    values: dict[str, Any] = {}
    for source in (recipe_name, config):
        values = merge(values, read_fields(source)) if source is not None else values
    recipe = check_fields(merge(values, flags))
    check_words(recipe)
    load_torch()
    from openmvit.processes import is_main
    from openmvit.training.inputs import infer_task
    from openmvit.training.run import train

    plain = recipe.resume is None and recipe_name is None
    if plain and (preset := PRESETS.get(infer_task(recipe))):
        fields = read_fields(preset[0])
        if Path(recipe.weights).exists():
            # One's own weights bring their network.
            fields.pop("model", None)
        recipe = check_fields(merge(merge(fields, values), flags))
        if is_main():
            print(f"Recipe {preset[0]}, since the data are {preset[1]} and no recipe was named")

    with listening(is_main()):
        train(recipe)
    return 0


def _resume_alone(flags: dict[str, Any], config: bool, recipe: bool) -> None:
    """Raise a UserError if --resume does not stand alone."""
    others = [f"--{key.replace('_', '-')}" for key in flags if key != "resume"]
    others += ["--config"] * config + ["the recipe"] * recipe
    if others:
        raise UserError(
            f"--resume continues a run as it was, and {others[0]} would change it",
            f"Leave {others[0]} out, or start a new run with --weights {flags['resume']}",
        )


def _no_data_as_recipe(word: str, flags: dict[str, Any]) -> None:
    """Raise a UserError if the word behind `train` is a run or data and not a recipe."""
    from openmvit.training.recipe_file import list_recipes

    path = Path(word)
    if word in list_recipes() or not (path.is_dir() or path.suffix.lower() in _LISTS):
        return
    is_run = (path / "args.yaml").is_file()
    option = "resume" if is_run else "data"
    fix = f"Did you mean --{option} {word}" if option not in flags else "Leave it out, or name a recipe"
    raise UserError(f"{word} is {'a run' if is_run else 'data'}, and the word behind train is a recipe", fix)


def _val(given: Arguments) -> int:
    from openmvit.processes import is_main
    from openmvit.validate import results_text, validate

    options = given.options()
    file = options.pop("json")
    with listening(is_main()):
        results = validate(given.positional["target"], **options)
    if not is_main():
        return 0
    _report(results_text(results), results, file)
    return 0


def _predict(given: Arguments) -> int:
    from openmvit.predict import load

    options = given.options()
    with listening():
        predictor = load(given.positional["target"], options["device"], options["classes"])
    looks: dict[str, Any] = {key: value for key, value in given.flags.items() if key not in _OUTPUTS}
    for key in looks:
        if key not in predictor.options:
            name = key.replace("_", "-")
            task = predictor.card.get("task") or predictor.kind.noun
            raise UserError(f"--{name} does not belong to this network ({task})", f"Leave --{name} out")
    if "on_window" in predictor.options:
        # The standard output holds nothing but JSON where that is wanted.
        looks["on_window"] = partial(_say_window, sys.stderr if options["json"] == STDOUT else sys.stdout)
    with listening():
        found = predictor.predict(given.positional["sources"], **looks)
    if options["out"]:
        targets = predictor.targets(found, options["out"])
        predictor.draw(found, options["out"])
        found = [replace(one, output=str(path or "")) for one, path in zip(found, targets, strict=True)]
    _report(predictor.text(found, options["verbose"]), [one.as_dict() for one in found], options["json"])
    if options["csv"]:
        _write(options["csv"], predictor.csv(found))
    _say_predicted(found, options["out"], sys.stderr if options["json"] == STDOUT else sys.stdout)
    if not any(one.readable for one in found):
        noun = predictor.kind.noun
        one = f"The file cannot be read as {'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        many = f"None of the {len(found)} files can be read as {noun}s"
        raise UserError(one if len(found) == 1 else many, "The output above says why")
    return 0


def _say_predicted(found: list[Any], out: str | None, stream: TextIO) -> None:
    """The last line: how many files, how many of them unreadable and where they are listed, where the copies are."""
    files = len(dict.fromkeys(one.path for one in found))
    bad = {one.path: one.error for one in found if not one.readable}
    words = [f"{files} file{'' if files == 1 else 's'}"]
    if bad and out:
        listing = Path(out) / "unreadable.txt"
        _write(str(listing), "".join(f"{path}\t{error}\n" for path, error in bad.items()))
        words.append(f"{len(bad)} unreadable (listed in {listing})")
    elif bad:
        words.append(f"{len(bad)} unreadable (listed above)")
    print(", ".join([*words, *([f"saved to {out}"] if out else [])]), file=stream)


def _say_window(stream: TextIO, _: str, window: Any) -> None:
    """What a camera shows, at once."""
    say(f"{window.end:8.1f} s  {window.labels[0]} {window.probabilities[0]:.4f}", stream)


def _report(text: str, values: Any, file: str | None) -> None:
    """Print a table, or JSON where that is wanted in its place; write JSON where a file is named."""
    whole = json.dumps(values, indent=1)
    if file and file != STDOUT:
        _write(file, whole + "\n")
    print(whole if file == STDOUT else text)


def _convert(given: Arguments) -> int:
    from openmvit.zoo import convert_file

    with listening():
        done = convert_file(given.positional["file"], **given.options())
    print(done)
    return 0


@dataclass(frozen=True)
class Verb:
    """One verb.

    Args:
        summary: what it does, one line.
        run: takes the parsed arguments, returns the exit code.
        options: dataclass of its options.
        positionals: names in order; `?` may be left out, `+` takes one or more.
        check: finds wrong names before `run` imports torch.
    """

    summary: str
    run: Callable[[Arguments], int]
    options: type
    positionals: tuple[str, ...] = ()
    check: Callable[[Arguments], None] = lambda _: None


DATA: dict[str, Verb] = {
    "check": Verb(
        "look at images or videos before training; exit code 1 if there are faults", data.check, CheckOptions, ("dir",)
    ),
    "bench": Verb(
        "measure how fast clips are read from videos, and what a model needs", data.bench, BenchOptions, ("dir",)
    ),
    "prepare": Verb(
        "encode videos again, small and quick to seek; exit code 1 if some are broken",
        data.prepare,
        PrepareOptions,
        ("dir",),
    ),
}


def _data(rest: list[str]) -> int:
    """One action of `data`."""
    if not rest or rest[0] in ("-h", "--help"):
        print("usage: openmvit data ACTION DIR [--key value ...]\n")
        print("\n".join(f"  {name:<9}{action.summary}" for name, action in DATA.items()))
        return 0
    if rest[0] not in DATA:
        raise UserError(f"data has no action {rest[0]!r}", did_you_mean(rest[0], DATA))
    action = DATA[rest[0]]
    given = parse(f"data {rest[0]}", action.summary, action.options, action.positionals, rest[1:])
    if given is None:
        return 0
    load_torch()
    return action.run(given)


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "the whole job on data that comes with the package, on a CPU, in minutes", _demo, DemoOptions, ("job?",)
    ),
    "train": Verb(
        "train on a folder of labelled or annotated images, or of videos", _train, TrainOptions, ("recipe?",)
    ),
    "val": Verb(
        "score a run, file or model on labelled or annotated images, or videos",
        _val,
        ValOptions,
        ("target",),
        check_target,
    ),
    "predict": Verb(
        "classify images or videos, or find objects in them: files, folders, patterns, addresses, cameras",
        _predict,
        PredictOptions,
        ("target", "sources+"),
        check_target,
    ),
    "export": Verb(
        "write a network as an ONNX file or a program of torch.export",
        export,
        ExportOptions,
        ("target",),
        check_target,
    ),
    "convert": Verb("turn weights of another project into our file", _convert, ConvertOptions, ("file",)),
    "models": Verb("list architectures and released weights", models, JsonOption, ("pattern?",)),
    "info": Verb("show a network block by block, or what it costs", info, InfoOptions, ("target",), check_described),
    "data": Verb(
        "check, measure or re-encode data before training: data check|bench|prepare DIR", lambda _: 0, NoOptions
    ),
    "tables": Verb("compute the paper's operations and parameters again, cell by cell", tables, TablesOptions),
    "doctor": Verb("show versions, devices, decoders, memory and disk", doctor, JsonOption),
    "bench": Verb("compare speed with another package", lambda _: 0, NoOptions),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command line and return its exit code: 0, 1 (faults found), 2 (bad input) or 130 (interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    try:
        with warnings.catch_warnings():
            if not debug:
                # Advice of libraries to programmers; what concerns the user, we say ourselves.
                warnings.simplefilter("ignore")
            code = _dispatch([token for token in argv if token != "--debug"])
        sys.stdout.flush()
        return code
    except UserError as error:
        wipe()
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        wipe()
        # Who has said something since, as a training does, has left the line of the ^C already.
        start = "\n" if is_terminal(sys.stderr) and not stop.args else ""
        print(f"{start}interrupted", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        from openmvit.training.memory import explain_memory

        if debug or explain_memory(error, 0) is None:
            raise
        print("error: Memory ran out. Use a smaller --batch or --imgsz.", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output (such as `head`) has left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if argv[0] in ("-V", "--version", "version"):
        print(f"openmvit {__version__}")
        return 0
    name, rest = argv[0], argv[1:]
    if name not in VERBS:
        raise UserError(f"openmvit has no verb {name!r}", did_you_mean(name, VERBS))
    if name == "bench":
        if rest and not rest[0].startswith("-"):
            check_name(rest[0])
        if "--help" not in rest:
            load_torch()
        from openmvit import benchmark

        return benchmark.main(rest) or 0
    if name == "data":
        return _data(rest)
    verb = VERBS[name]
    given = parse(name, verb.summary, verb.options, verb.positionals, rest)
    if given is None:
        return 0
    verb.check(given)
    if verb.run is not _train:  # which has more to look at first
        load_torch()
    return verb.run(given)


def _help() -> str:
    lines = [
        f"openmvit {__version__}: MViTv2 and MViTv1",
        "",
        "usage: openmvit VERB [MODEL or RUN] [--key value ...]",
        "",
    ]
    lines += [f"  {name:<9}{verb.summary}" for name, verb in VERBS.items()]
    lines += ["", "openmvit VERB --help lists the options of a verb; key=value means --key value.", ""]
    lines += ["  --version  print the version", "  --debug    show the traceback of an error"]
    return "\n".join(lines)


def _write(path: str, text: str) -> None:
    """Write a result file.

    Raises:
        UserError: if the place cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror})", "Choose another file") from error

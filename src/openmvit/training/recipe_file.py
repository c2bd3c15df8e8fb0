"""Recipes on disk: strict YAML in, validated `Recipe` out, and back. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from openmvit.errors import UserError, did_you_mean
from openmvit.training.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "recipes"
"""The recipes that ship with the package, and in `ablation/` the paper's tables as rows over recipes."""
STATUSES = ("reproduced", "partly run", "not yet run")


@dataclass(frozen=True)
class RecipeHeader:
    """What the head comment of a published recipe says; one `# Key: text` each, continued on indented lines."""

    paper_row: str
    """Paper, table and row that the recipe stands for."""
    data: str
    """Data set and number of classes."""
    command: str
    """Command line that runs it."""
    hardware: str
    """Processes and samples per process that the values are stated for."""
    expected: str
    """Score, its protocol, and who measured it."""
    status: str
    """reproduced, partly run or not yet run."""

    @property
    def num_classes(self) -> int:
        """Number of classes named in `data`."""
        found = re.search(r"([\d,]+) classes", self.data)
        if found is None:
            raise UserError(f"The head comment's data line {self.data!r} names no number of classes")
        return int(found[1].replace(",", ""))


def list_recipes() -> list[str]:
    """Names of the shipped recipes, such as `imagenet/mvitv2_small`."""
    names = (p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("ablation/"))


def list_ablations() -> list[str]:
    """Names of the shipped tables of rows, such as `ablation/attention`; see `openmvit.training.ablation`."""
    return sorted(f"ablation/{p.stem}" for p in (FOLDER / "ablation").glob("*.yaml"))


def find_recipe(name_or_path: str | Path) -> Path:
    """File of a shipped recipe's or table's name, or of a path; a name wins over a file without suffix called so.

    `recipes/NAME.yaml` is the shipped one too where there is no such file.

    Raises:
        UserError: if there is neither.
    """
    text, shipped = str(name_or_path), [*list_recipes(), *list_ablations()]
    if text in shipped:
        return FOLDER / f"{text}.yaml"
    path = Path(text)
    if path.is_file():
        return path
    if path.suffix in {".yaml", ".yml"}:
        if path.parts[0] == FOLDER.name and path.relative_to(FOLDER.name).with_suffix("").as_posix() in shipped:
            return FOLDER.parent / path
        raise UserError(f"There is no recipe file {text}", "Check the path")
    raise UserError(f"There is no recipe {text!r}", did_you_mean(text, shipped))


def read_fields(name_or_path: str | Path) -> dict[str, Any]:
    """Raw values of a recipe, those of the recipe it extends first; not validated.

    Raises:
        UserError: if a file is missing, is no YAML mapping, a table of rows, or extends a recipe that itself extends
            another.
    """
    path = find_recipe(name_or_path)
    own = read_yaml(path)
    if "rows" in own:
        raise UserError(f"{path} is a table and no recipe", f"Name a row: openmvit train {name_or_path} --row ROW")
    if "extends" not in own:
        return own
    parent = own.pop("extends")
    beside = path.parent / str(parent)
    base = read_yaml(beside if beside.is_file() else find_recipe(str(parent)))
    if "extends" in base:
        raise UserError(f"{path} extends {parent}, which extends {base['extends']}", "Only one level is accepted")
    return merge(base, own)


def merge(values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with those of `given` over them; what is given is no longer derived."""
    derive = [key for key in values.get("derive", ()) if key not in given]
    return {**values, **({"derive": derive} if "derive" in values else {}), **given}


def load_recipe(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Recipe:
    """A shipped recipe by name, or a YAML file; `overrides` win over the file.

    Raises:
        UserError: naming the key, its value and what is accepted.
    """
    return check_fields(merge(read_fields(name_or_path), overrides or {}))


def check_fields(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values, each checked against its field; missing fields take their defaults.

    Numbers written as text (`5e-4` is text in YAML 1.1) are read where a number belongs. Nothing is rounded.

    Raises:
        UserError: if a key is unknown, a value has the wrong type or range.
    """
    hints = _hints()
    for key in values:
        if key not in hints:
            raise UserError(f"A recipe has no option {key!r}", did_you_mean(str(key), hints))
    recipe = Recipe(**{key: convert_value(key, value, hints[key]) for key, value in values.items()})
    for key, (accepted, holds) in _RANGES.items():
        value = getattr(recipe, key)
        if value is not None and not isinstance(value, str) and not holds(value):
            raise UserError(f"{key} is {value!r}", f"Accepted: {accepted}")
    return recipe


def dump_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write every option as YAML; `load_recipe` of the file gives an equal recipe."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    temporary = Path(f"{path}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def recipe_header(name_or_path: str | Path) -> RecipeHeader:
    """The head comment of a published recipe.

    Raises:
        UserError: if a line is missing or the status is none of the three.
    """
    path = find_recipe(name_or_path)
    found: dict[str, str] = {}
    key = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        start = re.match(r"# (\w+): +(.+)", line)
        if start:
            key = "paper_row" if start[1] == "Paper" else start[1].lower()
            found[key] = start[2].strip()
        elif key:
            found[key] += " " + line.lstrip("# ").strip()
    names = [f.name for f in fields(RecipeHeader)]
    missing = [name for name in names if not found.get(name)]
    if missing:
        raise UserError(f"The head comment of {path} lacks {', '.join(missing)}", "Add the lines as `# Key: text`")
    if found["status"] not in STATUSES:
        raise UserError(f"The status of {path} is {found['status']!r}", f"Accepted: {', '.join(STATUSES)}")
    return RecipeHeader(**{name: found[name] for name in names})


class _Loader(yaml.SafeLoader):
    """YAML whose booleans are true and false alone (`amp: off` is text), without dates, and with unique keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key_node.value} is given twice", problem_mark=key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_DROPPED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in _DROPPED]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping as it stands in a file.

    Raises:
        UserError: if it cannot be read, or is no mapping.
    """
    try:
        # The loader is a SafeLoader: it builds plain data only.
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        problem = getattr(error, "problem", None) or getattr(error, "strerror", None) or "it is no text file"
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where} cannot be read: {problem}", "Write one `key: value` per line") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no options", "Write one `key: value` per line")
    return values


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Recipe)


_MISFIT = object()


def convert_value(key: str, value: Any, hint: Any) -> Any:
    """`value` as the type of a field.

    Raises:
        UserError: naming the key, its value and what is accepted.
    """
    result = _fit(value, hint)
    if result is not _MISFIT:
        return result
    words = [w for w in _choices(hint) if isinstance(value, str)]
    accepted = _describe(hint)
    near = did_you_mean(value, words) if words else ""
    fix = f"Accepted: {accepted}" + (f". {near}" if near.startswith("Did") else "")
    raise UserError(f"{key} is {value!r}", fix)


def _fit(value: Any, hint: Any) -> Any:
    """`value` as the type of `hint`, or the misfit mark."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        fits = (_fit(value, option) for option in get_args(hint))
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is Literal:
        return next((c for c in get_args(hint) if c == value and type(c) is type(value)), _MISFIT)
    if origin is tuple:
        parts = get_args(hint)
        if isinstance(value, list | tuple) and parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(parts):
            return _MISFIT
        items = tuple(_fit(v, part) for v, part in zip(value, parts, strict=True))
        return _MISFIT if _MISFIT in items else items
    return _PLAIN[hint](value)


def _number(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _MISFIT
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return _MISFIT
    return float(value)


def _whole(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else _MISFIT


def _text(value: Any) -> Any:
    # `freeze: 6` and `name: 3` are numbers to YAML and text to us.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else _MISFIT


_PLAIN: dict[Any, Callable[[Any], Any]] = {
    bool: lambda value: value if isinstance(value, bool) else _MISFIT,
    int: _whole,
    float: _number,
    str: _text,
    NoneType: lambda value: None if value is None else _MISFIT,
}


def _choices(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(c) for c in get_args(hint)]
    return [c for option in get_args(hint) for c in _choices(option)]


def _describe(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return " or ".join(_describe(option) for option in get_args(hint))
    if origin is Literal:
        return ", ".join(str(c) for c in get_args(hint))
    if origin is tuple:
        parts = get_args(hint)
        return "a list of names" if parts[-1] is Ellipsis else f"a list of {len(parts)} numbers"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}[hint]


_Rule = tuple[str, Callable[[Any], bool]]
_POSITIVE: _Rule = ("a number above 0", lambda v: v > 0)
_NOT_NEGATIVE: _Rule = ("0 or more", lambda v: v >= 0)
_SHARE: _Rule = ("0 to 1", lambda v: 0 <= v <= 1)
_BELOW_ONE: _Rule = ("0 or more, below 1", lambda v: 0 <= v < 1)
_COUNT: _Rule = ("a whole number of at least 1", lambda v: v >= 1)
_INCREASING: _Rule = ("two numbers above 0, the smaller first", lambda v: 0 < v[0] <= v[1])

_RANGES: dict[str, _Rule] = {
    "val_fraction": ("above 0, below 1", lambda v: 0 < v < 1),
    **dict.fromkeys(("imgsz", "frames", "stride", "clips"), _COUNT),
    "crops": ("1 or 3", lambda v: v in (1, 3)),
    "jitter": _INCREASING,
    "std": ("three numbers above 0", lambda v: min(v) > 0),
    "crop_ratio": _SHARE,
    "crop_scale": ("two shares above 0, at most 1, the smaller first", lambda v: 0 < v[0] <= v[1] <= 1),
    "crop_aspect": _INCREASING,
    **dict.fromkeys(("flip", "erase", "mix_prob", "mix_switch", "max_bad", "momentum"), _SHARE),
    **dict.fromkeys(("label_smoothing", "drop_path", "dropout", "ema"), _BELOW_ONE),
    **dict.fromkeys(("mixup", "cutmix", "lr_batch", "warmup_epochs", "warmup_lr", "min_lr"), _NOT_NEGATIVE),
    **dict.fromkeys(("short_side", "stored_side"), _NOT_NEGATIVE),
    **dict.fromkeys(("weight_decay", "clip_grad", "workers", "seed", "patience", "save_every"), _NOT_NEGATIVE),
    **dict.fromkeys(("passes", "updates", "warmup_updates"), _NOT_NEGATIVE),
    "long_side": _COUNT,
    **dict.fromkeys(("decay_at", "sides", "crop_range", "scales"), _INCREASING),
    "crop_sides": ("three numbers above 0", lambda v: min(v) > 0),
    "crop_prob": _SHARE,
    **dict.fromkeys(("repeats", "epochs", "batch", "accumulate", "val_every"), _COUNT),
    "lr": _POSITIVE,
    "layer_decay": ("above 0, at most 1", lambda v: 0 < v <= 1),
    "betas": ("two numbers of 0 or more, below 1", lambda v: min(v) >= 0 and max(v) < 1),
}

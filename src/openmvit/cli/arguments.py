"""From the words of a command line to checked options. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from openmvit.errors import UserError, did_you_mean
from openmvit.training.recipe_file import convert_value

_BOOLEANS = ("true", "false")
STDOUT = "-"
"""Value of a result file that stands for the standard output."""


@dataclass
class Arguments:
    """One parsed command line.

    Args:
        positional: value, list of values or None by name.
        flags: the options that were given, converted to the types of their fields.
        defaults: all options with their defaults.
    """

    positional: dict[str, Any]
    flags: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """All options, given ones over defaults."""
        return self.defaults | self.flags


def parse(verb: str, summary: str, options: type, positionals: tuple[str, ...], argv: list[str]) -> Arguments | None:
    """Read the words behind a verb; None after showing its help.

    `--key value`, `--key=value` and `key=value` mean the same, `-` in a key means `_`, a boolean needs no value,
    `--json` neither, and nothing is abbreviated.

    Args:
        options: dataclass of the options.
        positionals: names in order; `?` may be left out, `+` takes one or more.
    Raises:
        UserError: naming the word and what is accepted.
    """
    hints = get_type_hints(options)
    if any(token in ("-h", "--help") for token in argv):
        print(_parser(verb, summary, options, positionals).format_help(), end="")
        return None
    flags: dict[str, str] = {}
    words: list[str] = []
    for key, value in _pairs(verb, hints, argv):
        if key is None:
            words.append(value)
        else:
            flags[key] = value
    positional = _assign(verb, positionals, words)
    tokens = [f"--{key}={_as_yaml(key, value, hints[key])}" for key, value in flags.items()]
    parsed = _parser(verb, summary, options, (), flags).parse_args(tokens, defaults=False)
    defaults = {f.name: f.default for f in fields(options)}
    return Arguments(positional, parsed.as_dict(), defaults)


def _pairs(verb: str, hints: dict[str, Any], argv: list[str]) -> Iterator[tuple[str | None, str]]:
    """(option, value) pairs in order; the option of a positional word is None."""
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        if token == "--":
            yield from ((None, word) for word in rest)
            return
        match = re.match(r"(--)?([A-Za-z][\w-]*)(=)?", token)
        is_pair = match is not None and match[1] is None and match[3] is not None and not Path(token).exists()
        if match is None or not (match[1] or is_pair):
            if re.match(r"-[A-Za-z]", token):
                raise UserError(f"{verb} has no option {token}", f"Options are written out; see openmvit {verb} --help")
            yield None, token
            continue
        key = match[2].replace("-", "_")
        if key not in hints:
            raise UserError(f"{verb} has no option {match[1] or ''}{match[2]}", _nearest(key, verb, hints))
        if match[3]:
            yield key, token[match.end() :]
        elif hints[key] is bool and (not rest or rest[0] not in _BOOLEANS):
            yield key, "true"
        elif key == "json" and (not rest or not rest[0].endswith(".json")):
            # A word behind it is a picture to classify rather than a file to write over.
            yield key, STDOUT
        elif not rest or rest[0].startswith("--"):
            raise UserError(f"The option {token} has no value", f"Write {token} VALUE; see openmvit {verb} --help")
        else:
            yield key, rest.pop(0)


def _nearest(key: str, verb: str, hints: dict[str, Any]) -> str:
    fix = did_you_mean(key, hints)
    if not fix.startswith("Did"):
        return f"See openmvit {verb} --help"
    return re.sub(r"'(\w+)'", lambda m: "--" + m[1].replace("_", "-"), fix)


def _assign(verb: str, positionals: tuple[str, ...], words: list[str]) -> dict[str, Any]:
    """Positional words by name."""
    found: dict[str, Any] = {}
    rest = list(words)
    for spec in positionals:
        name = spec.rstrip("?+")
        if spec.endswith("+") and rest:
            found[name], rest = rest, []
        elif rest:
            found[name] = rest.pop(0)
        elif spec.endswith("?"):
            found[name] = None
        else:
            usage = " ".join(p.rstrip("?+").upper() for p in positionals)
            raise UserError(f"{verb} needs {name.upper()}", f"Usage: openmvit {verb} {usage}")
    if rest:
        raise UserError(f"{verb} cannot use the word {rest[0]!r}", f"See openmvit {verb} --help")
    return found


def _as_yaml(key: str, value: str, hint: Any) -> str:
    """A value as jsonargparse reads it: `0.5,0.5` as a list where a tuple is wanted, `none` as null."""
    parts = (hint, *get_args(hint))
    if value.lower() == "none" and type(None) in parts and (str not in parts or key == "auto_augment"):
        return "null"
    return f"[{value}]" if _tuple_in(hint) and "," in value and not value.startswith("[") else value


def _tuple_in(hint: Any) -> Any:
    """The tuple type that a hint accepts, or None."""
    return next((part for part in (hint, *get_args(hint)) if get_origin(part) is tuple), None)


def _parser(
    verb: str, summary: str, options: type, positionals: tuple[str, ...], typed: dict[str, str] | None = None
) -> Any:
    """The jsonargparse parser of a verb, with one-line errors that show the values as they were typed."""
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Parser(jsonargparse.ArgumentParser):
        """Raises UserError where argparse would exit, and shows keys as users type them."""

        def error(self, message: str, ex: Exception | None = None) -> Any:
            _raise(message, get_type_hints(options), typed or {})

        def format_help(self, formatter: Any = None) -> str:
            text = super().format_help(formatter) if formatter is not None else super().format_help()
            return re.sub(r"--[a-z_]+", lambda m: m[0].replace("_", "-"), text)

    usage = " ".join([*(_shown(p) for p in positionals), "[--key value ...]"])
    parser = Parser(prog=f"openmvit {verb}", usage=f"openmvit {verb} {usage}", description=summary, allow_abbrev=False)
    if fields(options):
        parser.add_class_arguments(options, None)
    return parser


def _shown(positional: str) -> str:
    name = positional.rstrip("?+").upper()
    return {"?": f"[{name}]", "+": f"{name} ..."}.get(positional[-1], name)


def _raise(message: str, hints: dict[str, Any], typed: dict[str, str]) -> None:
    """A UserError that says what the parser's message says, in our words.

    The wordings are those of jsonargparse 4.53: a wrong value, an unknown key on the command line or in a file.
    """
    lines = " ".join(message.split())
    wrong = re.search(r'Parser key "(\w+)":.*(?:Got value|Given value): (.*)$', lines)
    if wrong and wrong[1] in hints:
        key, value = wrong[1], typed.get(wrong[1], wrong[2])
        if numbers := get_args(_tuple_in(hints[key])):
            raise UserError(f"{key} is {value}", f"Give {len(numbers)} numbers with commas between them")
        convert_value(key, value, hints[key])
    unknown = re.search(r"(?:unrecognized arguments: --|does not accept option ')([\w.]+)", lines)
    fix = did_you_mean(unknown[1].rpartition(".")[2], hints) if unknown else "See the verb's --help"
    raise UserError(lines, fix)

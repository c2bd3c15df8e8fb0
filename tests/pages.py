"""What pages of text hold: their code blocks, commands and links, and how to try them."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


def blocks(page: str, *languages: str) -> list[str]:
    """Bodies of the fenced blocks in one of the languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands(pages: Iterable[str]) -> list[str]:
    """Every `openmvit ...` line of the shell blocks, without its comment and the variables before it."""
    lines = [line for page in pages for body in blocks(page, "sh", "bash") for line in body.splitlines()]
    plain = {re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line.split("#")[0].strip()) for line in lines}
    return sorted(line for line in plain if line.startswith("openmvit "))


@cache
def help_text(*words: str) -> subprocess.CompletedProcess[str]:
    """What `openmvit WORDS --help` prints."""
    code = "import sys; from openmvit.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *words, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )


def check_command(line: str) -> None:
    """Fail where a command line names a verb or an option that does not exist."""
    words = shlex.split(line)[1:]
    verb = words[:2] if words[0] == "data" else words[:1]
    shown = help_text(*verb)
    assert shown.returncode == 0, shown.stderr
    for option in (word for word in words if word.startswith("--")):
        assert re.search(rf"{option}\b", shown.stdout), f"{' '.join(verb)} has no {option}"


def run_python(script: str, folder: Path) -> None:
    """Run a script in a folder, in a process of its own and without network."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr


def links(page: str) -> list[str]:
    """Targets of the links of a page, without those to other sites."""
    found = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    return [target for target in found if not target.startswith("https://")]

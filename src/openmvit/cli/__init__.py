"""The command `openmvit`: `main` runs one command line. Its help imports no torch."""

from openmvit.cli.main import main

__all__ = ["main"]

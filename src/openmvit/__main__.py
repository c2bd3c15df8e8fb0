"""`python -m openmvit` is the command `openmvit`."""

import sys

from openmvit.cli import main

if __name__ == "__main__":
    sys.exit(main())

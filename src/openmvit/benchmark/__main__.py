"""`python -m openmvit.benchmark`."""

import sys

from openmvit.benchmark.command import main
from openmvit.errors import UserError

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

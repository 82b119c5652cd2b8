"""`python -m iotsim`: the command line."""

import sys

from iotsim.cli import main

if __name__ == "__main__":
    sys.exit(main())

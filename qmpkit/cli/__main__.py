"""`python -m qmpkit.cli`, for when the script is not on PATH."""

import sys

from qmpkit.cli import main

if __name__ == "__main__":
    sys.exit(main())

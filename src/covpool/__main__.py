"""``python -m covpool`` is the command ``covpool``."""

import sys

from covpool.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])

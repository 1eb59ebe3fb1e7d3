"""Train a network: python train.py --config_path=FILE [--key=value ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
from covpool.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

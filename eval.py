"""Evaluate a checkpoint: python eval.py --config_path=FILE --data_path=DIR --checkpoint_file_path=CKPT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
from covpool.cli import main

if __name__ == "__main__":
    main(["eval", *sys.argv[1:]])

"""Export a checkpoint: python export.py --config_path=FILE --checkpoint_file_path=CKPT --file_name=NAME."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
from covpool.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])

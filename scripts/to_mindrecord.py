"""Pack an image folder into MindRecord files, which training reads with --dataset=mindrecord.

python scripts/to_mindrecord.py --data_path DIR --output OUT [--shards N] [--workers N]

DIR holds train/<class>/* and, if there is one, val/<class>/*. OUT then holds train.mindrecord* and val.mindrecord*,
each with an index (.db) beside it; class names and the names of the files are kept inside. Images are stored as they
are, so batches are the same as from the folder. Every image is checked on the way; a damaged one is named and ends the
packing. OUT appears only when it is complete.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from tqdm import tqdm

from covpool.data.image_folder import open_image_folder
from covpool.data.mindrecord import pack_image_folder
from covpool.data.sources import SPLITS
from covpool.errors import UserError
from covpool.runtime.command import new_parser, reports_errors
from covpool.runtime.files import whole_folder


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, pack, say what was written; returns the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--data_path", type=Path, required=True, help="image folder with train/ and, if any, val/")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; must not exist")
    parser.add_argument("--shards", type=int, help="files per split; default: one per GiB")
    parser.add_argument("--workers", type=int, help="threads that read images; default: one per core")
    arguments = parser.parse_args(argv)
    if arguments.workers is not None and arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    os.environ.setdefault("GLOG_v", "3")
    counts = pack(arguments.data_path, arguments.output, arguments.shards, arguments.workers)
    # Blocks in use: MindRecord leaves room in a file that takes no place on the disk.
    size = sum(path.stat().st_blocks * 512 for path in arguments.output.iterdir())
    told = ", ".join(f"{count} {split} images" for split, count in counts.items())
    print(f"{arguments.output}: {told}, {size / 2**20:.1f} MiB on disk")
    return 0


def pack(data_path: Path, output: Path, shards: Optional[int] = None, workers: Optional[int] = None) -> dict[str, int]:
    """Make the folder ``output`` from the image folder ``data_path``.

    Returns:
        Number of images by split.

    Raises:
        UserError: The output exists, a class folder is empty, an image is damaged, or the disk is full.
    """
    if output.exists():
        raise UserError(f"{output} exists already: choose another name or remove it")
    sources = [
        open_image_folder(data_path, split) for split in SPLITS if split == "train" or (data_path / split).is_dir()
    ]
    with whole_folder(output) as partial:
        for source in sources:
            with tqdm(total=source.num_samples, desc=source.split, unit="image") as bar:
                for written in pack_image_folder(source, partial, shards, workers):
                    bar.update(written)
    return {source.split: source.num_samples for source in sources}


if __name__ == "__main__":
    sys.exit(main())

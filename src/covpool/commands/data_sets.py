"""Making data sets: packed folders, corrupted copies."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from covpool.data.image_folder import open_image_folder
from covpool.data.mindrecord import pack_image_folder
from covpool.data.sources import SPLITS
from covpool.errors import UserError
from covpool.research.robustness.severities import CORRUPTIONS, SCALES, SEVERITIES
from covpool.research.robustness.tree import Plan, list_images, write_tree
from covpool.runtime.command import new_parser
from covpool.runtime.environment import available_cores
from covpool.runtime.files import whole_folder


def pack_folder(argv: Sequence[str]) -> int:
    """Pack an image folder into MindRecord files, which training reads with --dataset=mindrecord.

    covpool pack --data_path DIR --output OUT [--shards N] [--workers N]

    DIR holds train/<class>/* and, if there is one, val/<class>/*. OUT then holds train.mindrecord* and val.mindrecord*,
    each with an index (.db) beside it; class names and the names of the files are kept inside. Images are stored as
    they are, so batches are the same as from the folder. Every image is checked on the way; a damaged one is named and
    ends the packing. OUT appears only when it is complete.
    """
    parser = new_parser("covpool pack", pack_folder.__doc__)
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


def corrupt(argv: Sequence[str]) -> int:
    """Write an ImageNet-C-like tree: covpool corrupt --source DIR --output DIR [--scale small ...].

    DIR of the source holds a folder per class (such as val/ of an image folder); that of the output gets
    CORRUPTION/SEVERITY/CLASS/FILE, which eval.py --robustness=imagenet_c evaluates. Files that are there already are
    left alone: a stopped run goes on with the same command. Nothing depends on the number of processes.
    """
    parser = new_parser("covpool corrupt", corrupt.__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with a folder per class")
    parser.add_argument("--output", type=Path, required=True, help="root of the tree")
    parser.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=list(CORRUPTIONS), metavar="NAME")
    parser.add_argument("--severities", nargs="+", type=int, choices=SEVERITIES, default=list(SEVERITIES))
    parser.add_argument(
        "--scale",
        choices=tuple(SCALES),
        default="imagenet",
        help="small: the severities of CIFAR-10-C, for 28-64 pixels",
    )
    parser.add_argument(
        "--size", type=int, help="side of the images, 224 at scale imagenet; images keep theirs at scale small"
    )
    parser.add_argument("--per_class", type=int, help="at most so many images of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    arguments = parser.parse_args(argv)
    for name in ("size", "per_class", "workers"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    size = arguments.size or (224 if arguments.scale == "imagenet" else None)
    plan = Plan(
        arguments.source,
        arguments.output,
        tuple(arguments.corruptions),
        tuple(sorted(arguments.severities)),
        arguments.scale,
        size,
        arguments.per_class,
        arguments.seed,
    )
    images = list_images(plan)
    written = 0
    for count in tqdm(write_tree(plan, images, arguments.workers), total=len(images), unit="image"):
        written += count
    wanted = len(images) * len(plan.corruptions) * len(plan.severities)
    print(f"{plan.output}: {written} files written, {wanted - written} were there; {len(images)} images")
    return 0

"""Making data sets: packed folders, corrupted copies."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from PIL import Image
from tqdm import tqdm

from covpool.data.decoding import MAX_PIXELS
from covpool.data.image_folder import open_image_folder
from covpool.data.mindrecord_writer import pack_image_folder
from covpool.data.sources import SPLITS
from covpool.data.textures import DIFFERENCES, Textures
from covpool.research.robustness.corruptions import CORRUPTIONS, SCALES, SEVERITIES
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
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="most pixels of an image")
    arguments = parser.parse_args(argv)
    if arguments.workers is not None and arguments.workers < 1:
        parser.error(f"--workers must be at least 1, got {arguments.workers}")
    os.environ.setdefault("GLOG_v", "3")
    counts = pack(arguments.data_path, arguments.output, arguments.shards, arguments.workers, arguments.max_pixels)
    # Blocks in use: MindRecord leaves room in a file that takes no place on the disk.
    size = sum(path.stat().st_blocks * 512 for path in arguments.output.iterdir())
    told = ", ".join(f"{count} {split} images" for split, count in counts.items())
    print(f"{arguments.output}: {told}, {size / 2**20:.1f} MiB on disk")
    return 0


def pack(
    data_path: Path,
    output: Path,
    shards: Optional[int] = None,
    workers: Optional[int] = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, int]:
    """Make the folder ``output`` from the image folder ``data_path``.

    Returns:
        Number of images by split.

    Raises:
        UserError: The output exists, a class folder is empty, an image is damaged, or the disk is full.
    """
    sources = [
        dataclasses.replace(open_image_folder(data_path, split), max_pixels=max_pixels)
        for split in SPLITS
        if split == "train" or (data_path / split).is_dir()
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


def make_textures(argv: Sequence[str]) -> int:
    """Make an image folder of colour textures whose classes differ in one statistic alone.

    covpool make-textures --output DIR [--by correlation|orientation|colour ...] [--strength 0.6]

    By correlation of the channels: equal means and variances, second-order information only, which covariance pooling
    is for. By orientation of the grain. By mean colour: first-order information. DIR gets train/<class>/NNNN.png and
    val/<class>/NNNN.png, and appears only when it is complete.
    """
    parser = new_parser("covpool make-textures", make_textures.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; must not exist")
    parser.add_argument("--by", nargs="+", choices=DIFFERENCES, default=["correlation"], help="what classes differ in")
    parser.add_argument("--strength", type=float, default=0.6, help="how much they differ, 0 to 1 (default: 0.6)")
    parser.add_argument("--classes", type=int, default=6, help="number of classes, 2 to 8 (default: 6)")
    parser.add_argument("--size", type=int, default=96, help="height and width in pixels (default: 96)")
    parser.add_argument("--train", type=int, default=50, help="training images per class (default: 50)")
    parser.add_argument("--val", type=int, default=20, help="validation images per class (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default: 0)")
    arguments = parser.parse_args(argv)
    if min(arguments.train, arguments.val) < 1 or arguments.seed < 0:
        parser.error("--train and --val must be at least 1, --seed at least 0")
    try:
        textures = Textures(tuple(arguments.by), arguments.classes, arguments.size, arguments.strength)
    except ValueError as error:
        parser.error(str(error))
    with whole_folder(arguments.output) as partial:
        for split, count in (("train", arguments.train), ("val", arguments.val)):
            for label in range(textures.classes):
                folder = partial / split / f"texture_{label}"
                folder.mkdir(parents=True)
                # Splits have seeds of their own: no validation image is a training image.
                images = textures.images(label, count, 2 * arguments.seed + (split == "val"))
                for number, image in enumerate(images):
                    Image.fromarray(image).save(folder / f"{number:04d}.png")
    total = textures.classes * (arguments.train + arguments.val)
    print(f"{arguments.output}: {total} images of {textures.classes} classes")
    return 0

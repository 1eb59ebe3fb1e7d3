"""Data sets: checked, packed, corrupted, made."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Optional

from PIL import Image

from covpool.data.check import Finding, Report, check_image_folder
from covpool.data.datasets import DATASETS, IMAGE_FOLDERS, open_source
from covpool.data.decoding import MAX_PIXELS
from covpool.data.image_folder import open_image_folder, write_image_list
from covpool.data.mindrecord_writer import pack_image_folder
from covpool.data.sources import SPLITS
from covpool.data.textures import DIFFERENCES, Textures
from covpool.data.usable import usable
from covpool.errors import UserError
from covpool.research.robustness.corruptions import CORRUPTIONS, SCALES, SEVERITIES
from covpool.research.robustness.tree import Plan, list_images, write_tree
from covpool.runtime.command import count, new_parser, progress_bar
from covpool.runtime.environment import available_cores
from covpool.runtime.files import os_errors_as, whole_folder, write_json


def check_data(argv: Sequence[str]) -> int:
    """List every problem of a data set: covpool check-data --data_path DIR.

    Reads and decodes every image below train/ and val/. A problem is what training would stop at or leave out: damaged,
    empty, unsupported and unreadable files, links that lead nowhere, classes without images or only in val/. A note
    says what is read otherwise than one may expect: converted colours, animations, EXIF rotation. Exit code: 0 without
    problems, 1 with problems, 2 for a usage error or a check that could not be finished.

    Permissions are those of who runs this; root may read everything.
    """
    parser = new_parser("covpool check-data", check_data.__doc__)
    parser.add_argument("--data_path", type=Path, required=True, help="root of the data set")
    parser.add_argument("--dataset", default="image_folder", choices=tuple(DATASETS))
    parser.add_argument("--write_clean_list", type=Path, metavar="FILE", help="list of the good images, for image_list")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all findings as JSON")
    parser.add_argument("--workers", type=count, help="processes; default: one per core")
    parser.add_argument("--min_images", type=count, default=1, help="least training images of a class")
    parser.add_argument("--max_pixels", type=count, default=MAX_PIXELS, help="most pixels of an image")
    parser.add_argument("--duplicates", action="store_true", help="note images of val/ that are in train/ too")
    parser.add_argument("--notes", action="store_true", help="print every note, not one of each kind")
    arguments = parser.parse_args(argv)
    root, workers, max_pixels = arguments.data_path, arguments.workers, arguments.max_pixels
    is_folder, clean_list = arguments.dataset in IMAGE_FOLDERS, arguments.write_clean_list
    if not is_folder and (clean_list or arguments.duplicates or arguments.min_images > 1):
        parser.error("--write_clean_list, --duplicates and --min_images are for image folders")
    if not root.is_dir():
        parser.error(f"--data_path is not a folder: {root}")
    try:
        if is_folder:
            bar = partial(progress_bar, title="images")
            report = check_image_folder(root, workers, arguments.min_images, arguments.duplicates, max_pixels, bar)
        else:
            report = _check_source(arguments.dataset, root, workers, max_pixels)
        _print_report(report, root, arguments.notes)
        if arguments.json:
            _write_report(arguments.json, report, root)
        if clean_list:
            if not any(path.startswith("train/") for path in report.clean):
                raise UserError("no clean list was written: no training image can be used")
            write_image_list(clean_list, report.clean, f"images of {root} without faults")
            print(f"{clean_list}: {len(report.clean)} images")
    except UserError as error:
        raise UserError(str(error), 2) from error  # 1 is for problems
    return 1 if report.problems else 0


def _check_source(dataset: str, folder: Path, workers: Optional[int], max_pixels: int) -> Report:
    """Check what is no image folder, through the same source that training uses."""
    report = Report()
    for split in SPLITS:
        try:
            source = open_source(dataset, folder, split, max_pixels=max_pixels)
            report.images[split], report.classes[split] = source.num_samples, len(source.class_names)
            with progress_bar(None, source.num_samples, split) as bar:
                _, problems = usable(source, workers, progress=bar.update)
        except UserError as error:
            problems = [str(error)]
        report.findings += [Finding(True, "image" if split in report.images else "data set", p) for p in problems]
    return report


def _print_report(report: Report, root: Path, all_notes: bool) -> None:
    def show(word: str, finding: Finding) -> None:
        print(f"{word}: {': '.join(part for part in (finding.kind, finding.path, finding.text) if part)}")

    for finding in report.problems:
        show("problem", finding)
    for kind in dict.fromkeys(note.kind for note in report.notes):
        found = [note for note in report.notes if note.kind == kind]
        for finding in found if all_notes else found[:1]:
            show("note", finding)
        if len(found) > 1 and not all_notes:
            print(f"note: {kind}: {len(found) - 1} more (--notes shows them)")
    counts = [f"{split} {images} images in {report.classes[split]} classes" for split, images in report.images.items()]
    read = ", ".join(counts) or "nothing read"
    print(f"{root}: {read}; problems: {len(report.problems)}, notes: {len(report.notes)}")


def _write_report(path: Path, report: Report, root: Path) -> None:
    def plain(findings: list[Finding]) -> list[dict[str, str]]:
        return [{"kind": f.kind, "path": f.path, "text": f.text} for f in findings]

    splits = {split: {"images": n, "classes": report.classes[split]} for split, n in report.images.items()}
    content = {"data_path": str(root), "splits": splits}
    with os_errors_as(f"cannot write {path}"):
        write_json(path, {**content, "problems": plain(report.problems), "notes": plain(report.notes)})


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
    parser.add_argument("--workers", type=count, help="threads that read images; default: one per core")
    parser.add_argument("--max_pixels", type=int, default=MAX_PIXELS, help="most pixels of an image")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("GLOG_v", "3")
    counts = pack(arguments.data_path, arguments.output, arguments.shards, arguments.workers, arguments.max_pixels)
    # Blocks in use: MindRecord leaves room in a file that takes no place on the disk.
    size = sum(path.stat().st_blocks * 512 for path in arguments.output.iterdir())
    packed = ", ".join(f"{images} {split} images" for split, images in counts.items())
    print(f"{arguments.output}: {packed}, {size / 2**20:.1f} MiB on disk")
    return 0


def pack(
    data_path: Path,
    output: Path,
    shards: Optional[int] = None,
    workers: Optional[int] = None,
    max_pixels: int = MAX_PIXELS,
) -> dict[str, int]:
    """Make the folder ``output`` from the image folder ``data_path``; number of images by split."""
    sources = [
        dataclasses.replace(open_image_folder(data_path, split), max_pixels=max_pixels)
        for split in SPLITS
        if split == "train" or (data_path / split).is_dir()
    ]
    with whole_folder(output) as folder:
        for source in sources:
            with progress_bar(None, source.num_samples, source.split) as bar:
                for written in pack_image_folder(source, folder, shards, workers):
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
    scale = "small: the severities of CIFAR-10-C, for 28-64 pixels"
    parser.add_argument("--scale", choices=tuple(SCALES), default="imagenet", help=scale)
    size = "side of the images, 224 at scale imagenet; images keep theirs at scale small"
    parser.add_argument("--size", type=count, help=size)
    parser.add_argument("--per_class", type=count, help="at most so many images of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=count, default=available_cores(), help="processes")
    options = vars(parser.parse_args(argv))
    workers = options.pop("workers")
    if options["size"] is None and options["scale"] == "imagenet":
        options["size"] = 224
    options.update(corruptions=tuple(options["corruptions"]), severities=tuple(sorted(options["severities"])))
    plan = Plan(**options)
    images = list_images(plan)
    written = sum(progress_bar(write_tree(plan, images, workers), len(images), "corruption"))
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
    parser.add_argument("--train", type=count, default=50, help="training images per class (default: 50)")
    parser.add_argument("--val", type=count, default=20, help="validation images per class (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the images (default: 0)")
    arguments = parser.parse_args(argv)
    if arguments.seed < 0:
        parser.error("--seed must be at least 0")
    try:
        textures = Textures(tuple(arguments.by), arguments.classes, arguments.size, arguments.strength)
    except ValueError as error:
        parser.error(str(error))
    with whole_folder(arguments.output) as output:
        for split, number in (("train", arguments.train), ("val", arguments.val)):
            for label in range(textures.classes):
                folder = output / split / f"texture_{label}"
                folder.mkdir(parents=True)
                # Splits have seeds of their own: no validation image is a training image.
                images = textures.images(label, number, 2 * arguments.seed + (split == "val"))
                for index, image in enumerate(images):
                    Image.fromarray(image).save(folder / f"{index:04d}.png")
    total = textures.classes * (arguments.train + arguments.val)
    print(f"{arguments.output}: {total} images of {textures.classes} classes")
    return 0

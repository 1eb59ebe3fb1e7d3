"""Checks before a training: data sets and devices."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from covpool.data.check import Finding, Report, check_image_folder
from covpool.data.datasets import DATASETS, IMAGE_FOLDERS, open_source
from covpool.data.decoding import MAX_PIXELS
from covpool.data.image_folder import write_image_list
from covpool.data.sources import SPLITS
from covpool.data.usable import usable
from covpool.errors import UserError
from covpool.runtime.command import new_parser
from covpool.runtime.cuda import INSTALL, activation_variables, find_wheels, wheels_problem
from covpool.runtime.devices import DEVICES, check_device
from covpool.runtime.files import write_json


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
    parser.add_argument("--workers", type=_count, help="processes; default: one per core")
    parser.add_argument("--min_images", type=_count, default=1, help="least training images of a class (default: 1)")
    parser.add_argument("--max_pixels", type=_count, default=MAX_PIXELS, help="most pixels of an image")
    parser.add_argument("--duplicates", action="store_true", help="note images of val/ that are in train/ too")
    parser.add_argument("--notes", action="store_true", help="print every note, not one of each kind")
    arguments = parser.parse_args(argv)
    is_folder = arguments.dataset in IMAGE_FOLDERS
    if not is_folder and (arguments.write_clean_list or arguments.duplicates or arguments.min_images > 1):
        parser.error("--write_clean_list, --duplicates and --min_images are for image folders")
    if not arguments.data_path.is_dir():
        parser.error(f"--data_path is not a folder: {arguments.data_path}")
    try:
        if is_folder:
            report = check_image_folder(
                arguments.data_path,
                arguments.workers,
                arguments.min_images,
                arguments.duplicates,
                arguments.max_pixels,
                _bar,
            )
        else:
            report = _check_source(arguments.dataset, arguments.data_path, arguments.workers, arguments.max_pixels)
        _print_report(report, arguments.data_path, arguments.notes)
        if arguments.json:
            _write_json(arguments.json, report, arguments.data_path)
        if arguments.write_clean_list:
            if not any(path.startswith("train/") for path in report.clean):
                raise UserError("no clean list was written: no training image can be used")
            write_image_list(
                arguments.write_clean_list, report.clean, f"images of {arguments.data_path} without faults"
            )
            print(f"{arguments.write_clean_list}: {len(report.clean)} images")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if report.problems else 0


def _check_source(dataset: str, folder: Path, workers: Optional[int], max_pixels: int) -> Report:
    """Check what is no image folder, through the same source that training uses."""
    report = Report()
    for split in SPLITS:
        try:
            source = open_source(dataset, folder, split, max_pixels=max_pixels)
            report.images[split], report.classes[split] = source.num_samples, len(source.class_names)
            with tqdm(total=source.num_samples, desc=split, unit="image", disable=None) as bar:
                _, problems = usable(source, workers, progress=bar.update)
        except UserError as error:
            problems = [str(error)]
        report.findings += [Finding(True, "image" if split in report.images else "data set", p) for p in problems]
    return report


def _print_report(report: Report, root: Path, all_notes: bool) -> None:
    for finding in report.problems:
        print(f"problem: {_describe(finding)}")
    kinds: dict[str, list[Finding]] = {}
    for finding in report.notes:
        kinds.setdefault(finding.kind, []).append(finding)
    for found in kinds.values():
        shown = found if all_notes else found[:1]
        for finding in shown:
            print(f"note: {_describe(finding)}")
        if len(found) > len(shown):
            print(f"note: {found[0].kind}: {len(found) - len(shown)} more (--notes shows them)")
    told = ", ".join(
        f"{split} {report.images[split]} images in {report.classes[split]} classes"
        for split in SPLITS
        if split in report.images
    )
    print(f"{root}: {told or 'nothing read'}; problems: {len(report.problems)}, notes: {len(report.notes)}")


def _describe(finding: Finding) -> str:
    return ": ".join(part for part in (finding.kind, finding.path, finding.text) if part)


def _write_json(path: Path, report: Report, root: Path) -> None:
    def plain(findings: list[Finding]) -> list[dict[str, str]]:
        return [{"kind": f.kind, "path": f.path, "text": f.text} for f in findings]

    splits = {split: {"images": n, "classes": report.classes[split]} for split, n in report.images.items()}
    content = {
        "data_path": str(root),
        "splits": splits,
        "problems": plain(report.problems),
        "notes": plain(report.notes),
    }
    try:
        write_json(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _bar(items: Iterable, total: int) -> Iterable:
    return tqdm(items, total=total, desc="images", unit="image", disable=None)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def check_devices(argv: Sequence[str]) -> int:
    """Tell which devices MindSpore can use here, why not, what was found and what to install.

    covpool check-device [--device_target=CPU|GPU|Ascend] [--json] [--libraries]

    Exit code: 0 if the device asked for can be used (without --device_target: if any can), 1 if not.
    """
    parser = new_parser("covpool check-device", check_devices.__doc__)
    parser.add_argument("--device_target", choices=DEVICES, help="only this one")
    parser.add_argument("--json", action="store_true", help="one JSON object, by device")
    parser.add_argument("--libraries", action="store_true", help="also where each library is found")
    parser.add_argument(
        "--print_env", action="store_true", help="NAME=VALUE lines of the variables that the GPU needs, nothing else"
    )
    arguments = parser.parse_args(argv)
    if arguments.print_env:
        return _print_env()
    devices = [arguments.device_target] if arguments.device_target else DEVICES
    reports = [check_device(device) for device in devices]
    if arguments.json:
        print(json.dumps({report.device: report.to_dict() for report in reports}, indent=2))
    else:
        for report in reports:
            print(report.text())
            if arguments.libraries:
                for name, path in report.libraries.items():
                    print(f"  library: {name} {path or 'NOT FOUND'}")
    return 0 if any(report.usable for report in reports) else 1


def _print_env() -> int:
    wheels = find_wheels()
    problem = wheels_problem(wheels)
    if problem:
        raise UserError(f"{problem}: {INSTALL}")
    for name, value in ({} if wheels.missing else activation_variables(wheels)).items():
        print(f"{name}={value}")
    return 0

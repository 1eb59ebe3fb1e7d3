"""Data sets by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Callable, Optional, Union

from covpool.data.arrays import open_cifar10, open_fashion_mnist
from covpool.data.decoding import MAX_PIXELS
from covpool.data.image_folder import open_image_folder
from covpool.data.mindrecord import open_mindrecord
from covpool.data.sources import SPLITS, Source, check_choice
from covpool.errors import UserError

IMAGE_FOLDERS = ("image_folder", "imagenet2012", "imagenet")
DATASETS: Mapping[str, Callable[[Path, str], Source]] = {
    **dict.fromkeys(IMAGE_FOLDERS, open_image_folder),
    "mindrecord": open_mindrecord,
    "fashion_mnist": open_fashion_mnist,
    "cifar10": open_cifar10,
}


def open_source(
    dataset: str,
    data_path: Union[str, Path],
    split: str,
    image_list: Optional[Union[str, Path]] = None,
    max_pixels: int = MAX_PIXELS,
    val_fraction: float = 0.0,
) -> Source:
    """Open one split of a data set; UserError: unknown data set or split, or not what should be in the folder.

    Args:
        dataset: ``image_folder`` (also ``imagenet2012``, ``imagenet``), ``mindrecord``, ``fashion_mnist`` or
            ``cifar10``.
        data_path: Folder of the data set; see docs/data.md for what each expects there.
        split: ``"train"`` or ``"val"``; of an image folder also ``"test"``.
        image_list: For image folders: a file that names the images to use, as ``covpool check-data`` writes it;
            None or empty for all.
        max_pixels: Encoded images of more pixels are not decoded.
        val_fraction: For image folders without ``val/``: the part of ``train/`` that is ``val`` instead.
    """
    check_choice("dataset", dataset, tuple(DATASETS))
    is_folder = dataset in IMAGE_FOLDERS
    check_choice("split", split, (*SPLITS, "test") if is_folder else SPLITS)
    folder = Path(data_path)
    if not folder.is_dir():
        raise UserError(f"data_path is not a folder: {folder}")
    if is_folder:
        source: Source = open_image_folder(folder, split, Path(image_list) if image_list else None, val_fraction)
    elif image_list or val_fraction:
        key, does = ("image_list", "names files of") if image_list else ("val_fraction", "splits")
        raise UserError(f"{key} {does} an image folder, dataset is {dataset!r}", exit_code=2)
    else:
        source = DATASETS[dataset](folder, split)
    return dataclasses.replace(source, max_pixels=max_pixels)

"""Fashion-MNIST: the data set, and the sample that comes with the repository."""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from covpool.data.arrays import FASHION_MNIST_CLASSES, FASHION_MNIST_FILES, find_idx, read_idx
from covpool.errors import UserError
from covpool.runtime.command import new_parser, progress_bar
from covpool.runtime.files import whole_folder

AUTHORS_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
DEBIAN_PACKAGE = "dataset-fashion-mnist"

# MD5 of each file as the authors publish it (compressed, README of github.com/zalandoresearch/fashion-mnist), and of
# what it holds when decompressed, which other compressions of the same file share. MD5 finds damage; it is no
# protection against somebody who forges a file on purpose.
CHECKSUMS = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
}
MAX_DOWNLOAD = 64 << 20  # bytes of a file; the largest has 26 MB
COUNTS = {"train": 60000, "val": 10000}


def fashion_mnist(argv: Sequence[str]) -> int:
    """Prepare Fashion-MNIST: an image folder of PNG files, or the four original files.

    covpool fashion-mnist --source SOURCE --output DIR [--raw]

    SOURCE is a folder with the four original files (with or without .gz), `debian` (Debian's package
    dataset-fashion-mnist, fetched with apt-get and unpacked beside the output: nothing is installed), `url` (the
    authors' server) or the address of a folder on a web server that holds the files.

    DIR then holds train/<class>/NNNNN.png and val/<class>/NNNNN.png (the number is the position in the original file),
    or with --raw the original files, for `dataset: fashion_mnist`. It appears only when it is complete.
    """
    parser = new_parser("covpool fashion-mnist", fashion_mnist.__doc__)
    parser.add_argument("--source", required=True, help="a folder, `debian`, `url` or an http(s) address")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; must not exist")
    parser.add_argument("--raw", action="store_true", help="the four original files instead of an image folder")
    parser.add_argument(
        "--any_content", action="store_true", help="accept other data in the same format: no checksums, no counts"
    )
    arguments = parser.parse_args(argv)
    output, count = arguments.output, 0
    with whole_folder(output) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as scratch:
        folder = _fetch(arguments.source, Path(scratch))
        files = [find_idx(folder, name) for split in FASHION_MNIST_FILES.values() for name in split]
        for path in [] if arguments.any_content else files:
            _verify(path)
        for path in files if arguments.raw else []:
            shutil.copyfile(path, partial / path.name)
        for split in () if arguments.raw else FASHION_MNIST_FILES:
            images, labels = _read(folder, split, None if arguments.any_content else COUNTS[split])
            _write_images(images, labels, range(len(images)), partial / split)
            count += len(images)
    print(f"{output}: {f'{len(files)} original files' if arguments.raw else f'{count} images'}")
    return 0


def _fetch(source: str, scratch: Path) -> Path:
    """Return a folder with the four original files, fetched into ``scratch`` unless the source is a folder."""
    if source == "debian":
        return _fetch_debian(scratch)
    if source == "url" or source.startswith(("http://", "https://")):
        for name in CHECKSUMS:
            _download(f"{(AUTHORS_URL if source == 'url' else source).rstrip('/')}/{name}.gz", scratch / f"{name}.gz")
        return scratch
    if not Path(source).is_dir():
        raise UserError(f"--source is not a folder, `debian`, `url` or an http(s) address: {source}")
    return Path(source)


def _fetch_debian(scratch: Path) -> Path:
    """Download Debian's package and unpack it, without installing it; returns the folder with the files."""
    for command in (["apt-get", "download", DEBIAN_PACKAGE], ["dpkg-deb", "-x", "PACKAGE", "."]):
        package = next(scratch.glob("*.deb"), None)
        command = [package.name if part == "PACKAGE" and package else part for part in command]
        try:
            done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise UserError(f"--source debian needs {command[0]}, which is not on this system") from None
        if done.returncode:
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            raise UserError(f"{' '.join(command)} failed: {reason} (an `apt-get update` as root may be needed first)")
    return scratch / "usr" / "share" / "datasets" / "fashion-mnist"


def _download(url: str, path: Path) -> None:
    try:
        with urllib.request.urlopen(url, timeout=30) as response, path.open("wb") as file:  # noqa: S310 -- only http(s) gets here
            size = int(response.headers.get("Content-Length") or 0) or None
            with progress_bar(None, size, path.stem, "B", unit_scale=True) as bar:
                while block := response.read(1 << 16):
                    bar.update(file.write(block))
                    if file.tell() > MAX_DOWNLOAD:
                        raise UserError(f"{url} has more than {MAX_DOWNLOAD} bytes: not one of the published files")
    except (urllib.error.URLError, OSError) as error:
        raise UserError(f"cannot download {url}: {getattr(error, 'reason', error)}") from error


def _verify(path: Path) -> None:
    """Raise UserError unless the file is the published one, or another compression of the same content."""
    published, content = CHECKSUMS[path.name.removesuffix(".gz")]
    values = read_idx(path)  # within limits, so the rest is, too
    if path.stat().st_size <= MAX_DOWNLOAD and _md5(path.read_bytes()) == published:
        return
    found = _md5(bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes())
    if found != content:
        raise UserError(
            f"{path} is not the published file (MD5 of the content is {found}, not {content}); "
            "--any_content accepts other data in the same format"
        )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _read(folder: Path, split: str, expected: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a split, of which there must be ``expected``."""
    images, labels = (read_idx(find_idx(folder, name)) for name in FASHION_MNIST_FILES[split])
    if len(images) != len(labels) or expected not in (None, len(images)):
        raise UserError(f"{split}: {len(images)} images and {len(labels)} labels, expected {COUNTS[split]} of each")
    if len(labels) and labels.max() >= len(FASHION_MNIST_CLASSES):
        raise UserError(f"{split}: label {labels.max()} is outside the {len(FASHION_MNIST_CLASSES)} classes")
    return images, labels


def _write_images(images: np.ndarray, labels: np.ndarray, numbers: Any, output: Path, optimize: bool = False) -> None:
    """Write the images of these numbers as PNG files in one folder per class."""
    for name in FASHION_MNIST_CLASSES:
        (output / name).mkdir(parents=True)
    for number in progress_bar(numbers, len(numbers), output.name):
        path = output / FASHION_MNIST_CLASSES[labels[number]] / f"{number:05d}.png"
        Image.fromarray(images[number]).save(path, optimize=optimize)


def fashion_mnist_sample(argv: Sequence[str]) -> int:
    """Make the small Fashion-MNIST sample that comes with the repository.

    covpool fashion-mnist-sample --source DIR --output data/fashion_mnist_sample --train 200 --val 50 --seed 0

    DIR holds the four original files (covpool fashion-mnist --raw). The training images are taken from the original
    training split, the validation images from the original test split, the same number of each class, chosen at random
    by the seed. The images are grayscale PNG files, compressed as far as PNG goes, named by their position in the
    original file.
    """
    parser = new_parser("covpool fashion-mnist-sample", fashion_mnist_sample.__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with the four original files")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; must not exist")
    parser.add_argument("--train", type=int, default=200, help="training images per class (default: 200)")
    parser.add_argument("--val", type=int, default=50, help="validation images per class (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    arguments = parser.parse_args(argv)
    counts = {"train": arguments.train, "val": arguments.val}
    with whole_folder(arguments.output) as partial:
        for split, per_class in counts.items():
            images, labels = _read(arguments.source, split)
            chosen = choose(labels, per_class, arguments.seed).tolist()
            _write_images(images, labels, chosen, partial / split, optimize=True)
        size = sum(path.stat().st_size for path in partial.rglob("*.png"))
        readme = Path(__file__).with_name("fashion_mnist_sample.md").read_text(encoding="utf-8")
        (partial / "README.md").write_text(readme.format(seed=arguments.seed, **counts), encoding="utf-8")
    print(f"{arguments.output}: {size / 1024:.0f} KiB of images")
    return 0


def choose(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """The indices of ``per_class`` images of every class, int64 sorted, chosen at random by the seed."""
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = []
    for label, name in enumerate(FASHION_MNIST_CLASSES):
        members = np.flatnonzero(labels == label)
        if not 0 < per_class <= len(members):
            raise UserError(f"class {name} has {len(members)} images, {per_class} were asked for")
        chosen.append(generator.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))

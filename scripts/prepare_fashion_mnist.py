"""Prepare Fashion-MNIST: an image folder of PNG files, or the four original files.

python scripts/prepare_fashion_mnist.py --source SOURCE --output DIR [--raw]

SOURCE is a folder with the four original files (with or without .gz), `debian` (Debian's package
dataset-fashion-mnist, fetched with apt-get and unpacked beside the output: nothing is installed), `url` (the authors'
server) or the address of a folder on a web server that holds the files.

DIR then holds train/<class>/NNNNN.png and val/<class>/NNNNN.png (the number is the position in the original file), or
with --raw the original files, for `dataset: fashion_mnist`. It appears only when it is complete.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from PIL import Image
from tqdm import tqdm

from covpool.data.fashion_mnist import CLASS_NAMES, FILES, find_idx, read_idx
from covpool.errors import UserError
from covpool.runtime.command import new_parser, reports_errors
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
COUNTS = {"train": 60000, "val": 10000}


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, prepare, say what was written; returns the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--source", required=True, help="a folder, `debian`, `url` or an http(s) address")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; must not exist")
    parser.add_argument("--raw", action="store_true", help="the four original files instead of an image folder")
    parser.add_argument(
        "--any_content", action="store_true", help="accept other data in the same format: no checksums, no counts"
    )
    arguments = parser.parse_args(argv)
    count = prepare(arguments.source, arguments.output, raw=arguments.raw, any_content=arguments.any_content)
    print(f"{arguments.output}: {count} {'original files' if arguments.raw else 'images'}")
    return 0


def prepare(source: str, output: Path, *, raw: bool = False, any_content: bool = False) -> int:
    """Make the folder ``output``.

    Args:
        source: As on the command line.
        output: The new folder.
        raw: Whether to keep the four original files instead of writing images.
        any_content: Whether to skip checksums and counts.

    Returns:
        Number of files written.

    Raises:
        UserError: The output exists, the source lacks a file, or a file is not the published one.
    """
    with whole_folder(output) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as scratch:
        folder = fetch(source, Path(scratch))
        files = [find_idx(folder, name) for split in FILES.values() for name in split]
        if not any_content:
            for path in files:
                verify(path)
        if raw:
            for path in files:
                shutil.copyfile(path, partial / path.name)
            return len(files)
        return sum(write_images(folder, split, partial / split, any_content) for split in FILES)


def fetch(source: str, scratch: Path) -> Path:
    """Return a folder with the four original files, fetched into ``scratch`` unless the source is a folder."""
    if source == "debian":
        return fetch_debian(scratch)
    if source == "url" or source.startswith(("http://", "https://")):
        fetch_url(AUTHORS_URL if source == "url" else source, scratch)
        return scratch
    if not Path(source).is_dir():
        raise UserError(f"--source is not a folder, `debian`, `url` or an http(s) address: {source}")
    return Path(source)


def fetch_debian(scratch: Path) -> Path:
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


def fetch_url(address: str, scratch: Path) -> None:
    """Download the four compressed files from a web server, with a progress bar."""
    for name in CHECKSUMS:
        url = f"{address.rstrip('/')}/{name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=30) as response, (scratch / f"{name}.gz").open("wb") as file:  # noqa: S310 -- only http(s) gets here
                size = int(response.headers.get("Content-Length") or 0) or None
                with tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar:
                    while block := response.read(1 << 16):
                        bar.update(file.write(block))
        except (urllib.error.URLError, OSError) as error:
            raise UserError(f"cannot download {url}: {getattr(error, 'reason', error)}") from error


def verify(path: Path) -> None:
    """Raise UserError unless the file is the published one, or another compression of the same content."""
    published, content = CHECKSUMS[path.name[:-3] if path.suffix == ".gz" else path.name]
    data = path.read_bytes()
    if path.suffix == ".gz":
        if _md5(data) == published:
            return
        read_idx(path)  # a clear error for a damaged file
        data = gzip.decompress(data)
    if _md5(data) != content:
        raise UserError(
            f"{path} is not the published file (MD5 of the content is {_md5(data)}, not {content}); "
            "--any_content accepts other data in the same format"
        )


def write_images(folder: Path, split: str, output: Path, any_content: bool) -> int:
    """Write one split as PNG files in one folder per class; returns their number."""
    images, labels = (read_idx(find_idx(folder, name)) for name in FILES[split])
    if len(images) != len(labels) or (not any_content and len(images) != COUNTS[split]):
        raise UserError(f"{split}: {len(images)} images and {len(labels)} labels, expected {COUNTS[split]} of each")
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise UserError(f"{split}: label {labels.max()} is outside the {len(CLASS_NAMES)} classes")
    for name in CLASS_NAMES:
        (output / name).mkdir(parents=True)
    rows = zip(images, labels.tolist())
    for number, (image, label) in enumerate(tqdm(rows, desc=split, total=len(images), unit="image", disable=None)):
        Image.fromarray(image).save(output / CLASS_NAMES[label] / f"{number:05d}.png")
    return len(images)


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    sys.exit(main())

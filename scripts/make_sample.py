"""Make the small Fashion-MNIST sample that comes with the repository.

python scripts/make_sample.py --source DIR --output data/fashion_mnist_sample --train 200 --val 50 --seed 0

DIR holds the four original files (scripts/prepare_fashion_mnist.py --raw). The training images are taken from the
original training split, the validation images from the original test split, the same number of each class, chosen at
random by the seed. The images are grayscale PNG files, compressed as far as PNG goes, named by their position in the
original file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import numpy as np
from PIL import Image
from tqdm import tqdm

from covpool.data.fashion_mnist import CLASS_NAMES, FILES, find_idx, read_idx
from covpool.errors import UserError
from covpool.runtime.command import new_parser, reports_errors
from covpool.runtime.files import whole_folder

README = """# Fashion-MNIST, a small sample

{train} training and {val} validation images of each of the ten classes: 28 x 28 pixels, gray, PNG.
The training images come from the original training split, the validation images from the original test split; a file's
name is its position there. The classes are balanced and the images chosen at random.

It serves the quick start and the tests. Accuracies on it are not comparable with those on the full data set, whose
training split is thirty times larger; `scripts/prepare_fashion_mnist.py` prepares that.

Origin: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms", arXiv:1708.07747, https://github.com/zalandoresearch/fashion-mnist

Made by

    python scripts/make_sample.py --source DIR --output data/fashion_mnist_sample \\
        --train {train} --val {val} --seed {seed}

## Licence of the images

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, make the sample, say how large it is; returns the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with the four original files")
    parser.add_argument("--output", type=Path, required=True, help="the folder to make; must not exist")
    parser.add_argument("--train", type=int, default=200, help="training images per class (default: 200)")
    parser.add_argument("--val", type=int, default=50, help="validation images per class (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    arguments = parser.parse_args(argv)
    counts = {"train": arguments.train, "val": arguments.val}
    with whole_folder(arguments.output) as partial:
        total = sum(
            write_sample(arguments.source, split, counts[split], arguments.seed, partial / split) for split in FILES
        )
        readme = README.format(seed=arguments.seed, **counts)
        (partial / "README.md").write_text(readme, encoding="utf-8")
    print(f"{arguments.output}: {total / 1024:.0f} KiB of images")
    return 0


def choose(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return the indices of ``per_class`` images of every class, int64 sorted, chosen at random by the seed.

    Raises:
        UserError: A class has fewer images.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    chosen = []
    for label, name in enumerate(CLASS_NAMES):
        members = np.flatnonzero(labels == label)
        if not 0 < per_class <= len(members):
            raise UserError(f"class {name} has {len(members)} images, {per_class} were asked for")
        chosen.append(generator.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


def write_sample(source: Path, split: str, per_class: int, seed: int, output: Path) -> int:
    """Write the sample of one split; returns its size in bytes."""
    images, labels = (read_idx(find_idx(source, name)) for name in FILES[split])
    for name in CLASS_NAMES:
        (output / name).mkdir(parents=True)
    size = 0
    for index in tqdm(choose(labels, per_class, seed).tolist(), desc=split, unit="image", disable=None):
        data = encode(images[index])
        size += len(data)
        (output / CLASS_NAMES[labels[index]] / f"{index:05d}.png").write_bytes(data)
    return size


def encode(image: np.ndarray) -> bytes:
    """Return a gray image, uint8 (H, W), as a PNG file of the least size Pillow reaches."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())

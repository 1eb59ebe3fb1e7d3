"""The data pipeline against PyTorch's DataLoader with Pillow: images per second and core, on the same files.

    python -m benchmarks.data --output docs/benchmarks          writes data.json and data.md there

Training: decode, random resized crop, flip, normalise. Evaluation: decode, resize, centre crop, normalise. The peer
does what torchvision does on Pillow images, without the detours: Pillow crops and resizes in one call (with smoothing;
Pillow knows no other way), random numbers are drawn together, and tensors are normalised in place. Both have the same
files, batch size and number of workers (threads here, processes there) and deliver float32 batches; a round is a whole
pass from its first to its last batch. "Decoding alone" is Pillow in as many threads, which throws the pixels away: no
pipeline that decodes whole images can be faster. The files are made by the script: random textures with the spectrum of
photos, of the size in pixels and bytes that ImageNet's have. Needs torch beside the requirements.
"""

from __future__ import annotations

import argparse
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from benchmarks import measure
from benchmarks.measure import CORES, Worker

RUNTIMES = {"mindspore": "MindSpore, covpool.data", "torch": "PyTorch DataLoader, Pillow", "decode": "decoding alone"}
PACKAGES = ("mindspore", "torch", "numpy", "pillow")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Gaussian noise with the 1/f spectrum of photos, colours smoother than brightness; uint8 (H, W, 3)."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1

    def field(power: float) -> np.ndarray:
        phases = np.exp(2j * np.pi * rng.random(frequency.shape))
        values = np.fft.irfft2(phases / frequency**power, (height, width))
        return (values - values.mean()) / values.std()

    light, red, blue = field(1.05), field(1.4), field(1.4)
    colours = np.stack([30 * red, -15 * red - 10 * blue, 30 * blue], -1)
    return np.clip(128 + 55 * light[..., None] + colours, 0, 255).astype(np.uint8)


def write_images(folder: Path, count: int, height: int, width: int, quality: int = 90) -> int:
    """Fill ``train/`` and ``val/`` with the same JPEG files; their mean size in bytes."""
    rng = np.random.default_rng(0)
    sizes = []
    for index in range(count):
        image = Image.fromarray(texture(rng, height, width))
        for split in ("train", "val"):
            path = folder / split / f"class{index % 4}" / f"{index:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=quality)
        sizes.append(path.stat().st_size)
    return round(sum(sizes) / count)


def mindspore_passes(arguments: argparse.Namespace, folder: Path) -> Callable[[bool], Iterable[Any]]:
    """Makes a pass over the files as training and evaluation do: a pipeline for each epoch."""
    from covpool.runtime.environment import prepare_environment

    prepare_environment()
    from covpool.data import Augmentation, ImageTransform, create_dataset, open_source
    from covpool.runtime.distributed import set_context

    set_context("GRAPH", "CPU")
    sources = {}
    for training, split in ((True, "train"), (False, "val")):
        source = open_source("image_folder", folder, split)
        sources[training] = source.subset(list(range(source.num_samples)) * arguments.repeat)
    epochs = iter(range(10**6))

    def make(training: bool) -> Iterable[Any]:
        dataset = create_dataset(
            sources[training],
            ImageTransform.for_source(sources[training], arguments.image_size),
            arguments.batch_size,
            Augmentation() if training else None,
            epoch=next(epochs),
            num_workers=arguments.workers,
        )
        return dataset.create_tuple_iterator(num_epochs=1, output_numpy=True)

    return make


def torch_passes(arguments: argparse.Namespace, folder: Path) -> Callable[[bool], Iterable[Any]]:
    """Makes a pass over the files with workers that stay from pass to pass."""
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    loaders = {
        training: DataLoader(
            TorchImages(folder / split, training, arguments.image_size, arguments.repeat),
            arguments.batch_size,
            shuffle=training,
            num_workers=arguments.workers,
            drop_last=training,
            persistent_workers=True,
        )
        for training, split in ((True, "train"), (False, "val"))
    }
    return lambda training: loaders[training]


def decoding_passes(arguments: argparse.Namespace, folder: Path) -> Callable[[bool], Iterable[Any]]:
    """Makes a pass that decodes the files with the project's decoder, in threads."""
    from covpool.data.decoding import load_image, open_image

    files = sorted((folder / "train").glob("*/*.jpg")) * arguments.repeat
    shape = (3, arguments.image_size, arguments.image_size)
    nothing = np.empty((1, *shape), np.float32)
    # glibc gives freed blocks back to the system until it has seen a larger one freed; fresh pages for every image
    # would cost as much as half of the decoding.
    np.ones(24 << 20, np.uint8)

    def decode(path: Path) -> tuple[np.ndarray, list[int]]:
        with open_image(path.read_bytes()) as image:
            load_image(image)
        return nothing, [0]

    pool = ThreadPoolExecutor(arguments.workers)
    return lambda training: pool.map(decode, files)


class TorchImages:
    """A map-style data set for DataLoader: ``(image float32 (3, S, S), label)`` by index."""

    def __init__(self, folder: Path, training: bool, size: int, repeat: int) -> None:
        import torch

        self.files = sorted(folder.glob("*/*.jpg")) * repeat
        names = sorted({path.parent.name for path in self.files})
        self.labels = [names.index(path.parent.name) for path in self.files]
        self.training, self.size = training, size
        self.rng = np.random.default_rng()
        self.mean, self.std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import torch

        with Image.open(self.files[index]) as opened:
            image = opened.convert("RGB")
        image = self.augmented(image) if self.training else self.centre(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)
        return tensor.sub_(self.mean).div_(self.std), self.labels[index]

    def augmented(self, image: Image.Image) -> Image.Image:
        """A random part, resized, perhaps mirrored: the rule of torchvision's RandomResizedCrop."""
        width, height = image.size
        box = (0.0, 0.0, float(width), float(height))
        flip, *draws = self.rng.random(41).tolist()
        for area_draw, ratio_draw, left, top in zip(*(draws[i::4] for i in range(4))):
            area = width * height * (0.08 + 0.92 * area_draw)
            ratio = math.exp((2 * ratio_draw - 1) * math.log(4 / 3))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(left * (width - w + 1)), int(top * (height - h + 1))
                box = (left, top, left + w, top + h)
                break
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else image

    def centre(self, image: Image.Image) -> Image.Image:
        """The shorter side to 8/7 of the size, then the central square, in one call."""
        scale = min(image.size) / round(self.size * 8 / 7)
        left, top = ((side - self.size * scale) / 2 for side in image.size)
        box = (left, top, left + self.size * scale, top + self.size * scale)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=box)


def work(connection: Connection, runtime: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Answer ("run", training) with (images per second, CPU seconds per image, shape of a batch)."""
    makers = {"mindspore": mindspore_passes, "torch": torch_passes, "decode": decoding_passes}
    make = makers[runtime](arguments, folder)

    def run(training: bool) -> tuple[float, float, tuple[int, ...]]:
        start, before, count = time.perf_counter(), _cpu_seconds(), 0
        shape: tuple[int, ...] = ()
        for images, labels in make(training):
            count, shape = count + len(labels), tuple(images.shape[1:])
        return count / (time.perf_counter() - start), (_cpu_seconds() - before) / count, shape

    measure.serve(connection, run=run)


def _cpu_seconds() -> float:
    """Of this process and of its children that are alive."""
    import psutil

    own = resource.getrusage(resource.RUSAGE_SELF)
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return own.ru_utime + own.ru_stime + sum(t.user + t.system for t in times)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both phases, interleaved."""
    with tempfile.TemporaryDirectory() as place:
        measure.say(f"writing {arguments.images} images")
        size = write_images(Path(place), arguments.images, arguments.height, arguments.width, arguments.quality)
        workers = {runtime: Worker(work, runtime, arguments, Path(place)) for runtime in RUNTIMES}
        result: dict[str, Any] = {"mean bytes": size, "phases": {}}
        for phase, training in (("training", True), ("evaluation", False)):
            shapes = {runtime: worker.ask("run", training)[2] for runtime, worker in workers.items()}  # warms up
            if len(set(shapes.values())) > 1:
                raise SystemExit(f"the batches have different shapes: {shapes}")
            answers = measure.interleave(workers, arguments.rounds, "run", training)
            found: dict[str, Any] = {}
            for runtime, values in answers.items():
                found[runtime] = {
                    "images_per_second": measure.summary([value[0] for value in values]),
                    "cpu_seconds": measure.summary([value[1] for value in values]),
                }
            result["phases"][phase] = found
            measure.say(f"{phase}: " + ", ".join(f"{r} {measure.shown(found[r]['images_per_second'])}" for r in found))
        for worker in workers.values():
            worker.stop()
    return result


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    about, rows = report["about"], []
    for phase, found in report["result"]["phases"].items():
        used = min(about["workers"], about["cores"])
        rates = [measure.shown(found[r]["images_per_second"], ".0f", 1 / used) for r in RUNTIMES]
        cpu = [measure.shown(found[r]["cpu_seconds"], ".2f", 1e3) for r in RUNTIMES]
        ratios = [
            found["mindspore"]["images_per_second"]["median"] / found[r]["images_per_second"]["median"]
            for r in ("torch", "decode")
        ]
        rows.append([phase, *rates, *(f"{ratio:.2f}" for ratio in ratios), *cpu])
    head = ["phase", *(f"{title}, images/s and core" for title in RUNTIMES.values())]
    head += ["ratio to PyTorch", "to decoding alone", *(f"{title}, CPU ms per image" for title in RUNTIMES.values())]
    lines = ["# Data pipeline", "", *measure.heading(about)]
    lines += ["Median (± half of the rounds' interquartile range); ratios above 1 favour MindSpore.", ""]
    return "\n".join([*lines, *measure.table(head, rows)]) + "\n"


def main() -> int:
    """Measure what the command line asks for and write the report."""
    parser = measure.arguments_of(__doc__)
    parser.add_argument("--images", type=int, default=128, help="different files (default: 128)")
    parser.add_argument("--repeat", type=int, default=12, help="times that a pass reads each (default: 12)")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files (default: 90)")
    parser.add_argument("--workers", type=int, default=CORES, help=f"threads or processes (default: cores, {CORES})")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds (default: 9)")
    arguments = parser.parse_args()
    about = measure.environment(
        PACKAGES, workers=arguments.workers, batch=arguments.batch_size, size=arguments.image_size, n=arguments.rounds
    )
    result = compare(arguments)
    about["files"] = f"{arguments.width} x {arguments.height}, {result['mean bytes'] / 1e3:.0f} kB"
    report = {"about": about, "result": result}
    measure.report(arguments.output, "data", report, markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What each part of a recipe adds to a training step, and each augmentation to the data.

    python -m benchmarks.recipe --output docs/measurements          prints recipe.md's tables, and writes them there

Steps: ResNet-18 with DropCov; the plain recipe and one part more in every other process, which take turns. Data: images
per second of the pipeline alone, on generated JPEG files of the size of photos, beside those of the training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import numpy as np
from PIL import Image

from benchmarks import measure
from covpool.runtime.files import write_text

PARTS: dict[str, dict[str, Any]] = {
    "plain (SGD with momentum)": {},
    "adamw": {"optimizer": "adamw"},
    "lamb": {"optimizer": "lamb"},
    "lion": {"optimizer": "lion"},
    "layer_decay 0.75": {"layer_decay": 0.75},
    "mixup and cutmix": {"mixup": 0.2, "cutmix": 1.0},
    "bce": {"loss": "bce"},
    "ema_decay": {"ema_decay": 0.9999},
    "clip_grad": {"clip_grad": 1.0},
    "accumulate_steps 2": {"accumulate_steps": 2},
    "drop_path_rate 0.1": {"drop_path_rate": 0.1},
    "recompute": {"recompute": True},
    "freeze layer1, layer2": {"freeze": ("layer1", "layer2")},
}
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "crop and flip": {},
    "color_jitter 0.4": {"color_jitter": 0.4},
    "rand-m9-mstd0.5-inc1": {"auto_augment": "rand-m9-mstd0.5-inc1"},
    "trivial": {"auto_augment": "trivial"},
    "random_erasing 0.25": {"random_erasing": 0.25},
    "mixup and cutmix": {"mixup": 0.2, "cutmix": 1.0},
}
CLASSES = 100


def configured(size: int, batch: int, part: Mapping[str, Any]) -> Any:
    """The plain recipe and one part more."""
    from covpool.config import Config

    parts = part.get("accumulate_steps", 1)
    sizes = {"train_image_size": size, "eval_image_size": size, "batch_size": batch // parts}
    return Config(class_num=CLASSES, **{**sizes, **part})


def step_worker(connection: Any, size: int, batch: int, part: Mapping[str, Any]) -> None:
    """Answer 'step' by the seconds of a training step."""
    import mindspore as ms

    from covpool.build import batch_mixing, build_model
    from covpool.kernels import cpu_kernels
    from covpool.runtime.distributed import World, set_context
    from covpool.training.recipe import recipe_optimizer, recipe_rates
    from covpool.training.step import build_step

    set_context("GRAPH", "CPU")
    ms.set_seed(1)
    config, world, random = configured(size, batch, part), World(), np.random.default_rng(0)
    network = build_model(config, world)
    optimizer = recipe_optimizer(config, network, recipe_rates(config, 10, batch))
    step = build_step(config, network, optimizer, world, kernels=cpu_kernels(config)).train_network.set_train()
    inputs = [
        ms.Tensor(random.standard_normal((batch, 3, size, size), np.float32)),
        ms.Tensor(random.integers(0, CLASSES, batch).astype(np.int32)),
    ]
    if (mixing := batch_mixing(config)) is not None:
        inputs.append(ms.Tensor(mixing.draw(size, size, 1, 0, 0)))

    def timed() -> float:
        start = time.perf_counter()
        step(*inputs).asnumpy()
        return time.perf_counter() - start

    timed()
    timed()
    measure.serve(connection, step=timed)


def steps(size: int, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step with each part, round by round; three processes at a time, of which one is the plain one."""
    names, found = list(PARTS)[1:], {}
    for start in range(0, len(names), 2):
        chosen = [next(iter(PARTS)), *names[start : start + 2]]
        workers = {name: measure.Worker(step_worker, size, batch, PARTS[name]) for name in chosen}
        times = measure.interleave(workers, rounds, "step")
        for worker in workers.values():
            worker.stop()
        plain = times[chosen[0]]
        found.update({name: [t / p for t, p in zip(times[name], plain)] for name in chosen[1:]})
        found.setdefault("seconds", []).append(statistics.median(plain))
    return found


def make_photos(folder: Path, count: int = 128) -> None:
    """JPEG files of 500 x 375 pixels, as ImageNet's are on average."""
    random = np.random.default_rng(0)
    for part in ("train/a", "val/a"):
        (folder / part).mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (30, 40, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(
            folder / "train" / "a" / f"{number:04}.jpg", quality=90
        )


def images_per_s(folder: Path, size: int, part: Mapping[str, Any]) -> Callable[[], float]:
    """A function that runs through an epoch of the pipeline."""
    from covpool.build import build_dataset, build_source
    from covpool.runtime.distributed import World

    config = configured(size, 16, part).replace(data_path=str(folder))
    source = build_source(config, "train", World())

    def run() -> float:
        batches = build_dataset(config, source, True, World()).create_tuple_iterator(num_epochs=1, output_numpy=True)
        next(batches)
        start = time.perf_counter()
        count = sum(len(batch[0]) for batch in batches)
        return count / (time.perf_counter() - start)

    return run


def pipeline(size: int, rounds: int) -> dict[str, list[float]]:
    """Images per second with each augmentation, round by round."""
    with tempfile.TemporaryDirectory() as scratch:
        make_photos(Path(scratch))
        runs = {name: images_per_s(Path(scratch), size, part) for name, part in AUGMENTATIONS.items()}
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(rounds + 1):
            for name, run in runs.items():
                speed = run()
                if number:
                    found[name].append(speed)
    return found


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for recipe.md")
    parser.add_argument("--size", type=int, default=224, help="height and width of images (default: 224)")
    parser.add_argument("--batch", type=int, default=16, help="images per step (default: 16)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default: 9)")
    arguments = parser.parse_args()
    data = pipeline(arguments.size, arguments.rounds)
    found = steps(arguments.size, arguments.batch, arguments.rounds)
    plain = statistics.median(found.pop("seconds"))
    speed = arguments.batch / plain
    lines = [
        "# What the parts of a recipe cost",
        "",
        f"`python -m benchmarks.recipe`: ResNet-18 with DropCov, {arguments.size} pixels, batch {arguments.batch}, n = "
        f"{arguments.rounds}, on {measure.CORES} cores. A plain step takes {plain:.2f} s, {speed:.0f} images/s.",
        "",
        "| part | step, over the plain one in the same round |",
        "| --- | --- |",
        *(f"| {name} | {measure.shown(measure.summary(ratios), '.2f')} |" for name, ratios in found.items()),
        "",
        "| data | images/s of the pipeline alone | over the training's |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {measure.shown(measure.summary(speeds), '.0f')} | {statistics.median(speeds) / speed:.1f} |"
            for name, speeds in data.items()
        ),
    ]
    print("\n".join(lines))
    if arguments.output:
        write_text(arguments.output / "recipe.md", "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

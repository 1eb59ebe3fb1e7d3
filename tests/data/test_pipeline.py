from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from covpool.data import (
    epoch_order,
    evaluation_indices,
    open_source,
    steps_per_epoch,
    training_positions,
)
from covpool.data.augment import augmentation_draws, random_crop_box
from covpool.errors import UserError
from tests.data.image_files import dataset

# How training images vary: each kind as it is, and all the rest with it.
_FLIP: dict[str, Any] = {"vertical_flip": 0.5, "random_erasing": 0.5}
VARIED: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "small": {"augmentation": "small"},
    "none": {"augmentation": "none"},
    "rand": {**_FLIP, "auto_augment": "rand-m9-mstd0.5-inc1", "repeated_augmentation": 3},
    "trivial": {**_FLIP, "auto_augment": "trivial", "augmentation": "small"},
    "jitter": {**_FLIP, "color_jitter": 0.4, "augmentation": "none", "erasing_mode": "const"},
}
PLAIN = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # pixel values 0 to 255 come out


def make(source: Any, **options: Any) -> Any:
    return dataset(source, **{"training": True, "image_size": 8, "batch_size": 4, "num_workers": 1, **options})


@pytest.fixture
def photos(write_image: Callable, tmp_path: Path) -> Path:
    """An image folder of smooth images of several sizes."""
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(30, 40), (40, 30), (37, 51), (64, 64), (33, 90), (28, 28)]):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        write_image(f"train/{'ab'[i % 2]}/{i}.png", pixels)
    return tmp_path


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resizing with half-pixel centres and no smoothing, in float64: the definition."""

    def weights(new: int, old: int) -> np.ndarray:
        centre = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(centre).astype(int)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low] += 1 - (centre - low)
        matrix[np.arange(new), np.minimum(low + 1, old - 1)] += centre - low
        return matrix

    rows, columns = weights(height, image.shape[0]), weights(width, image.shape[1])
    return np.einsum("yi,xj,ijc->yxc", rows, columns, image.astype(np.float64))


def test_normalisation_and_layout(numbered: Callable, batches: Callable) -> None:
    source = numbered(3)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 1.0)
    (batch,) = batches(make(source, training=False, eval_crop_ratio=1, mean=mean, std=std))
    expected = (source.images / 255 - np.array(mean)) / np.array(std)
    assert batch["image"].dtype == np.float32 and batch["image"].shape == (3, 3, 8, 8)
    np.testing.assert_allclose(batch["image"], expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    (batch,) = batches(make(source, training=False, eval_crop_ratio=1))
    np.testing.assert_allclose(batch["image"], (source.images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25, atol=1e-5)


def test_gray_and_colour_channels(numbered: Callable, batches: Callable) -> None:
    gray, colour = numbered(3, channels=1), numbered(3)
    (batch,) = batches(make(gray, training=False, eval_crop_ratio=1, **PLAIN))
    np.testing.assert_allclose(batch["image"], np.repeat(gray.images, 3, 3).transpose(0, 3, 1, 2), atol=1e-3)
    one = {"channels": 1, "mean": (0,), "std": (1 / 255,)}
    (batch,) = batches(make(gray, training=False, eval_crop_ratio=1, **one))
    np.testing.assert_allclose(batch["image"], gray.images.transpose(0, 3, 1, 2), atol=1e-3)
    (batch,) = batches(make(colour, training=False, eval_crop_ratio=1, **one))
    luma = colour.images @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(batch["image"][:, 0], luma, atol=0.51)
    for augmentation in ("imagenet", "small"):
        (batch,) = batches(make(colour, batch_size=3, augmentation=augmentation, **one))
        assert batch["image"].shape == (3, 1, 8, 8)


def test_evaluation_transform_against_its_definition_and_pillow(photos: Path, batches: Callable) -> None:
    source = open_source("image_folder", photos, "train")
    found = batches(make(source, training=False, image_size=28, batch_size=6, **PLAIN))[0]["image"]
    for i in range(source.num_samples):
        with Image.open(source.describe(i)) as image:
            width, height = image.size
            short = min(width, height)
            size = (32 * width // short, 32 * height // short)  # 28 / 0.875 = 32
            pillow = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float64)
            exact = bilinear(np.asarray(image), size[1], size[0])
        top, left = (size[1] - 28) // 2, (size[0] - 28) // 2
        ours = found[i].transpose(1, 2, 0)
        np.testing.assert_allclose(ours, exact[top : top + 28, left : left + 28], atol=1.01)
        # Pillow smooths before it shrinks: equal where the image grows, close on smooth images where it shrinks.
        difference = np.abs(ours - pillow[top : top + 28, left : left + 28])
        assert difference.max() < (1.51 if short <= 32 else 12) and difference.mean() < (0.6 if short <= 32 else 2)


def test_training_crop_against_its_definition(photos: Path, batches: Callable) -> None:
    source = open_source("image_folder", photos, "train")
    (batch,) = batches(make(source, image_size=24, batch_size=6, seed=5, epoch=2, **PLAIN))
    order, draws = epoch_order(6, 5, 2), augmentation_draws(5, 2, 0, 23)
    assert batch["label"].tolist() == source.labels[order].tolist()
    for position, index in enumerate(order):
        with Image.open(source.describe(index)) as image:
            pixels = np.asarray(image)
        box = random_crop_box(*pixels.shape[:2], draws[position], (0.08, 1), (3 / 4, 4 / 3))
        top, left, height, width = box
        part = pixels[top : top + height, left : left + width]
        part = part[:, ::-1] if draws[position, 2] < 0.5 else part
        np.testing.assert_allclose(batch["image"][position].transpose(1, 2, 0), bilinear(part, 24, 24), atol=1.01)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "area", "pilcubic"])
def test_every_interpolation_keeps_a_constant_image(
    write_image: Callable, tmp_path: Path, batches: Callable, interpolation: str
) -> None:
    write_image("train/a/1.png", np.full((20, 30, 3), 77, np.uint8))
    source = open_source("image_folder", tmp_path, "train")
    for training in (True, False):
        (batch,) = batches(make(source, training=training, batch_size=1, interpolation=interpolation, **PLAIN))
        np.testing.assert_allclose(batch["image"], 77, atol=1e-3)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_samples", [60, 61, 100, 103])
def test_ranks_share_each_global_batch(num_samples: int, world_size: int) -> None:
    parts = [training_positions(num_samples, 4, rank, world_size) for rank in range(world_size)]
    steps = steps_per_epoch(num_samples, 4, world_size)
    assert steps == num_samples // (4 * world_size)
    for step in range(steps):
        union = np.concatenate([part[4 * step : 4 * step + 4] for part in parts])
        assert sorted(union) == list(range(step * 4 * world_size, (step + 1) * 4 * world_size))
    assert all(len(part) == 4 * steps for part in parts)


@pytest.mark.parametrize("varied", VARIED)
def test_two_ranks_see_the_images_of_one_process(numbered: Callable, batches: Callable, varied: str) -> None:
    source, options = numbered(27), {**VARIED[varied], "seed": 3, "epoch": 1}
    whole = batches(make(source, batch_size=6, **options))
    parts = [batches(make(source, batch_size=3, rank=rank, world_size=2, **options)) for rank in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1]) == 4
    for step, batch in enumerate(whole):
        for column in ("image", "label"):
            joined = np.stack([parts[0][step][column], parts[1][step][column]], axis=1)
            np.testing.assert_array_equal(joined.reshape(batch[column].shape), batch[column])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [1, 7, 64, 100, 103])
def test_evaluation_sees_every_image_once(
    numbered: Callable, batches: Callable, num_samples: int, world_size: int
) -> None:
    source, seen, sizes = numbered(num_samples), [], []
    for rank in range(world_size):
        dataset = make(source, training=False, batch_size=64, rank=rank, world_size=world_size)
        assert (dataset is None) == (len(evaluation_indices(num_samples, rank, world_size)) == 0)
        found = batches(dataset) if dataset is not None else []
        labels = [label for batch in found for label in batch["label"].tolist()]
        assert all(len(batch["label"]) == 64 for batch in found[:-1])
        seen += labels
        sizes.append(len(labels))
    assert sorted(seen) == list(range(num_samples))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("varied", [name for name in VARIED if name != "none"])
def test_batches_depend_on_seed_and_epoch_alone(photos: Path, batches: Callable, varied: str) -> None:
    source = open_source("image_folder", photos, "train").subset(list(range(6)) * 8)
    options = {"image_size": 16, "batch_size": 6, **VARIED[varied], "seed": 1, "epoch": 4}

    def run(**changes: Any) -> list:
        return [(b["image"].tobytes(), b["label"].tobytes()) for b in batches(make(source, **{**options, **changes}))]

    first = run()
    assert len(first) == 8 and len(set(first)) == 8
    assert run() == first
    assert run(num_workers=2) == first
    assert run(num_workers=None) == first
    assert run(num_workers=10**6) == first
    assert run(first_step=5) == first[5:]
    for change in ({"seed": 2}, {"epoch": 5}):
        assert not set(run(**change)) & set(first)


def test_other_random_state_is_neither_used_nor_changed(numbered: Callable, batches: Callable) -> None:
    import mindspore.dataset as ds

    def run() -> bytes:
        return b"".join(batch["image"].tobytes() for batch in batches(make(numbered(12), augmentation="small")))

    np.random.seed(1)
    ds.config.set_seed(11)
    state = np.random.get_state()[1].tolist()
    first = run()
    assert np.random.get_state()[1].tolist() == state and ds.config.get_seed() == 11
    np.random.seed(2)
    ds.config.set_seed(12)
    assert run() == first


def test_every_epoch_has_its_own_order_of_all_images(numbered: Callable, batches: Callable) -> None:
    orders = [
        np.concatenate([b["label"] for b in batches(make(numbered(64), augmentation="none", epoch=epoch))]).tolist()
        for epoch in range(3)
    ]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != list(range(64))


def test_size_is_known_without_a_pass(numbered: Callable) -> None:
    assert make(numbered(103), batch_size=10).get_dataset_size() == 10
    assert make(numbered(103), batch_size=10, training=False).get_dataset_size() == 11


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 6, "world_size": 2}, "10 images are fewer than 6 per rank x 2 rank.s. = 12"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"image_size": 2.5}, "height must be a whole number"),
        ({"rank": 1}, "rank must lie in 0 to 0, got 1"),
        ({"rank": -1}, "rank must be a whole number of at least 0"),
        ({"seed": -1}, "seed must be"),
        ({"epoch": -1}, "epoch must be"),
        ({"num_workers": -2}, "num_workers must be"),
        ({"first_step": 2}, "first_step must lie in 0 to 1, got 2"),
        ({"channels": 2}, "channels must be 1 or 3"),
        ({"augmentation": "smal"}, "unknown augmentation 'smal'.*did you mean 'small'"),
        ({"interpolation": "linear"}, "unknown interpolation 'linear'.*bilinear"),
        ({"eval_crop_ratio": 0}, r"crop_ratio must lie in \(0, 1\]"),
        ({"flip_probability": 1.5}, "flip_probability"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale must be two numbers"),
        ({"crop_scale": (0.5, 1.1)}, "crop_scale .*<= 1"),
        ({"crop_ratio": (1,)}, "crop_ratio must be two numbers"),
        ({"mean": (123.7, 116.3, 103.5)}, r"mean must lie in \[0, 1\]"),
        ({"std": (0.5, 0.5, 0)}, r"std must lie in \(0, 1\]"),
        ({"mean": (0.5,)}, r"mean needs 3 value\(s\), one per channel, got 1"),
    ],
)
def test_wrong_arguments(numbered: Callable, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(numbered(10), **options)

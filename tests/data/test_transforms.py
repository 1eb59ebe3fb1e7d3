from __future__ import annotations

import dataclasses
import json
import math
from typing import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covpool.build import image_augmentation, image_transform
from covpool.config import Config
from covpool.data import Augmentation, ImageTransform, array_source, create_dataset
from covpool.data.augment import (
    CHUNK,
    augmentation_draws,
    flip_horizontally,
    random_crop,
    random_crop_box,
    random_shift,
)
from covpool.errors import UserError

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@settings(deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 10**6))
def test_crop_lies_in_the_image(height: int, width: int, seed: int) -> None:
    draws = np.random.default_rng(seed).random(23, dtype=np.float32)
    top, left, h, w = random_crop_box(height, width, draws, SCALE, RATIO)
    assert top >= 0 and left >= 0 and h > 0 and w > 0 and top + h <= height and left + w <= width


def test_crop_covers_the_published_ranges() -> None:
    draws = np.concatenate([augmentation_draws(3, 0, chunk, 23) for chunk in range(10)])
    boxes = np.array([random_crop_box(375, 500, row, SCALE, RATIO) for row in draws])
    area, ratio = boxes[:, 2] * boxes[:, 3] / (375 * 500), boxes[:, 3] / boxes[:, 2]
    assert 0.079 < area.min() < 0.085 and area.max() > 0.97
    assert 0.74 < ratio.min() < 0.77 and 1.31 < ratio.max() < 1.35
    # Crops that are small enough to fit whatever their shape keep the distribution they are drawn from.
    small = area < 0.5
    assert np.mean(area[small]) == pytest.approx(0.29, abs=0.01)
    assert np.mean(np.log(ratio[small])) == pytest.approx(0, abs=0.01)
    assert np.std(np.log(ratio[small])) == pytest.approx(math.log(16 / 9) / math.sqrt(12), abs=0.01)
    place = boxes[:, 0] / (375 - boxes[:, 2] + 1)
    assert np.mean(place[small]) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("size", "expected"), [((1000, 10), (493, 0, 13, 10)), ((10, 1000), (0, 493, 10, 13)), ((10, 10), (0, 0, 10, 10))]
)
def test_crop_falls_back_to_the_centre(size: tuple[int, int], expected: tuple[int, ...]) -> None:
    draws = np.full(23, 0.999, np.float32)  # the whole area at the widest ratio never fits
    assert random_crop_box(*size, draws, (1.0, 1.0), RATIO) == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_flip(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    flipped = flip_horizontally(image[:, 1:])
    np.testing.assert_array_equal(flipped, image[:, :0:-1])
    assert flipped.flags.c_contiguous


def test_random_crop_flips_with_the_given_probability() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    draws = augmentation_draws(0, 0, 0, 23)
    flipped = 0
    for row in draws[:200]:
        top, left, h, w = random_crop_box(40, 50, row, SCALE, RATIO)
        part = image[top : top + h, left : left + w]
        result = random_crop(image, row, SCALE, RATIO, 0.25)
        mirrored = row[2] < 0.25
        np.testing.assert_array_equal(result, part[:, ::-1] if mirrored else part)
        flipped += int(mirrored)
    assert 30 < flipped < 70


def test_random_shift_moves_every_way_and_fills_with_black() -> None:
    image = np.full((8, 8, 1), 9, np.uint8)
    image[3, 4] = 200
    places = set()
    for row in augmentation_draws(1, 0, 0, 3)[:500]:
        shifted = random_shift(image, row, 2, 0.0)
        assert shifted.shape == image.shape and set(np.unique(shifted)) <= {0, 9, 200}
        ((y, x, _),) = np.argwhere(shifted == 200)
        places.add((y, x))
        assert (shifted[0] == 0).all() == (y > 3)
    assert places == {(3 + dy, 4 + dx) for dy in range(-2, 3) for dx in range(-2, 3)}


def test_draws_depend_on_seed_epoch_and_chunk() -> None:
    base = augmentation_draws(1, 2, 3, 5)
    np.testing.assert_array_equal(base, augmentation_draws(1, 2, 3, 5))
    assert base.shape == (CHUNK, 5) and base.dtype == np.float32 and base.min() >= 0 and base.max() < 1
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not (augmentation_draws(*other, 5) == base).any()


def test_shorter_side_before_the_crop() -> None:
    sides = [
        ImageTransform(size, size, (0.5,), (0.5,), ratio, channels=1).shorter_side
        for size, ratio in ((224, 0.875), (28, 1.0), (299, 0.9), (1, 0.5))
    ]
    assert sides == [256, 28, 332, 2]


def test_a_transform_travels_as_plain_values() -> None:
    transform = ImageTransform(24, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9, "area")
    assert ImageTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform
    for damage in ({}, [1], None, {**transform.to_dict(), "height": "24"}, {**transform.to_dict(), "mean": 3}):
        with pytest.raises(UserError):
            ImageTransform.from_dict(damage)


def test_the_defaults_of_the_configuration_are_those_of_the_data() -> None:
    assert image_augmentation(Config()) == Augmentation()
    assert image_transform(Config()) == ImageTransform.for_source(None, 224)


def test_frames_are_normalised_as_images_are(batches: Callable) -> None:
    """The pipeline's operators against NumPy, for a size that is not square and one channel or three."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    source = array_source("frames", "val", ["a"], frames, np.zeros(2, np.int64), (0.5,) * 3, (0.25,) * 3)
    for channels, tolerance in ((3, 1e-5), (1, 0.51 / 255 / 0.25)):
        square = ImageTransform.for_source(source, 20, channels=channels, crop_ratio=1)
        (batch,) = batches(create_dataset(source, dataclasses.replace(square, height=12), 2))
        expected = square.normalise_frames(frames)[:, :, 4:16]
        assert batch["image"].shape == (2, channels, 12, 20)
        np.testing.assert_allclose(batch["image"], expected, atol=tolerance)

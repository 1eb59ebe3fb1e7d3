"""Random changes of training images against timm and torchvision, on the same image with the same random numbers."""

from __future__ import annotations

import types
from typing import Any, Callable

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.torch_peers import timm, torchvision
from covpool.config import Config
from covpool.data import Augmentation, epoch_order, training_positions
from covpool.data.augment import CHUNK, augmentation_draws, change_pixels, erasing_box, random_erasing, random_shift
from covpool.data.auto_augment import OPERATIONS, TRIVIAL, auto_augment, color_jitter, trivial_augment
from covpool.errors import ConfigError, UserError
from tests.data.image_files import dataset

FILL = (124, 116, 104)
TEXTS = [
    "trivial",
    "rand",
    "rand-m9-mstd0.5-inc1",
    "rand-m7-n3-p0.25-mstd1",
    "rand-m15-mmax20-p1",
    "rand-m8-mstd101-inc0",
]
WRONG = ["Rand", "rand-", "rand-x3", "rand-m9-m5", "rand-m9.5", "rand-n0", "rand-p2", "rand-inc2", "trivial-m3", "v0"]
# The operations that timm has twice.
INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")


def picture(mode: str = "RGB", size: tuple[int, int] = (22, 17), seed: int = 0) -> Image.Image:
    """A smooth image of few extremes, so that auto contrast has something to do."""
    values = np.random.default_rng(seed).integers(30, 220, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC).convert(mode)


def draws_of(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Random numbers as the pipeline draws them."""
    return np.random.default_rng(seed).random((count, width), dtype=np.float32)


def same(ours: Image.Image, theirs: Image.Image, what: object) -> None:
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs), err_msg=str(what))


def keep_bits(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Posterize as timm means it; of no bits at all Pillow 13 raises an error."""
    return image.point([value >> (8 - bits) << (8 - bits) for value in range(256)] * 3)


class Numbers(types.SimpleNamespace):
    """In place of the module ``random`` of timm: numbers given beforehand, for each kind in order."""

    def random(self) -> float:
        return self.shares.pop(0)

    def gauss(self, mean: float, deviation: float) -> float:
        return mean + deviation * self.normal

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.parts.pop(0)

    def randint(self, low: int, high: int) -> int:
        return low + int(self.places.pop(0) * (high - low + 1))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("increasing", [0, 1])
def test_operations_of_rand_augment_are_those_of_timm(mode: str, increasing: int, monkeypatch: Any) -> None:
    fill = FILL if mode == "RGB" else FILL[:1]
    image, seen = picture(mode), 0
    for level in (0, 2, 5, 7, 9, 10, 14):
        change, _ = auto_augment(f"rand-m{level}-n1-p1-mmax14-inc{increasing}")
        for sign in (0.25, 0.75):
            monkeypatch.setattr(timm.data.auto_augment, "random", types.SimpleNamespace(random=lambda s=sign: s))
            for place, name in enumerate(OPERATIONS):
                ours = change(image, [(place + 0.5) / len(OPERATIONS), 0, 0, sign], fill)
                if name == "Posterize" and (4 - int(level / 10 * 4) if increasing else int(level / 10 * 4)) < 1:
                    assert not np.asarray(ours).any()  # no bits left; recent versions of Pillow raise an error
                    continue
                twice = "Increasing" if increasing and name in INCREASING else "Rel" if "Translate" in name else ""
                hparams = {"img_mean": fill, "interpolation": Image.Resampling.BILINEAR, "magnitude_max": 14}
                operation = timm.data.auto_augment.AugmentOp(name + twice, 1.0, level, hparams)
                same(ours, operation(image), (name, level, sign))
                seen += ours.tobytes() != image.tobytes()
    assert seen > 120


@pytest.mark.parametrize("text", TEXTS[1:])
def test_rand_augment_combines_operations_as_timm_does(text: str, monkeypatch: Any) -> None:
    hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BILINEAR}
    theirs = timm.data.auto_augment.rand_augment_transform(text, hparams)
    change, count = auto_augment(text)
    assert count == 4 * theirs.num_layers
    changed = 0
    for number, row in enumerate(draws_of(60, count).tolist()):
        image = expected = picture(seed=number)
        ours = change(image, row, FILL)
        for which, whether, spread, sign in zip(*[iter(row)] * 4):
            operation = theirs.ops[int(which * 15)]
            numbers = Numbers(shares=[whether, sign] if operation.prob < 1 else [sign], parts=[spread])
            numbers.normal = float(torch.special.ndtri(torch.tensor(spread + 2**-25, dtype=torch.float64)))
            monkeypatch.setattr(timm.data.auto_augment, "random", numbers)
            if "Posterize" in operation.name:
                operation.aug_fn = keep_bits
            expected = operation(expected)
        same(ours, expected, row)
        changed += ours.tobytes() != image.tobytes()
    assert changed > 20


@pytest.mark.parametrize("text", TEXTS[1:])
def test_texts_mean_what_they_mean_in_timm(text: str) -> None:
    theirs = timm.data.auto_augment.rand_augment_transform(text, {"img_mean": FILL})
    change, count = auto_augment(text)
    ours = {"m": 10, "p": 0.5, "mstd": 0, "mmax": 10, "inc": 0, **change.keywords}
    operation = theirs.ops[0]
    assert count == 4 * theirs.num_layers
    assert (ours["m"], ours["p"]) == (operation.magnitude, operation.prob)
    assert operation.magnitude_std == (ours["mstd"] if ours["mstd"] <= 100 else float("inf"))
    assert ours["mmax"] == (operation.magnitude_max or 10)
    assert bool(ours["inc"]) == ("Increasing" in "".join(op.name for op in theirs.ops))
    short = [op.name.replace("Increasing", "").replace("Rel", "") for op in theirs.ops]
    assert short == list(OPERATIONS)


@pytest.mark.parametrize("text", [*TEXTS, *WRONG])
def test_configuration_and_data_understand_the_same_texts(text: str) -> None:
    if text in TEXTS:
        assert Config(auto_augment=text).auto_augment == text == Augmentation(auto_augment=text).auto_augment
        return
    with pytest.raises(ConfigError, match=r"auto_augment = .*must be trivial, or rand and any of -m9"):
        Config(auto_augment=text)
    with pytest.raises(UserError, match=r"auto_augment = .*must be trivial, or rand and any of -m9"):
        Augmentation(auto_augment=text)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_trivial_augment_is_that_of_torchvision(mode: str) -> None:
    image = picture(mode, (40, 36))
    space = torchvision.transforms.TrivialAugmentWide()._augmentation_space(31)
    assert tuple(space) == TRIVIAL
    bilinear = torchvision.transforms.InterpolationMode.BILINEAR
    for place, (name, (magnitudes, signed)) in enumerate(space.items()):
        for step in range(31) if magnitudes.ndim else [0]:
            for sign in (1, -1) if signed else [1]:
                magnitude = sign * float(magnitudes[step] if magnitudes.ndim else 0)
                draws = [(place + 0.5) / len(TRIVIAL), (step + 0.5) / 31, 0.25 if sign == 1 else 0.75]
                ours = trivial_augment(image, draws, FILL if mode == "RGB" else (7,))
                same(
                    ours,
                    torchvision.transforms.autoaugment._apply_op(image, name, magnitude, bilinear, None),
                    (name, magnitude),
                )


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_color_jitter_is_that_of_torchvision(mode: str) -> None:
    functional = torchvision.transforms.functional
    steps = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    image, orders = picture(mode), set()
    for row in draws_of(60, 4).tolist():
        ours = color_jitter(image, row, FILL, 0.4)
        found = []
        for order in np.ndindex(3, 3, 3):
            expected = image
            if len(set(order)) == 3:
                for step in order:
                    expected = steps[step](expected, 1 + 0.4 * (2 * row[1 + step] - 1))
                found += [order] if expected.tobytes() == ours.tobytes() else []
        assert found
        orders.update(found[:1] if len(found) == 1 else [])
    assert len(orders) == 6 if mode == "RGB" else len(orders) < 6  # saturation, and so its place, means nothing to gray
    same(color_jitter(image, [0.5] * 4, FILL, 1.0), image, "the middle of every range")


@pytest.mark.parametrize("size", [(32, 32), (9, 40), (5, 4)])
def test_random_erasing_chooses_the_places_of_timm(size: tuple[int, int], monkeypatch: Any) -> None:
    erase = timm.data.random_erasing.RandomErasing(probability=0.6, mode="const", device="cpu")
    rows, erased = draws_of(200, 25), 0
    image = np.ones((3, *size), np.float32)
    for row in rows:
        values = row.tolist()
        numbers = Numbers(shares=[values[0]], parts=values[5:], places=values[1:3])
        monkeypatch.setattr(timm.data.random_erasing, "random", numbers)
        ours = random_erasing(image, row, 0.6, "const")
        np.testing.assert_array_equal(ours, erase(torch.from_numpy(image.copy())).numpy())
        erased += not ours.all()
    assert image.all() and 70 < erased < 150


def test_random_erasing_covers_the_published_ranges_with_noise() -> None:
    boxes = np.array([erasing_box(224, 224, row) for row in draws_of(4000, 25).tolist()])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 224**2, boxes[:, 2] / boxes[:, 3]
    assert 0.019 < area.min() < 0.022 and 0.31 < area.max() < 0.335 and abs(area.mean() - 0.17) < 0.01
    assert 0.29 < ratio.min() < 0.32 and 3.1 < ratio.max() < 3.45 and abs(np.log(ratio).mean()) < 0.03
    image = np.full((3, 64, 64), 9, np.float32)
    row, other = draws_of(2, 25)
    row[0] = other[0] = 0
    noisy = random_erasing(image, row, 0.5, "pixel")
    noise = noisy[noisy != 9]
    assert noisy.dtype == np.float32 and abs(noise.mean()) < 0.15 and abs(noise.std() - 1) < 0.1
    np.testing.assert_array_equal(noisy, random_erasing(image, row, 0.5, "pixel"))
    other[1:4], other[5:] = row[1:4], row[5:]  # the same place, other noise
    assert np.array_equal(random_erasing(image, other, 0.5, "pixel") != 9, noisy != 9)
    assert not np.intersect1d(random_erasing(image, other, 0.5, "pixel"), noise).size
    row[0] = 0.5
    assert random_erasing(image, row, 0.5, "pixel") is image


@pytest.mark.parametrize("channels", [1, 3])
def test_vertical_flip(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, channels), dtype=np.uint8)
    flipped = change_pixels(image, np.float32([0.2]), 0.25, None, FILL)
    np.testing.assert_array_equal(flipped, image[::-1])
    assert flipped.flags.c_contiguous
    assert change_pixels(image, np.float32([0.25]), 0.25, None, FILL) is image


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_repeated_augmentation_deals_as_timm_does(world_size: int) -> None:
    order = epoch_order(300, 4, 2)
    repeated = epoch_order(300, 4, 2, repeats=3)
    assert len(repeated) == 300 and repeated[:6].tolist() == np.repeat(order[:2], 3).tolist()
    for rank in range(world_size):
        ours = repeated[training_positions(300, 4, rank, world_size)]
        sampler = timm.data.distributed_sampler.RepeatAugSampler(order, world_size, rank, shuffle=False, num_repeats=3)
        theirs = order[list(sampler)]  # timm rounds the length of an epoch to 256, here it is rounded to batches
        common = min(len(ours), len(theirs))
        assert common > 80
        np.testing.assert_array_equal(ours[:common], theirs[:common])


def test_more_numbers_leave_those_of_the_crop() -> None:
    np.testing.assert_array_equal(augmentation_draws(1, 2, 3, 23, 40)[:, :23], augmentation_draws(1, 2, 3, 23))
    more = augmentation_draws(1, 2, 3, 0, 40)
    np.testing.assert_array_equal(augmentation_draws(1, 2, 3, 23, 40)[:, 23:], more)
    assert not np.intersect1d(more[0], augmentation_draws(1, 2, 3, 23)[0]).size
    assert Augmentation().widths == (23, 0) and Augmentation("none", repeated_augmentation=3).widths == (0, 0)


@pytest.mark.parametrize("channels", [(3, 3), (1, 3), (1, 1), (3, 1)])
def test_stages_come_in_the_order_of_timm(channels: tuple[int, int], numbered: Callable, batches: Callable) -> None:
    """Shift, flips, operations, normalisation, erasing; on the source's channels, which need not be the network's."""
    present, wanted = channels
    source, mean, std = numbered(8, 12, present), (0.25, 0.5, 0.75)[-wanted:], (0.5, 0.25, 0.2)[-wanted:]
    options = {"vertical_flip": 0.5, "auto_augment": "rand-m9-n4-p0.9-mstd0.5-inc1", "random_erasing": 0.9}
    statistics = {"mean": mean, "std": std, "channels": wanted}
    plain = {"augmentation": "small", "batch_size": 8, "seed": 6, "epoch": 3}
    (batch,) = batches(dataset(source, True, 12, **plain, **options, **statistics))
    change, count = auto_augment(options["auto_augment"])
    grey = {3: 128, 1: round(255 * 0.75)}[wanted]  # the mean of all channels
    fill = (64, 128, 191) if channels == (3, 3) else (grey,) * present
    draws = augmentation_draws(6, 3, 0, 3, 1 + count + 25)
    assert len(draws) == CHUNK
    for position, index in enumerate(epoch_order(8, 6, 3)):
        row = draws[position, 3:]
        image = random_shift(source.images[index], draws[position], 2, 0.5)
        image = change_pixels(image, row[: 1 + count], 0.5, change, fill)
        if present > wanted:
            image = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
        normal = np.float32((image / 255 - np.array(mean)) / np.array(std)).transpose(2, 0, 1)
        expected = random_erasing(np.ascontiguousarray(normal), row[1 + count :], 0.9, "pixel")
        tolerance = 1e-5 if present <= wanted else 1.01 / 255 / std[0]
        np.testing.assert_allclose(batch["image"][position], expected, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vertical_flip": 1.5}, "vertical_flip must lie in"),
        ({"color_jitter": -1}, "color_jitter must lie in"),
        ({"random_erasing": 2}, "random_erasing must lie in"),
        ({"erasing_mode": "rand"}, "unknown erasing_mode 'rand'"),
        ({"repeated_augmentation": 0}, "repeated_augmentation must be a whole number of at least 1"),
        ({"auto_augment": "trivial", "color_jitter": 0.4}, "give it or color_jitter"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Augmentation(**options)

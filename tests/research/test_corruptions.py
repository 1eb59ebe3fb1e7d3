"""The 15 corruptions, and the tree that is written with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covpool import cli
from covpool.errors import UserError
from covpool.research.robustness.corruptions import CORRUPTIONS, IMAGENET, SCALES, SMALL, corrupt, frost_texture
from covpool.research.robustness.tree import Plan, list_images, write_tree

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "fashion_mnist_sample"


def picture(height: int, width: int) -> np.ndarray:
    """Smooth colours with an edge."""
    rows, columns = np.mgrid[:height, :width]
    red, green = rows / height, columns / width
    blue = ((rows + columns) // 8 % 2) * 0.8
    return np.round(255 * np.stack([red, green, blue], axis=-1)).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("scale", "shape"), [("small", (28, 36)), ("imagenet", (96, 80))])
def test_a_corruption_keeps_shape_and_type_repeats_and_gets_worse(
    name: str, scale: str, shape: tuple[int, int]
) -> None:
    image = picture(*shape)
    before = image.copy()
    results = {s: corrupt(image, name, s, scale, np.random.default_rng(5)) for s in (1, 5)}
    assert (image == before).all()
    for result in results.values():
        assert result.shape == image.shape and result.dtype == np.uint8
    again = corrupt(image, name, 5, scale, np.random.default_rng(5))
    assert (again == results[5]).all()
    distance = {s: np.abs(result.astype(float) - image).mean() for s, result in results.items()}
    assert 0 < distance[1] < 110
    if name not in ("elastic_transform", "snow", "glass_blur"):  # their severities change several things at once
        assert distance[5] > distance[1]


def test_tables_have_five_severities_of_every_corruption() -> None:
    for table in SCALES.values():
        assert tuple(table) == CORRUPTIONS and {len(values) for values in table.values()} == {5}
    assert IMAGENET["jpeg_compression"] == (25, 18, 15, 10, 7)  # as published
    assert SMALL["gaussian_noise"] == (0.04, 0.06, 0.08, 0.09, 0.10)


def test_noise_has_the_stated_strength() -> None:
    gray = np.full((200, 200, 3), 128, np.uint8)
    noisy = corrupt(gray, "gaussian_noise", 1, "imagenet", np.random.default_rng(0)) / 255
    assert noisy.std() == pytest.approx(0.08, rel=0.03)
    assert (noisy == noisy[:, :, :1]).all()  # noise on a gray image is gray
    coloured = picture(200, 200) // 2 + 50  # neither 0 nor 255
    hit = corrupt(coloured, "impulse_noise", 5, "imagenet", np.random.default_rng(0)) != coloured
    assert hit.mean() == pytest.approx(0.27, rel=0.05)
    shot = corrupt(gray, "shot_noise", 1, "imagenet", np.random.default_rng(0)) / 255
    assert shot.std() == pytest.approx(np.sqrt(0.5 / 60), rel=0.03)


def test_corruptions_that_can_be_said_in_a_line() -> None:
    image, nothing = picture(40, 40), np.random.default_rng(0)
    half = corrupt(image, "contrast", 2, "small", nothing).astype(float)
    assert np.abs(half - (image - image.mean((0, 1))) * 0.5 - image.mean((0, 1))).max() <= 0.51
    lighter = corrupt(np.full((4, 4, 3), (50, 100, 20), np.uint8), "brightness", 2, "imagenet", nothing)
    assert lighter[0, 0].tolist() == [76, 151, 30]  # value 100/255 + 0.2, hue and saturation as before
    black = corrupt(np.zeros((4, 4, 3), np.uint8), "brightness", 2, "imagenet", nothing)
    assert (black == 51).all()
    boxes = corrupt(image, "pixelate", 5, "imagenet", nothing)
    assert (boxes[:4, :4] == boxes[0, 0]).all() and len(np.unique(boxes[:, :, 0])) == 10
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    spread = corrupt(dot, "defocus_blur", 1, "imagenet", nothing)[:, :, 0]
    assert 25 <= (spread > 0).sum() <= 37 and spread[20, 24] == 0 and spread[20, 23] > 0  # a disk of radius 3


def test_frost_covers_about_half() -> None:
    texture = frost_texture(224, 224, np.random.default_rng(1))
    assert 0.3 < texture.mean() < 0.7 and texture.std() > 0.08


@pytest.mark.parametrize(
    ("image", "name", "severity", "scale"),
    [
        (np.zeros((4, 4), np.uint8), "fog", 1, "small"),
        (np.zeros((4, 4, 3), np.float32), "fog", 1, "small"),
        (np.zeros((4, 4, 3), np.uint8), "smog", 1, "small"),
        (np.zeros((4, 4, 3), np.uint8), "fog", 6, "small"),
        (np.zeros((4, 4, 3), np.uint8), "fog", 1, "large"),
    ],
)
def test_bad_arguments_are_refused(image: np.ndarray, name: str, severity: int, scale: str) -> None:
    with pytest.raises(ValueError, match=r"image must be|unknown corruption"):
        corrupt(image, name, severity, scale, np.random.default_rng(0))


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_tree_is_the_same_for_any_number_of_workers_and_after_a_stop(tmp_path: Path) -> None:
    plans = [
        Plan(SAMPLE / "val", tmp_path / name, ("fog", "glass_blur"), (1, 5), "small", None, per_class=1)
        for name in ("one", "two")
    ]
    images = list_images(plans[0])
    assert len(images) == 10
    assert list(write_tree(plans[0], images, 1)) == [4] * 10
    partly = write_tree(plans[1], images, 1)
    for _ in range(3):
        next(partly)
    partly.close()
    removed = next((tmp_path / "two" / "fog" / "5").rglob("*.png"))
    removed.unlink()
    assert sorted(write_tree(plans[1], images, 2)) == [0, 0, 1, *[4] * 7]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    with Image.open(tmp_path / "one" / "fog" / "1" / images[0]) as written:
        assert written.size == (28, 28) and written.mode == "L"


def test_large_images_are_cut_and_become_jpeg(tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    Image.fromarray(picture(300, 400)).save(tmp_path / "in" / "a" / "x.jpg")
    plan = Plan(tmp_path / "in", tmp_path / "out", ("contrast",), (1,), "imagenet", 64)
    assert list(write_tree(plan, list_images(plan), 1)) == [1]
    with Image.open(tmp_path / "out" / "contrast" / "1" / "a" / "x.JPEG") as image:
        assert image.size == (64, 64) and image.format == "JPEG"
    (tmp_path / "in" / "a" / "y.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"damaged image .*y\.png: the file is no image"):
        list(write_tree(plan, list_images(plan), 1))


def test_the_command_line_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    arguments = ["--source", str(SAMPLE / "val"), "--output", str(tmp_path), "--scale", "small", "--per_class", "1"]
    arguments += ["--corruptions", "contrast", "--severities", "2", "--workers", "1"]
    assert cli.run(["corrupt", *arguments]) == 0
    assert cli.run(["corrupt", *arguments]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "10 files written, 0 were there" in first and "0 files written, 10 were there" in second
    assert cli.run(["corrupt", *arguments[:1], str(tmp_path / "none"), *arguments[2:]]) == 1

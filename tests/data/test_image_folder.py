from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import Image

from covpool.data import open_source, pipeline_errors
from covpool.errors import UserError
from tests.data.image_files import dataset

PHOTO = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((40, 30))
)


def evaluate(path: Path, batches: Callable, split: str = "val", **options: int) -> list:
    source = open_source("image_folder", path, split)
    return batches(dataset(source, training=False, image_size=4, batch_size=2, num_workers=1, **options))


def test_class_indices_follow_train_for_both_splits(tmp_path: Path, write_image: Callable, batches: Callable) -> None:
    for name in ("b", "a", "c"):
        write_image(f"train/{name}/1.png")
    write_image("val/c/1.png", 200)
    write_image("val/b/1.png", 100)
    train, val = (open_source("imagenet2012", tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("a", "b", "c")
    assert train.labels.tolist() == [0, 1, 2]
    assert val.labels.dtype == np.int32 and val.labels.tolist() == [1, 2]
    (batch,) = evaluate(tmp_path, batches)
    assert batch["label"].dtype == np.int32 and batch["label"].tolist() == [1, 2]
    red = batch["image"][:, 0, 0, 0] * 0.229 + 0.485
    np.testing.assert_allclose(red * 255, [100, 200], atol=1e-3)


def test_listing_is_sorted_and_leaves_other_files_out(tmp_path: Path, write_image: Callable) -> None:
    names = ["10.PNG", "2.png", "Z.jpg", "a.JPEG", "é.bmp", "图 1.png"]
    for name in reversed(names):
        write_image(f"train/猫/{name}", format="PNG")
    for name in ("notes.txt", ".hidden.png", "._2.png"):
        (tmp_path / "train" / "猫" / name).write_text("no image")
    write_image("train/猫/nested/3.png")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "list.txt").write_text("no folder")
    source = open_source("image_folder", tmp_path, "train")
    assert source.class_names == ("猫",)
    assert [Path(source.describe(i)).name for i in range(source.num_samples)] == names
    assert source.read(5).tobytes() == (tmp_path / "train" / "猫" / "图 1.png").read_bytes()


def test_names_that_are_not_utf8(tmp_path: Path, write_image: Callable) -> None:
    image = write_image("train/a/1.png")
    os.rename(image, os.fsencode(image.parent) + b"/\xff.png")  # noqa: PTH104 -- bytes
    source = open_source("image_folder", tmp_path, "train")
    assert len(source.read(0)) > 0


def test_symbolic_links_are_followed(tmp_path: Path, write_image: Callable, batches: Callable) -> None:
    image = write_image("elsewhere/1.png", 50)
    (tmp_path / "train" / "a").mkdir(parents=True)
    (tmp_path / "train" / "a" / "link.png").symlink_to(image)
    (tmp_path / "train" / "b").symlink_to(image.parent)
    (batch,) = evaluate(tmp_path, batches, "train")
    assert batch["label"].tolist() == [0, 1]


@pytest.mark.parametrize("link", ["a/link.png", "link"])
@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_symbolic_links_that_lead_nowhere(tmp_path: Path, write_image: Callable, target: str, link: str) -> None:
    write_image("train/a/1.png")
    place = tmp_path / "train" / link
    place.symlink_to(place.name if target == "itself" else target)
    with pytest.raises(UserError, match=f"symbolic link leads nowhere.*{place.name}"):
        open_source("image_folder", tmp_path, "train")


def test_link_to_its_own_parent_is_a_class_without_images(tmp_path: Path, write_image: Callable) -> None:
    write_image("train/a/1.png")
    (tmp_path / "train" / "self").symlink_to(".")
    with pytest.raises(UserError, match=r"class folder without images.*self"):
        open_source("image_folder", tmp_path, "train")


def test_layout_errors_name_the_folder(tmp_path: Path, write_image: Callable) -> None:
    with pytest.raises(UserError, match=r"no folder .*train"):
        open_source("image_folder", tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"no class folders in .*train"):
        open_source("image_folder", tmp_path, "train")
    write_image("train/full/1.png")
    write_image("train/empty/1.webp")
    with pytest.raises(UserError, match=r"without images: .*empty .*only \.webp"):
        open_source("image_folder", tmp_path, "train")
    with pytest.raises(UserError, match=r"no folder .*val: .*; without val/, --val_fraction=0\.2 takes that part"):
        open_source("image_folder", tmp_path, "val")
    write_image("val/full/1.png")
    write_image("val/foreign/1.png")
    with pytest.raises(UserError, match=r"1 class folder.*does not have, first 'foreign'"):
        open_source("image_folder", tmp_path, "val")
    with pytest.raises(UserError, match=r"not a folder.*nothing"):
        open_source("image_folder", tmp_path / "nothing", "train")


def test_unknown_names_list_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown dataset 'imagefolder'.*did you mean 'image_folder'"):
        open_source("imagefolder", tmp_path, "train")
    with pytest.raises(UserError, match=r"unknown split 'test'.*train, val"):
        open_source("cifar10", tmp_path, "test")


def parts(path: Path, fraction: float, **options: Path) -> dict[str, set[str]]:
    """Both parts of a folder without val/, as `<class>/<file>`."""
    found = {}
    for split in ("train", "val"):
        source = open_source("image_folder", path, split, val_fraction=fraction, **options)
        assert source.class_names == ("a", "b", "c")
        found[split] = {str(source.path(i).relative_to(path / "train")) for i in range(source.num_samples)}
        labels = ["abc"[label] for label in source.labels]
        assert labels == [Path(source.describe(i)).parent.name for i in range(source.num_samples)]
    return found


def test_a_folder_without_val_is_split_and_keeps_its_parts_when_images_are_added(tmp_path: Path) -> None:
    def add(numbers: range) -> set[str]:
        names = {f"{label}/{number}.png" for label in "abc" for number in numbers}
        for name in names:
            (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "train" / name).touch()
        return names

    first = add(range(200))
    before = parts(tmp_path, 0.2)
    assert before["train"] | before["val"] == first and not before["train"] & before["val"]
    for label in "abc":  # within three standard deviations
        assert 23 <= sum(name.startswith(f"{label}/") for name in before["val"]) <= 57
    assert parts(tmp_path, 0.2) == before
    add(range(200, 300))
    after = parts(tmp_path, 0.2)
    assert after["train"] & first == before["train"] and after["val"] & first == before["val"]
    assert parts(tmp_path, 0.3)["val"] >= after["val"]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"train/{name}\n" for name in sorted(first)))
    assert parts(tmp_path, 0.2, image_list=listed) == before
    rare = parts(tmp_path, 1e-9)["val"]
    assert sorted(name[0] for name in rare) == ["a", "b", "c"]  # one of each class at least
    assert sorted(name[0] for name in parts(tmp_path, 0.999999999)["train"]) == ["a", "b", "c"]


def test_what_is_there_is_not_split(tmp_path: Path, write_image: Callable) -> None:
    for name in ("train/a/1", "train/a/2", "val/a/3", "test/a/4"):
        write_image(f"{name}.png")
    for split, names in (("train", ["1.png", "2.png"]), ("val", ["3.png"]), ("test", ["4.png"])):
        source = open_source("image_folder", tmp_path, split, val_fraction=0.5)
        assert [Path(source.describe(i)).name for i in range(source.num_samples)] == names
    (tmp_path / "list.txt").write_text("train/a/1.png\nval/a/3.png\ntest/a/4.png\n")
    assert open_source("image_folder", tmp_path, "test", tmp_path / "list.txt").num_samples == 1
    write_image("one/train/a/1.png")
    with pytest.raises(UserError, match=r"^val_fraction = 0\.5: class 'a' has a single image, which cannot be split$"):
        open_source("image_folder", tmp_path / "one", "val", val_fraction=0.5)
    with pytest.raises(UserError, match=r"val_fraction splits an image folder, dataset is 'cifar10'"):
        open_source("cifar10", tmp_path, "val", val_fraction=0.5)


MODES = [(mode, "png") for mode in ("RGB", "L", "LA", "RGBA", "P", "1")]
MODES += [("RGB", "bmp"), ("L", "bmp"), ("P", "bmp"), ("RGB", "jpeg"), ("L", "jpeg"), ("CMYK", "jpeg")]


@pytest.mark.parametrize(("mode", "kind"), MODES)
def test_colour_modes_become_rgb(tmp_path: Path, batches: Callable, mode: str, kind: str) -> None:
    image = Image.fromarray(PHOTO).convert("RGB").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(PHOTO[:, :, 1]))
    path = tmp_path / "train" / "a" / f"1.{kind}"
    path.parent.mkdir(parents=True)
    image.save(path)
    with Image.open(path) as saved:
        assert saved.mode == mode
        expected = np.asarray(saved.convert("RGB"))
    source = open_source("image_folder", tmp_path, "train")
    made = dataset(
        source, training=False, image_size=30, eval_crop_ratio=1, batch_size=1, mean=(0, 0, 0), std=(1, 1, 1)
    )
    (batch,) = batches(made)
    # Pillow and OpenCV bring the same libjpeg algorithms; one level for another build's rounding.
    np.testing.assert_allclose(batch["image"][0].transpose(1, 2, 0) * 255, expected[:, 5:35], atol=1.001)


def test_sixteen_bit_gray_is_scaled(tmp_path: Path, write_image: Callable, batches: Callable) -> None:
    write_image("train/a/1.png", np.full((8, 8), 128 * 257, np.uint16))
    source = open_source("image_folder", tmp_path, "train")
    (batch,) = batches(dataset(source, training=False, image_size=8, batch_size=1, mean=(0, 0, 0), std=(1, 1, 1)))
    np.testing.assert_allclose(batch["image"], 128 / 255, atol=1e-6)


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "text": b"not an image" * 9, "cut": data[: len(data) * 2 // 3]}[how])


@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "damaged image .*: the file is empty"),
        ("text", "damaged image .*: the file is no image"),
        ("cut", "damaged image .*truncated"),
        ("missing", "cannot read image .*: No such file"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    tmp_path: Path, write_image: Callable, batches: Callable, kind: str, how: str, message: str
) -> None:
    write_image("train/a/1.png")
    bad = write_image(f"train/a/2.{kind}", np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    source = open_source("image_folder", tmp_path, "train")
    damage(bad, how)
    made = dataset(source, training=False, image_size=4, batch_size=2)
    with pytest.raises(UserError, match=message) as raised, pipeline_errors():
        batches(made)
    assert bad.name in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "TIFF"])
def test_a_format_the_decoder_lacks_is_named(tmp_path: Path, write_image: Callable, kind: str) -> None:
    write_image("train/a/1.png", format=kind)
    with pytest.raises(UserError, match=rf"unsupported image .*1\.png: {kind} data"):
        open_source("image_folder", tmp_path, "train").pixels(0)


def test_other_errors_are_not_taken_for_the_users() -> None:
    with pytest.raises(RuntimeError), pipeline_errors():
        raise RuntimeError("UserError: in the middle of something")


def test_whole_files_with_odd_ends_are_read(tmp_path: Path, write_image: Callable) -> None:
    path = write_image("train/a/1.jpeg")
    path.write_bytes(path.read_bytes() + b"trailing bytes of a camera")
    source = open_source("image_folder", tmp_path, "train")
    assert source.read(0).tobytes() == path.read_bytes()


def test_subset_keeps_files_and_labels_together(tmp_path: Path, write_image: Callable) -> None:
    for name in ("a/1", "a/2", "b/3"):
        write_image(f"train/{name}.png")
    chosen = open_source("image_folder", tmp_path, "train").subset([2, 0])
    assert chosen.num_samples == 2 and chosen.labels.tolist() == [1, 0]
    assert [Path(chosen.describe(i)).name for i in range(2)] == ["3.png", "1.png"]

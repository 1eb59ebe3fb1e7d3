from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from covpool import cli
from covpool.commands.data_sets import pack
from covpool.config import Config
from covpool.data import mindrecord_writer, open_source
from covpool.data.image_folder import open_image_folder
from covpool.data.mindrecord import COLUMNS, open_mindrecord
from covpool.data.mindrecord_writer import pack_image_folder
from covpool.errors import UserError
from tests.data.image_files import dataset

COUNTS = {"train": {"a": 9, "it's b": 7, "ü": 8}, "val": {"a": 3, "ü": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with odd names, unequal classes, and one class that val/ lacks; 24 + 7 noisy images."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(3)
    for split, classes in COUNTS.items():
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(12, 30, 2)
                image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
                image.save(root / split / name / f'{number} "x".{("png", "jpg", "bmp")[number % 3]}')
    return root


def pack_in_three(folder: Path, output: Path) -> Path:
    assert pack(folder, output, shards=3) == {"train": 24, "val": 7}
    return output


@pytest.fixture(scope="module")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That folder, packed; to be left as it is."""
    return pack_in_three(folder, tmp_path_factory.mktemp("packed") / "x")


def same_batches(first: Any, second: Any, batches: Callable[..., list[dict[str, np.ndarray]]]) -> int:
    ours, theirs = batches(first), batches(second)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for column in a:
            np.testing.assert_array_equal(a[column], b[column])
    return sum(len(batch["label"]) for batch in ours)


def test_source_is_that_of_the_folder(folder: Path, packed: Path) -> None:
    for split in ("train", "val"):
        ours, theirs = open_source("mindrecord", packed, split), open_source("image_folder", folder, split)
        assert ours.class_names == theirs.class_names
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert (ours.mean, ours.std, ours.image_shape) == (theirs.mean, theirs.std, theirs.image_shape)
        for index in range(theirs.num_samples):
            np.testing.assert_array_equal(ours.read(index), theirs.read(index))
            path = theirs.describe(index).partition(f"/{split}/")[2]
            assert ours.describe(index).endswith(f":{path}")


@pytest.mark.parametrize("augmentation", ["imagenet", "small"])
@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 3)])
def test_training_batches_are_those_of_the_folder(
    folder: Path, packed: Path, augmentation: str, rank: int, world_size: int, batches: Callable[..., Any]
) -> None:
    arguments = {"training": True, "image_size": 8, "batch_size": 4, "augmentation": augmentation}
    arguments |= {"seed": 5, "epoch": 2, "rank": rank, "world_size": world_size}
    ours = dataset(open_source("mindrecord", packed, "train"), num_workers=2, **arguments)
    theirs = dataset(open_source("image_folder", folder, "train"), num_workers=1, **arguments)
    assert same_batches(ours, theirs, batches) == 24 // (4 * world_size) * 4


def test_evaluation_counts_every_image_once(folder: Path, packed: Path, batches: Callable[..., Any]) -> None:
    total = 0
    for rank in range(2):
        arguments = {"training": False, "image_size": 8, "batch_size": 3, "rank": rank, "world_size": 2}
        ours = dataset(open_source("mindrecord", packed, "val"), **arguments)
        theirs = dataset(open_source("image_folder", folder, "val"), **arguments)
        total += same_batches(ours, theirs, batches)
    assert total == 7


def test_subset_reads_the_chosen_images(packed: Path) -> None:
    source = open_mindrecord(packed, "train")
    part = source.subset([20, 3, 3])
    assert part.num_samples == 3
    for position, index in enumerate([20, 3, 3]):
        np.testing.assert_array_equal(part.read(position), source.read(index))
        assert part.labels[position] == source.labels[index]
        assert part.describe(position) == source.describe(index)


def test_threads_share_the_files(packed: Path) -> None:
    source = open_mindrecord(packed, "train")
    alone = [source.read(index) for index in range(24)]
    fresh = open_mindrecord(packed, "train")
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(fresh.read, list(range(24)) * 20))
    for position, data in enumerate(together):
        np.testing.assert_array_equal(data, alone[position % 24])


def test_mindspore_reads_the_same_rows(folder: Path, packed: Path) -> None:
    from mindspore.mindrecord import FileReader

    source = open_image_folder(folder, "train")
    reader = FileReader(str(packed / "train.mindrecord0"), num_consumer=1)  # finds the other shards by itself
    rows = {row["number"]: row for row in reader.get_next()}
    reader.close()
    assert sorted(rows) == list(range(24))
    for index, row in rows.items():
        assert bytes(row["image"]) == source.read(index).tobytes()
        assert row["label"] == source.labels[index]
        assert row["file"] == source.files[index].decode()


def test_one_shard_and_permissions(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "one")
    names = ["train.mindrecord", "train.mindrecord.db", "val.mindrecord", "val.mindrecord.db"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "one").iterdir()} == {0o644}
    assert open_mindrecord(tmp_path / "one", "train").num_samples == 24


def test_shards_share_the_images_and_follow_their_size(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mindrecord_writer, "DEFAULT_SHARD_BYTES", 3000)
    monkeypatch.setattr(mindrecord_writer, "_CHUNK_BYTES", 4000)
    pack(folder, tmp_path / "small")
    source = open_mindrecord(tmp_path / "small", "train")
    folder_source = open_image_folder(folder, "train")
    total = sum(len(folder_source.read(index)) for index in range(24))
    assert len(source.shards) == -(-total // 3000) >= 4
    counts = np.bincount(source.shard_of)
    assert counts.max() - counts.min() <= 24 % len(source.shards)
    for index in range(24):
        np.testing.assert_array_equal(source.read(index), folder_source.read(index))


def test_large_image_gets_larger_pages(write_image: Callable[..., Path], tmp_path: Path) -> None:
    write_image("big/train/a/large.bmp", np.full((3400, 3400, 3), 7, np.uint8))  # 34.7 MB; pages have 33.6 MB
    write_image("big/train/a/small.png", 9)
    pack(tmp_path / "big", tmp_path / "out")
    source, original = open_mindrecord(tmp_path / "out", "train"), open_image_folder(tmp_path / "big", "train")
    for index in range(2):
        np.testing.assert_array_equal(source.read(index), original.read(index))


def test_train_alone_can_be_packed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(folder / "train")
    assert pack(tmp_path, tmp_path / "out") == {"train": 24}
    with pytest.raises(UserError, match=r"no val\.mindrecord files in .*out: covpool pack makes them"):
        open_source("mindrecord", tmp_path / "out", "val")


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path) -> None:
    packed = pack_in_three(folder, tmp_path / "out")
    shard, index = packed / "train.mindrecord1", packed / "train.mindrecord1.db"

    def fails(match: str) -> None:
        with pytest.raises(UserError, match=match):
            open_mindrecord(packed, "train")

    content, entries = shard.read_bytes(), index.read_bytes()
    shard.unlink()
    fails(r"cannot read .*train\.mindrecord1: No such file")
    shard.write_bytes(b"")
    fails(r"damaged MindRecord file .*train\.mindrecord1: it has no header")
    shard.write_bytes(content[:100])
    fails(r"damaged MindRecord file .*train\.mindrecord1: its header cannot be read")
    shard.write_bytes(content.replace(b'"version":"3.0"', b'"version":"9.9"', 1))
    fails(r"MindRecord version 9\.9, readable is 3\.0")
    shard.write_bytes(content.replace(b'"number":{"type"', b'"nomber":{"type"', 1))
    fails(r"columns .*nomber.*, needed are image, label, number, file")
    shard.write_bytes(content)
    index.unlink()
    fails(r"cannot read .*train\.mindrecord1\.db: it belongs to train\.mindrecord1, copy both")
    index.write_bytes(b"no data base at all" * 100)
    fails(r"damaged index .*train\.mindrecord1\.db")
    index.write_bytes(entries)
    with sqlite3.connect(index) as database:
        database.execute("DELETE FROM INDEXES WHERE ROW_ID = 0")
    database.close()
    fails(r"the train shards hold 23 images, 24 were packed")


def described(**changes: object) -> dict[str, object]:
    about = {"class_names": ["a", "it's b", "ü"], "num_samples": 24, **changes}
    return {"schema": [{"schema": {n: {"type": t} for n, t in COLUMNS.items()}, "desc": json.dumps(about)}]}


HEADERS: dict[str, tuple[dict[str, object], str]] = {
    "a shard elsewhere": ({"shard_addresses": ["../../secret"]}, "it names shards that are none of train"),
    "a shard of val": ({"shard_addresses": ["val.mindrecord0"]}, "it names shards that are none of train"),
    "a shard twice": ({"shard_addresses": ["train.mindrecord0"] * 2}, "it names no shards"),
    "no shards": ({"shard_addresses": "train.mindrecord0"}, "it names no shards"),
    "numbers as shards": ({"shard_addresses": [1]}, "it names shards that are none of train"),
    "a header of a huge size": ({"header_size": 1 << 70}, "sizes of 1180591620717411303424 and"),
    "pages of no size": ({"page_size": 0}, "and 0 bytes"),
    "pages of a text": ({"page_size": "1"}, "and '1' bytes"),
    "no schema": ({"schema": []}, "its header lacks"),
    "a schema of numbers": ({"schema": [{"schema": {"image": 1}}]}, "its header lacks"),
    "classes that are none": (described(class_names="abc"), "its class names are no list"),
    "one class twice": (described(class_names=["a", "a", "b"]), "its class names are no list"),
    "more images than memory": (described(num_samples=1 << 60), "hold 24 images, 1152921504606846976 were packed"),
    "a number of images that is none": (described(num_samples=-1), "says that -1 images were packed"),
    "a description that is none": ({"schema": [{**described()["schema"][0], "desc": "["}]}, "no class names in"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_are_not_believed(case: str, packed: Path) -> None:
    changes, message = HEADERS[case]
    before = {}
    for shard in packed.glob("train.mindrecord?"):
        with shard.open("r+b") as file:
            before[shard] = file.read(4096)
            length = int.from_bytes(before[shard][:8], "little")
            header = json.dumps({**json.loads(before[shard][8 : 8 + length]), **changes}).encode()
            file.seek(0)
            file.write(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match=re.escape(message)):
        open_mindrecord(packed, "train")
    for shard, content in before.items():
        with shard.open("r+b") as file:
            file.write(content)
    assert open_mindrecord(packed, "train").num_samples == 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = 1 << 62", "an image lies outside of the pages"),
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB = -9", "an image lies outside of the pages"),
        ("UPDATE INDEXES SET PAGE_ID_BLOB = 1 << 40", "an image lies outside of the pages"),
        ("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 'x'", "a row is not of numbers"),
        ("UPDATE INDEXES SET file_0 = NULL", "a row is not of numbers"),
        ("UPDATE INDEXES SET label_0 = 1.5", "a row is not of numbers"),
        ("UPDATE INDEXES SET label_0 = 3", "labels reach 3, there are 3 classes"),
        ("UPDATE INDEXES SET number_0 = 7", "hold 24 images, 24 were packed"),
        ("ALTER TABLE INDEXES RENAME TO x; CREATE VIEW INDEXES AS SELECT * FROM x", "it has no table of images"),
    ],
)
def test_indexes_are_not_believed(change: str, message: str, packed: Path) -> None:
    index = packed / "train.mindrecord1.db"
    before = index.read_bytes()
    with contextlib.closing(sqlite3.connect(index)) as database:
        database.executescript(change)
    with pytest.raises(UserError, match=message):
        open_mindrecord(packed, "train")
    index.write_bytes(before)
    assert open_mindrecord(packed, "train").num_samples == 24


def test_damage_inside_a_shard_is_found_on_reading(folder: Path, tmp_path: Path) -> None:
    packed = pack_in_three(folder, tmp_path / "out")
    source = open_mindrecord(packed, "train")
    first = np.flatnonzero(source.shard_of == 0)[0]
    content = bytearray(source.shards[0].read_bytes())
    content[int(source.offsets[first])] ^= 1
    source.shards[0].write_bytes(content)
    with pytest.raises(UserError, match=r"damaged image .*mindrecord0:.*: the shard does not hold what its index says"):
        source.read(int(first))
    source.shards[0].write_bytes(content[: int(source.offsets[first]) + 20])
    with pytest.raises(UserError, match=r"damaged image .*mindrecord0:.*: the shard does not hold"):
        source.read(int(first))
    cut = open_mindrecord(packed, "train")
    cut.shards[1].unlink()
    with pytest.raises(UserError, match=r"cannot read image .*mindrecord1:.*No such file"):
        cut.read(int(np.flatnonzero(cut.shard_of == 1)[0]))


@pytest.mark.parametrize("shards", [0, 25, 1001])
def test_impossible_number_of_shards(folder: Path, tmp_path: Path, shards: int) -> None:
    with pytest.raises(UserError, match=f"shards must lie in 1 to 24 for 24 images, got {shards}"):
        pack(folder, tmp_path / "out", shards)
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^cannot write [^\n]*nowhere: [^\n]+$"):
        list(pack_image_folder(open_image_folder(folder, "train"), tmp_path / "nowhere"))


def test_a_folder_whose_name_is_no_text(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*\\udcff.*: MindSpore needs a path of valid UTF-8"):
        pack(folder, tmp_path / os.fsdecode(b"\xff"))
    assert not list(tmp_path.iterdir())


def test_command_packs_and_says_what(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data_path", str(folder), "--output", str(tmp_path / "out"), "--shards", "2", "--workers", "1"]
    assert cli.run(["pack", *arguments]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"{tmp_path / 'out'}: 24 train images, 7 val images, ")
    assert not output.err  # bars are for terminals
    assert cli.run(["pack", *arguments]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'out'} exists already: choose another name or remove it\n"


def test_damaged_image_ends_the_packing_without_trace(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    victim = next((tmp_path / "data" / "train" / "a").glob("*.png"))
    victim.write_bytes(victim.read_bytes()[:300])
    before = sorted(tmp_path.iterdir())
    assert cli.run(["pack", "--data_path", str(tmp_path / "data"), "--output", str(tmp_path / "out")]) == 1
    assert f"error: damaged image {victim}" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_configuration_knows_the_data_set() -> None:
    assert Config(dataset="mindrecord").dataset == "mindrecord"

"""What training with ``bad_images: skip`` relies on: every rank has the same good images before the first epoch."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from covpool.data import open_source, steps_per_epoch, usable
from covpool.errors import UserError
from tests.data.image_files import dataset


def encoded(kind: str, value: int = 0) -> bytes:
    """A small image of one gray value."""
    stream = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), value, np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 images in two classes, 3 of them bad in different ways."""
    for number in range(20):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded("PNG", number))
    (tmp_path / "train" / "a" / "04.png").write_bytes(b"")
    (tmp_path / "train" / "b" / "07.png").write_bytes(encoded("PNG")[:-40])
    (tmp_path / "train" / "b" / "19.png").write_bytes(encoded("GIF"))
    return tmp_path


def test_usable_leaves_out_and_names_the_bad_images(folder: Path, batches: Callable) -> None:
    source = open_source("image_folder", folder, "train")
    done: list[int] = []
    good, problems = usable(source, workers=2, progress=done.append)
    assert good.num_samples == 17 and sum(done) == 20
    assert good.class_names == source.class_names and good.labels.tolist() == [0] * 9 + [1] * 8
    assert [Path(line.split(": ")[0]).name for line in problems] == ["04.png", "07.png", "19.png"]
    assert problems[2].startswith("unsupported image ") and "GIF data" in problems[2]
    options = {"image_size": 9, "batch_size": 5, "eval_crop_ratio": 1, "mean": (0, 0, 0), "std": (1 / 255,) * 3}
    read = batches(dataset(good, training=False, **options))
    values = [batch["image"][:, 0, 0, 0].round() for batch in read]
    assert sorted(np.concatenate(values).tolist()) == [n for n in range(20) if n not in (4, 7, 19)]
    again, nothing = usable(good)
    assert again is good and nothing == []


class Ranks:
    """Sums over ranks that take turns: every rank runs until all have given the value of the same call."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier, self.lock = count, threading.Barrier(count), threading.Lock()
        self.values: list[np.ndarray] = []

    def total(self, values: np.ndarray) -> np.ndarray:
        with self.lock:
            self.values.append(values.copy())
        self.barrier.wait(20)
        result = np.sum(self.values, axis=0)
        if self.barrier.wait(20) == 0:
            self.values.clear()
        self.barrier.wait(20)
        return result

    def run(self, function: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.count) as pool:
            return [future.result() for future in [pool.submit(function, rank) for rank in range(self.count)]]


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_the_same_images_and_lines(folder: Path, world: int) -> None:
    alone, lines = usable(open_source("image_folder", folder, "train"))
    ranks = Ranks(world)

    def one(rank: int) -> Any:
        source = open_source("image_folder", folder, "train")
        return usable(source, 1, rank=rank, world_size=world, total=ranks.total)

    for source, problems in ranks.run(one):
        assert problems == lines and source.files.tolist() == alone.files.tolist()
        assert steps_per_epoch(source.num_samples, 2, world) == 17 // (2 * world)


def test_an_image_that_one_rank_cannot_read_is_left_out_by_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks(2)
    sources = [open_source("image_folder", folder, "train") for _ in range(2)]
    pixels = type(sources[0]).pixels

    def flaky(self: Any, index: int) -> np.ndarray:
        if self is sources[1] and index == 1:
            raise UserError("cannot read image: stale file handle")
        return pixels(self, index)

    monkeypatch.setattr(type(sources[0]), "pixels", flaky)
    first, second = ranks.run(lambda rank: usable(sources[rank], 1, rank=rank, world_size=2, total=ranks.total))
    assert first[0].files.tolist() == second[0].files.tolist() and first[0].num_samples == 16
    assert "could not be read by another rank" in first[1][0] and "stale file handle" in second[1][0]


def test_ranks_that_see_other_images_do_not_start(folder: Path) -> None:
    ranks = Ranks(2)
    source = open_source("image_folder", folder, "train")
    sources = [source, source.subset(range(19))]
    with pytest.raises(
        UserError, match=r"the ranks do not see the same images: train has 20 on rank 0 and 39 on all 2"
    ):
        ranks.run(lambda rank: usable(sources[rank], 1, rank=rank, world_size=2, total=ranks.total))


def test_the_answer_is_remembered_until_a_file_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "run" / "usable_train.json"
    source = open_source("image_folder", folder, "train")
    first = usable(source, 1, cache=cache)
    counted: list[int] = []
    pixels = type(source).pixels
    monkeypatch.setattr(type(source), "pixels", lambda self, index: (counted.append(index), pixels(self, index))[1])
    second = usable(source, 1, cache=cache)
    assert second[1] == first[1] and second[0].files.tolist() == first[0].files.tolist()
    assert counted == [2, 13, 19]  # only what was bad is looked at again, for the lines
    (folder / "train" / "a" / "04.png").write_bytes(encoded("PNG"))
    assert usable(source, 1, cache=cache)[0].num_samples == 18
    cache.write_text("{damaged")
    assert usable(source, 1, cache=cache)[0].num_samples == 18


def test_unreadable_files_are_not_remembered(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "usable_train.json"
    source = open_source("image_folder", folder, "train")
    victim = source.path(0)
    content = victim.read_bytes()
    victim.unlink()
    assert usable(source, 1, cache=cache)[0].num_samples == 16 and not cache.exists()
    victim.write_bytes(content)
    assert usable(source, 1, cache=cache)[0].num_samples == 17


def test_nothing_left_is_an_error(folder: Path) -> None:
    source = open_source("image_folder", folder, "train").subset([2, 13])
    with pytest.raises(UserError, match=r"none of the 2 train images can be used, first: damaged image .*04\.png"):
        usable(source)


def test_images_in_memory_need_no_check(numbered: Callable) -> None:
    source = numbered(3)
    assert usable(source) == (source, [])

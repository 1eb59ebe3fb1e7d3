"""What covpool check-data prints and writes; its clean list is what training can use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import pytest

from covpool import cli
from covpool.data import open_source, usable
from tests.data.image_files import PIXELS, encoded

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "fashion_mnist_sample"


def test_odd_names_in_findings_and_clean_list(check: Callable, folder: Path, tmp_path: Path) -> None:
    names = ["line\nbreak.png", " edge.png", os.fsdecode(b"\xff.png"), '"quoted".png', "#x.png", "é.png"]
    for name in names:
        (folder / "train" / "cat" / name).write_bytes(encoded(pixels=PIXELS[:9]))
    (folder / "train" / "cat" / "bad\nname.png").write_bytes(b"")
    clean = tmp_path / "clean.txt"
    code, problems, _ = check("--write_clean_list", str(clean))
    assert code == 1 and problems == [("damaged", "train/cat/bad\\nname.png", "the file is empty")]
    everything = open_source("image_folder", folder, "train")
    listed = open_source("image_folder", folder, "train", clean)
    good, lines = usable(everything)
    assert len(lines) == 1 and listed.num_samples == everything.num_samples - 1 == 4 + 4 + len(names)
    assert listed.files.tolist() == good.files.tolist() and listed.labels.tolist() == good.labels.tolist()
    assert all(len(listed.pixels(index)) == 9 for index in range(listed.num_samples))


def test_clean_list_leaves_out_what_cannot_be_trained(check: Callable, folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "ant").mkdir()
    (folder / "val" / "fish").mkdir()
    (folder / "val" / "fish" / "0.png").write_bytes(encoded())
    (folder / "train" / "owl").mkdir()
    (folder / "train" / "owl" / "0.png").write_bytes(b"")
    (folder / "train" / "cat" / "gone.png").symlink_to("nowhere")
    clean = tmp_path / "lists" / "clean.txt"
    assert check("--write_clean_list", str(clean))[0] == 1
    assert clean.read_text().startswith("# ")
    train, val = (open_source("image_folder", folder, split, str(clean)) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0] * 4 + [1] * 4 and val.labels.tolist() == [0, 0, 1, 1]
    assert usable(train)[0] is train and usable(val)[0] is val


def test_many_files_on_several_processes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(SAMPLE, tmp_path / "data")
    for name in ("0000.png", "0100.png"):
        victims = sorted((tmp_path / "data" / "train" / "bag").iterdir())
        victims[int(name[:4])].write_bytes(b"")
    for workers in ("1", "2"):
        options = ["--workers", workers, "--json", str(tmp_path / f"{workers}.json")]
        assert cli.run(["check-data", "--data_path", str(tmp_path / "data"), *options]) == 1
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    assert len(json.loads((tmp_path / "1.json").read_text())["problems"]) == 2


def test_notes_are_shown_by_kind_or_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (folder / "train" / "cat" / f"p{number}.png").write_bytes(encoded(mode="P"))
    assert cli.run(["check-data", "--data_path", str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "note: converted: train/cat/p0.png: is a palette; becomes RGB of 8 bits"
    assert printed[1] == "note: converted: 2 more (--notes shows them)" and len(printed) == 3
    assert cli.run(["check-data", "--data_path", str(folder), "--notes"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_usage_errors(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        ["--data_path", str(tmp_path / "nothing")],
        ["--data_path", str(folder), "--workers", "0"],
        ["--data_path", str(folder), "--dataset", "cifar10", "--duplicates"],
    ):
        assert cli.run(["check-data", *arguments]) == 2 and "error: " in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert cli.run(["check-data", "--data_path", str(folder), "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write ")
    for path in (folder / "train").glob("*/*"):
        path.write_bytes(b"")
    assert cli.run(["check-data", "--data_path", str(folder), "--write_clean_list", str(tmp_path / "clean.txt")]) == 2
    assert "no clean list was written" in capsys.readouterr().err and not (tmp_path / "clean.txt").exists()


def test_other_data_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 10, (2, 3073), dtype=np.uint8)
        (tmp_path / name).write_bytes(records.tobytes())
    options = ["--data_path", str(tmp_path), "--dataset", "cifar10"]
    assert cli.run(["check-data", *options]) == 0
    assert "train 10 images in 10 classes, val 2 images in 10 classes; problems: 0" in capsys.readouterr().out
    (tmp_path / "data_batch_3.bin").write_bytes(b"x" * 100)
    assert cli.run(["check-data", *options]) == 1
    assert "problem: data set: " in capsys.readouterr().out


def test_as_a_command(folder: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    (folder / "val" / "cat" / "0.png").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "covpool", "check-data", "--data_path", str(folder)],
        cwd=tmp_path,
        env=clean_env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.splitlines() == [
        "problem: damaged: val/cat/0.png: the file is empty",
        f"{folder}: train 8 images in 2 classes, val 4 images in 2 classes; problems: 1, notes: 0",
    ]

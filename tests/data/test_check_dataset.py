"""scripts/check_dataset.py finds every kind of problem, and its clean list is what training can use."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest
from PIL import Image

from src.data import open_source, usable

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "fashion_mnist_sample"
SCRIPT = ROOT / "scripts" / "check_dataset.py"


def encoded(
    kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (9, 9), seed: int = 0, **options: Any
) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    stream = io.BytesIO()
    (Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)).save(
        stream, kind, **options
    )
    return stream.getvalue()


def animated(kind: str) -> bytes:
    pictures = [Image.fromarray(np.full((4, 4, 3), 80 * i, np.uint8)) for i in (1, 2, 3)]
    stream = io.BytesIO()
    pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:])
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of four good images in train/, two in val/."""
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                seed = len(list(root.rglob("*.png")))  # another image each time
                (root / split / label / f"{number}.png").write_bytes(encoded(seed=seed))
    return root


@pytest.fixture(scope="module")
def main() -> Callable[[list[str]], int]:
    """The script's main function, in this process."""
    spec = importlib.util.spec_from_file_location("check_dataset", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def check(main: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Run the check: (exit code, problems, notes), each finding as (kind, path, text)."""

    def run(*options: str) -> tuple[int, list[tuple[str, str, str]], list[tuple[str, str, str]]]:
        report = tmp_path / "report.json"
        code = main(["--data_path", str(folder), "--json", str(report), *options])
        content = json.loads(report.read_text())
        printed = capsys.readouterr().out.splitlines()
        problems, notes = ([(f["kind"], f["path"], f["text"]) for f in content[k]] for k in ("problems", "notes"))
        for finding in problems:
            assert f"problem: {': '.join(part for part in finding if part)}" in printed
        assert f"problems: {len(problems)}, notes: {len(notes)}" in printed[-1] or "--write_clean_list" in options
        return code, problems, notes

    return run


def test_a_clean_data_set(check: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check() == (0, [], [])
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["splits"] == {"train": {"images": 8, "classes": 2}, "val": {"images": 4, "classes": 2}}


# What is put at train/cat/x.<ending>, and the kind and text that it must give.
PROBLEMS: dict[str, tuple[str, bytes, str, str]] = {
    "truncated": ("jpg", encoded("JPEG")[:-20], "damaged", "truncated"),
    "zero bytes": ("png", b"", "damaged", "the file is empty"),
    "no image": ("jpg", b"<html>404</html>", "damaged", "the file is no image"),
    "damaged in the middle": ("png", encoded().replace(b"IDAT", b"IDAU"), "damaged", ""),
    "unsupported format": ("jpg", encoded("WEBP"), "unsupported", "WEBP data"),
    "unsupported ending": ("webp", encoded("WEBP"), "unsupported", "WEBP data, readable are .bmp"),
    "animation": ("gif", animated("GIF"), "unsupported", "animated GIF data"),
    "TIFF": ("tiff", encoded("TIFF"), "unsupported", "TIFF data"),
    "image without its ending": ("jfif", encoded("JPEG"), "unsupported", "JPEG data whose name does not end in .jpeg"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_bad_files(case: str, check: Callable, folder: Path) -> None:
    ending, data, kind, text = PROBLEMS[case]
    (folder / "train" / "cat" / f"x.{ending}").write_bytes(data)
    code, problems, notes = check()
    assert code == 1 and not notes
    ((found_kind, path, found_text),) = problems
    assert (found_kind, path) == (kind, f"train/cat/x.{ending}") and text in found_text


NOTES: dict[str, tuple[str, bytes, str, str]] = {
    "CMYK": ("jpg", encoded("JPEG", "CMYK"), "converted", "is CMYK; becomes RGB"),
    "palette": ("png", encoded("PNG", "P"), "converted", "is a palette; becomes RGB"),
    "16 bits": ("png", encoded("PNG", "I;16"), "converted", "is 16-bit gray; becomes RGB of 8 bits"),
    "alpha": ("png", encoded("PNG", "RGBA"), "converted", "is colour with alpha, which is dropped"),
    "gray with alpha": ("png", encoded("PNG", "LA"), "converted", "is gray with alpha, which is dropped"),
    "animated PNG": ("png", animated("PNG"), "animated", "the first of 3 pictures is taken"),
    "EXIF": (
        "jpg",
        encoded("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
        "rotated",
        "EXIF orientation 6 is not applied",
    ),
    "misnamed": ("jpg", encoded("PNG"), "misnamed", "PNG data in a .jpg file"),
    "stripe": ("png", encoded(size=(1, 40)), "long", "40 x 1 pixels: evaluation sees the central part"),
    "other file": ("txt", b"labels", "left out", "is no image"),
}


@pytest.mark.parametrize("case", NOTES)
def test_noteworthy_files(case: str, check: Callable, folder: Path) -> None:
    ending, data, kind, text = NOTES[case]
    (folder / "train" / "dog" / f"x.{ending}").write_bytes(data)
    code, problems, notes = check()
    assert code == 0 and not problems
    ((found_kind, path, found_text),) = notes
    assert (found_kind, path) == (kind, f"train/dog/x.{ending}") and text in found_text


def test_gray_and_progressive_images_are_not_worth_a_note(check: Callable, folder: Path) -> None:
    (folder / "train" / "dog" / "g.png").write_bytes(encoded(mode="L"))
    (folder / "train" / "dog" / "p.jpg").write_bytes(encoded("JPEG", progressive=True))
    assert check() == (0, [], [])


def test_huge_images(check: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "train" / "cat" / "x.bmp").write_bytes(encoded("BMP", size=(30, 40)))
    monkeypatch.setattr("src.data.inspection.MAX_PIXELS", 1300)
    assert check()[2] == [("large", "train/cat/x.bmp", "40 x 30 pixels take 0 MiB decoded")]
    monkeypatch.setattr("src.data.decoding.MAX_PIXELS", 1100)
    assert check()[:2] == (1, [("too large", "train/cat/x.bmp", "40 x 30 pixels, at most 1100 are read")])


# Lets file permissions count for root too, then becomes the program that is named.
WITHOUT_RIGHTS = """
import ctypes, os, sys
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert not ctypes.CDLL(None).prctl(24, capability, 0, 0, 0), "PR_CAPBSET_DROP"
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_files_without_permission(folder: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    (folder / "train" / "cat" / "0.png").chmod(0)
    (folder / "val" / "dog").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RIGHTS, str(SCRIPT), "--data_path", str(folder)],
        cwd=tmp_path,
        env=clean_env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (folder / "val" / "dog").chmod(0o755)
    assert done.returncode == 1 and not done.stderr
    assert done.stdout.splitlines()[:2] == [
        "problem: unreadable: val/dog: the folder cannot be listed",
        "problem: unreadable: train/cat/0.png: Permission denied",
    ]


def test_links(check: Callable, folder: Path) -> None:
    cat = folder / "train" / "cat"
    (cat / "good.png").symlink_to(cat / "0.png")
    (cat / "loop.png").symlink_to("loop.png")
    (cat / "gone.png").symlink_to("nowhere.png")
    (cat / "up").symlink_to("..")
    (folder / "train" / "circle").symlink_to("circle")
    (folder / "train" / "self").symlink_to("cat/nested")
    (cat / "nested" / "deeper").mkdir(parents=True)
    (cat / "nested" / "again").symlink_to(cat / "nested")
    code, problems, notes = check()
    assert code == 1
    assert problems == [
        ("broken link", "train/circle", "the symbolic link leads nowhere"),
        ("broken link", "train/cat/gone.png", "the symbolic link leads nowhere"),
        ("broken link", "train/cat/loop.png", "the symbolic link leads nowhere"),
        ("empty class", "train/self", "the class folder holds no image"),
    ]
    assert ("left out", "train/cat/up", "no file: folders in a class are not entered") in notes


def test_classes(check: Callable, folder: Path) -> None:
    (folder / "train" / "bird").mkdir()
    (folder / "val" / "dog" / "0.png").unlink()
    (folder / "val" / "dog" / "1.png").unlink()
    (folder / "val" / "fish").mkdir()
    (folder / "val" / "fish" / "0.png").write_bytes(encoded())
    code, problems, notes = check()
    assert code == 1
    assert problems == [
        ("empty class", "train/bird", "the class folder holds no image"),
        ("unknown class", "val/fish", "the class is not in train/"),
    ]
    assert notes == [("empty class", "val/dog", "the class folder holds no image")]
    (folder / "train" / "bird").rmdir()
    shutil.rmtree(folder / "val" / "fish")
    assert check()[0] == 0
    assert open_source("image_folder", folder, "val").num_samples == 2, "a class that val/ lacks images of is fine"
    shutil.rmtree(folder / "train" / "dog")
    shutil.rmtree(folder / "val" / "dog")
    assert check() == (1, [("one class", "train", "there is one class only: nothing to tell apart")], [])


def test_too_few_images(check: Callable, folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").write_bytes(b"")
    assert check("--min_images", "3")[1] == [("damaged", "train/cat/0.png", "the file is empty")]
    found = check("--min_images", "4")[1]
    assert found[1:] == [("few images", "train/cat", "3 usable image(s), 4 needed")]
    for path in (folder / "train").glob("*/*"):
        path.write_bytes(b"")
    kinds = [kind for kind, _, _ in check()[1]]
    assert kinds == ["damaged"] * 8 + ["few images"] * 2 + ["no image"]


def test_missing_folders(check: Callable, folder: Path) -> None:
    shutil.rmtree(folder / "val")
    assert check() == (0, [], [("no folder", "val", "is missing: there is nothing to evaluate on")])
    shutil.rmtree(folder / "train")
    assert check()[:2] == (1, [("no folder", "train", "is missing: the classes are its folders")])
    (folder / "train").mkdir()
    assert check()[:2] == (1, [("no folder", "train", "there are no class folders")])


def test_duplicates(check: Callable, folder: Path) -> None:
    shutil.copy(folder / "train" / "dog" / "2.png", folder / "val" / "cat" / "0.png")
    assert check() == (0, [], [])
    text = "has the same content as train/dog/2.png"
    assert check("--duplicates") == (0, [], [("duplicate", "val/cat/0.png", text)])


def test_odd_names_in_findings_and_clean_list(check: Callable, folder: Path, tmp_path: Path) -> None:
    names = ["line\nbreak.png", " edge.png", os.fsdecode(b"\xff.png"), '"quoted".png', "#x.png", "é.png"]
    for name in names:
        (folder / "train" / "cat" / name).write_bytes(encoded())
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


def test_many_files_on_several_processes(main: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(SAMPLE, tmp_path / "data")
    for name in ("0000.png", "0100.png"):
        victims = sorted((tmp_path / "data" / "train" / "bag").iterdir())
        victims[int(name[:4])].write_bytes(b"")
    alone = main(["--data_path", str(tmp_path / "data"), "--workers", "1", "--json", str(tmp_path / "1.json")])
    several = main(["--data_path", str(tmp_path / "data"), "--workers", "2", "--json", str(tmp_path / "2.json")])
    assert alone == several == 1
    assert (tmp_path / "1.json").read_text() == (tmp_path / "2.json").read_text()
    assert len(json.loads((tmp_path / "1.json").read_text())["problems"]) == 2


def test_notes_are_shown_by_kind_or_all(main: Callable, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        (folder / "train" / "cat" / f"p{number}.png").write_bytes(encoded(mode="P"))
    assert main(["--data_path", str(folder)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "note: converted: train/cat/p0.png: is a palette; becomes RGB of 8 bits"
    assert printed[1] == "note: converted: 2 more (--notes shows them)" and len(printed) == 3
    assert main(["--data_path", str(folder), "--notes"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_usage_errors(main: Callable, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [],
        ["--data_path", str(tmp_path / "nothing")],
        ["--data_path", str(folder), "--workers", "0"],
        ["--data_path", str(folder), "--dataset", "cifar10", "--duplicates"],
    ):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 2 and "error: " in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert main(["--data_path", str(folder), "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write ")
    for path in (folder / "train").glob("*/*"):
        path.write_bytes(b"")
    assert main(["--data_path", str(folder), "--write_clean_list", str(tmp_path / "clean.txt")]) == 2
    assert "no clean list was written" in capsys.readouterr().err and not (tmp_path / "clean.txt").exists()


def test_other_data_sets(main: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = rng.integers(0, 10, (2, 3073), dtype=np.uint8)
        (tmp_path / name).write_bytes(records.tobytes())
    options = ["--data_path", str(tmp_path), "--dataset", "cifar10"]
    assert main(options) == 0
    assert "train 10 images in 10 classes, val 2 images in 10 classes; problems: 0" in capsys.readouterr().out
    (tmp_path / "data_batch_3.bin").write_bytes(b"x" * 100)
    assert main(options) == 1
    assert "problem: data set: " in capsys.readouterr().out


def test_as_a_command(folder: Path, tmp_path: Path, clean_env: dict[str, str]) -> None:
    (folder / "val" / "cat" / "0.png").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--data_path", str(folder)],
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

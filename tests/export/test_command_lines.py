"""export.py and covpool predict, from arguments to files and lines."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from covpool import cli
from covpool.build import architecture, image_transform
from covpool.checkpoints.format import save_checkpoint
from covpool.config import Config
from covpool.export import open_exported
from tests.export.conftest import SAMPLE, small

OVERRIDES = ["--base_width=8", "--reduction_dim=16", "--class_num=10", "--net_name=resnet10", "--stem=small"]
NAMES = sorted(folder.name for folder in (SAMPLE / "val").iterdir())


def start(root: Path, env: dict[str, str], *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd or root, env=env, capture_output=True, text=True)


@pytest.fixture
def here(tmp_path, capfd, monkeypatch):
    """Run a command in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        return subprocess.CompletedProcess(words, cli.run(words), *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = small("resnet10", "dropcov", stem="small", num_classes=10)
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    save_checkpoint(path, network, about={"class_names": NAMES})
    config = Config(
        **{"net_name": "resnet10", "base_width": 8, "reduction_dim": 16, "class_num": 10, "stem": "small"},
        **{"mean": (0.2, 0.3, 0.4), "interpolation": "area", "eval_crop_ratio": 1.0, "eval_image_size": 28},
    )
    transform = image_transform(config).to_dict()
    about = {"class_names": NAMES, "architecture": architecture(config), "transform": transform}
    save_checkpoint(path.with_name("knows.ckpt"), network, about=about)
    return path


@pytest.mark.parametrize(("file_format", "ending"), [("MINDIR", "mindir"), ("ONNX", "onnx")])
def test_export_and_predict(file_format, ending, checkpoint, root, clean_env, tmp_path, image_files, here):
    """With a configuration, started as a user does; or, in this process, from a checkpoint that knows what it is."""
    known = file_format == "ONNX"
    options = [] if known else [f"--config_path={root / 'config/quickstart.yaml'}", *OVERRIDES]
    file = checkpoint.with_name("knows.ckpt") if known else checkpoint
    options += [f"--file_format={file_format}", f"--checkpoint_file_path={file}", "--file_name=net", "--data_path="]
    options += ["--height=28", "--width=32"]
    if known:
        result = here("export", *options)
    else:
        result = start(root, clean_env, str(root / "export.py"), *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    shown = re.search(
        r"exported: net\.(\w+) \(any batch size\).* at most ([\d.e-]+) of the largest logit", result.stdout
    )
    assert shown and shown[1] == ending and float(shown[2]) < 1e-5
    assert [p.name for p in tmp_path.iterdir() if p.name != "outputs"] == [f"net.{ending}"]
    transform = open_exported(tmp_path / f"net.{ending}").about["transform"]
    assert (transform["height"], transform["width"], transform["crop_ratio"]) == (28, 32, 1.0)
    expected = ("area", [0.2, 0.3, 0.4]) if known else ("bilinear", [0.485, 0.456, 0.406])
    assert (transform["interpolation"], transform["mean"]) == expected

    files = [str(file) for file in image_files[:3]]
    command = ["predict", "--file", str(tmp_path / f"net.{ending}"), "--images", *files, "--top=2", "--batch_size=2"]
    result = here(*command) if known else start(root, clean_env, "-m", "covpool", *command)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == files
    assert all(re.fullmatch(rf".*: ({'|'.join(NAMES)}) [\d.]+%, ({'|'.join(NAMES)}) [\d.]+%", line) for line in lines)


def test_a_folder_is_predicted_from_a_checkpoint_into_files(checkpoint, image_files, tmp_path, capsys):
    """What cannot be read is passed over, listed at the end, and told by the exit code."""
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(image_files[:5]):
        shutil.copy(file, images / f"{number}, a.png")
    (images / "2, a.png").write_bytes(b"no image")
    command = ["predict", "--file", str(checkpoint.with_name("knows.ckpt")), "--images", str(images), "--top=2"]
    command += ["--batch_size=2"]
    assert cli.run(command) == 1
    shown = capsys.readouterr()
    problem = f"damaged image {images}/2, a.png: the file is no image"
    assert shown.err.splitlines() == [f"problem: {problem}", "error: 1 of 5 images cannot be read"]
    for name in ("found.csv", "found.json"):
        assert cli.run([*command, "--output", str(tmp_path / name)]) == 1
        assert capsys.readouterr().out == f"{tmp_path / name}: 4 images\n"
    content = json.loads((tmp_path / "found.json").read_text())
    assert content["damaged"] == [{"file": f"{images}/2, a.png", "problem": problem}]
    lines = [
        f"{p['file']}: " + ", ".join(f"{c} {v:.1%}" for c, v in zip(p["classes"], p["probabilities"]))
        for p in content["predictions"]
    ]
    assert lines == shown.out.splitlines() and len(lines) == 4
    head, *rows = csv.reader((tmp_path / "found.csv").read_text().splitlines())
    assert head == ["file", "class_1", "probability_1", "class_2", "probability_2"]
    assert [(r[0], r[1::2], [float(v) for v in r[2::2]]) for r in rows] == [
        (p["file"], p["classes"], p["probabilities"]) for p in content["predictions"]
    ]
    for output, code in ((tmp_path / "found.txt", 2), (images / "0, a.png" / "x.csv", 1)):
        assert cli.run([*command, "--output", str(output)]) == code
    assert cli.run(["predict", "--file", str(checkpoint), "--images", str(images)]) == 2
    assert "best.ckpt does not say which network it holds: export it" in capsys.readouterr().err


def test_errors_are_one_line(checkpoint, root, tmp_path, here):
    """tests/system/test_damaged_files.py has what can be wrong with files."""
    config = f"--config_path={root / 'config/quickstart.yaml'}"
    options = [f"--checkpoint_file_path={checkpoint}", f"--file_name={tmp_path}/other"]
    refused = here("export", config, *OVERRIDES, "--pooling=mpn", "--file_format=ONNX", *options)
    assert refused.returncode == 1
    assert re.fullmatch(r"error: .*best\.ckpt does not fit .*\n", refused.stderr)
    unknown = here("export", config, "--file_format=TFLITE", *options)
    assert unknown.returncode == 2 and "TFLITE" in unknown.stderr and "MINDIR" in unknown.stderr

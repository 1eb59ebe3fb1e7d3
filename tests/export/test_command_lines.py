"""export.py and covpool predict, started as a user does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from covpool.build import architecture, image_transform
from covpool.checkpoints.format import save_checkpoint
from covpool.config import Config
from covpool.export import open_exported
from tests.export.conftest import SAMPLE, small

OVERRIDES = ["--base_width=8", "--reduction_dim=16", "--class_num=10", "--net_name=resnet10", "--stem=small"]
NAMES = sorted(folder.name for folder in (SAMPLE / "val").iterdir())


def start(root: Path, env: dict[str, str], *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=cwd or root, env=env, capture_output=True, text=True)


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
def test_export_and_predict(file_format, ending, checkpoint, root, clean_env, tmp_path, image_files):
    """With a configuration, or from a checkpoint that knows its network and its images."""
    known = file_format == "ONNX"
    options = [] if known else [f"--config_path={root / 'config/quickstart.yaml'}", *OVERRIDES]
    file = checkpoint.with_name("knows.ckpt") if known else checkpoint
    result = start(
        root,
        {**clean_env, "PYTHONPATH": str(root)},
        *(str(root / "export.py"), *options, f"--file_format={file_format}"),
        *(f"--checkpoint_file_path={file}", "--file_name=net", "--height=28", "--width=32", "--data_path="),
        cwd=tmp_path,
    )
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
    result = start(
        root,
        clean_env,
        *("-m", "covpool", "predict", "--file", str(tmp_path / f"net.{ending}"), "--images", *files),
        *("--top", "2", "--batch_size", "2"),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == files
    assert all(re.fullmatch(rf".*: ({'|'.join(NAMES)}) [\d.]+%, ({'|'.join(NAMES)}) [\d.]+%", line) for line in lines)


def test_errors_are_one_line(checkpoint, root, clean_env, tmp_path, image_files):
    (tmp_path / "net.onnx").write_bytes(b"nothing of the kind")
    damaged = start(
        root, clean_env, "-m", "covpool", "predict", "--file", f"{tmp_path}/net.onnx", "--images", str(SAMPLE)
    )
    assert damaged.returncode == 1
    assert re.fullmatch(r"error: .*net\.onnx is damaged or not a file of export\.py.*\n", damaged.stderr)
    config = f"--config_path={root / 'config/quickstart.yaml'}"
    refused = start(
        root,
        clean_env,
        *("export.py", config, *OVERRIDES, "--pooling=mpn", "--file_format=ONNX"),
        *(f"--checkpoint_file_path={checkpoint}", f"--file_name={tmp_path}/other"),
    )
    assert refused.returncode == 1
    assert re.fullmatch(r"error: .*best\.ckpt does not fit .*\n", refused.stderr)
    unknown = start(
        root, clean_env, "export.py", config, "--file_format=TFLITE", f"--checkpoint_file_path={checkpoint}"
    )
    assert unknown.returncode == 2 and "TFLITE" in unknown.stderr and "MINDIR" in unknown.stderr

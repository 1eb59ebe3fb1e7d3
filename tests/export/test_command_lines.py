"""export.py and covpool predict, started as a user does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

from covpool.checkpoints.format import save_checkpoint
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
    return path


@pytest.mark.parametrize(("file_format", "ending"), [("MINDIR", "mindir"), ("ONNX", "onnx")])
def test_export_and_predict(file_format, ending, checkpoint, root, clean_env, tmp_path, image_files):
    script = root / "export.py"
    result = start(
        root,
        {**clean_env, "PYTHONPATH": str(root)},
        *(str(script), f"--config_path={root / 'config/quickstart.yaml'}", *OVERRIDES, f"--file_format={file_format}"),
        *(f"--checkpoint_file_path={checkpoint}", "--file_name=net", "--height=28", "--width=32", "--data_path="),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    shown = re.search(
        r"exported: net\.(\w+) \(any batch size\).* at most ([\d.e-]+) of the largest logit", result.stdout
    )
    assert shown and shown[1] == ending and float(shown[2]) < 1e-5
    assert [p.name for p in tmp_path.iterdir() if p.name != "outputs"] == [f"net.{ending}"]

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

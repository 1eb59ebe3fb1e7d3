"""Every command of the README and the tutorial runs as it stands, on few and small images and with a narrow network."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from covpool.checkpoints.names import to_pytorch
from covpool.cli import run
from covpool.models import create_model

WEIGHTS = "resnet18-f37072fd.pth"
NETWORK = ["--net_name=resnet10", "--base_width=4"]
SMALL = [*NETWORK, "--reduction_dim=8", "--batch_size=6", "--epoch_size=1", "--num_workers=1"]
SMALL += ["--train_image_size=32", "--eval_image_size=32", "--mode_name=PYNATIVE"]  # which compiles nothing
# What sets up, asks the network, or takes hours; what runs it instead.
ELSEWHERE = {
    "scripts/quickstart.sh": "a clean checkout",
    "scripts/setup.sh": "tests/system/test_setup.py",
    "scripts/test.sh": "this",
    "source .venv/bin/activate": "scripts/test.sh",
    "covpool fashion-mnist": "tests/data/test_fashion_scripts.py",
    "covpool study": "tests/research/test_study.py",
}


def commands(text: str) -> list[str]:
    """The indented command lines of a document, continued lines joined, comments left out."""
    joined = text.replace("\\\n", " ")
    found = re.findall(r"^ {4}((?:python|mpirun|covpool|scripts|source|pip)[ /].*)$", joined, re.MULTILINE)
    return [" ".join(re.sub(r"\s#.*", "", line).split()) for line in found]


@pytest.fixture
def folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the configurations, a small image folder DIR, and weights of a plain network."""
    (tmp_path / "config").symlink_to(root / "config")
    sample = root / "data" / "fashion_mnist_sample"
    for split, count in (("train", 9), ("val", 3), ("test", 2)):
        for name in ("bag", "coat"):
            target = tmp_path / "DIR" / split / name
            target.mkdir(parents=True)
            for image in sorted((sample / ("train" if split == "train" else "val") / name).iterdir())[:count]:
                shutil.copyfile(image, target / image.name)
    shutil.copytree(tmp_path / "DIR" / "val", tmp_path / "DIR_OR_FILES")
    plain = create_model("resnet10", pooling="gap", base_width=4, num_classes=7)
    state = {name: torch.tensor(value) for name, value in to_pytorch(plain.parameters_dict()).items()}
    torch.save(state, tmp_path / WEIGHTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = {"train": SMALL, "make-textures": ["--train=6", "--val=3", "--size=32"]}


@pytest.mark.parametrize(
    ("document", "made"),
    [("README.md", ["net.onnx", "predictions.csv"]), ("docs/tutorial.md", ["textures_net.onnx", "compare.png"])],
)
def test_every_command_of_a_document(document: str, made: list[str], root: Path, folder: Path) -> None:
    lines = commands((root / document).read_text(encoding="utf-8"))
    assert len(lines) > 8
    for line in lines:
        if any(line.startswith(name) for name in ELSEWHERE):
            continue
        words = [word for word in shlex.split(line) if not word.startswith("--device_target=")]
        if words[0] == "mpirun":
            words[2:4] = ["2", "--allow-run-as-root", "--oversubscribe", sys.executable]
            words = [
                str(root / word) if word == "train.py" else word.replace("device_num=8", "device_num=2")
                for word in words
            ]
            done = subprocess.run([*words, *SMALL], capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            continue
        words = words[1:] if words[0] == "covpool" else [words[1].removesuffix(".py"), *words[2:]]
        assert run([*words, *FEW.get(words[0], [])]) == 0, line
    assert {"outputs", *made} <= {path.name for path in folder.iterdir()}

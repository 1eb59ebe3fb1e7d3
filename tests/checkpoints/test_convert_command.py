"""The command line of the conversion."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch  # after mindspore: both bring an OpenMP runtime
from safetensors.numpy import load_file

from covpool.checkpoints import (
    read_ckpt,
)
from tests.checkpoints.checkpoint_files import same, tensors
from tests.checkpoints.released import rule_state_dict

CONFIG = "net_name: resnet10\npooling: dropcov\nreduction_dim: 16\nclass_num: 5\nbase_width: 8\n"


def convert(root: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    (folder / "c.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "covpool", "convert", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_command_line_there_and_back(tmp_path, root, source):
    torch.save({"state_dict": tensors({f"module.{k}": v for k, v in source.items()})}, tmp_path / "m.pth.tar")
    there = convert(root, tmp_path, "--source", "m.pth.tar", "--config_path=c.yaml", "--output", "m.ckpt")
    assert (there.returncode, there.stderr) == (0, "")
    back = ("--source=m.ckpt", "--config_path=c.yaml", "--to=safetensors", "--output=m.safetensors")
    result = convert(root, tmp_path, *back)
    assert (result.returncode, result.stderr) == (0, "")
    assert same(load_file(tmp_path / "m.safetensors"), source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "m.ckpt", "m.pth.tar", "m.safetensors"]


def test_command_line_for_fine_tuning(tmp_path, root):
    backbone = rule_state_dict("resnet10", "gap", classes=1000, width=8)
    torch.save(tensors(backbone), tmp_path / "gap.pth")
    arguments = ("--source=gap.pth", "--config_path=c.yaml", "--output=m.ckpt")
    wrong = convert(root, tmp_path, *arguments)
    assert wrong.returncode == 1 and wrong.stderr.count("\n") == 1
    assert "reduction_dim: none (global average pooling) in the checkpoint, 16 in the network" in wrong.stderr
    assert not (tmp_path / "m.ckpt").exists()

    result = convert(root, tmp_path, *arguments, "--backbone_only")
    assert result.returncode == 0, result.stderr
    assert re.search(r"newly initialised: layer_reduce\.weight, .*, fc\.bias", result.stdout)
    assert "left out of gap.pth: fc.weight, fc.bias" in result.stdout
    full = read_ckpt(tmp_path / "m.ckpt")
    assert full["fc.weight"].shape == (5, 136)
    assert full["layer4.0.bn2.gamma"].asnumpy().tobytes() == backbone["layer4.0.bn2.weight"].tobytes()

    result = convert(root, tmp_path, "--source=m.ckpt", "--config_path=c.yaml", "--output=n.ckpt", "--num_classes=3")
    assert result.returncode == 0, result.stderr
    assert set(full) - set(read_ckpt(tmp_path / "n.ckpt")) == {"fc.weight", "fc.bias"}


def test_command_line_usage(tmp_path, root):
    result = convert(root, tmp_path, "--source=m.pth", "--output=m.ckpt")
    assert result.returncode == 2 and "--config_path is needed" in result.stderr
    result = convert(root, tmp_path, "--source=m.pth", "--output=m.ckpt", "--config_path=c.yaml", "--reduktion_dim=3")
    assert result.returncode == 2 and "reduction_dim" in result.stderr
    result = convert(root, tmp_path, "--source=m.pth", "--output=m.ckpt", "--config_path=c.yaml")
    assert (result.returncode, result.stderr) == (2, "error: m.pth: no such file\n")

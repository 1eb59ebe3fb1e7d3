"""The command line of the conversion."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch  # after mindspore: both bring an OpenMP runtime
from safetensors.numpy import load_file

from covpool.checkpoints import read_ckpt
from covpool.cli import run
from tests.checkpoints.checkpoint_files import same, tensors
from tests.checkpoints.released import rule_state_dict

CONFIG = "net_name: resnet10\npooling: dropcov\nreduction_dim: 16\nclass_num: 5\nbase_width: 8\n"


@pytest.fixture
def convert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in the temporary folder: exit code, standard output, standard error."""
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = run(["convert", *arguments])
        except SystemExit as stop:  # usage, said by argparse
            code = stop.code
        return (code, *capsys.readouterr())

    return command


def test_command_line_there_and_back(tmp_path, convert, source):
    torch.save({"state_dict": tensors({f"module.{k}": v for k, v in source.items()})}, tmp_path / "m.pth.tar")
    there = convert("--source", "m.pth.tar", "--config_path=c.yaml", "--output", "m.ckpt")
    assert (there[0], there[2]) == (0, "")
    back = ("--source=m.ckpt", "--config_path=c.yaml", "--to=safetensors", "--output=m.safetensors")
    result = convert(*back)
    assert (result[0], result[2]) == (0, "")
    assert same(load_file(tmp_path / "m.safetensors"), source)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "m.ckpt", "m.pth.tar", "m.safetensors"]


def test_command_line_for_fine_tuning(tmp_path, convert):
    backbone = rule_state_dict("resnet10", "gap", classes=1000, width=8)
    torch.save(tensors(backbone), tmp_path / "gap.pth")
    arguments = ("--source=gap.pth", "--config_path=c.yaml", "--output=m.ckpt")
    wrong = convert(*arguments)
    assert wrong[0] == 1 and wrong[2].count("\n") == 1
    assert "reduction_dim: none (global average pooling) in the checkpoint, 16 in the network" in wrong[2]
    assert not (tmp_path / "m.ckpt").exists()

    result = convert(*arguments, "--backbone_only")
    assert result[0] == 0, result[2]
    assert re.search(r"newly initialised: layer_reduce\.weight, .*, fc\.bias", result[1])
    assert "left out of gap.pth: fc.weight, fc.bias" in result[1]
    full = read_ckpt(tmp_path / "m.ckpt")
    assert full["fc.weight"].shape == (5, 136)
    assert full["layer4.0.bn2.gamma"].asnumpy().tobytes() == backbone["layer4.0.bn2.weight"].tobytes()

    result = convert("--source=gap.pth", "--backbone_only")  # of a ResNet the file tells enough
    assert result[0] == 0 and (tmp_path / "gap.ckpt").is_file(), result[2]
    alone = read_ckpt(tmp_path / "gap.ckpt")
    assert alone["layer4.0.bn2.gamma"].asnumpy().tobytes() == backbone["layer4.0.bn2.weight"].tobytes()
    result = convert("--source=gap.pth", "--backbone_only")
    assert result[0] == 2 and "gap.ckpt exists already: give --output=FILE" in result[2]

    keys = ["--net_name=resnet10", "--pooling=dropcov", "--reduction_dim=16", "--class_num=5", "--base_width=8"]
    result = convert("--source=gap.pth", *keys, "--output=keys.ckpt", "--backbone_only")  # without a file
    assert result[0] == 0 and set(read_ckpt(tmp_path / "keys.ckpt")) == set(full), result[2]

    result = convert("--source=m.ckpt", "--config_path=c.yaml", "--output=n.ckpt", "--num_classes=3")
    assert result[0] == 0, result[2]
    assert set(full) - set(read_ckpt(tmp_path / "n.ckpt")) == {"fc.weight", "fc.bias"}


def test_command_line_usage(tmp_path, convert):
    result = convert("--source=m.pth", "--output=m.ckpt")
    assert result[0] == 2 and "which network? Give --config_path=FILE, or keys: --net_name=" in result[2]
    result = convert("--source=m.pth", "--output=m.ckpt", "--config_path=c.yaml", "--reduktion_dim=3")
    assert result[0] == 2 and "reduction_dim" in result[2]
    result = convert("--source=m.pth", "--output=m.ckpt", "--config_path=c.yaml")
    assert (result[0], result[2]) == (2, "error: m.pth: no such file\n")

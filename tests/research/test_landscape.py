"""The loss along its gradient: against a loss whose course is known, and on a real network without a trace."""

from __future__ import annotations

import json
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool import cli
from covpool.config import Config
from covpool.errors import UserError
from covpool.models import create_model
from covpool.research.landscape import (
    LENGTHS,
    Probe,
    band_widths,
    mean_records,
    plot_landscape,
    read_records,
    record_landscape,
)
from covpool.training.losses import LabelSmoothingCrossEntropy

ROOT = Path(__file__).resolve().parents[2]


class Parabola(nn.Cell):
    """Stem x -> 2 x; loss = sum(y^2) / 2, whose gradient is y."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = self.layer2 = self.layer3 = self.layer4 = nn.Identity()
        self.has_reduction = False

    def forward_stem(self, x: ms.Tensor) -> ms.Tensor:
        return 2 * x

    def forward_head(self, x: ms.Tensor) -> ms.Tensor:
        return x


class HalfSquare(nn.Cell):
    def construct(self, logits: ms.Tensor, labels: ms.Tensor) -> ms.Tensor:
        return (logits * logits).sum() / 2 + 0 * labels.sum()


def test_bands_of_a_parabola(graph_mode: None) -> None:
    x = np.array([[1.0, -2.0], [0.5, 0.0]], np.float32)
    found = Probe(Parabola(), HalfSquare())(ms.Tensor(x), ms.Tensor(np.zeros(2, np.float32)))
    start, length = (2 * x) ** 2, np.sqrt(((2 * x) ** 2).sum())
    assert found["loss"] == pytest.approx(start.sum() / 2)
    assert found["loss_min"] == pytest.approx(1.1**2 * start.sum() / 2, rel=1e-5)  # y + delta y
    assert found["loss_max"] == pytest.approx(76.0**2 * start.sum() / 2, rel=1e-5)
    assert found["gradient_min"] == pytest.approx(0.1 * length, rel=1e-4)
    assert found["gradient_max"] == pytest.approx(75.0 * length, rel=1e-5)
    assert len(LENGTHS) == 50 and (LENGTHS[0], LENGTHS[-1]) == (0.1, 75.0)


def test_a_probe_leaves_the_network_as_it_was(graph_mode: None) -> None:
    ms.set_seed(0)
    network = create_model("resnet10", "dropcov", reduction_dim=4, num_classes=3, stem="small", base_width=2)
    network.set_train()
    before = [p.asnumpy().copy() for p in network.get_parameters()]
    images = ms.Tensor(np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32))
    labels = ms.Tensor(np.array([0, 1, 2, 0], np.int32))
    probe = Probe(network, LabelSmoothingCrossEntropy(0.1), [0.0, 20.0])
    found = probe(images, labels)
    assert found["loss_min"] <= found["loss"] * (1 + 1e-6)  # the length 0 sees the same dropout mask
    assert found["gradient_min"] == pytest.approx(0.0, abs=1e-5)
    assert probe(images, labels) == found
    for p, value in zip(network.get_parameters(), before):
        np.testing.assert_array_equal(p.asnumpy(), value, err_msg=p.name)


def test_a_network_without_a_stem_is_refused() -> None:
    with pytest.raises(UserError, match="not Identity"):
        Probe(nn.Identity(), HalfSquare())


@pytest.mark.parametrize("keys", [{"mixup": 0.2}, {"cutmix": 1.0}, {"teacher": "net.ckpt"}])
def test_a_loss_that_is_not_of_images_and_labels_alone_is_refused(keys: dict) -> None:
    with pytest.raises(UserError, match="without mixup, cutmix and teacher"):
        next(record_landscape(Config(**keys), 1))


def test_records_and_widths(tmp_path: Path) -> None:
    record = {"step": 1, "loss": 1.0, "loss_min": 0.5, "loss_max": 2.0, "gradient_min": 0.1, "gradient_max": 0.4}
    other = {**record, "step": 11, "loss_max": 1.0}
    assert band_widths([record, other]) == pytest.approx({"loss": 1.0, "gradient": 0.3})
    assert read_records({"records": [record]}) == [record]
    assert mean_records([[record, other], [record, {**other, "loss_max": 3.0}]]) == [record, {**other, "loss_max": 2.0}]
    for wrong in ({}, [], {"records": []}, {"records": [{"step": 1}]}):
        with pytest.raises(ValueError, match="no records"):
            read_records(wrong)
    plot_landscape({"gap": [record, other], "fast_mpn": [record, other]}, tmp_path / "plot.png", "title")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_measures_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    arguments = ["--config_path", str(ROOT / "config" / "quickstart.yaml"), "--output", str(tmp_path), "--every", "2"]
    arguments += ["--poolings", "gap", "--seeds", "3", "--net_name=resnet10", "--base_width=2"]
    arguments += ["--epoch_size=1", "--train_images=96"]
    arguments.append(f"--data_path={ROOT / 'data' / 'fashion_mnist_sample'}")
    assert cli.run(["landscape", *arguments]) == 0
    content = json.loads((tmp_path / "gap-seed-3.json").read_text(encoding="utf-8"))
    assert [record["step"] for record in content["records"]] == [1, 3]
    stamp = (tmp_path / "gap-seed-3.json").stat().st_mtime_ns
    assert cli.run(["landscape", *arguments]) == 0
    assert (tmp_path / "gap-seed-3.json").stat().st_mtime_ns == stamp
    assert "| gap | 1 | 2 |" in capsys.readouterr().out
    assert cli.run(["landscape", *arguments, "--lr_max=0.3"]) == 1
    assert "other settings" in capsys.readouterr().err

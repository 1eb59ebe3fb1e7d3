"""The rate over training: against NumPy on the same features."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.build import architecture, build_dataset, build_model, build_source
from covpool.checkpoints.format import load_network, read_checkpoint, save_checkpoint
from covpool.config import Config, load_config
from covpool.errors import UserError
from covpool.evaluation import numpy_batches
from covpool.research.dropcov_rate import plot_rates, rate_course
from covpool.runtime.distributed import World

ROOT = Path(__file__).resolve().parents[2]
DECAY = 3.0


def make_run(folder: Path, *values: str) -> Config:
    """A run folder with one checkpoint, whose weights are those of another seed."""
    small = ["net_name=resnet10", "base_width=2", "reduction_dim=8", "batch_size=20", "train_images=60"]
    data = f"data_path={ROOT / 'data' / 'fashion_mnist_sample'}"
    config = load_config(ROOT / "config" / "quickstart.yaml", [*small, data, *values])
    (folder / "checkpoints").mkdir(parents=True)
    config.dump(folder / "config.yaml")
    ms.set_seed(99)
    save_checkpoint(
        folder / "checkpoints" / "e.ckpt", build_model(config), about={"architecture": architecture(config)}
    )
    index = {"checkpoints": [{"file": "e.ckpt", "epoch": 2}]}
    (folder / "checkpoints" / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return config


def by_hand(features: np.ndarray, kernel: np.ndarray) -> float:
    """1 - D / log2(d) * mean cosine of importances and row sums of the covariance, softmax gate, with the rescale."""
    n, d = features.shape[:2]
    x = features.reshape(n, d, -1).astype(np.float64)
    padded = np.pad(x.mean(-1), ((0, 0), (1, 1)))
    v = sum(kernel[tap] * padded[:, tap : tap + d] for tap in range(3))
    omega = np.exp(v - v.max(1, keepdims=True))
    omega /= omega.sum(1, keepdims=True)
    scaled = x * (1 + omega)[:, :, None]
    a = scaled - scaled.mean(-1, keepdims=True)
    pi = (a @ a.transpose(0, 2, 1)).sum(-1)
    cosines = (omega * pi).sum(1) / np.linalg.norm(omega, axis=1) / np.linalg.norm(pi, axis=1)
    return float(np.clip(1 - DECAY / math.log2(d) * cosines.mean(), 0, 0.95))


def test_rates_are_those_of_the_checkpoints(graph_mode: None, tmp_path: Path) -> None:
    config = make_run(tmp_path / "run", f"pooling_args.decay={DECAY}")
    course = rate_course(tmp_path / "run", batches=2)
    assert [record["epoch"] for record in course] == [0, 2]
    ms.set_seed(config.seed)
    network = build_model(config).set_train()
    source = build_source(config, "train", World())
    for record, file in zip(course, (None, tmp_path / "run" / "checkpoints" / "e.ckpt")):
        if file:
            load_network(network, read_checkpoint(file), architecture(config))
        rates = []
        for (images, _), _ in zip(numpy_batches(build_dataset(config, source, True, World())), range(2)):
            features = network.forward_features(ms.Tensor(images)).asnumpy()
            rates.append(by_hand(features, network.pooling.conv.weight.asnumpy().ravel()))
        assert min(rates) > 0 and max(rates) < 0.95  # else the test would see the bounds only
        assert record["rate"] == pytest.approx(np.mean(rates), abs=1e-4)
        assert (record["rate_min"], record["rate_max"]) == pytest.approx((min(rates), max(rates)), abs=1e-4)
    plot_rates({"adaptive": [course, course]}, tmp_path / "rates.png", "title")
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")


def test_runs_without_an_adaptive_rate_are_refused(tmp_path: Path) -> None:
    for number, values in enumerate((["pooling=gcp"], ["pooling_args.rate=0.5"])):
        make_run(tmp_path / str(number), *values)
        with pytest.raises(UserError, match="no training with DropCov"):
            rate_course(tmp_path / str(number))

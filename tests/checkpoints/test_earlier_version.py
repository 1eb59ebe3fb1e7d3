"""Files that an earlier version wrote: a checkpoint and an exported file, before modules moved into the package.

That version also computed the logits beside them, of four images of noise, and the predictions of three image files.
"""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.build import build_model, with_checkpoint
from covpool.checkpoints.format import load_network, load_optimizer, read_checkpoint
from covpool.config import Config
from covpool.export import find_images, open_exported, predict
from covpool.training.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "fixtures" / "earlier_resnet10_dropcov"
IMAGES = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
TOLERANCE = 1e-6  # logits reach 0.25


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    with np.load(f"{FILE}.npz") as data:
        return dict(data)


@pytest.mark.usefixtures("graph_mode")
def test_a_checkpoint_gives_the_same_logits_and_can_be_resumed_from(expected: dict[str, np.ndarray]) -> None:
    checkpoint = read_checkpoint(FILE.with_suffix(".ckpt"), checksum_required=True)
    network = build_model(with_checkpoint(Config(), checkpoint))
    load_network(network, checkpoint)
    logits = network.set_train(False)(ms.Tensor(IMAGES)).asnumpy()
    np.testing.assert_allclose(logits, expected["checkpoint"], rtol=0, atol=TOLERANCE)
    assert (checkpoint.about["epoch"], checkpoint.about["step"]) == (2, 20)
    optimizer = build_optimizer(list(network.trainable_params()), np.full(20, 0.1, np.float32))
    load_optimizer(optimizer, network, checkpoint)
    assert optimizer.global_step.asnumpy().tolist() == [20]
    assert all(moment.asnumpy().any() for moment in optimizer.moments)


def test_an_exported_file_gives_the_same_logits_and_predictions(expected: dict[str, np.ndarray]) -> None:
    model = open_exported(FILE.with_suffix(".mindir"))
    np.testing.assert_allclose(model(IMAGES), expected["exported"], rtol=0, atol=TOLERANCE)
    images = find_images([ROOT / "data" / "fashion_mnist_sample" / "val" / "bag"])[:3]
    predictions = list(predict(model, images, top=10))
    assert [list(p.classes) for p in predictions] == expected["classes"].tolist()
    np.testing.assert_allclose([p.probabilities for p in predictions], expected["probabilities"], rtol=1e-5)

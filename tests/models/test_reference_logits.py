"""Logits and features of released architectures against an independent PyTorch implementation."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.checkpoints import convert_state_dict, load_into
from covpool.models import create_model
from tests.checkpoints.released import rule_images, rule_state_dict

POOLINGS = {"gap": "gap", "acd": "dropcov", "mpncov": "fast_mpn"}
FIXTURES = sorted((Path(__file__).parents[1] / "fixtures").glob("resnet*.npz"))
# Two orders below what a user would notice, one order above what was measured (docs/measurements/fidelity.md).
TOLERANCE = 1e-5


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def test_all_references_are_here():
    assert len(FIXTURES) == 6


@pytest.fixture(params=FIXTURES, ids=lambda path: path.stem, scope="module")
def reference(request):
    """The stored numbers, the images and the network with rule weights."""
    name, head, width, _ = request.param.stem.split("_")
    stored = dict(np.load(request.param))
    network = create_model(name, pooling=POOLINGS[head], reduction_dim=int(width) or 128)
    assert load_into(network, convert_state_dict(rule_state_dict(name, head, int(width)))) == []
    network.set_train(False)
    images = ms.Tensor(rule_images(int(stored["image_seed"]), int(stored["image_size"])))
    return network, images, stored


def test_logits(reference, mode):
    network, images, stored = reference
    assert relative_error(network(images).asnumpy(), stored["logits"]) < TOLERANCE


def test_features(reference, pynative_mode):
    network, images, stored = reference
    features = network.forward_features(images).asnumpy()
    assert relative_error(features.mean((2, 3)), stored["features_mean"]) < TOLERANCE

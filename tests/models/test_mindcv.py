"""Networks of MindCV with a pooling of this package; MindCV is optional."""

from __future__ import annotations

import logging
import sys

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops

from covpool.checkpoints.format import save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.kernels import for_evaluation
from covpool.models import create_model, freeze
from covpool.pooling import UnknownNameError
from covpool.runtime.distributed import World
from tests.checkpoints.released import rule_images

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning", "ignore::UserWarning")


def network(name: str, pooling: str = "fast_mpn", **args: object) -> nn.Cell:
    return create_model(f"mindcv/{name}", pooling=pooling, **{"reduction_dim": 16, "num_classes": 5, **args})


def test_mindcv_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mindcv", None)
    with pytest.raises(UserError, match=r"^mindcv/resnet18 needs the package mindcv: pip install mindcv==0\.3\.0$"):
        network("resnet18")


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [("efficientnet_b0", 64, (16, 2, 2)), ("mobilenet_v2_050_96", 64, (16, 2, 2)), ("vit_b_32_224", 224, (16, 49, 1))],
)
def test_networks_of_mindcv(name, size, shape, pynative_mode):
    cell = network(name).set_train(True)
    x = ms.Tensor(rule_images(1, size))
    assert cell.forward_features(x).shape == (2, *shape)
    assert cell(x).shape == (2, 5)

    def loss(x: ms.Tensor) -> ms.Tensor:
        return ops.square(cell(x)).sum()

    _, gradients = ms.value_and_grad(loss, None, cell.trainable_params())(x)
    still = [p.name for p, g in zip(cell.trainable_params(), gradients) if not g.asnumpy().any()]
    assert not still, "parameters of a head that is not there any more"


def test_the_modes_agree():
    cell = network("efficientnet_b0").set_train(False)
    x = ms.Tensor(rule_images(1, 64))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    expected = cell(x).asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    np.testing.assert_allclose(cell(x).asnumpy(), expected, rtol=1e-3, atol=1e-4)


def test_weights_of_mindcv(tmp_path, pynative_mode, caplog):
    import mindcv

    caplog.set_level(logging.INFO)
    theirs = mindcv.create_model("resnet18").set_train(False)
    ms.save_checkpoint(theirs, str(tmp_path / "theirs.ckpt"))
    cell = network("resnet18", pretrained=tmp_path / "theirs.ckpt").set_train(False)
    x = ms.Tensor(rule_images(1, 64))
    np.testing.assert_array_equal(cell.backbone.forward_features(x).asnumpy(), theirs.forward_features(x).asnumpy())
    assert "100 of its 102 tensors taken, without classifier; newly initialised: layer_reduce, " in caplog.text
    freeze(cell, upto="backbone.layer4")
    assert {p.name.split(".")[0] for p in cell.trainable_params()} == {"layer_reduce", "layer_reduce_bn", "fc"}
    save_checkpoint(tmp_path / "ours.ckpt", cell)
    again = network("resnet18", pretrained=tmp_path / "ours.ckpt").set_train(False)
    np.testing.assert_array_equal(again(x).asnumpy(), cell(x).asnumpy())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "swin_tiny",
            r"^mindcv/swin_tiny cannot have another pooling: its forward_features gives \(1, 768\), which is",
        ),
        ("googlenet", "^mindcv/googlenet gives no features under this MindSpore: .*forward_features"),
    ],
)
def test_networks_without_maps(name, message):
    with pytest.raises(UserError, match=message):
        network(name)


def test_other_arguments():
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet18'"):
        network("resnet18_")
    with pytest.raises(TypeError, match="does not take stem"):
        network("resnet18", stem="small")
    with pytest.raises(ValueError, match="no stages"):
        network("mobilenet_v1_050", features_only=True)


def test_evaluation_does_not_fold_what_it_does_not_know(graph_mode):
    """In resnetv2_50 a ReLU stands between normalisation and convolution, which the order of cells does not tell."""
    cell = network("resnetv2_50", "gap").set_train(False)
    for p in cell.get_parameters():
        if p.name.endswith("moving_variance"):
            p.set_data(ms.Tensor(np.full(p.shape, 2.0, np.float32)))
    x = ms.Tensor(rule_images(1, 64))
    expected = cell(x).asnumpy()
    evaluated = for_evaluation(Config(), cell, World())
    np.testing.assert_allclose(evaluated(x).asnumpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_dropout_goes_on_where_it_was(pynative_mode):
    """What is dropped follows counters that are saved with the network."""
    ms.set_seed(1)
    first = network("efficientnet_b0", "gap").set_train(True)
    x = ms.Tensor(rule_images(1, 64))
    first(x)
    state = {p.name: ms.Parameter(p.asnumpy(), name=p.name) for p in first.get_parameters()}
    assert sum(name.endswith(".counter") for name in state) > 5
    second = network("efficientnet_b0", "gap").set_train(True)
    ms.load_param_into_net(second, state)
    expected = first(x).asnumpy()
    np.testing.assert_array_equal(second(x).asnumpy(), expected)
    assert (first(x).asnumpy() != expected).any(), "other entries are dropped in the next step"

"""The head over tokens: against plain PyTorch around timm's networks, with every pooling, taken apart, from files."""

from __future__ import annotations

import logging
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.checkpoints.format import save_checkpoint
from covpool.models import create_model
from covpool.pooling import list_poolings
from tests.fidelity.pytorch_twin import covariance, newton_schulz_root
from tests.models.agreement import count, gradient_errors, images, output_error, same_weights, steps_error

SMALL = {
    "deit": {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8},
    "swin": {"embed_dim": 12, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4, "patch_size": 2},
}
NAMES = {"deit": "deit_tiny_patch16_224", "swin": "swin_tiny_patch4_window7_224"}
D = 6
KINDS = pytest.mark.parametrize("kind", list(NAMES))


def ours(kind: str, pooling: str, **args: object) -> nn.Cell:
    sizes = {"image_size": 32, "num_classes": 5, "reduction_dim": D, **SMALL[kind]}
    return create_model(NAMES[kind], pooling=pooling, **{**sizes, **args}).set_train(False)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("deit_small_patch16_224", 22_050_664),
        ("swin_tiny_patch4_window7_224", 28_288_354),
        pytest.param("deit_tiny_patch16_224", 5_717_416, marks=pytest.mark.only_with_all),
        pytest.param("deit_base_patch16_224", 86_567_656, marks=pytest.mark.only_with_all),
        ("deit_tiny_distilled_patch16_224", 5_910_800),
        pytest.param("deit_small_distilled_patch16_224", 22_436_432, marks=pytest.mark.only_with_all),
        pytest.param("deit_base_distilled_patch16_224", 87_338_192, marks=pytest.mark.only_with_all),
        pytest.param("swin_small_patch4_window7_224", 49_606_258, marks=pytest.mark.only_with_all),
        pytest.param("swin_base_patch4_window7_224", 87_768_224, marks=pytest.mark.only_with_all),
    ],
)
def test_the_plain_networks_are_timms(name, parameters, pynative_mode):
    cell, module = create_model(name, pooling="gap").set_train(False), timm.create_model(name).eval()
    assert count(cell) == parameters
    same_weights(cell, module)
    assert output_error(cell, module, images(224, 1)) < 1e-5


class Twin(torch.nn.Module):
    """timm's network with the head in plain PyTorch: pooling is 'gcp' or 'fast_mpn'."""

    def __init__(self, kind: str, pooling: str) -> None:
        super().__init__()
        self.prefix = int(kind == "deit")
        if self.prefix:
            self.body = timm.models.vision_transformer.VisionTransformer(img_size=32, num_classes=5, **SMALL[kind])
        else:
            self.body = timm.models.swin_transformer.SwinTransformer(
                img_size=32, num_classes=5, drop_path_rate=0.0, **SMALL[kind]
            )
        width = self.body.num_features
        self.layer_reduce_norm = torch.nn.LayerNorm(width, eps=1e-6)
        self.layer_reduce = torch.nn.Linear(width, D)
        self.fc = torch.nn.Linear(D * (D + 1) // 2, 5)
        self.root = newton_schulz_root if pooling == "fast_mpn" else torch.nn.Identity()

    def state_dict(self, *args: object, **kwargs: object) -> dict:
        """By the names of this project: those of timm without a prefix."""
        return {k.removeprefix("body."): v for k, v in super().state_dict(*args, **kwargs).items()}

    def named_parameters(self, *args: object, **kwargs: object) -> list:
        return [(k.removeprefix("body."), v) for k, v in super().named_parameters(*args, **kwargs)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.body.forward_features(x)
        logits = self.body.forward_head(tokens)
        tokens = tokens.reshape(len(x), -1, tokens.shape[-1])[:, self.prefix :]
        reduced = self.layer_reduce(self.layer_reduce_norm(tokens)).transpose(1, 2).unsqueeze(3)
        c = self.root(covariance(reduced))
        rows, columns = torch.triu_indices(D, D)
        return logits + self.fc(c[:, rows, columns])


@KINDS
@pytest.mark.parametrize("pooling", ["gcp", "fast_mpn"])
def test_against_pytorch(kind, pooling, pynative_mode):
    cell, module = ours(kind, pooling), Twin(kind, pooling).eval()
    same_weights(cell, module)
    for batch in (1, 3):
        assert output_error(cell, module, images(32, batch)) < 1e-5
    errors = gradient_errors(cell, module, images(32))
    # A covariance does not see a shift: these two gradients are rounding.
    shifts = {"layer_reduce.bias", "layer_reduce_norm.beta"}
    assert set(errors) == {p.name for p in cell.trainable_params()}
    assert max(error for name, error in errors.items() if name not in shifts) < 1e-4


@pytest.mark.only_with_all
@KINDS
def test_ten_steps(kind, graph_mode):
    cell, module = ours(kind, "fast_mpn"), Twin(kind, "fast_mpn")
    same_weights(cell, module)
    assert steps_error(cell, module, images(32, 4)) < 1e-4


@pytest.mark.parametrize("pooling", list_poolings())
def test_every_pooling(pooling, pynative_mode):
    cell = ours("deit", pooling)
    x = ms.Tensor(images(32))
    tokens = cell.forward_features(x)
    assert tokens.shape == (2, 17, 24) and cell.num_features == 24
    vector = cell.forward_head(tokens, pre_logits=True)
    own = 0 if pooling == "gap" else cell.pooling.out_features
    assert vector.shape == (2, 24 + own)
    logits = cell(x).asnumpy()
    np.testing.assert_allclose(cell.forward_head(tokens).asnumpy(), logits, rtol=1e-5, atol=1e-6)
    by_hand = cell.head(vector[:, :24]) + (cell.fc(vector[:, 24:]) if own else 0)
    np.testing.assert_allclose(by_hand.asnumpy(), logits, rtol=1e-5, atol=1e-6)
    assert np.isfinite(logits).all()


@KINDS
@pytest.mark.parametrize("pooling", ["gap", "dropcov"])
def test_without_and_with_another_classifier(kind, pooling, pynative_mode):
    ms.set_seed(1)
    cell = ours(kind, pooling)
    ms.set_seed(1)
    bare = ours(kind, pooling, num_classes=0)
    left = ("head.", "fc.")
    assert [p.name for p in bare.get_parameters()] == [
        p.name for p in cell.get_parameters() if not p.name.startswith(left)
    ]
    x = ms.Tensor(images(32))
    vector = cell.forward_head(cell.forward_features(x), pre_logits=True).asnumpy()
    np.testing.assert_array_equal(bare(x).asnumpy(), vector)
    cell.reset_classifier(7)
    assert cell(x).shape == (2, 7) and cell.num_classes == 7
    cell.reset_classifier(0)
    np.testing.assert_array_equal(cell(x).asnumpy(), vector)
    cell.reset_classifier(3)
    classifier = "head.weight" if kind == "deit" else "head.fc.weight"
    assert classifier in {p.name for p in cell.get_parameters()}
    assert cell(x).shape == (2, 3)


@KINDS
def test_from_a_plain_file(kind, tmp_path: Path, pynative_mode, caplog):
    caplog.set_level(logging.INFO)
    twin = Twin(kind, "gcp")
    torch.save(twin.body.state_dict(), tmp_path / "timm.pth")
    cell = ours(kind, "gcp", pretrained=tmp_path / "timm.pth")
    assert "a plain network with global average pooling" in caplog.text
    assert "newly initialised: layer_reduce_norm, layer_reduce, head, fc" in caplog.text
    x = images(32)
    with torch.no_grad():
        tokens = twin.body.eval().forward_features(torch.tensor(x)).numpy()
    found = cell.forward_features(ms.Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, tokens.reshape(found.shape), rtol=1e-4, atol=1e-5)
    other = ours(kind, "gap", num_classes=3, pretrained=tmp_path / "timm.pth")
    assert "without its classifier: it has other classes (head." in caplog.text and other(ms.Tensor(x)).shape == (2, 3)


def test_own_file(tmp_path: Path, pynative_mode):
    cell = ours("deit", "dropcov")
    save_checkpoint(tmp_path / "net.ckpt", cell)
    x = ms.Tensor(images(32))
    again = ours("deit", "dropcov", pretrained=tmp_path / "net.ckpt")
    np.testing.assert_array_equal(again(x).asnumpy(), cell(x).asnumpy())


def test_dropcov_as_named_in_the_documentation(pynative_mode):
    cell = create_model("deit_small_patch16_224", pooling="dropcov", reduction_dim=83)
    parameters = {p.name: tuple(p.shape) for p in cell.trainable_params()}
    assert parameters["layer_reduce.weight"] == (83, 384) and parameters["fc.weight"] == (1000, 83 * 42)
    head = 2 * 384 + (384 + 1) * 83 + 3 + (83 * 42 + 1) * 1000  # normalisation, reduction, DropCov's kernel, classifier
    assert sum(p.size for p in cell.trainable_params()) == 22_050_664 + head

"""DeiT against timm: weights, outputs, gradients, steps, positions at other sizes, files."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.build import architecture, build_model
from covpool.checkpoints import convert_state_dict, load_into
from covpool.checkpoints.format import read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.models import create_model, freeze
from covpool.models.transformer import resize_grid_matrix
from covpool.training.optimizers import parameter_groups
from tests.models.agreement import (
    exported_error,
    gradient_errors,
    images,
    output_error,
    relative,
    same_weights,
    state_there_and_back,
    steps_error,
)

NAME = "deit_tiny_patch16_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 3, "patch_size": 8}


def ours(pooling: str = "gap", size: int | tuple[int, int] = 32, name: str = NAME, **args: object) -> nn.Cell:
    sizes = {"image_size": size, "num_classes": 5, "reduction_dim": 8, **SMALL}
    return create_model(name, pooling=pooling, **{**sizes, **args}).set_train(False)


def theirs(size: int = 32, **args: object) -> torch.nn.Module:
    model = timm.models.vision_transformer.VisionTransformer
    return model(img_size=size, num_classes=5, dynamic_img_size=True, **{**SMALL, **args}).eval()


def test_logits_at_every_size_in_both_modes(mode):
    cell, module = ours(), theirs()
    same_weights(cell, module)
    sizes = [((16, 40), 1)] if mode == "GRAPH" else [(32, 3), (48, 1), (24, 2), ((16, 40), 2)]
    for size, batch in sizes:
        assert output_error(cell, module, images(size, batch)) < 1e-5, size


def test_gradients(pynative_mode):
    cell, module = ours(qkv_bias=False), theirs(qkv_bias=False)
    same_weights(cell, module)
    for size in (32, 48):  # positions learn through the interpolation, too
        module.zero_grad()
        errors = gradient_errors(cell, module, images(size))
        assert len(errors) == len(list(cell.trainable_params())) and max(errors.values()) < 1e-4


def test_ten_steps(graph_mode):
    cell, module = ours(), theirs()
    same_weights(cell, module)
    assert steps_error(cell, module, images(32, 4)) < 1e-4


@pytest.mark.parametrize(("old", "new"), [((14, 14), (24, 24)), ((14, 14), (7, 9)), ((4, 4), (4, 4))])
def test_positions_are_interpolated_as_timm_does(old, new):
    table = torch.randn(1, 1 + old[0] * old[1], 6)
    expected = timm.layers.resample_abs_pos_embed(table, list(new), list(old)).numpy()
    found = resize_grid_matrix(old, new) @ table[0, 1:].numpy()
    np.testing.assert_allclose(found, expected[0, 1:], rtol=0, atol=1e-5)


def test_names_there_and_back(pynative_mode):
    cell, module = ours(), theirs()
    back = state_there_and_back(cell, module)
    theirs().load_state_dict({name: torch.tensor(value) for name, value in back.items()})


def test_a_file_of_another_image_size(tmp_path: Path, pynative_mode, caplog):
    module = theirs()
    torch.save({"model": module.state_dict()}, tmp_path / "deit.pth")
    with caplog.at_level("INFO"):
        cell = ours(size=(48, 24), pretrained=tmp_path / "deit.pth")
    assert "pos_embed: interpolated from [1, 17, 24] to [1, 19, 24]" in caplog.text
    assert output_error(cell, module, images((48, 24))) < 1e-5
    wide = convert_state_dict({"pos_embed": np.zeros((1, 16, 24), np.float32)})
    full = {**{p.name: p for p in ours().get_parameters()}, **wide}
    with pytest.raises(UserError, match=r"of another shape \(1\): pos_embed \[1, 16, 24\] instead of \[1, 17, 24\]"):
        load_into(ours(), full)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": 36}, r"images of 36x36 do not fit patches of 8x8: height and width must be multiples of 8"),
        ({"size": (8, 4)}, "do not fit patches"),
        ({"num_heads": 5}, "embed_dim must be a multiple of num_heads, not 24 with 5 heads"),
        ({"reduction_dim": 0, "pooling": "gcp"}, "reduction_dim must be at least 1"),
        ({"num_classes": -1}, "num_classes must be at least 1, or 0"),
        ({"pooling_args": {"power": 2}}, "power"),
        ({"features_only": True}, "no stages"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        ours(**args)


def test_images_that_do_not_fit(pynative_mode):  # a graph that cannot be compiled leaves files
    with pytest.raises(ValueError, match="images of 32x36 do not fit patches of 8x8"):
        ours()(ms.Tensor(images((32, 36))))


def test_decay_is_that_of_timm():
    cell, module = ours(), theirs()
    groups = timm.optim.param_groups_weight_decay(module, 0.05, no_weight_decay_list=module.no_weight_decay())
    names = {id(p): name for name, p in module.named_parameters()}
    plain, decayed = ({names[id(p)] for p in group["params"]} for group in groups)
    assert {p.name for p in parameter_groups(list(cell.trainable_params()), 0.05)[0]["params"]} == decayed
    assert {"cls_token", "pos_embed", "norm.weight"} <= plain


def test_a_frozen_part():
    cell = ours("gcp")
    freeze(cell, upto="blocks.0")
    trained = [p.name for p in cell.trainable_params()]
    assert trained[0] == "blocks.1.norm1.gamma" and trained[-1] == "fc.bias"
    assert not {"cls_token", "pos_embed", "patch_embed.proj.weight"} & set(trained)


def test_from_a_configuration(tmp_path: Path, pynative_mode):
    sizes = {"embed_dim": 24, "depth": 1, "num_heads": 3, "patch_size": 8}
    config = Config(net_name=NAME, pooling="gap", class_num=5, train_image_size=32, model_args=sizes)
    cell = build_model(config)
    assert cell.pos_embed.shape == (1, 17, 24) and architecture(config)["train_image_size"] == 32
    save_checkpoint(tmp_path / "net.ckpt", cell)
    again = build_model(config.replace(train_image_size=48))
    load_into(again, read_checkpoint(tmp_path / "net.ckpt").network)
    x = ms.Tensor(images(48))
    assert relative(again.set_train(False)(x).asnumpy(), cell.set_train(False)(x).asnumpy()) < 1e-5
    for changes, message in (
        ({"stem": "small"}, "stem = small: deit_tiny_patch16_224 does not take it"),
        ({"model_args": {"width": 3}}, "model_args: deit_tiny_patch16_224 does not take width; it takes .*depth"),
        ({"eval_image_size": 36}, "images of 36x36 do not fit patches of 8x8"),
        ({"model_args": {"patch_size": 5}}, "images of 32x32 do not fit patches of 5x5"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(config.replace(**changes))


def distilled() -> torch.nn.Module:
    module = timm.models.deit.VisionTransformerDistilled(img_size=32, num_classes=5, dynamic_img_size=True, **SMALL)
    module.set_distilled_training(True)
    return module.eval()


def test_with_a_distillation_token(mode):
    cell, module = ours(name=DISTILLED), distilled()
    state = state_there_and_back(cell, module)
    assert {"dist_token", "head_dist.weight", "head_dist.bias"} < set(state)
    x = images(32 if mode == "GRAPH" else (16, 40))
    assert output_error(cell, module, x) < 1e-5
    module.train(), cell.set_train(True)
    with torch.no_grad():
        expected = module(torch.tensor(x))
    found = cell(ms.Tensor(x))
    assert isinstance(found, tuple) and len(found) == 2
    assert max(relative(f.asnumpy(), e.numpy()) for f, e in zip(found, expected)) < 1e-5
    if mode == "PYNATIVE":
        tokens = cell.forward_features(ms.Tensor(x))
        assert tokens.shape == (2, 2 + 10, 24)
        with torch.no_grad():
            vector = module.forward_head(module.forward_features(torch.tensor(x)), pre_logits=True).numpy()
        assert relative(cell.forward_head(tokens, pre_logits=True).asnumpy(), vector) < 1e-5
        cell.reset_classifier(0)
        assert relative(cell(ms.Tensor(x)).asnumpy(), vector) < 1e-5


def test_gradients_of_both_tokens(pynative_mode):
    cell, module = ours(name=DISTILLED), distilled()
    same_weights(cell, module)
    errors = gradient_errors(cell, module, images(32))
    assert set(errors) == {p.name for p in cell.trainable_params()} and max(errors.values()) < 1e-4


def test_a_pooling_beside_both_tokens(tmp_path: Path, pynative_mode):
    cell = ours("gcp", name=DISTILLED)
    x = ms.Tensor(images(32))
    tokens = cell.forward_features(x)
    pooled = cell.fc(cell.pool_tokens(tokens[:, 2:].reshape(-1, 24), 16))
    by_hand = (cell.head(tokens[:, 0]) + pooled + cell.head_dist(tokens[:, 1])) / 2
    assert relative(cell(x).asnumpy(), by_hand.asnumpy()) < 1e-5
    first, second = cell.set_train(True)(x)
    assert relative(second.asnumpy(), cell.head_dist(tokens[:, 1]).asnumpy()) < 1e-5
    assert relative(first.asnumpy(), (cell.head(tokens[:, 0]) + pooled).asnumpy()) < 1e-5
    # Another image size and other classes: positions are interpolated, both classifiers are left out.
    save_checkpoint(tmp_path / "net.ckpt", cell)
    other = ours("gcp", 48, DISTILLED, num_classes=3, pretrained=tmp_path / "net.ckpt")
    assert other.pos_embed.shape == (1, 2 + 36, 24) and other(x).shape == (2, 3)
    np.testing.assert_array_equal(other.pos_embed.asnumpy()[:, :2], cell.pos_embed.asnumpy()[:, :2])
    names = {p.name for p in parameter_groups(list(cell.trainable_params()), 0.05)[0]["params"]}
    assert "head_dist.weight" in names and not {"cls_token", "dist_token", "pos_embed"} & names


def test_as_onnx(tmp_path: Path, pynative_mode):  # as MindIR in test_sweep.py
    assert exported_error(ours("dropcov"), tmp_path, "ONNX", images(32, 3)) < 1e-5

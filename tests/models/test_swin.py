"""Swin against timm: weights, outputs, gradients, steps, windows at other sizes, files."""

from __future__ import annotations

import re
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.checkpoints import convert_state_dict
from covpool.models import create_model
from covpool.training.optimizers import parameter_groups
from tests.models.agreement import (
    exported_error,
    gradient_errors,
    images,
    output_error,
    same_weights,
    state_there_and_back,
    steps_error,
)

NAME = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 12, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "patch_size": 2}


def ours(pooling: str = "gap", size: int | tuple[int, int] = 32, **args: object) -> nn.Cell:
    sizes = {"image_size": size, "num_classes": 5, "reduction_dim": 8, **SMALL}
    return create_model(NAME, pooling=pooling, **{**sizes, **args}).set_train(False)


def theirs(size: int | tuple[int, int] = 32, **args: object) -> torch.nn.Module:
    model = timm.models.swin_transformer.SwinTransformer
    return model(img_size=size, num_classes=5, drop_path_rate=0.0, **{**SMALL, **args}).eval()


# Windows of the second stage: 4 of 8 tokens, 4 of 4 (not shifted), 2 of 2 (smaller than asked for), oblong.
@pytest.mark.parametrize("size", [32, 16, 8, (16, 32)])
def test_logits_at_every_size(size, pynative_mode):
    cell, module = ours(size=size), theirs(size)
    same_weights(cell, module)
    for batch in (1, 3):
        assert output_error(cell, module, images(size, batch)) < 1e-5


def test_another_size_than_it_was_built_for(pynative_mode):
    """As a network that was built for that size: windows shift where there is more than one."""
    cell, module = ours(size=16), theirs(32)
    same_weights(cell, module)
    assert output_error(cell, module, images(32)) < 1e-5


def test_gradients(pynative_mode):
    cell, module = ours(), theirs()
    same_weights(cell, module)
    errors = gradient_errors(cell, module, images(32))
    assert len(errors) == len(list(cell.trainable_params())) and max(errors.values()) < 1e-4


def test_ten_steps(graph_mode):
    cell, module = ours(depths=(1, 2)), theirs(depths=(1, 2))  # the last block shifts its windows
    same_weights(cell, module)
    assert steps_error(cell, module, images(32, 4)) < 1e-4


def as_published(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of the Swin Transformer's own code."""
    stage = re.compile(r"layers\.(\d+)\.downsample")
    names = {name: stage.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample", name) for name in state}
    found = {name.replace("head.fc.", "head."): state[old] for old, name in names.items()}
    buffers = {"relative_position_index": np.zeros((16, 16), np.int64), "attn_mask": np.zeros((4, 16, 16), np.float32)}
    return {**found, **{f"layers.0.blocks.1.attn.{name}": value for name, value in buffers.items()}}


def test_names_there_and_back(pynative_mode):
    cell, module = ours(), theirs()
    state = state_there_and_back(cell, module)
    published = convert_state_dict(as_published(state))
    assert set(published) == {p.name for p in cell.get_parameters()}
    assert all((p.asnumpy() == published[p.name].asnumpy()).all() for p in cell.get_parameters())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": 24}, "images of 24x24 do not fit the windows of 4x4 tokens in stage 2: height must be a multiple"),
        ({"size": (32, 1)}, "do not fit the windows"),
        ({"num_heads": (1,)}, "num_heads as many as depths"),
        ({"window_size": 0}, "window_size must be at least 1"),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        ours(**args)


def test_images_that_do_not_fit(pynative_mode):
    with pytest.raises(ValueError, match="images of 24x32 do not fit the windows of 4x4 tokens in stage 2"):
        ours()(ms.Tensor(images((24, 32))))


def test_decay_is_that_of_timm():
    cell, module = ours(), theirs()
    groups = timm.optim.param_groups_weight_decay(module, 0.05, no_weight_decay_list=module.no_weight_decay())
    names = {id(p): name for name, p in module.named_parameters()}
    decayed = {names[id(p)] for p in groups[1]["params"]}
    assert {p.name for p in parameter_groups(list(cell.trainable_params()), 0.05)[0]["params"]} == decayed


def test_as_onnx(tmp_path: Path, pynative_mode):  # as MindIR in test_sweep.py
    assert exported_error(ours("fast_mpn", num_classes=3), tmp_path, "ONNX", images(32, 3)) < 1e-5

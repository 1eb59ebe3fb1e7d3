"""Layers and rates by the names of parameters, against timm's groups for layer decay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mindspore import nn

from benchmarks.torch_peers import timm
from covpool.checkpoints import convert_state_dict
from covpool.models import create_model
from covpool.models.layer_groups import in_head, layer_ids, rate_factors
from covpool.training.optimizers import parameter_groups

NARROW = {"deit": {"embed_dim": 12}, "swin": {"embed_dim": 24}, "mobi": {"width_mult": 0.1}, "resn": {"base_width": 2}}
OURS = ("layer_reduce", "pooling", "fc")  # what has no counterpart in timm, or is its classifier


def network(name: str, **arguments: object) -> nn.Cell:
    return create_model(name, "gcp", 4, num_classes=2, **NARROW.get(name[:4], {}), **arguments)


def our_names(module: torch.nn.Module) -> dict[str, str]:
    """Their name of every parameter: ours. Values are numbers that tell them apart."""
    state = module.state_dict()
    tagged = {name: np.full((1,) * value.ndim, i, np.float32) for i, (name, value) in enumerate(state.items())}
    return {list(state)[int(p.asnumpy().item())]: name for name, p in convert_state_dict(tagged).items()}


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("resnet18", "resnet18"),
        ("resnet50", "resnet50"),
        ("deit_tiny_patch16_224", "deit_tiny_patch16_224"),
        ("deit_tiny_distilled_patch16_224", "deit_tiny_distilled_patch16_224"),
        ("swin_tiny_patch4_window7_224", "swin_tiny_patch4_window7_224"),
        ("mobilenet_v2_100", "mobilenetv2_100"),
    ],
)
def test_rates_and_decays_are_those_of_timm(name: str, peer: str) -> None:
    cell = network(name)
    ours = list(cell.trainable_params())
    with torch.device("meta"):
        module = timm.create_model(peer)
    excluded = module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()
    groups = timm.optim.param_groups_layer_decay(
        module, weight_decay=0.05, no_weight_decay_list=excluded, layer_decay=0.75
    )
    of_parameter = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    theirs = {n: of_parameter[id(p)] for n, p in module.named_parameters()}
    backbone = [p.name for p in ours if not in_head(p.name)]
    # MobileNetV2 has other names there, in the same order.
    names = dict(zip(theirs, backbone)) if name.startswith("mobilenet") else our_names(module)
    expected = {names[n]: value for n, value in theirs.items() if not in_head(names.get(n, "fc."))}
    assert len(expected) == len(backbone) == len(theirs) - (4 if "distilled" in name else 2)

    factors = rate_factors([p.name for p in cell.get_parameters()], layer_decay=0.75)
    decays = {p.name: group["weight_decay"] for group in parameter_groups(ours, 0.05)[:-1] for p in group["params"]}
    assert {n: (pytest.approx(factors[n]), decays[n]) for n in backbone} == expected
    heads = [p.name for p in ours if in_head(p.name)]
    assert any(n.startswith(OURS) for n in heads) and {factors[n] for n in heads} == {1.0}


@pytest.mark.parametrize(("name", "blocks"), [("shufflenet_v2_x0_5", 16), ("deit_tiny_dropcov", 12), ("resnet10", 4)])
def test_networks_without_a_peer_count_in_the_same_way(name: str, blocks: int) -> None:
    ids = layer_ids([p.name for p in network(name).get_parameters()])
    assert sorted(set(ids.values())) == list(range(blocks + 2))
    assert {n for n, layer in ids.items() if layer == blocks + 1} == set(filter(in_head, ids))
    assert ids[next(iter(ids))] == 0
    after = {"shufflenet_v2_x0_5": "conv5.0.weight", "deit_tiny_dropcov": "norm.gamma"}.get(name)
    assert after is None or ids[after] == blocks


def test_the_head_has_its_own_factor_besides_the_decay() -> None:
    names = ["conv1.weight", "layer1.0.conv1.weight", "layer4.1.conv1.weight", "layer_reduce_bn.gamma", "fc.bias"]
    assert list(rate_factors(names, 0.5, 5.0).values()) == [0.125, 0.25, 0.5, 5.0, 5.0]
    assert list(rate_factors(names, head_lr_factor=5.0).values()) == [1, 1, 1, 5, 5]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="layer_decay needs blocks"):
        rate_factors(["backbone.weight", "fc.weight"], layer_decay=0.5)
    with pytest.raises(ValueError, match="head_lr_factor needs parameters of a head"):
        rate_factors(["layer1.0.weight"], head_lr_factor=2.0)

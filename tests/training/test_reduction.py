from __future__ import annotations

from typing import Any, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covpool.models import create_model
from covpool.training.ranks import (
    DEFAULT_GROUP_BYTES,
    classifier_share,
    gradient_sizes,
    reduction_groups,
)

SIZES = st.lists(st.integers(1, 1000), max_size=30).map(lambda sizes: [(f"p{i}", s) for i, s in enumerate(sizes)])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # of a busy machine
@given(SIZES, st.integers(1, 3000))
def test_groups_hold_everything_once_from_last_to_first(sizes: list[tuple[str, int]], group_bytes: int) -> None:
    groups = reduction_groups(sizes, group_bytes)
    assert [name for group in groups for name in group.names] == [name for name, _ in reversed(sizes)]
    size_of = dict(sizes)
    for group in groups:
        assert group.size == sum(size_of[name] for name in group.names)
    for group in groups[:-1]:
        assert group.size >= group_bytes
        assert group.size - size_of[group.names[-1]] < group_bytes  # no larger than needed


def test_a_large_matrix_ends_its_group() -> None:
    sizes = [("conv1.weight", 10), ("layer4.weight", 40), ("fc.weight", 500), ("fc.bias", 1)]
    groups = reduction_groups(sizes, 50)
    assert [group.names for group in groups] == [("fc.bias", "fc.weight"), ("layer4.weight", "conv1.weight")]
    assert reduction_groups([], 50) == []
    assert len(reduction_groups(sizes, 1)) == 4
    with pytest.raises(ValueError, match="at least 1, not 0"):
        reduction_groups(sizes, 0)


@pytest.mark.parametrize(
    ("name", "dim", "share", "groups"),
    [("resnet18", 128, 0.423, 3), ("resnet18", 256, 0.744, 3), ("resnet50", 128, 0.258, 5)],
)
def test_classifiers_of_the_networks(name: str, dim: int, share: float, groups: int) -> None:
    network = create_model(name, "gcp", reduction_dim=dim)
    sizes = gradient_sizes(network.trainable_params())
    features = dim * (dim + 1) // 2
    assert dict(sizes)["fc.weight"] == 4 * features * 1000
    assert sum(size for _, size in sizes) == 4 * sum(p.size for p in network.trainable_params())
    assert classifier_share(sizes) == pytest.approx(share, abs=5e-4)
    found = reduction_groups(sizes)
    assert len(found) == groups
    assert set(found[0].names) == {"fc.weight", "fc.bias"}  # ready first, and on its own
    assert all(group.size >= DEFAULT_GROUP_BYTES for group in found[:-1])


# MindSpore on CPU mixes up reductions that become ready in another order (see OrderedMean), whose order would keep the
# groups apart. With one thread each, two ranks with one graph have one order.
RANKS = """
    from mindspore.train.amp import build_train_network
    from covpool.training.losses import LabelSmoothingCrossEntropy
    from covpool.training.optimizers import build_optimizer
    from covpool.training.ranks import fuse_reductions, reduce_in_order

    ms.set_context(runtime_num_threads=1)
    found = {}
    for fused in (False, True):  # the groups stay on in this process
        ms.set_seed(1)
        network = nn.SequentialCell([nn.Dense(20, 20, activation="relu") for _ in range(8)])
        parameters = list(network.trainable_params())
        if fused:
            found["groups"] = [group.names for group in fuse_reductions(parameters, 5000)]
        graphs = Path(sys.argv[1]) / f"rank{world.rank}" / f"fused_{fused}"
        ms.set_context(save_graphs=1, save_graphs_path=str(graphs))
        optimizer = build_optimizer(parameters, np.full(3, 0.1, np.float32))
        step = build_train_network(network, optimizer, LabelSmoothingCrossEntropy(), level="O0").set_train()
        if not fused:
            reduce_in_order(step, world.size)
        data = np.random.default_rng(world.rank)
        for _ in range(3):
            images = ms.Tensor(data.standard_normal((4, 20)).astype(np.float32))
            labels = ms.Tensor(data.integers(0, 10, 4), ms.int32)
            loss = float(step(images, labels))
        values = np.concatenate([p.asnumpy().reshape(-1) for p in parameters]).astype(np.float64)
        built = [path.read_text() for path in graphs.glob("**/graph_build_*.ir")]
        found[str(fused)] = {
            "loss": loss,
            "sum": values.sum(), "norm": float(np.linalg.norm(values)), "parameters": len(parameters),
            "reductions": max(text.count("= AllReduce(") for text in built),
        }
"""


@pytest.mark.world_size
def test_fused_training_is_the_same_training(on_two_ranks: Callable[[str, str], list[dict[str, Any]]]) -> None:
    """The groups of the graph that is run are counted; on CPU MindSpore honours them, too."""
    first, second = on_two_ranks(RANKS, "GRAPH")
    for found in (first, second):
        plain, fused = found["False"], found["True"]
        for key in ("loss", "sum", "norm"):
            assert fused[key] == pytest.approx(plain[key], rel=1e-5)
        assert plain["reductions"] == plain["parameters"]
        assert len(found["groups"]) <= fused["reductions"] < plain["parameters"] / 2
    for key in ("sum", "norm"):
        assert first["True"][key] == second["True"][key]
    assert first["True"]["loss"] != second["True"]["loss"]  # each has data of its own

"""The mean of gradients over ranks: of networks, and where they become ready in another order on every rank."""

from __future__ import annotations

from typing import Any, Callable

import pytest

# All gradients have one size, so that a mix-up is no error but a wrong mean. Every second one is slow, and which ones
# differs between the ranks.
RANKS = """
    import os
    from covpool.training.ranks import OrderedMean

    class Gradients(nn.Cell):
        def __init__(self):
            super().__init__()
            self.mean = OrderedMean(world.size)

        def construct(self, identity, values):
            ready = ()
            for index, value in enumerate(values):
                if index % 2 == world.rank:
                    for _ in range(12):
                        value = ops.matmul(value, identity)
                ready = ready + (value,)
            return self.mean(ready)

    found = {"patience": os.environ["MS_NODE_TIMEOUT"]}
    for mode in ("GRAPH", "PYNATIVE"):
        ms.set_context(mode=ms.GRAPH_MODE if mode == "GRAPH" else ms.PYNATIVE_MODE)
        width = 300
        network, identity = Gradients(), ms.Tensor(np.eye(width, dtype=np.float32))
        values = np.random.default_rng(0).standard_normal((world.size, 12, 16, width)).astype(np.float32)
        own = tuple(ms.Tensor(value) for value in values[world.rank])
        error = 0.0
        for _ in range(20):
            means = network(identity, own)
            error = max(error, *(float(np.abs(m.asnumpy() - v).max()) for m, v in zip(means, values.mean(0))))
        half = network.mean((ms.Tensor([world.rank + 1.0], ms.float16), ms.Tensor(3.0)))
        dtype, value = str(half[0].dtype), half[0].asnumpy().tolist()
        found[mode] = {"error": error, "half": [dtype, *value], "scalar": float(half[1])}
"""
# Two steps of the whole batch alone, and of a half on each rank, with running statistics and nothing dropped.
NETWORKS = """
    from covpool.build import build_model
    from covpool.config import Config
    from covpool.runtime.distributed import World
    from covpool.training.recipe import recipe_optimizer
    from covpool.training.step import build_step

    def trained(config, ranks):
        ms.set_seed(1)
        network = build_model(config)
        for p in network.get_parameters():
            if p.name.endswith("moving_variance"):  # or 17 blocks would leave nothing of the images
                p.set_data(ms.Tensor(np.full(p.shape, 0.5, np.float32)))
        start = {p.name: p.asnumpy().copy() for p in network.trainable_params()}
        optimizer = recipe_optimizer(config, network, np.full(2, 0.01, np.float32))
        step = build_step(config, network, optimizer, ranks).train_network.set_train()
        data = np.random.default_rng(0)
        for _ in range(2):
            images, labels = data.standard_normal((4, 3, 32, 32)).astype(np.float32), np.array([0, 1, 2, 1], np.int32)
            part = slice(ranks.rank, None, ranks.size)
            step(ms.Tensor(images[part]), ms.Tensor(labels[part]))
        return np.concatenate([(p.asnumpy() - start[p.name]).reshape(-1) for p in network.trainable_params()])

    light = {"stem": "small", "model_args": {"width_mult": 0.1, "dropout": 0.0}}
    tiny = {"train_image_size": 32, "model_args": {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}}
    for name, keys in {"mobilenet_v2_100": light, "deit_tiny_patch16_224": tiny}.items():
        config = Config(net_name=name, pooling="fast_mpn", reduction_dim=8, class_num=3, freeze_bn=True, **keys)
        alone, together = trained(config, World()), trained(config, world)
        found[name] = float(np.linalg.norm(together - alone) / np.linalg.norm(alone))
    accumulated = trained(config.replace(batch_size=1, accumulate_steps=2), world)  # as the last: four images a step
    found["accumulated"] = float(np.linalg.norm(accumulated - alone) / np.linalg.norm(alone))
"""


@pytest.mark.world_size
def test_each_gradient_meets_its_own(on_two_ranks: Callable[[str, str], list[dict[str, Any]]]) -> None:
    """In both modes, which follow each other in one job."""
    for found in on_two_ranks(RANKS + NETWORKS, "GRAPH"):
        for mode in ("GRAPH", "PYNATIVE"):
            assert found[mode]["error"] < 1e-5
            assert found[mode]["half"] == ["Float16", 1.5] and found[mode]["scalar"] == 3.0
        assert all(found[name] < 1e-5 for name in ("mobilenet_v2_100", "deit_tiny_patch16_224", "accumulated")), found
        assert found["patience"] == "360"  # seconds: more than the rank_timeout of 300

"""The mean of gradients over ranks whose gradients become ready in another order on every rank."""

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


@pytest.mark.world_size
def test_each_gradient_meets_its_own(on_two_ranks: Callable[[str, str], list[dict[str, Any]]]) -> None:
    """In both modes, which follow each other in one job."""
    for found in on_two_ranks(RANKS, "GRAPH"):
        for mode in ("GRAPH", "PYNATIVE"):
            assert found[mode]["error"] < 1e-5
            assert found[mode]["half"] == ["Float16", 1.5] and found[mode]["scalar"] == 3.0
        assert found["patience"] == "360"  # seconds: more than the rank_timeout of 300

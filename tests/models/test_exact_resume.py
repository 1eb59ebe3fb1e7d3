"""A light network and a transformer, interrupted between two steps and built anew, end with the same bits."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from covpool.build import architecture, build_model
from covpool.checkpoints.format import read_checkpoint
from covpool.checkpoints.state import Progress, TrainingState
from covpool.checkpoints.store import CheckpointStore
from covpool.config import Config
from covpool.runtime.distributed import World
from covpool.training.recipe import recipe_optimizer
from covpool.training.step import build_step

SIZE = 32
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "heads": 3, "head_dim": 4}
# Both drop paths and entries, the transformer whole tokens, too.
CONFIGS = {
    "mobilenet_v2": Config(
        net_name="mobilenet_v2_100",
        stem="small",  # more than one position is left to pool
        reduction_dim=8,
        model_args={"width_mult": 0.1},
        class_num=3,
        drop_path_rate=0.5,
    ),
    "deit_dropcov": Config(
        net_name="deit_tiny_dropcov",
        train_image_size=SIZE,
        model_args=TINY,
        class_num=3,
        optimizer="adamw",
        lr_max=1e-3,
        drop_path_rate=0.5,
    ),
}


class Training:
    """What is built at the start of a run, with weights of its own."""

    def __init__(self, config: Config, seed: int, folder: Path) -> None:
        ms.set_seed(seed)
        self.network = build_model(config)
        self.optimizer = recipe_optimizer(config, self.network, np.full(4, 1e-2, np.float32))
        self.step = build_step(config, self.network, self.optimizer, World()).train_network.set_train()
        self.state = TrainingState(self.network, self.optimizer, CheckpointStore(folder, 3), World(), 10, {})

    def train(self, first: int, last: int) -> list[bytes]:
        """The losses of these steps."""
        losses = []
        for index in range(first, last):
            images = np.random.default_rng(index).standard_normal((4, 3, SIZE, SIZE)).astype(np.float32)
            losses.append(self.step(ms.Tensor(images), ms.Tensor([0, 1, 2, 0], ms.int32)).asnumpy().tobytes())
        return losses

    def values(self) -> dict[str, bytes]:
        return {p.name: p.asnumpy().tobytes() for p in self.state.parameters}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_last_two_of_four_steps(name: str, tmp_path: Path, pynative_mode: None) -> None:
    config = CONFIGS[name]
    whole = Training(config, 1, tmp_path)
    whole.train(0, 2)
    whole.state.save(Progress(0, 2))
    before, losses = whole.values(), whole.train(2, 4)
    resumed = Training(config, 2, tmp_path / "resumed")
    checkpoint = read_checkpoint(next(tmp_path.glob("*.ckpt")))
    assert resumed.values() != before
    assert resumed.state.restore(checkpoint, architecture(config)) == Progress(0, 2)
    assert resumed.values() == before
    assert resumed.train(2, 4) == losses
    values = whole.values()
    assert [key for key, value in resumed.values().items() if value != values[key]] == []
    moved = [key for key in values if key.endswith("counter") and values[key] != before[key]]
    assert {"drop_path" in key for key in moved} == {True, False}

"""The mean of gradients over ranks whose gradients become ready in another order on every rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# All gradients have one size, so that a mix-up is no error but a wrong mean. Every second one is slow, and which ones
# differs between the ranks.
RANKS = """
import json, os, sys
from pathlib import Path
from src.runtime.environment import prepare_environment
prepare_environment()
from src.runtime.distributed import leave, session
with session(sys.argv[2], "CPU", None, True, 2) as world:
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops
    from src.training.reduction import OrderedMean

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

    width = 300
    network, identity = Gradients(), ms.Tensor(np.eye(width, dtype=np.float32))
    values = np.random.default_rng(0).standard_normal((world.size, 12, 16, width)).astype(np.float32)
    own = tuple(ms.Tensor(value) for value in values[world.rank])
    error = 0.0
    for _ in range(20):
        means = network(identity, own)
        error = max(error, *(float(np.abs(m.asnumpy() - v).max()) for m, v in zip(means, values.mean(0))))
    half = network.mean((ms.Tensor([world.rank + 1.0], ms.float16), ms.Tensor(3.0)))
    found = {"error": error, "half": [str(half[0].dtype), *half[0].asnumpy().tolist()], "scalar": float(half[1])}
    found["patience"] = os.environ["MS_NODE_TIMEOUT"]
    (Path(sys.argv[1]) / f"{world.rank}.json").write_text(json.dumps(found))
leave(0)
"""


@pytest.mark.world_size
@pytest.mark.parametrize("mode", ["GRAPH", "PYNATIVE"])
def test_each_gradient_meets_its_own(root: Path, tmp_path: Path, clean_env: dict[str, str], mode: str) -> None:
    script = tmp_path / "ranks.py"  # a file: GRAPH mode reads sources
    script.write_text(RANKS)
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, str(script)]
    env = {**clean_env, "PYTHONPATH": str(root), "PATH": f"{Path(sys.executable).parent}:{clean_env['PATH']}"}
    done = subprocess.run(
        [*command, str(tmp_path), mode], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["error"] < 1e-5
        assert found["half"] == ["Float16", 1.5] and found["scalar"] == 3.0
        assert found["patience"] == "360"  # seconds: more than the rank_timeout of 300

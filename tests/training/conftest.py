"""A script on two real ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

# What every rank begins and ends with. The lines between have `world`, and leave what they see in `found`.
BEGIN = """
import json, sys
from pathlib import Path
from covpool.runtime.environment import prepare_environment
prepare_environment()
from covpool.runtime.distributed import leave, session
with session(sys.argv[2], "CPU", None, True, 2) as world:
    import mindspore as ms
    import numpy as np
    from mindspore import nn, ops
"""
END = """
    (Path(sys.argv[1]) / f"{world.rank}.json").write_text(json.dumps(found))
leave(0)
"""


@pytest.fixture
def on_two_ranks(root: Path, tmp_path: Path, clean_env: dict[str, str]) -> Callable[[str, str], list[dict[str, Any]]]:
    """Run lines, indented by four, on two ranks under mpirun in a mode; what each of them has ``found``."""

    def run(lines: str, mode: str) -> list[dict[str, Any]]:
        script = tmp_path / "ranks.py"  # a file: GRAPH mode reads sources
        script.write_text(BEGIN + lines + END)
        command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, str(script)]
        env = {
            **clean_env,
            "PYTHONPATH": str(root / "src"),
            "PATH": f"{Path(sys.executable).parent}:{clean_env['PATH']}",
        }
        done = subprocess.run(
            [*command, str(tmp_path), mode], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]

    return run

"""Train a network: python train.py --config_path=FILE [--key=value ...]."""

from __future__ import annotations

import sys

from src.config import Config
from src.config.entry import open_session, run_entry_point
from src.config.modelarts import synchronised
from src.runtime.distributed import leave
from src.runtime.signals import StopRequest


def main(config: Config) -> None:
    """Train as configured."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local:
        from src.training import fit  # here: signals and session come before MindSpore

        summary = fit(local, world, stop)
        if world.is_main and summary.best is not None:
            print(f"best top-1 accuracy: {summary.best:.4f}; run folder: {summary.folder}")


if __name__ == "__main__":
    leave(run_entry_point(main, sys.argv[1:], "Train a network, alone or on every rank of mpirun or msrun."))

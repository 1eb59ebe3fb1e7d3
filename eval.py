"""Evaluate a checkpoint: python eval.py --config_path=FILE --data_path=DIR --checkpoint_file_path=CKPT."""

from __future__ import annotations

import sys

from src.config import Config
from src.config.entry import open_session, run_entry_point
from src.config.modelarts import synchronised
from src.runtime.distributed import leave


def main(config: Config) -> None:
    """Print top-1 and top-5 accuracy over all images of ``val/``; write more to ``result_path``."""
    with open_session(config) as world, synchronised(config, world.rank) as local:
        from src.evaluation.run import evaluate_checkpoint

        result = evaluate_checkpoint(local, world)
        if world.is_main:
            accuracies = {key: result[key] for key in ("top_1_accuracy", "top_5_accuracy")}
            print(f"result: {accuracies} ckpt={local.checkpoint_file_path}")


if __name__ == "__main__":
    required = ("data_path", "checkpoint_file_path")
    leave(run_entry_point(main, sys.argv[1:], "Evaluate a checkpoint on the images of val/.", required))

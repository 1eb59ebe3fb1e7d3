"""Evaluate a checkpoint: python eval.py --config_path=FILE --data_path=DIR --checkpoint_file_path=CKPT."""

from __future__ import annotations

import sys

from src.config import Config
from src.config.entry import open_session, run_entry_point
from src.config.modelarts import synchronised
from src.runtime.distributed import leave

_SHOWN = ("top_1_accuracy", "top_5_accuracy", "mce", "mean_error", "mean_flip_rate", "top_1_accuracy_all_classes")


def main(config: Config) -> None:
    """Print top-1 and top-5 accuracy over all images of ``val/``, or what a robustness set asks for.

    More goes to ``result_path``.
    """
    with open_session(config) as world, synchronised(config, world.rank) as local:
        if config.robustness != "none":
            from src.robustness.run import evaluate_robustness as evaluate
        else:
            from src.evaluation.run import evaluate_checkpoint as evaluate

        result = evaluate(local, world)
        if world.is_main:
            if result.get("limit"):
                print(
                    f"{result['num_samples']} images, {result['images_per_s']:.1f} images/s: the {result['limit']} is "
                    f"the limit ({result['waited_share']:.0%} of the time spent waiting for images)"
                )
            shown = {key: result[key] for key in _SHOWN if key in result}
            print(f"result: {shown} ckpt={local.checkpoint_file_path}")


if __name__ == "__main__":
    required = ("data_path", "checkpoint_file_path")
    leave(run_entry_point(main, sys.argv[1:], "Evaluate a checkpoint on val/ or on a robustness set.", required))

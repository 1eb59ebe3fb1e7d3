"""Training, evaluation and export as a configuration says: `--config_path=FILE --key=value ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from covpool.config import Config
from covpool.config.entry import open_session, run_entry_point
from covpool.config.modelarts import synchronised
from covpool.runtime.signals import StopRequest

_SHOWN = ("top_1_accuracy", "top_5_accuracy", "mce", "mean_error", "mean_flip_rate", "top_1_accuracy_all_classes")


def train(argv: Sequence[str]) -> int:
    """Train a network, alone or on every rank of mpirun or msrun."""
    return run_entry_point(_train, argv, str(train.__doc__))


def evaluate(argv: Sequence[str]) -> int:
    """Evaluate a checkpoint on val/ or on a robustness set."""
    required = ("data_path", "checkpoint_file_path")
    return run_entry_point(_evaluate, argv, str(evaluate.__doc__), required, config_optional=True)


def export(argv: Sequence[str]) -> int:
    """Export a checkpoint for deployment and check the file."""
    return run_entry_point(_export, argv, str(export.__doc__), ("checkpoint_file_path",), config_optional=True)


def _train(config: Config) -> None:
    """Train as configured."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.training import fit  # here: signals and session come before MindSpore

        summary = fit(local, world, stop)
        if world.is_main and summary.best is not None:
            print(f"best top-1 accuracy: {summary.best:.4f}; run folder: {summary.folder}")


def _evaluate(config: Config) -> None:
    """Print top-1 and top-5 accuracy over all images of ``val/``, or what a robustness set asks for.

    More goes to ``result_path``.
    """
    with open_session(config) as world, synchronised(config, world.rank) as local:
        if config.robustness != "none":
            from covpool.research.robustness.run import evaluate_robustness as compute
        else:
            from covpool.evaluation.run import evaluate_checkpoint as compute

        def show(result: dict[str, Any]) -> None:
            if result.get("limit"):
                print(
                    f"{result['num_samples']} images, {result['images_per_s']:.1f} images/s: the {result['limit']} is "
                    f"the limit ({result['waited_share']:.0%} of the time spent waiting for images)"
                )
            shown = {key: result[key] for key in _SHOWN if key in result}
            print(f"result: {shown} ckpt={local.checkpoint_file_path}", flush=True)

        compute(local, world, show)


def _export(config: Config) -> None:
    """Write the exported file and compare it with the network."""
    with open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.export import export_checkpoint

        exported, images = export_checkpoint(local)
        print(
            f"exported: {exported.path} (any batch size); on images of {images} it differs from the network by at "
            f"most {exported.difference:.1e} of the largest logit (batch normalisations folded: "
            f"{exported.folding_difference:.1e} of the features' norm)"
        )

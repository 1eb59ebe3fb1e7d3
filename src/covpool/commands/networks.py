"""Training, evaluation and export as a configuration says: `--config_path=FILE --key=value ...`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from covpool.config import Config
from covpool.config.command_line import Program
from covpool.config.entry import open_session, run_entry_point
from covpool.config.modelarts import synchronised
from covpool.runtime.signals import StopRequest

_SHOWN = ("top_1_accuracy", "top_5_accuracy", "mce", "mean_error", "mean_flip_rate", "top_1_accuracy_all_classes")


_JOB = ("data_path", "batch_size", "num_workers", "device_target", "run_distribute", "device_num")
_TRAIN = Program(
    "Train a network, alone or on every rank of mpirun or msrun.",
    usual=(
        *("net_name", "pooling", "reduction_dim", "class_num", "epoch_size", "lr_max", "lr_decay_mode", "output_path"),
        *("pre_trained", "resume_ckpt", "val_fraction", "tensorboard", "cpu_kernels", *_JOB),
    ),
    name="covpool train",
)
_EVALUATE = Program(
    "Evaluate a checkpoint on val/, test/ or a robustness set.",
    required=("data_path", "checkpoint_file_path"),
    usual=(
        *("split", "eval_image_size", "eval_crop_ratio", "bad_images", "result_path", "report_path", "robustness"),
        *("class_names", *_JOB),
    ),
    config_optional=True,
    name="covpool eval",
)
_EXPORT = Program(
    "Export a checkpoint for deployment and check the file.",
    required=("checkpoint_file_path",),
    usual=("file_name", "file_format", "height", "width", "data_path", "device_target"),
    config_optional=True,
    name="covpool export",
)


def train(argv: Sequence[str]) -> int:
    """Train a network, alone or on every rank of mpirun or msrun."""
    return run_entry_point(_train, argv, _TRAIN)


def evaluate(argv: Sequence[str]) -> int:
    """Evaluate a checkpoint on val/, test/ or a robustness set."""
    return run_entry_point(_evaluate, argv, _EVALUATE)


def export(argv: Sequence[str]) -> int:
    """Export a checkpoint for deployment and check the file."""
    return run_entry_point(_export, argv, _EXPORT)


def _train(config: Config) -> None:
    """Train as configured."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.training import fit  # here: signals and session come before MindSpore

        summary = fit(local, world, stop)
        if world.is_main and summary.best is not None:
            print(f"best top-1 accuracy: {summary.best:.4f}; run folder: {summary.folder}")


def _evaluate(config: Config) -> None:
    """Print top-1 and top-5 accuracy over all images of ``split``, or what a robustness set asks for.

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
        if world.is_main and local.report_path:
            print(f"confusion matrix and most confident mistakes: {local.report_path}")


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

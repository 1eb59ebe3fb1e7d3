"""Training, evaluation and export as a configuration says: `--config_path=FILE --key=value ...`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Callable

from covpool.config import Config
from covpool.config.command_line import Program, open_session, run_entry_point
from covpool.config.modelarts import synchronised
from covpool.runtime.signals import StopRequest

_SHOWN = ("top_1_accuracy", "top_5_accuracy", "mce", "mean_error", "mean_flip_rate", "top_1_accuracy_all_classes")
_JOB = ("data_path", "batch_size", "num_workers", "device_target", "run_distribute", "device_num")


def _command(name: str, **rules: Any) -> Callable[[Callable[[Config], None]], Callable[[Sequence[str]], int]]:
    """Make what follows a configuration a command with arguments; its docstring begins the command's help."""

    def decorate(main: Callable[[Config], None]) -> Callable[[Sequence[str]], int]:
        return partial(run_entry_point, main, program=Program(main.__doc__ or "", name=name, **rules))

    return decorate


@_command(
    "covpool train",
    usual=(
        *("net_name", "pooling", "reduction_dim", "class_num", "epoch_size", "lr_max", "lr_decay_mode", "output_path"),
        *("pre_trained", "resume_ckpt", "val_fraction", "tensorboard", "cpu_kernels", *_JOB),
    ),
)
def train(config: Config) -> None:
    """Train a network, alone or on every rank of mpirun or msrun."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.training import fit  # here: signals and session come before MindSpore

        summary = fit(local, world, stop)
        if world.is_main and summary.best is not None:
            print(f"best top-1 accuracy: {summary.best:.4f}; run folder: {summary.folder}")


@_command(
    "covpool eval",
    required=("data_path", "checkpoint_file_path"),
    usual=(
        *("split", "eval_image_size", "eval_crop_ratio", "bad_images", "result_path", "report_path", "robustness"),
        *("class_names", *_JOB),
    ),
    config_optional=True,
)
def evaluate(config: Config) -> None:
    """Evaluate a checkpoint on val/, test/ or a robustness set."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local, stop.deferring():
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

        compute(local, world, show, stop)
        if world.is_main and local.report_path:
            print(f"confusion matrix and most confident mistakes: {local.report_path}")


@_command(
    "covpool export",
    required=("checkpoint_file_path",),
    usual=("file_name", "file_format", "height", "width", "data_path", "device_target"),
    config_optional=True,
)
def export(config: Config) -> None:
    """Export a checkpoint for deployment and check the file."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local, stop.deferring():
        from covpool.export import export_checkpoint

        exported, images = export_checkpoint(local, stop)
        print(
            f"exported: {exported.path} (any batch size); on images of {images} it differs from the network by at "
            f"most {exported.difference:.1e} of the largest logit (batch normalisations folded: "
            f"{exported.folding_difference:.1e} of the features' norm)"
        )

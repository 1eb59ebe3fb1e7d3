"""The command ``covpool``: one subcommand for everything that a user starts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Callable, NoReturn, Optional

from covpool.config import Config
from covpool.config.entry import open_session, run_entry_point
from covpool.config.modelarts import synchronised
from covpool.config.values import closest
from covpool.errors import UserError
from covpool.runtime.command import exit_code_of
from covpool.runtime.distributed import leave
from covpool.runtime.signals import StopRequest

_SHOWN = ("top_1_accuracy", "top_5_accuracy", "mce", "mean_error", "mean_flip_rate", "top_1_accuracy_all_classes")


def main(argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Run the subcommand that the first argument names, and end the process with its exit code."""
    leave(run(sys.argv[1:] if argv is None else argv))


def run(words: Sequence[str]) -> int:
    """Run the subcommand that the first word names; its exit code. An error is one line on standard error."""
    return exit_code_of(lambda: _dispatch(words), lambda: "--debug=True" in words)


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_usage(), end="")
        return 0 if words else 2
    name, *rest = words
    if name in _CONFIGURED:
        return run_entry_point(_CONFIGURED[name], rest, *_DESCRIPTIONS[name])
    if name not in _COMMANDS:
        known = [*_CONFIGURED, *_COMMANDS]
        raise UserError(f"unknown command {name!r} (closest: {closest(name, known)}; covpool --help lists them)", 2)
    module, function = _COMMANDS[name][0].split(":")
    command = getattr(importlib.import_module(f"covpool.commands.{module}"), function)
    return command([word for word in rest if word != "--debug=True"])


def train(config: Config) -> None:
    """Train as configured."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.training import fit  # here: signals and session come before MindSpore

        summary = fit(local, world, stop)
        if world.is_main and summary.best is not None:
            print(f"best top-1 accuracy: {summary.best:.4f}; run folder: {summary.folder}")


def evaluate(config: Config) -> None:
    """Print top-1 and top-5 accuracy over all images of ``val/``, or what a robustness set asks for.

    More goes to ``result_path``.
    """
    with open_session(config) as world, synchronised(config, world.rank) as local:
        if config.robustness != "none":
            from covpool.research.robustness.run import evaluate_robustness as compute
        else:
            from covpool.evaluation.run import evaluate_checkpoint as compute

        result = compute(local, world)
        if world.is_main:
            if result.get("limit"):
                print(
                    f"{result['num_samples']} images, {result['images_per_s']:.1f} images/s: the {result['limit']} is "
                    f"the limit ({result['waited_share']:.0%} of the time spent waiting for images)"
                )
            shown = {key: result[key] for key in _SHOWN if key in result}
            print(f"result: {shown} ckpt={local.checkpoint_file_path}")


def export(config: Config) -> None:
    """Write the exported file and compare it with the network."""
    with open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.export import export_checkpoint

        exported, images = export_checkpoint(local)
        print(
            f"exported: {exported.path} (any batch size); on images of {images} it differs from the network by at "
            f"most {exported.difference:.1e} of the largest logit (batch normalisations folded: "
            f"{exported.folding_difference:.1e} of the features' norm)"
        )


# Commands with a configuration: `--config_path=FILE --key=value ...`.
_CONFIGURED: dict[str, Callable[[Config], None]] = {"train": train, "eval": evaluate, "export": export}
_DESCRIPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("Train a network, alone or on every rank of mpirun or msrun.", ()),
    "eval": ("Evaluate a checkpoint on val/ or on a robustness set.", ("data_path", "checkpoint_file_path")),
    "export": ("Export a checkpoint for deployment and check the file.", ("checkpoint_file_path",)),
}
# The others, imported when they are asked for: `module:function` in covpool.commands, and what it does.
_COMMANDS = {
    "predict": ("deployment:predict_images", "Predict image files from an exported file."),
    "convert": ("deployment:convert", "Convert a checkpoint from or to PyTorch, safetensors or Paddle."),
    "check-data": ("check_data:check_data", "List every problem of a data set."),
    "check-device": ("check_data:check_devices", "Tell which devices MindSpore can use here, and why not."),
    "pack": ("data_sets:pack_folder", "Pack an image folder into MindRecord files."),
    "corrupt": ("data_sets:corrupt", "Write corrupted copies of images, as ImageNet-C has them."),
    "fashion-mnist": ("fashion_mnist:fashion_mnist", "Prepare the Fashion-MNIST data set."),
    "fashion-mnist-sample": ("fashion_mnist:fashion_mnist_sample", "Make the sample that comes with the repository."),
    "complexity": ("figures:complexity", "Parameters and multiply-adds of networks and poolings."),
    "scaling": ("figures:scaling", "Predict data-parallel training on many devices."),
    "study": ("studies:study", "Run a grid of trainings over seeds, and summarise it."),
    "landscape": ("studies:landscape", "Measure loss landscapes of poolings."),
    "compare": ("comparisons:compare", "Compare run folders."),
    "compare-robustness": ("comparisons:compare_robustness", "Compare networks on corrupted images."),
    "dropcov-rate": ("comparisons:dropcov_rate", "The adaptive rate of DropCov over training."),
}


def _usage() -> str:
    lines = [f"  {name:21} {text}" for name, (text, _) in _DESCRIPTIONS.items()]
    lines += [f"  {name:21} {text}" for name, (_, text) in _COMMANDS.items()]
    return "usage: covpool COMMAND [--help] ...\n\n" + "\n".join(lines) + "\n"

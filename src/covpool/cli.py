"""The command ``covpool``: one subcommand for everything that a user starts."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Optional

from covpool.errors import UserError, nearest
from covpool.runtime.command import exit_code_of
from covpool.runtime.distributed import leave


def main(argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Run the subcommand that the first argument names, and end the process with its exit code."""
    leave(run(sys.argv[1:] if argv is None else argv))


def run(words: Sequence[str]) -> int:
    """Run the subcommand that the first word names; its exit code. An error is one line on standard error."""
    return exit_code_of(lambda: _dispatch(words), lambda: "--debug=True" in words)


def _dispatch(words: Sequence[str]) -> int:
    try:
        Path.cwd()  # MindSpore ends the process with a core dump where its import finds none
    except FileNotFoundError:
        raise UserError("the folder that this command was started in was removed: start it in another one") from None
    if not words or words[0] in ("-h", "--help"):
        lines = [f"  {name:21} {text}" for name, (_, text) in _COMMANDS.items()]
        print("usage: covpool COMMAND [--help] ...\n", *lines, sep="\n")
        return 0 if words else 2
    name, *rest = words
    if name not in _COMMANDS:
        near = nearest(name, _COMMANDS)[0]
        raise UserError(f"unknown command {name!r} (closest: {near}; covpool --help lists them)", 2)
    module, function = _COMMANDS[name][0].split(":")
    command = getattr(importlib.import_module(f"covpool.commands.{module}"), function)
    is_key = name in ("train", "eval", "export")  # which take all keys of the configuration
    return command(rest if is_key else [word for word in rest if word != "--debug=True"])


# `module:function` in covpool.commands, imported when it is asked for, and what it does.
_COMMANDS = {
    "train": ("networks:train", "Train a network, alone or on every rank of mpirun or msrun."),
    "eval": ("networks:evaluate", "Evaluate a checkpoint on val/ or on a robustness set."),
    "export": ("networks:export", "Export a checkpoint for deployment and check the file."),
    "predict": ("networks:predict_images", "Predict image files from a checkpoint or an exported file."),
    "convert": ("networks:convert", "Convert a checkpoint from or to PyTorch, safetensors or Paddle."),
    "check-data": ("data_sets:check_data", "List every problem of a data set."),
    "check-device": ("figures:check_devices", "Tell which devices MindSpore can use here, and why not."),
    "pack": ("data_sets:pack_folder", "Pack an image folder into MindRecord files."),
    "corrupt": ("data_sets:corrupt", "Write corrupted copies of images, as ImageNet-C has them."),
    "make-textures": ("data_sets:make_textures", "Make a small data set of colour textures."),
    "fashion-mnist": ("fashion_mnist:fashion_mnist", "Prepare the Fashion-MNIST data set."),
    "fashion-mnist-sample": ("fashion_mnist:fashion_mnist_sample", "Make the sample that comes with the repository."),
    "complexity": ("figures:complexity", "Parameters and multiply-adds of networks and poolings."),
    "scaling": ("figures:scaling", "Predict data-parallel training on many devices."),
    "study": ("research:study", "Run a grid of trainings over seeds, and summarise it."),
    "landscape": ("research:landscape", "Measure loss landscapes of poolings."),
    "compare": ("research:compare", "Compare run folders."),
    "compare-robustness": ("research:compare_robustness", "Compare networks on corrupted images."),
    "dropcov-rate": ("research:dropcov_rate", "The adaptive rate of DropCov over training."),
    "few-shot": ("research:few_shot", "Few-shot accuracy on classes that a network never saw."),
}

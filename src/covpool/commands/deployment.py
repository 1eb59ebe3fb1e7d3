"""Checkpoints and exported files: conversion and prediction."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from covpool.config import Config, load_config
from covpool.config.command_line import key_type
from covpool.errors import UserError
from covpool.runtime.command import new_parser
from covpool.runtime.environment import prepare_environment
from covpool.runtime.files import check_writable


def convert(argv: Sequence[str]) -> int:
    """Convert a checkpoint: PyTorch, safetensors or Paddle to MindSpore, and back to PyTorch names.

    covpool convert --source resnet18.pth --config_path=config/FILE.yaml --output resnet18.ckpt

    The result is checked against the network of the configuration. Further options, --key=value, change keys of the
    configuration, as in train.py.
    """
    parser = new_parser("covpool convert", convert.__doc__)
    parser.add_argument("--source", type=Path, required=True, help=".pth, .pth.tar, .safetensors, .pdparams or .ckpt")
    parser.add_argument("--output", type=Path, required=True, help="the new file")
    parser.add_argument("--config_path", help="configuration of the network; optional with --to=safetensors")
    parser.add_argument("--to", choices=("ckpt", "safetensors"), default="ckpt", help="format of the new file")
    parser.add_argument("--num_classes", type=int, help="classes to fine-tune for: the classifier is left out")
    parser.add_argument(
        "--backbone_only",
        action="store_true",
        help="take the backbone only, to start a covariance network from one with global average pooling; reduction, "
        "pooling and classifier are newly initialised",
    )
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.config_path is None and (arguments.to == "ckpt" or arguments.num_classes or arguments.backbone_only):
        parser.error("--config_path is needed")
    config = load_config(arguments.config_path, overrides) if arguments.config_path else None
    _convert(arguments, config)
    return 0


def _convert(arguments: argparse.Namespace, config: Optional[Config]) -> None:
    """Convert as the arguments say."""
    prepare_environment()
    import mindspore as ms

    from covpool.build import build_model
    from covpool.checkpoints import convert_file

    network = None
    if config is not None:
        ms.set_seed(config.seed)
        if arguments.num_classes is not None:
            config = config.replace(class_num=arguments.num_classes)
        network = build_model(config)
    report = convert_file(
        arguments.source,
        arguments.output,
        arguments.to,
        network,
        skip_classifier=arguments.num_classes is not None,
        backbone_only=arguments.backbone_only,
    )
    if report.left_out:
        print(f"left out of {arguments.source}: {', '.join(report.left_out)}")
    if report.fresh:
        print(f"newly initialised: {', '.join(report.fresh)}")
    print(f"{arguments.output}: {len(report.written)} tensors")


def predict_images(argv: Sequence[str]) -> int:
    """Predict image files from an exported file or a checkpoint: covpool predict --file net.onnx --images DIR_OR_FILES.

    Images that cannot be read are passed over and listed at the end; the exit code is then 1.
    """
    parser = new_parser("covpool predict", predict_images.__doc__)
    parser.add_argument(
        "--file", type=Path, required=True, help="exported file (.mindir, .onnx), or a run's checkpoint"
    )
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files, or folders to search")
    parser.add_argument("--output", type=Path, help="CSV or JSON file for the predictions, instead of lines")
    parser.add_argument("--top", type=int, default=5, help="classes to name for each image (default: 5)")
    parser.add_argument(
        "--batch_size", type=key_type("batch_size"), default=16, help="images computed at once (default: 16)"
    )
    parser.add_argument("--device_target", default="CPU", choices=("CPU", "GPU", "Ascend"))
    args = parser.parse_args(argv)
    if args.top < 1:
        parser.error("--top must be at least 1")
    if args.output is not None:
        if args.output.suffix not in (".csv", ".json"):
            parser.error(f"--output must end in .csv or .json: {args.output}")
        try:
            check_writable(args.output)
        except OSError as error:
            raise UserError(f"cannot write {args.output}: {error.strerror or error}") from error
    prepare_environment()
    from covpool.export import find_images, open_model, predict, write_predictions
    from covpool.runtime.distributed import set_context

    images = find_images(args.images)
    # ONNX Runtime chooses its device by itself; MindSpore then prepares the images alone.
    set_context("GRAPH", "CPU" if args.file.suffix == ".onnx" else args.device_target)
    problems: dict[Path, str] = {}
    predictions = predict(open_model(args.file, args.device_target), images, args.top, args.batch_size, problems)
    if args.output is not None:
        bar = tqdm(predictions, total=len(images), desc="prediction", unit="image", disable=None, leave=False)
        write_predictions(args.output, bar, problems)
        print(f"{args.output}: {len(images) - len(problems)} images")
    else:
        for prediction in predictions:
            ranked = ", ".join(f"{c} {p:.1%}" for c, p in zip(prediction.classes, prediction.probabilities))
            print(f"{prediction.image}: {ranked}")
    for problem in problems.values():
        print(f"problem: {problem}", file=sys.stderr)
    if problems:
        raise UserError(f"{len(problems)} of {len(images)} images cannot be read")
    return 0

"""Networks: trained, evaluated and exported as a configuration says, converted, and used for predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable

from covpool.config import Config
from covpool.config.command_line import Program, key_type, open_session, parse_args, run_entry_point
from covpool.config.modelarts import synchronised
from covpool.errors import UserError
from covpool.runtime.command import count, new_parser, progress_bar
from covpool.runtime.environment import prepare_environment
from covpool.runtime.files import check_writable, os_errors_as
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
        if world.is_main and local.robustness == "none":
            where = local.report_path or "--report_path=FOLDER draws them"
            print(f"confusion matrix and most confident mistakes: {where}")


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


def convert(argv: Sequence[str]) -> int:
    """Convert a checkpoint: PyTorch, safetensors or Paddle to MindSpore, and back to PyTorch names.

    covpool convert --source resnet18.pth --backbone_only

    The result is checked against the network of a configuration file, or of keys of the configuration, --key=value, as
    in train.py. The backbone of a ResNet needs neither.
    """
    parser = new_parser("covpool convert", convert.__doc__)
    parser.add_argument("--source", type=Path, required=True, help=".pth, .pth.tar, .safetensors, .pdparams or .ckpt")
    parser.add_argument("--output", type=Path, help="the new file (default: the name of the source, in this folder)")
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
    classes, network = arguments.num_classes, None
    file = [f"--config_path={arguments.config_path}"] if arguments.config_path else []
    config = parse_args([*file, *overrides], Program("", config_optional=True))
    known = bool(file) or config.says("net_name")
    if arguments.output is None:
        arguments.output = Path(arguments.source.with_suffix(f".{arguments.to}").name)
        if arguments.output.exists():
            parser.error(f"{arguments.output} exists already: give --output=FILE")
    prepare_environment()
    import mindspore as ms

    from covpool.build import build_model
    from covpool.checkpoints import convert_file, read_parameters
    from covpool.checkpoints.loading import resnet_keys

    if not known and arguments.backbone_only:
        keys = resnet_keys({name: p.shape for name, p in read_parameters(arguments.source).items()})
        config, known = config.replace(**keys), bool(keys)
    if not known and (arguments.to == "ckpt" or classes or arguments.backbone_only):
        parser.error("which network? Give --config_path=FILE, or keys: --net_name=resnet50 --pooling=dropcov")
    if known:
        ms.set_seed(config.seed)
        network = build_model(config if classes is None else config.replace(class_num=classes))
    report = convert_file(
        arguments.source,
        arguments.output,
        arguments.to,
        network,
        skip_classifier=classes is not None,
        backbone_only=arguments.backbone_only,
    )
    if report.left_out:
        print(f"left out of {arguments.source}: {', '.join(report.left_out)}")
    if report.fresh:
        print(f"newly initialised: {', '.join(report.fresh)}")
    print(f"{arguments.output}: {len(report.written)} tensors")
    return 0


def predict_images(argv: Sequence[str]) -> int:
    """Predict image files from an exported file or a checkpoint: covpool predict --file net.onnx --images DIR_OR_FILES.

    Images that cannot be read are passed over and listed at the end; the exit code is then 1.
    """
    parser = new_parser("covpool predict", predict_images.__doc__)
    source = "exported file (.mindir, .onnx), or a run's checkpoint"
    parser.add_argument("--file", type=Path, required=True, help=source)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files, or folders to search")
    parser.add_argument("--output", type=Path, help="CSV or JSON file for the predictions, instead of lines")
    parser.add_argument("--top", type=count, default=5, help="classes to name for each image (default: 5)")
    batch_size = key_type("batch_size")
    parser.add_argument("--batch_size", type=batch_size, default=16, help="images computed at once (default: 16)")
    parser.add_argument("--device_target", default="CPU", choices=("CPU", "GPU", "Ascend"))
    args = parser.parse_args(argv)
    if args.output is not None:
        if args.output.suffix not in (".csv", ".json"):
            parser.error(f"--output must end in .csv or .json: {args.output}")
        with os_errors_as(f"cannot write {args.output}"):
            check_writable(args.output)
    prepare_environment()
    from covpool.export import find_images, open_model, predict, write_predictions
    from covpool.runtime.distributed import set_context

    images = find_images(args.images)
    # ONNX Runtime chooses its device by itself; MindSpore then prepares the images alone.
    set_context("GRAPH", "CPU" if args.file.suffix == ".onnx" else args.device_target)
    problems: dict[Path, str] = {}
    predictions = predict(open_model(args.file, args.device_target), images, args.top, args.batch_size, problems)
    if args.output is not None:
        write_predictions(args.output, progress_bar(predictions, len(images), "prediction"), problems)
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

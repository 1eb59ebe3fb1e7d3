"""Convert a checkpoint: PyTorch, safetensors or Paddle to MindSpore, and back to PyTorch names.

python scripts/convert_checkpoint.py --source resnet18.pth --config_path=config/FILE.yaml --output resnet18.ckpt

The result is checked against the network of the configuration. Further options, --key=value, change keys of the
configuration, as in train.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.config import Config, load_config
from covpool.runtime.command import new_parser, reports_errors
from covpool.runtime.environment import prepare_environment


@reports_errors
def main() -> int:
    """Parse arguments, convert, say what was written; returns the exit code."""
    parser = new_parser(__doc__)
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
    arguments, overrides = parser.parse_known_args()
    if arguments.config_path is None and (arguments.to == "ckpt" or arguments.num_classes or arguments.backbone_only):
        parser.error("--config_path is needed")
    config = load_config(arguments.config_path, overrides) if arguments.config_path else None
    convert(arguments, config)
    return 0


def convert(arguments: argparse.Namespace, config: Config | None) -> None:
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


if __name__ == "__main__":
    raise SystemExit(main())

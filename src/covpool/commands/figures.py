"""Figures of devices, networks and distributed trainings."""

from __future__ import annotations

import json
import shlex
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict

from covpool.config.command_line import key_type
from covpool.errors import UserError
from covpool.runtime.command import new_parser
from covpool.runtime.cuda import INSTALL, activation_variables, find_wheels, wheels_problem
from covpool.runtime.devices import DEVICES, check_device
from covpool.runtime.environment import prepare_environment


def check_devices(argv: Sequence[str]) -> int:
    """Tell which devices MindSpore can use here, why not, what was found and what to install.

    covpool check-device [--device_target=CPU|GPU|Ascend] [--json] [--libraries]

    Exit code: 0 if the device asked for can be used (without --device_target: if any can), 1 if not.

    A Python session of your own needs variables to find NVIDIA's wheels: eval "$(covpool check-device --print_env)".
    """
    parser = new_parser("covpool check-device", check_devices.__doc__)
    parser.add_argument("--device_target", choices=DEVICES, help="only this one")
    parser.add_argument("--json", action="store_true", help="one JSON object, by device")
    parser.add_argument("--libraries", action="store_true", help="also where each library is found")
    parser.add_argument("--print_env", action="store_true", help="export lines that a shell reads, nothing else")
    arguments = parser.parse_args(argv)
    if arguments.print_env:
        wheels = find_wheels()
        if problem := wheels_problem(wheels):
            raise UserError(f"{problem}: {INSTALL}")
        for name, value in ({} if wheels.missing else activation_variables(wheels)).items():
            print(f"export {name}={shlex.quote(value)}")
        return 0
    reports = [check_device(device) for device in ([arguments.device_target] if arguments.device_target else DEVICES)]
    if arguments.json:
        found = {report.device: {"usable": report.usable, **asdict(report)} for report in reports}
        for values in found.values():
            del values["device"]
        print(json.dumps(found, indent=2))
    for report in [] if arguments.json else reports:
        print(report.text())
        for name, path in report.libraries.items() if arguments.libraries else ():
            print(f"  library: {name} {path or 'NOT FOUND'}")
    return 0 if any(report.usable for report in reports) else 1


def complexity(argv: Sequence[str]) -> int:
    """Print parameters and multiply-adds of networks and poolings, beside the published figures.

    covpool complexity --models resnet18 resnet50 --poolings gap dropcov fast_mpn
    """
    parser = new_parser("covpool complexity", complexity.__doc__)
    models, poolings = ["resnet18", "resnet34", "resnet50"], ["gap", "gcp", "dropcov", "fast_mpn"]
    parser.add_argument("--models", nargs="+", default=models, help="names or patterns ('resnet*'; '*' for all)")
    parser.add_argument("--poolings", nargs="+", default=poolings, help="names of poolings")
    parser.add_argument("--num_classes", type=int, default=1000, help="outputs of the classifier")
    _add_sizes(parser)
    arguments = parser.parse_args(argv)
    prepare_environment()
    from covpool.models import list_models
    from covpool.research.complexity import table

    names = [name for pattern in arguments.models for name in list_models(pattern) or [pattern]]
    sizes = {key: getattr(arguments, key) for key in ("image_size", "reduction_dim", "num_classes")}
    for line in table(names, arguments.poolings, **sizes):
        print(line, flush=True)
    return 0


def scaling(argv: Sequence[str]) -> int:
    """Predict data-parallel training on n devices: step, all-reduce, storage, rate (docs/measurements/scaling.md).

    covpool scaling --net_name=resnet18 --pooling=dropcov --reduction_dim=128 --devices 8 64 512
    """
    parser = new_parser("covpool scaling", scaling.__doc__)
    parser.add_argument("--net_name", default="resnet18", help="network")
    parser.add_argument("--pooling", default="dropcov", help="pooling")
    parser.add_argument("--class_num", type=int, default=1000, help="outputs of the classifier")
    _add_sizes(parser)
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512], help="numbers of devices")
    parser.add_argument("--batch_size", type=key_type("batch_size"), default=64, help="images per device")
    parser.add_argument("--operations_per_s", type=float, default=20e12, help="sustained by one device; an assumption")
    parser.add_argument("--bandwidth", type=float, default=12.5e9, help="slowest link of the ring, bytes/s; assumed")
    parser.add_argument("--latency", type=float, default=1e-5, help="of one message, s; assumed")
    parser.add_argument("--image_bytes", type=float, help="mean size of an image file; default: ImageNet's")
    arguments = parser.parse_args(argv)
    prepare_environment()
    from covpool.models import create_model
    from covpool.research.complexity import measure
    from covpool.research.scaling import IMAGENET_IMAGE_BYTES, Machine, predict, table
    from covpool.training.ranks import classifier_share, gradient_sizes, reduction_groups

    name, pooling = arguments.net_name, arguments.pooling
    network = create_model(name, pooling, reduction_dim=arguments.reduction_dim, num_classes=arguments.class_num)
    multiply_adds = measure(network, (3, arguments.image_size, arguments.image_size)).multiply_adds
    sizes = gradient_sizes(network.trainable_params())
    groups = [group.size for group in reduction_groups(sizes)]
    image_bytes = arguments.image_bytes or IMAGENET_IMAGE_BYTES
    try:
        machine = Machine(arguments.operations_per_s, arguments.bandwidth, arguments.latency)
        predictions = [
            predict(devices, arguments.batch_size, multiply_adds, groups, machine, image_bytes)
            for devices in arguments.devices
        ]
    except ValueError as error:
        raise UserError(str(error), 2) from error
    print(
        f"{name} + {pooling}: {multiply_adds / 1e9:.2f} G multiply-adds an image, gradients of "
        f"{sum(groups) / 1e6:.1f} MB in {len(groups)} groups ({' + '.join(f'{size / 1e6:.1f}' for size in groups)}), "
        f"{classifier_share(sizes):.1%} of them the classifier's"
    )
    print("\n".join(table(predictions)))
    return 0


def _add_sizes(parser: ArgumentParser) -> None:
    size, channels = key_type("eval_image_size"), key_type("reduction_dim")
    parser.add_argument("--image_size", type=size, default=224, help="height and width in pixels")
    parser.add_argument("--reduction_dim", type=channels, default=128, help="channels d before a covariance pooling")

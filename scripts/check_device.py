"""Tell which devices MindSpore can use here, why not, what was found and what to install.

python scripts/check_device.py [--device_target=CPU|GPU|Ascend] [--json] [--libraries]

Exit code: 0 if the device asked for can be used (without --device_target: if any can), 1 if not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.errors import UserError
from covpool.runtime.command import new_parser, reports_errors
from covpool.runtime.cuda import INSTALL, activation_variables, find_wheels, wheels_problem
from covpool.runtime.devices import DEVICES, check_device


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, check, print; returns the exit code."""
    parser = new_parser(__doc__)
    parser.add_argument("--device_target", choices=DEVICES, help="only this one")
    parser.add_argument("--json", action="store_true", help="one JSON object, by device")
    parser.add_argument("--libraries", action="store_true", help="also where each library is found")
    parser.add_argument(
        "--print_env", action="store_true", help="NAME=VALUE lines of the variables that the GPU needs, nothing else"
    )
    arguments = parser.parse_args(argv)
    if arguments.print_env:
        return _print_env()
    devices = [arguments.device_target] if arguments.device_target else DEVICES
    reports = [check_device(device) for device in devices]
    if arguments.json:
        print(json.dumps({report.device: report.to_dict() for report in reports}, indent=2))
    else:
        for report in reports:
            print(report.text())
            if arguments.libraries:
                for name, path in report.libraries.items():
                    print(f"  library: {name} {path or 'NOT FOUND'}")
    return 0 if any(report.usable for report in reports) else 1


def _print_env() -> int:
    wheels = find_wheels()
    problem = wheels_problem(wheels)
    if problem:
        raise UserError(f"{problem}: {INSTALL}")
    for name, value in ({} if wheels.missing else activation_variables(wheels)).items():
        print(f"{name}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

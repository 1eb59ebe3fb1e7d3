"""Print parameters and multiply-adds of networks and poolings, beside the published figures.

python scripts/complexity.py --models resnet18 resnet50 --poolings gap dropcov fast_mpn
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.errors import UserError
from covpool.runtime.environment import prepare_environment


def main() -> int:
    """Parse arguments and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", help="names of networks; all by default")
    parser.add_argument("--poolings", nargs="+", help="names of poolings; all by default")
    parser.add_argument("--image_size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--reduction_dim", type=int, default=128, help="channels d before a covariance pooling")
    parser.add_argument("--num_classes", type=int, default=1000, help="outputs of the classifier")
    arguments = parser.parse_args()
    prepare_environment()
    from covpool.models import list_models
    from covpool.pooling import list_poolings
    from covpool.research.complexity import table

    sizes = {key: getattr(arguments, key) for key in ("image_size", "reduction_dim", "num_classes")}
    try:
        for line in table(arguments.models or list_models(), arguments.poolings or list_poolings(), **sizes):
            print(line, flush=True)
    except (UserError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Write an ImageNet-C-like tree: python scripts/make_corruptions.py --source DIR --output DIR [--scale small ...].

DIR of the source holds a folder per class (such as val/ of an image folder); that of the output gets
CORRUPTION/SEVERITY/CLASS/FILE, which eval.py --robustness=imagenet_c evaluates. Files that are there already are left
alone: a stopped run goes on with the same command. Nothing depends on the number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from tqdm import tqdm

from covpool.research.robustness.severities import CORRUPTIONS, SCALES, SEVERITIES
from covpool.research.robustness.tree import Plan, list_images, write_tree
from covpool.runtime.command import new_parser, reports_errors
from covpool.runtime.environment import available_cores


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, write, say how many files are new."""
    parser = new_parser(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with a folder per class")
    parser.add_argument("--output", type=Path, required=True, help="root of the tree")
    parser.add_argument("--corruptions", nargs="+", choices=CORRUPTIONS, default=list(CORRUPTIONS), metavar="NAME")
    parser.add_argument("--severities", nargs="+", type=int, choices=SEVERITIES, default=list(SEVERITIES))
    parser.add_argument(
        "--scale",
        choices=tuple(SCALES),
        default="imagenet",
        help="small: the severities of CIFAR-10-C, for 28-64 pixels",
    )
    parser.add_argument(
        "--size", type=int, help="side of the images, 224 at scale imagenet; images keep theirs at scale small"
    )
    parser.add_argument("--per_class", type=int, help="at most so many images of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes")
    arguments = parser.parse_args(argv)
    for name in ("size", "per_class", "workers"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    size = arguments.size or (224 if arguments.scale == "imagenet" else None)
    plan = Plan(
        arguments.source,
        arguments.output,
        tuple(arguments.corruptions),
        tuple(sorted(arguments.severities)),
        arguments.scale,
        size,
        arguments.per_class,
        arguments.seed,
    )
    images = list_images(plan)
    written = 0
    for count in tqdm(write_tree(plan, images, arguments.workers), total=len(images), unit="image"):
        written += count
    wanted = len(images) * len(plan.corruptions) * len(plan.severities)
    print(f"{plan.output}: {written} files written, {wanted - written} were there; {len(images)} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

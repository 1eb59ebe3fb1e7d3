"""Predict image files from an exported file: python scripts/predict.py --file net.onnx --images DIR_OR_FILES."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from covpool.runtime.command import reports_errors
from covpool.runtime.environment import prepare_environment


@reports_errors
def main() -> int:
    """Print the most probable classes of each image."""
    parser = argparse.ArgumentParser(description="Predict the classes of images from an exported file.")
    parser.add_argument("--file", type=Path, required=True, help="the exported file, .mindir or .onnx")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="image files, or folders to search")
    parser.add_argument("--top", type=int, default=5, help="classes to name for each image (default: 5)")
    parser.add_argument("--batch_size", type=int, default=16, help="images computed at once (default: 16)")
    parser.add_argument("--device_target", default="CPU", choices=("CPU", "GPU", "Ascend"))
    args = parser.parse_args()
    if args.top < 1 or args.batch_size < 1:
        parser.error("--top and --batch_size must be at least 1")
    prepare_environment()
    from covpool.export import find_images, open_exported, predict
    from covpool.runtime.distributed import set_context

    images = find_images(args.images)
    # ONNX Runtime chooses its device by itself; MindSpore then prepares the images alone.
    set_context("GRAPH", "CPU" if args.file.suffix == ".onnx" else args.device_target)
    for prediction in predict(open_exported(args.file, args.device_target), images, args.top, args.batch_size):
        ranked = ", ".join(f"{c} {p:.1%}" for c, p in zip(prediction.classes, prediction.probabilities))
        print(f"{prediction.image}: {ranked}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Loss landscapes of poolings: python scripts/landscape.py --config_path FILE --output DIR [--key=value ...].

Trains the configured network with each pooling and seed and records, every few steps, how loss and gradient change
along the gradient at the stem's output (CVPR 2020). DIR gets POOLING-seed-N.json for each, and landscape.png with the
mean over the seeds of the bands' edges; what has its file already is not trained again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from tqdm import tqdm

from covpool.config import Config, load_config
from covpool.config.entry import open_session
from covpool.data import open_source, steps_per_epoch
from covpool.errors import UserError
from covpool.research.study.summary import spread, spread_text
from covpool.runtime.command import new_parser, reports_errors
from covpool.runtime.files import write_json

Records = list[dict[str, float]]  # of the probed steps


@reports_errors
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Parse arguments, train, write, draw."""
    parser = new_parser(__doc__)
    parser.add_argument("--config_path", type=Path, required=True, help="configuration of the training")
    parser.add_argument("--output", type=Path, required=True, help="folder for JSON and picture")
    parser.add_argument("--poolings", nargs="+", default=["gap", "fast_mpn"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="default: the configuration's")
    parser.add_argument("--every", type=int, default=10, help="training steps between two measurements")
    arguments, rest = parser.parse_known_args(argv)
    if arguments.every < 1:
        parser.error("--every must be at least 1")
    runs: dict[str, list[Records]] = {}
    for pooling in arguments.poolings:
        runs[pooling] = []
        for seed in arguments.seeds or [None]:
            settings = [f"pooling={pooling}"] + ([] if seed is None else [f"seed={seed}"])
            config = load_config(arguments.config_path, [*rest, *settings])
            path = arguments.output / f"{pooling}-seed-{config.seed}.json"
            with open_session(config):
                runs[pooling].append(_records(config, path, arguments.every))
    _finish(runs, config.net_name, arguments.output / "landscape.png")
    return 0


def _records(config: Config, path: Path, every: int) -> Records:
    """Measure, or read what was measured."""
    from covpool.research.landscape import band_widths, read_records, record_landscape

    settings = {**config.to_dict(), "every": every}
    if path.is_file():
        try:
            content: Any = json.loads(path.read_text(encoding="utf-8"))
            if content["config"] == settings:
                return read_records(content)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no landscape: {error}") from error
        raise UserError(f"{path} was measured with other settings: give another --output, or remove it")
    images = open_source(config.dataset, config.data_path, "train", config.image_list or None).num_samples
    total = config.epoch_size * steps_per_epoch(config.train_images or images, config.batch_size)
    found = []
    for record in tqdm(record_landscape(config, every), total=total, desc=path.stem, unit="step"):
        if len(record) > 1:
            found.append(record)
    write_json(path, {"config": settings, "band_widths": band_widths(found), "records": found})
    return found


def _finish(runs: dict[str, list[Records]], name: str, path: Path) -> None:
    from covpool.research.landscape import band_widths, mean_records, plot_landscape

    print("| pooling | n | probed steps | mean width of the loss band | mean width of the gradient band |")
    print("| --- | --- | --- | --- | --- |")
    for pooling, records in runs.items():
        widths = [band_widths(found) for found in records]
        cells = [spread_text(spread([width[key] for width in widths]), 1, 3) for key in ("loss", "gradient")]
        print(f"| {pooling} | {len(records)} | {len(records[0])} | {' | '.join(cells)} |")
    means = {pooling: mean_records(records) for pooling, records in runs.items()}
    seeds = len(next(iter(runs.values())))
    count = f" (mean of {seeds} seeds)" if seeds > 1 else ""
    plot_landscape(means, path, f"{name}, loss along the gradient at the stem's output{count}")


if __name__ == "__main__":
    sys.exit(main())

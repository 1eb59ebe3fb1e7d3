"""The command ``covpool``: one subcommand for everything that a user starts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Callable, NoReturn, Optional

from covpool.config import Config
from covpool.config.entry import open_session, run_entry_point
from covpool.config.modelarts import synchronised
from covpool.runtime.distributed import leave
from covpool.runtime.signals import StopRequest

_SHOWN = ("top_1_accuracy", "top_5_accuracy", "mce", "mean_error", "mean_flip_rate", "top_1_accuracy_all_classes")


def main(argv: Optional[Sequence[str]] = None) -> NoReturn:
    """Run the subcommand that the first argument names, and end the process with its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        raise SystemExit(0 if words else 2)
    if words[0] not in _COMMANDS:
        sys.stderr.write(f"error: unknown command {words[0]!r}; the commands are {', '.join(_COMMANDS)}\n")
        raise SystemExit(2)
    run, description, required = _COMMANDS[words[0]]
    leave(run_entry_point(run, words[1:], description, required))


def train(config: Config) -> None:
    """Train as configured."""
    stop = StopRequest()
    with stop.listening(), open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.training import fit  # here: signals and session come before MindSpore

        summary = fit(local, world, stop)
        if world.is_main and summary.best is not None:
            sys.stdout.write(f"best top-1 accuracy: {summary.best:.4f}; run folder: {summary.folder}\n")


def evaluate(config: Config) -> None:
    """Print top-1 and top-5 accuracy over all images of ``val/``, or what a robustness set asks for.

    More goes to ``result_path``.
    """
    with open_session(config) as world, synchronised(config, world.rank) as local:
        if config.robustness != "none":
            from covpool.research.robustness.run import evaluate_robustness as run
        else:
            from covpool.evaluation.run import evaluate_checkpoint as run

        result = run(local, world)
        if world.is_main:
            if result.get("limit"):
                sys.stdout.write(
                    f"{result['num_samples']} images, {result['images_per_s']:.1f} images/s: the {result['limit']} is "
                    f"the limit ({result['waited_share']:.0%} of the time spent waiting for images)\n"
                )
            shown = {key: result[key] for key in _SHOWN if key in result}
            sys.stdout.write(f"result: {shown} ckpt={local.checkpoint_file_path}\n")


def export(config: Config) -> None:
    """Write the exported file and compare it with the network."""
    with open_session(config) as world, synchronised(config, world.rank) as local:
        from covpool.export import export_checkpoint

        exported, images = export_checkpoint(local)
        sys.stdout.write(
            f"exported: {exported.path} (any batch size); on images of {images} it differs from the network by at "
            f"most {exported.difference:.1e} of the largest logit (batch normalisations folded: "
            f"{exported.folding_difference:.1e} of the features' norm)\n"
        )


_COMMANDS: dict[str, tuple[Callable[[Config], None], str, tuple[str, ...]]] = {
    "train": (train, "Train a network, alone or on every rank of mpirun or msrun.", ()),
    "eval": (evaluate, "Evaluate a checkpoint on val/ or on a robustness set.", ("data_path", "checkpoint_file_path")),
    "export": (
        export,
        "Export a checkpoint for deployment and check the file.",
        ("checkpoint_file_path",),
    ),
}


def _usage() -> str:
    lines = [f"  {name:10} {description}" for name, (_, description, _) in _COMMANDS.items()]
    return "usage: covpool COMMAND [--help] [...]\n\n" + "\n".join(lines) + "\n"

"""Export a checkpoint: python export.py --config_path=FILE --checkpoint_file_path=CKPT --file_name=NAME."""

from __future__ import annotations

import sys

from src.config import Config
from src.config.entry import open_session, run_entry_point
from src.config.modelarts import synchronised
from src.runtime.distributed import leave


def main(config: Config) -> None:
    """Write the exported file and compare it with the network."""
    with open_session(config) as world, synchronised(config, world.rank) as local:
        from src.export import export_checkpoint

        exported, images = export_checkpoint(local)
        print(
            f"exported: {exported.path} (any batch size); on images of {images} it differs from the network by at "
            f"most {exported.difference:.1e} of the largest logit (batch normalisations folded: "
            f"{exported.folding_difference:.1e} of the features' norm)"
        )


if __name__ == "__main__":
    description = "Export a checkpoint for deployment and check the file that came out."
    leave(run_entry_point(main, sys.argv[1:], description, ("checkpoint_file_path",)))

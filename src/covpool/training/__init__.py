"""Training: losses, schedules, optimisers, checkpoints and the fit function."""

from covpool.training.fit import Summary, fit

__all__ = ["Summary", "fit"]

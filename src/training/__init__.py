"""Training: losses, schedules, optimisers, checkpoints and the fit function."""

from src.training.fit import Summary, fit

__all__ = ["Summary", "fit"]

"""Corrupted images, the public robustness sets, and what a network's errors on them come to."""

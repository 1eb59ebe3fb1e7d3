"""Looking at networks and runs: size, curves."""

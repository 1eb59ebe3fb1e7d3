"""Studies: grids of runs, what they came to, and plots of it."""

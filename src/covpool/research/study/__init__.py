"""Studies: grids of runs, their results and plots."""

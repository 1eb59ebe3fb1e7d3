"""Families of faults for benchmarks/faults.py: each function does one fault to the commands and judges what follows."""

"""Kernels for training on CPU that MindSpore lacks, as custom operators of the documented kind (`ops.Custom`, aot)."""

from covpool.kernels.apply import CPU_KERNELS, apply_cpu_kernels, find_kernels
from covpool.kernels.configured import cpu_kernels, for_evaluation, kept
from covpool.kernels.library import compile_kernels, threads_of_process

__all__ = [
    "CPU_KERNELS",
    "apply_cpu_kernels",
    "compile_kernels",
    "cpu_kernels",
    "find_kernels",
    "for_evaluation",
    "kept",
    "threads_of_process",
]

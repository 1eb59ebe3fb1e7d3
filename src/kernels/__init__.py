"""Kernels for training on CPU that MindSpore lacks, as custom operators of the documented kind (`ops.Custom`, aot)."""

from src.kernels.apply import CPU_KERNELS, apply_cpu_kernels
from src.kernels.library import compile_kernels, threads_of_process

__all__ = ["CPU_KERNELS", "apply_cpu_kernels", "compile_kernels", "threads_of_process"]

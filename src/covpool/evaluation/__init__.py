"""Metrics and evaluation."""

from covpool.evaluation.evaluate import (
    Evaluation,
    count_batch,
    describe_overflow,
    evaluate,
    numpy_batches,
    outputs,
    write_report,
)

__all__ = ["Evaluation", "count_batch", "describe_overflow", "evaluate", "numpy_batches", "outputs", "write_report"]

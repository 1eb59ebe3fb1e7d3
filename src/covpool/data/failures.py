"""Find the user's message in an error of MindSpore's pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from covpool.errors import UserError

# MindSpore passes on what a Python function raised as text: the traceback, in an error of its own.
_RAISED = re.compile(rf"^{re.escape(UserError.__module__)}\.{UserError.__name__}: (.+)$", re.MULTILINE)


def pipeline_error(error: BaseException) -> Optional[UserError]:
    """Return the UserError that a source raised in a worker thread, if that is what stopped the pipeline.

    Args:
        error: What iterating over a dataset raised.

    Returns:
        An error with the source's one line, e.g. which image is damaged; None if the cause is another.
    """
    found = _RAISED.search(str(error))
    return UserError(found.group(1)) if found else None


@contextmanager
def pipeline_errors() -> Iterator[None]:
    """Turn an error of the pipeline within the block into the source's own, where there is one."""
    try:
        yield
    except RuntimeError as error:
        cause = pipeline_error(error)
        if cause is None:
            raise
        raise cause from error

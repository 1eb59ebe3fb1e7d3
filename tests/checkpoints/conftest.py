"""Shared by the tests of the conversion."""

from __future__ import annotations

import numpy as np
import pytest

from tests.checkpoints.released import rule_state_dict


@pytest.fixture(scope="module")
def source() -> dict[str, np.ndarray]:
    """The state dict of a small network with DropCov, by PyTorch's names."""
    return rule_state_dict("resnet10", "acd", reduction_dim=16, classes=5, width=8)

"""Global average pooling and plain covariance pooling."""

from __future__ import annotations

import mindspore as ms

from covpool.pooling.base import Pooling, row_sums
from covpool.pooling.covariance import CovarianceVector, vector_length


class GlobalAveragePooling(Pooling):
    """Global average pooling: the mean over positions, `(N, C, H, W) -> (N, C)`.

    Cost: C M FLOPs for M = H*W positions. Published top-1 of ResNet-18 on ImageNet: 70.2.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Mean over positions."""
        _, c, h, w = x.shape
        return row_sums(x.reshape(-1, h * w), 1.0 / (h * w)).reshape(-1, c)


class CovariancePooling(Pooling):
    """Plain global covariance pooling: V(C), `(N, d, H, W) -> (N, d(d+1)/2)`.

    C = (1/M) (X - mean)(X - mean)^T over the M = H*W positions; V takes the upper triangle row by row.

    Cost: 2 M d^2 FLOPs forward, as many backward. Published top-1 of ResNet-18 on ImageNet: 71.1 (d=64), 70.0 (d=256).
    Source: Lin et al., "Bilinear CNN Models for Fine-grained Visual Recognition", ICCV 2015, without normalisation;
    numbers from Wang et al., "DropCov", NeurIPS 2022, table 1.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, vector_length(channels))
        self.vector = CovarianceVector(channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        """Covariance, then its upper triangle."""
        return self.vector(x)

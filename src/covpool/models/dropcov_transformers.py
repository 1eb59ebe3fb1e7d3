"""The transformers of the DropCov release (Wang et al., NeurIPS 2022): So-ViT's dense stem, another head.

What the paper calls DeiT and T2T-ViT with DropCov is this network. Its head has no adaptive rate and no V(C): it is the
whole cross-covariance of two projections of the tokens, in several heads, with ordinary dropout.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from covpool.models.deit import DeiT
from covpool.models.dense_stem import VisualTokens
from covpool.models.registry import register_model
from covpool.models.swin import Swin
from covpool.models.token_head import PLAIN
from covpool.models.transformer import dense
from covpool.pooling.base import Pooling
from covpool.pooling.counter_random import Dropout

RELEASED = "dropcov"
_TOKEN_RATE, _ENTRY_RATE = 0.2, 0.5


class MultiHeadCovariance(Pooling):
    """Cross-covariances of two projections, head by head: (N, L, 3 * heads * width) -> (N, heads * width^2).

    The first third holds Q, the second K, the last one nothing that is used; the released weights have it. Of every
    head, Y = Q^T K / L, after one number, the mean of all its entries, was subtracted from each of Q and K. In training
    whole tokens of a head are dropped before, from Q and K alike, and entries of Y after.

    Args:
        heads: Number of heads.
        width: Numbers per token and head.
    """

    def __init__(self, heads: int, width: int) -> None:
        super().__init__(3 * heads * width, heads * width**2)
        self.heads, self.width = heads, width
        self.token_dropout = Dropout(_TOKEN_RATE)
        self.dropout = Dropout(_ENTRY_RATE)
        self.product = ops.BatchMatMul(transpose_a=True)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        heads, length = self.heads, x.shape[1]
        x = x.reshape(-1, length, 3 * heads, self.width).transpose(0, 2, 1, 3)
        q, k = x[:, :heads], x[:, heads : 2 * heads]
        if self.training:
            mask = self.token_dropout(ops.ones((x.shape[0] * heads, length), ms.float32))
            mask = mask.reshape(-1, heads, length, 1)
            q, k = q * mask, k * mask
        q, k = q - q.mean((2, 3), True), k - k.mean((2, 3), True)
        return self.dropout(self.product(q, k).reshape(-1, self.out_features) * (1.0 / length))


def sinusoids(positions: int, width: int) -> np.ndarray:
    """Fixed positions, float32 (1, positions, width): sines at even, cosines at odd places."""
    angles = np.arange(positions)[:, None] / 10000.0 ** (2 * (np.arange(width) // 2) / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))[None].astype(np.float32)


class DropCovTransformer(DeiT):
    """A dense stem, blocks without bias of queries, keys and values, and the released head.

    With 'dropcov' the head is the released one, whatever ``reduction_dim`` is, and takes no ``pooling_args``; with any
    other pooling it is that of :class:`TokenClassifier`. Arguments besides are those of :class:`DeiT`.

    Args:
        heads: Heads of the covariance.
        head_dim: Numbers per token and head of the covariance.
    """

    norm_eps = 1e-5
    released = False

    def __init__(
        self,
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        heads: int = 6,
        head_dim: int = 24,
    ) -> None:
        body = (in_channels, image_size, 16, embed_dim, depth, num_heads, mlp_ratio, False)
        super().__init__(PLAIN, reduction_dim, num_classes, None, *body)
        self.pos_embed.set_data(ms.Tensor(sinusoids(self.pos_embed.shape[1], embed_dim)))
        self.pos_embed.requires_grad = False
        self.released = pooling == RELEASED
        if self.released:
            add_released_head(self, heads, head_dim, pooling_args)
        else:
            self.build_token_head(embed_dim, pooling, reduction_dim, num_classes, pooling_args)

    def build_patches(self, in_channels: int, embed_dim: int) -> None:
        """Add the dense stem."""
        self.visual_tokens = VisualTokens(in_channels, embed_dim, self.patch_size)

    def embed(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to one token for 16x16 pixels, (N, L, embed_dim)."""
        return self.visual_tokens(x)

    def pool_tokens(self, x: ms.Tensor, length: int) -> ms.Tensor:
        """As in the base, or by the released head."""
        if not self.released:
            return super().pool_tokens(x, length)
        return self.pooling(self.layer_reduce(x).reshape(-1, length, self.pooling.channels))


class SwinDropCov(Swin):
    """Swin with a dense stem and, with 'dropcov', the released head alone. Reconstructed: it was never released.

    This is the one arrangement of the published parts that has the published number of parameters (31.6 M): the stem's
    averages stop at 56x56 positions, the normalisation after the patches stays, nothing classifies the average of the
    tokens. Arguments are those of :class:`Swin` and :class:`DropCovTransformer`.
    """

    released = False

    def __init__(
        self,
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        heads: int = 6,
        head_dim: int = 24,
    ) -> None:
        body = (in_channels, image_size, 4, embed_dim, depths, num_heads, window_size)
        super().__init__(PLAIN, reduction_dim, num_classes, None, *body)
        self.patch_embed = VisualTokens(in_channels, embed_dim, 4, norm_eps=1e-5)
        self.released = pooling == RELEASED
        if self.released:
            add_released_head(self, heads, head_dim, pooling_args)
        else:
            self.build_token_head(self.num_features, pooling, reduction_dim, num_classes, pooling_args)

    def reset_classifier(self, num_classes: int) -> None:
        """As in the base; the released head has one classifier."""
        super().reset_classifier(num_classes)
        if self.released:
            self.head = nn.Identity()

    def forward_head(self, x: ms.Tensor, pre_logits: bool = False) -> ms.Tensor:
        """As in the base; with the released head the logits, or ``pre_logits``, of the pooled vector alone."""
        if not self.released:
            return super().forward_head(x, pre_logits)
        tokens = self.layer_reduce(x.reshape(-1, self.num_features))
        vector = self.pooling(tokens.reshape(-1, x.shape[1], self.pooling.channels))
        return vector if pre_logits else self.fc(vector)


def add_released_head(network: Any, heads: int, head_dim: int, pooling_args: dict[str, Any] | None) -> None:
    """Give a network of tokens the released head, beside the classifier that it has.

    Raises:
        ValueError: Arguments of a pooling, or numbers below 1.
    """
    if pooling_args or heads < 1 or head_dim < 1:
        raise ValueError(
            f"the released head takes heads and head_dim of at least 1, not {heads} and {head_dim}, and no pooling_args"
        )
    network.has_reduction = True
    network.layer_reduce = dense(network.num_features, 3 * heads * head_dim, has_bias=False)
    network.pooling = MultiHeadCovariance(heads, head_dim)
    network.fixed_dropout = True
    network.reset_classifier(network.num_classes)


_VARIANTS: dict[str, dict[str, Any]] = {
    "deit_tiny_dropcov": {"embed_dim": 240, "num_heads": 4, "mlp_ratio": 2.5, "head_dim": 14},
    "deit_small_dropcov": {},
    "deit_base_dropcov": {"embed_dim": 768, "num_heads": 12, "heads": 12},
    "t2t_vit_14_dropcov": {"depth": 14, "mlp_ratio": 3.0},
}
for _name, _arguments in _VARIANTS.items():
    register_model(_name, partial(DropCovTransformer, **_arguments))
register_model("swin_tiny_dropcov", SwinDropCov)

"""DeiT (Touvron et al., ICML 2021): timm's vision transformer with a class token, and any pooling of the others."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import Normal, initializer

from covpool.models.classifier import dense_classifier
from covpool.models.registry import register_model
from covpool.models.token_head import TokenClassifier
from covpool.models.transformer import Block, PatchEmbed, layer_norm, resize_grid_matrix

_POSITIONS = "pos_embed"


class DeiT(TokenClassifier):
    """A vision transformer with any pooling of the registry, see :class:`TokenClassifier`.

    Images of another size than ``image_size`` are taken as long as patches fit: the learned positions are then
    interpolated (bicubic, antialiased), as timm does. So are those of a checkpoint of another size.

    Args:
        pooling: A name of ``list_poolings()``; 'gap' for the plain network, which classifies by its class token.
        reduction_dim: d, numbers per token that enter the pooling.
        num_classes: Outputs of the classifier; 0 for none.
        pooling_args: Arguments of the pooling.
        in_channels: Channels of the images.
        image_size: Height and width that the table of positions is made for, one number or two.
        patch_size: Height and width of a patch, in pixels.
        embed_dim: Numbers per token.
        depth: Number of blocks.
        num_heads: Heads of an attention.
        mlp_ratio: Width of the MLP over ``embed_dim``.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        ValueError: Patches or heads do not fit.
    """

    norm_eps = 1e-6

    def __init__(
        self,
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.grid = patch_grid(height, width, patch_size)
        self.patch_size = patch_size
        self.build_first_tokens(embed_dim)
        positions = (1, self.class_tokens + math.prod(self.grid), embed_dim)
        self.pos_embed = ms.Parameter(initializer(Normal(0.02), positions), name=_POSITIONS)
        self.build_patches(in_channels, embed_dim)
        blocks = [Block(embed_dim, num_heads, mlp_ratio, qkv_bias, self.norm_eps) for _ in range(depth)]
        self.blocks = nn.SequentialCell(blocks)
        self.norm = layer_norm(embed_dim, self.norm_eps)
        self.build_token_head(embed_dim, pooling, reduction_dim, num_classes, pooling_args)

    def build_first_tokens(self, embed_dim: int) -> None:
        """Add what :meth:`first_tokens` needs."""
        self.cls_token = ms.Parameter(initializer(Normal(1e-6), (1, 1, embed_dim)), name="cls_token")

    def build_patches(self, in_channels: int, embed_dim: int) -> None:
        """Add what :meth:`embed` needs."""
        self.patch_embed = PatchEmbed(in_channels, embed_dim, self.patch_size)

    def embed(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to one token a patch, (N, L, embed_dim)."""
        return self.patch_embed(x)

    def adapt(self, name: str, value: np.ndarray) -> np.ndarray:
        """A parameter of a checkpoint as it is here: the table of positions of another square image is interpolated."""
        if name != _POSITIONS or value.ndim != 3 or value.shape[1] == self.pos_embed.shape[1]:
            return value
        first = self.class_tokens
        side = math.isqrt(max(0, value.shape[1] - first))
        if side * side != value.shape[1] - first or side == 0:
            return value
        patches = resize_grid_matrix((side, side), self.grid) @ value[0, first:]
        return np.concatenate([value[:, :first], patches[None]], 1).astype(value.dtype)

    def check_image_size(self, height: int, width: int) -> None:
        """Raise ValueError unless images of this size can be cut into patches."""
        patch_grid(height, width, self.patch_size)

    def first_tokens(self) -> ms.Tensor:
        """What comes before the patches, (1, class_tokens, embed_dim)."""
        return self.cls_token

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to tokens (N, class_tokens + L, embed_dim), the class token first."""
        grid = patch_grid(x.shape[2], x.shape[3], self.patch_size)
        first, width = self.class_tokens, self.num_features
        length = first + grid[0] * grid[1]
        positions = self.pos_embed[:, first:]
        if grid != self.grid:
            positions = ops.matmul(_resizing(self.grid, grid), positions[0]).expand_dims(0)
        patches = self.embed(x) + positions
        # Zeros that a product makes as many of as there are images: what is known without them would be computed in
        # advance, for the batch that an exported network was traced with.
        zeros = ops.matmul(patches[:, :1, :1].reshape(-1, 1), ops.zeros((1, width), x.dtype)).reshape(-1, 1, width)
        prefix = zeros + (self.first_tokens() + self.pos_embed[:, :first])
        tokens = ops.concat((prefix, patches), 1).reshape(-1, width)
        for block in self.blocks:
            tokens = block(tokens, length)
        return self.norm(tokens).reshape(-1, length, width)


class DistilledDeiT(DeiT):
    """DeiT with a second token, which learns from a teacher; arguments are those of :class:`DeiT`.

    In training the output is a tuple, logits of the class token and of the distillation token, each (N, num_classes);
    otherwise their average. A pooling other than 'gap' adds its logits to those of the class token. ``pre_logits``
    gives the average of both tokens in the place of the class token, as timm does.
    """

    class_tokens = 2

    def build_first_tokens(self, embed_dim: int) -> None:
        """Add what :meth:`first_tokens` needs."""
        super().build_first_tokens(embed_dim)
        self.dist_token = ms.Parameter(initializer(Normal(1e-6), (1, 1, embed_dim)), name="dist_token")

    def reset_classifier(self, num_classes: int) -> None:
        """As in the base, for both tokens."""
        super().reset_classifier(num_classes)
        self.head_dist = dense_classifier(self.num_features, num_classes)

    def first_tokens(self) -> ms.Tensor:
        """What comes before the patches, (1, 2, embed_dim)."""
        return ops.concat((self.cls_token, self.dist_token), 1)

    def forward_head(self, x: ms.Tensor, pre_logits: bool = False) -> Any:
        """Tokens (N, 2 + L, num_features) to logits, in training to those of both tokens."""
        token = x[:, 1:2]
        if pre_logits or self.num_classes == 0:
            return super().forward_head(ops.concat(((x[:, :1] + token) * 0.5, x[:, 1:]), 1), True)
        logits = super().forward_head(x)
        distilled = self.head_dist(self.drop(token.reshape(-1, self.num_features)))
        if self.training:
            return logits, distilled
        return (logits + distilled) * 0.5


@ops.constexpr
def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
        ValueError: They do not fit.
    """
    if patch_size < 1 or height < patch_size or width < patch_size or height % patch_size or width % patch_size:
        raise ValueError(
            f"images of {height}x{width} do not fit patches of {patch_size}x{patch_size}: height and width must be "
            f"multiples of {patch_size}"
        )
    return height // patch_size, width // patch_size


@ops.constexpr
def _resizing(old: tuple[int, int], new: tuple[int, int]) -> ms.Tensor:
    """The interpolation of positions as a constant of the compiled graph."""
    return ms.Tensor(resize_grid_matrix(old, new))


_VARIANTS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {"embed_dim": 192, "num_heads": 3},
    "deit_small_patch16_224": {"embed_dim": 384, "num_heads": 6},
    "deit_base_patch16_224": {"embed_dim": 768, "num_heads": 12},
}
for _name, _arguments in _VARIANTS.items():
    register_model(_name, partial(DeiT, **_arguments))
    register_model(_name.replace("_patch", "_distilled_patch"), partial(DistilledDeiT, **_arguments))

"""Swin Transformer (Liu et al., ICCV 2021) in timm's arrangement, with any pooling of the last stage's tokens."""

from __future__ import annotations

from functools import partial
from typing import Any, Sequence

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import Normal, initializer

from covpool.models.blocks import NetworkBlock
from covpool.models.registry import register_model
from covpool.models.token_head import TokenClassifier
from covpool.models.transformer import Attention, Mlp, PatchEmbed, dense, layer_norm

_EPS = 1e-5
_MASKED = -100.0

Pair = tuple[int, int]


class WindowAttention(Attention):
    """Attention within windows, with a learned bias for every offset of two tokens: (R, channels) -> (R, channels)."""

    def __init__(self, channels: int, num_heads: int, window: Pair) -> None:
        super().__init__(channels, num_heads)
        self.window, self.area = window, window[0] * window[1]
        offsets = ((2 * window[0] - 1) * (2 * window[1] - 1), num_heads)
        self.relative_position_bias_table = ms.Parameter(
            initializer(Normal(0.02), offsets), name="relative_position_bias_table"
        )

    def position_bias(self) -> ms.Tensor:
        """The bias of every pair of tokens, (1, heads, area, area)."""
        bias = ops.gather(self.relative_position_bias_table, _offsets(self.window), 0)
        return bias.swapaxes(0, 1).reshape(1, self.num_heads, self.area, self.area)


class SwinBlock(NetworkBlock):
    """Window attention and MLP: tokens (N * H * W, channels) -> the same shape.

    Args:
        channels: Numbers per token.
        num_heads: Heads of the attention.
        window: Height and width of a window, in tokens.
        shifted: Whether windows are shifted by half of their size, where there is more than one.
        mlp_ratio: Width of the MLP over ``channels``.
    """

    def __init__(self, channels: int, num_heads: int, window: Pair, shifted: bool, mlp_ratio: float) -> None:
        super().__init__()
        self.window, self.shifted = window, shifted
        self.norm1 = layer_norm(channels, _EPS)
        self.attn = WindowAttention(channels, num_heads, window)
        self.norm2 = layer_norm(channels, _EPS)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def attend(self, x: ms.Tensor, height: int, width: int) -> ms.Tensor:
        """Attention within the windows of every map of ``height`` x ``width`` tokens."""
        rows, columns = self.window
        channels = x.shape[1]
        down = rows // 2 if self.shifted and height > rows else 0
        right = columns // 2 if self.shifted and width > columns else 0
        bias = self.attn.position_bias()
        if down or right:
            bias = bias + _mask((height, width), self.window, (down, right))
        x = roll(roll(x, height, width * channels, down), width, channels, right)
        # Of each row of windows: token rows x windows -> windows x token rows.
        x = x.reshape(-1, rows, width // columns, columns * channels).transpose(0, 2, 1, 3)
        x = self.attn(x.reshape(-1, channels), rows * columns, bias)
        x = x.reshape(-1, width // columns, rows, columns * channels).transpose(0, 2, 1, 3)
        x = roll(roll(x, width, channels, width - right), height, width * channels, height - down)
        return x.reshape(-1, channels)

    def construct(self, x: ms.Tensor, height: int, width: int) -> ms.Tensor:
        length = height * width
        x = x + self.path(self.attend(self.norm1(x), height, width), length)
        return x + self.path(self.mlp(self.norm2(x)), length)


class PatchMerging(nn.Cell):
    """Four neighbouring tokens to one: (N * H * W, channels) -> (N * H * W / 4, 2 channels)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = layer_norm(4 * channels, _EPS)
        self.reduction = dense(4 * channels, 2 * channels, has_bias=False)

    def construct(self, x: ms.Tensor, width: int) -> ms.Tensor:
        channels = x.shape[1]
        x = x.reshape(-1, 2, width, channels).transpose(0, 2, 1, 3)
        return self.reduction(self.norm(x.reshape(-1, 4 * channels)))


class SwinStage(nn.Cell):
    """A merging of patches, but for the first stage, then blocks; every second one has shifted windows."""

    def __init__(
        self, channels: int, depth: int, num_heads: int, window: Pair, mlp_ratio: float, is_first: bool
    ) -> None:
        super().__init__()
        self.is_first = is_first
        self.downsample = nn.Identity() if is_first else PatchMerging(channels // 2)
        self.blocks = nn.SequentialCell(
            [SwinBlock(channels, num_heads, window, index % 2 == 1, mlp_ratio) for index in range(depth)]
        )

    def construct(self, x: ms.Tensor, height: int, width: int) -> ms.Tensor:
        """Tokens of the stage before to those of this one, ``height`` x ``width`` of an image."""
        if not self.is_first:
            x = self.downsample(x, 2 * width)
        for block in self.blocks:
            x = block(x, height, width)
        return x


class Swin(TokenClassifier):
    """A Swin Transformer with any pooling of the registry, see :class:`TokenClassifier`.

    Windows are as large as ``window_size``, or as a smaller stage. At another size of images than ``image_size`` the
    tables stay, so the windows must fit.

    Args:
        pooling: A name of ``list_poolings()``; 'gap' for the plain network, which averages its tokens.
        reduction_dim: d, numbers per token that enter the pooling.
        num_classes: Outputs of the classifier; 0 for none.
        pooling_args: Arguments of the pooling.
        in_channels: Channels of the images.
        image_size: Height and width of the images, one number or two.
        patch_size: Height and width of a patch, in pixels.
        embed_dim: Numbers per token in the first stage; every later one has twice as many.
        depths: Blocks of every stage.
        num_heads: Heads of an attention, in every stage.
        window_size: Height and width of a window, in tokens.
        mlp_ratio: Width of an MLP over that of its tokens.

    Raises:
        ValueError: Patches, windows or heads do not fit.
    """

    class_tokens = 0
    nested_head = True

    def __init__(
        self,
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
        image_size: int | Pair = 224,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if window_size < 1 or len(depths) != len(num_heads):
            wrong = f"{window_size}, {list(num_heads)} and {list(depths)}"
            raise ValueError(f"window_size must be at least 1, and num_heads as many as depths, not {wrong}")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.patch_size = patch_size
        steps = [patch_size * 2**stage for stage in range(len(depths))]
        sizes = [[max(1, min(window_size, side // step)) for side in (height, width)] for step in steps]
        self.windows = tuple((rows, columns) for rows, columns in sizes)
        stage_grids(height, width, patch_size, self.windows)
        self.patch_embed = PatchEmbed(in_channels, embed_dim, patch_size, _EPS)
        self.layers = nn.SequentialCell(
            [
                SwinStage(embed_dim * 2**i, depth, heads, window, mlp_ratio, i == 0)
                for i, (depth, heads, window) in enumerate(zip(depths, num_heads, self.windows))
            ]
        )
        channels = embed_dim * 2 ** (len(depths) - 1)
        self.norm = layer_norm(channels, _EPS)
        self.build_token_head(channels, pooling, reduction_dim, num_classes, pooling_args)

    def check_image_size(self, height: int, width: int) -> None:
        """Raise ValueError unless patches and windows fit images of this size."""
        stage_grids(height, width, self.patch_size, self.windows)

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to the tokens of the last stage, (N, L, channels), normalised."""
        grids = stage_grids(x.shape[2], x.shape[3], self.patch_size, self.windows)
        x = self.patch_embed(x)
        x = x.reshape(-1, x.shape[2])
        for index, layer in enumerate(self.layers):
            x = layer(x, grids[index][0], grids[index][1])
        return self.norm(x).reshape(-1, grids[-1][0] * grids[-1][1], self.num_features)


def roll(x: ms.Tensor, length: int, inner: int, shift: int) -> ms.Tensor:
    """Every ``length`` vectors of ``inner`` numbers in turn, from the one at ``shift`` on: (..., inner) -> (R, inner).

    MindSpore's own operator does not exist on CPU.
    """
    x = x.reshape(-1, length, inner)
    return ops.concat((x[:, shift:], x[:, :shift]), 1) if 0 < shift < length else x


@ops.constexpr
def stage_grids(height: int, width: int, patch_size: int, windows: tuple[Pair, ...]) -> tuple[Pair, ...]:
    """Rows and columns of tokens in every stage.

    Raises:
        ValueError: Patches or windows do not fit.
    """
    grids = []
    for stage, (rows, columns) in enumerate(windows):
        step = patch_size * 2**stage
        if height % (step * rows) or width % (step * columns) or height < step or width < step:
            raise ValueError(
                f"images of {height}x{width} do not fit the windows of {rows}x{columns} tokens in stage {stage + 1}: "
                f"height must be a multiple of {step * rows}, width one of {step * columns}"
            )
        grids.append((height // step, width // step))
    return tuple(grids)


@ops.constexpr
def _offsets(window: Pair) -> ms.Tensor:
    """Place in the table of biases for every pair of tokens of a window, (area * area,)."""
    y, x = (places.ravel() for places in np.mgrid[: window[0], : window[1]])
    rows = y[:, None] - y + window[0] - 1
    columns = x[:, None] - x + window[1] - 1
    return ms.Tensor((rows * (2 * window[1] - 1) + columns).ravel().astype(np.int32))


@ops.constexpr
def _mask(grid: Pair, window: Pair, shift: Pair) -> ms.Tensor:
    """What keeps tokens apart that came together by the shift: (windows, 1, area, area), 0 or -100."""
    regions = np.zeros(grid, np.int64)
    for axis in (0, 1):
        wrapped = np.arange(grid[axis]) >= grid[axis] - shift[axis]
        regions += (2 * axis + 1) * np.expand_dims(wrapped & (shift[axis] > 0), 1 - axis)
    area = window[0] * window[1]
    tiles = regions.reshape(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
    tiles = tiles.swapaxes(1, 2).reshape(-1, 1, area)
    return ms.Tensor(np.where(tiles != tiles.swapaxes(1, 2), _MASKED, 0.0)[:, None].astype(np.float32))


_VARIANTS: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {},
    "swin_small_patch4_window7_224": {"depths": (2, 2, 18, 2)},
    "swin_base_patch4_window7_224": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}
for _name, _arguments in _VARIANTS.items():
    register_model(_name, partial(Swin, **_arguments))

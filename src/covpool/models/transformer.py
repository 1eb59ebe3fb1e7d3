"""What transformers here share: layers by timm's names, attention, and positions at other image sizes.

Tokens of all images stand in the rows of a matrix, (N * L, D): dense layers and normalisations then are products and
rows, and an exported batch stays open. Cells that look at the tokens of an image get their number L beside them.
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common.initializer import HeUniform, Normal, Uniform

from covpool.models.blocks import NetworkBlock


def dense(in_channels: int, out_channels: int, has_bias: bool = True) -> nn.Dense:
    """A dense layer with timm's initialisation: normal with deviation 0.02, bias 0."""
    return nn.Dense(in_channels, out_channels, weight_init=Normal(0.02), bias_init="zeros", has_bias=has_bias)


def layer_norm(channels: int, eps: float) -> nn.LayerNorm:
    """Layer normalisation over the last axis."""
    return nn.LayerNorm((channels,), begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)


def patch_convolution(in_channels: int, out_channels: int, patch_size: int) -> nn.Conv2d:
    """Patches to tokens: a convolution with bias whose stride is its size, with PyTorch's initialisation."""
    bound = (in_channels * patch_size**2) ** -0.5
    return nn.Conv2d(
        in_channels,
        out_channels,
        patch_size,
        patch_size,
        pad_mode="valid",
        has_bias=True,
        weight_init=HeUniform(negative_slope=5**0.5),
        bias_init=Uniform(bound),
    )


class PatchEmbed(nn.Cell):
    """Images (N, in_channels, H, W) to one token a patch, (N, L, channels), row by row.

    Args:
        in_channels: Channels of the images.
        channels: Numbers per token.
        patch_size: Height and width of a patch, in pixels.
        norm_eps: Of the layer normalisation after it; None for none.
    """

    def __init__(self, in_channels: int, channels: int, patch_size: int, norm_eps: Optional[float] = None) -> None:
        super().__init__()
        self.proj = patch_convolution(in_channels, channels, patch_size)
        self.norm = nn.Identity() if norm_eps is None else layer_norm(channels, norm_eps)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        x = self.proj(x)
        return self.norm(x.reshape(-1, x.shape[1], x.shape[2] * x.shape[3]).swapaxes(1, 2))


class Gelu(nn.Cell):
    """GELU by the error function, any shape. MindSpore's own operator takes twice as long on CPU."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return x * (ops.erf(x * 0.5**0.5) * 0.5 + 0.5)


class Mlp(nn.Cell):
    """Two dense layers with GELU between them: (R, channels) -> (R, channels)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = dense(channels, hidden)
        self.act = Gelu()
        self.fc2 = dense(hidden, channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Cell):
    """Multi-head self-attention within groups of tokens that follow each other: (R, channels) -> (R, channels).

    Args:
        channels: D, a multiple of the heads.
        num_heads: Number of heads.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        ValueError: The channels are no multiple of the heads.
    """

    def __init__(self, channels: int, num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, not {channels} with {num_heads} heads")
        self.num_heads, self.head_dim = num_heads, channels // num_heads
        self.qkv = dense(channels, 3 * channels, qkv_bias)
        self.proj = dense(channels, channels)
        self.product = ops.BatchMatMul()
        self.product_t = ops.BatchMatMul(transpose_b=True)

    def construct(self, x: ms.Tensor, length: int, bias: Optional[ms.Tensor] = None) -> ms.Tensor:
        """Attention among every ``length`` rows.

        Args:
            x: Tokens (R, channels), R a multiple of ``length``.
            length: Tokens of a group.
            bias: What is added to the products of queries and keys, (1 or G, heads, length, length): the same for all
                groups, or for G groups in turn.
        """
        heads = self.num_heads
        # The third axis is (q, k, v) x heads: one transposition that keeps rows together, the fastest on CPU.
        qkv = self.qkv(x).reshape(-1, length, 3 * heads, self.head_dim).transpose(0, 2, 1, 3)
        weights = self.product_t(qkv[:, :heads] * self.head_dim**-0.5, qkv[:, heads : 2 * heads])
        if bias is not None:
            weights = weights.reshape(-1, bias.shape[0], heads, length, length) + bias
            weights = weights.reshape(-1, heads, length, length)
        y = self.product(ops.softmax(weights, -1), qkv[:, 2 * heads :])
        return self.proj(y.transpose(0, 2, 1, 3).reshape(-1, heads * self.head_dim))


class Block(NetworkBlock):
    """A pre-norm block of attention and MLP among every ``length`` rows: (R, channels) -> (R, channels)."""

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, eps: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(channels, eps)
        self.attn = Attention(channels, num_heads, qkv_bias)
        self.norm2 = layer_norm(channels, eps)
        self.mlp = Mlp(channels, int(channels * mlp_ratio))

    def construct(self, x: ms.Tensor, length: int) -> ms.Tensor:
        x = x + self.path(self.attn(self.norm1(x), length), length)
        return x + self.path(self.mlp(self.norm2(x)), length)


def resize_matrix(old: int, new: int) -> np.ndarray:
    """Bicubic interpolation of ``old`` samples at ``new`` places, smoothed where they get fewer: float64 (new, old).

    As PyTorch's ``interpolate(mode="bicubic", antialias=True)``: Keys' kernel with a = -0.5, ends without padding.
    """
    scale = old / new
    centre = scale * (np.arange(new)[:, None] + 0.5)
    t = np.abs((np.arange(old) + 0.5 - centre) / max(scale, 1.0))
    weights = np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, np.where(t < 2, ((2.5 - 0.5 * t) * t - 4) * t + 2, 0.0))
    return weights / weights.sum(1, keepdims=True)


def resize_grid_matrix(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """The same for positions of a grid, row by row: float32 (new height x width, old height x width)."""
    return np.kron(resize_matrix(old[0], new[0]), resize_matrix(old[1], new[1])).astype(np.float32)

"""The transformers of the DropCov release against an independent PyTorch version, written from their description."""

from __future__ import annotations

import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn
from torch.nn import functional

from covpool.checkpoints import convert_state_dict, to_pytorch
from covpool.export import fold_batch_norm
from covpool.models import create_model
from tests.models.agreement import exported_error, gradient_errors, images, output_error, relative, same_weights

SMALL = {"embed_dim": 24, "depth": 1, "num_heads": 2, "mlp_ratio": 2.0, "heads": 3, "head_dim": 4}
PARAMETERS = {
    "deit_small_dropcov": 25_586_576,
    "deit_tiny_dropcov": 8_003_696,
    "t2t_vit_14_dropcov": 24_999_056,
    "deit_base_dropcov": 93_722_000,
    "swin_tiny_dropcov": 31_564_066,
}


def ours(pooling: str = "dropcov", **args: object) -> nn.Cell:
    sizes = {"image_size": 32, "num_classes": 5, "reduction_dim": 6, **SMALL}
    return create_model("deit_small_dropcov", pooling=pooling, **{**sizes, **args}).set_train(False)


class Layer(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(channels, 32, 1, bias=False)
        self.conv2 = torch.nn.Conv2d(32, 16, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv2(self.conv1(x.relu()).relu())


class Dense(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        for index in range(6):
            self.add_module(f"denselayer{index + 1}", Layer(channels + 16 * index))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.cat([x, layer(x)], 1)
        return x


class Between(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(channels)
        self.conv = torch.nn.Conv2d(channels, 128, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(self.conv(self.norm(x)), 2)


class Tokens(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.MaxPool2d(3, 2, 1))
        self.stage = torch.nn.Sequential(Dense(64), Between(160), Dense(128), Between(224), Dense(128), Between(224))
        self.transition = torch.nn.Conv2d(128, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.transition(self.stage(self.stem(x))).flatten(2).transpose(1, 2)


class Attention(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = torch.nn.Linear(width, 3 * width, bias=False), torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / math.sqrt(width // self.heads)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, length, width))


class Block(torch.nn.Module):
    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = torch.nn.Module()
        self.mlp.fc1 = torch.nn.Linear(width, int(width * ratio))
        self.mlp.fc2 = torch.nn.Linear(int(width * ratio), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(functional.gelu(self.mlp.fc1(self.norm2(x))))


class Oracle(torch.nn.Module):
    """Under the released names; nothing is dropped."""

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        heads: int,
        head_dim: int,
        size: int = 32,
        classes: int = 5,
    ) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        length = 1 + (size // 16) ** 2
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        table = [
            [
                (math.cos if j % 2 else math.sin)(position / 10000 ** (2 * (j // 2) / embed_dim))
                for j in range(embed_dim)
            ]
            for position in range(length)
        ]
        self.pos_embed = torch.nn.Parameter(torch.tensor([table], dtype=torch.float32), requires_grad=False)
        self.visual_tokens = torch.nn.Module()
        self.visual_tokens.tokens = Tokens(embed_dim)
        self.blocks = torch.nn.ModuleList([Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = torch.nn.LayerNorm(embed_dim)
        self.classifier = torch.nn.Module()
        self.classifier.representation = torch.nn.Module()
        self.classifier.representation.wr = torch.nn.Linear(embed_dim, 3 * heads * head_dim, bias=False)
        self.classifier.visual_fc = torch.nn.Linear(heads * head_dim**2, classes)
        self.classifier.cls_fc = torch.nn.Linear(embed_dim, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.visual_tokens.tokens(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        n, length = len(x), x.shape[1] - 1
        parts = self.classifier.representation.wr(x[:, 1:]).reshape(n, length, 3, self.heads, self.head_dim)
        vector = []
        for head in range(self.heads):
            q, k = parts[:, :, 0, head], parts[:, :, 1, head]
            q, k = q - q.mean((1, 2), keepdim=True), k - k.mean((1, 2), keepdim=True)
            vector.append((q.transpose(1, 2) @ k / length).flatten(1))
        return self.classifier.visual_fc(torch.cat(vector, 1)) + self.classifier.cls_fc(x[:, 0])


def both() -> tuple[nn.Cell, Oracle]:
    torch.manual_seed(0)  # a ReLU whose input rounds to the other side of 0 has another gradient
    cell, module = ours(), Oracle(**SMALL).eval()
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2.0)
    same_weights(cell, module)
    return cell, module


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_ones(name):
    cell = create_model(name, pooling="dropcov")
    assert sum(p.size for p in cell.trainable_params()) == PARAMETERS[name]
    if name == "deit_small_dropcov":
        oracle = Oracle(384, 12, 6, 4, 6, 24, size=224, classes=1000)
        assert sum(p.numel() for p in oracle.parameters() if p.requires_grad) == PARAMETERS[name]
        assert cell.pos_embed.size == oracle.pos_embed.numel() == 75_648 and not cell.pos_embed.requires_grad
        np.testing.assert_allclose(cell.pos_embed.asnumpy(), oracle.pos_embed.numpy(), rtol=0, atol=1e-6)


def test_logits_in_both_modes(mode):
    cell, module = both()
    for batch in (1, 3) if mode == "PYNATIVE" else (2,):
        assert output_error(cell, module, images(32, batch)) < 1e-5


def test_gradients(pynative_mode):
    cell, module = both()
    errors = gradient_errors(cell, module, images(32))
    assert set(errors) == {p.name for p in cell.trainable_params()} and max(errors.values()) < 1e-4


def test_released_names_there_and_back(pynative_mode):
    cell, module = both()
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert set(convert_state_dict(state)) == {p.name for p in cell.get_parameters()}
    back = to_pytorch({p.name: p for p in cell.get_parameters()})
    assert set(back) == set(state)
    assert all((back[name] == state[name]).all() for name in state if not name.endswith("num_batches_tracked"))


def test_dropout_in_training(pynative_mode):
    cell = ours()
    x = ms.Tensor(np.random.default_rng(0).standard_normal((4, 50, 36)).astype(np.float32))
    pooling = cell.pooling
    plain = pooling.set_train(False)(x).asnumpy()
    pooling.set_train(True)
    first, second = pooling(x).asnumpy(), pooling(x).asnumpy()
    assert (first != second).any() and 0.3 < (first == 0).mean() < 0.7
    assert pooling.dropout.counter.asnumpy() == pooling.token_dropout.counter.asnumpy() == 2
    pooling.dropout.rate = 0.0
    kept = pooling(x).asnumpy()
    assert (kept != 0).all() and (kept != plain).any()
    np.testing.assert_array_equal(pooling.set_train(False)(x).asnumpy(), plain)


def test_other_heads(pynative_mode):
    x = ms.Tensor(images(32))
    plain, fast = ours("gap"), ours("fast_mpn")
    assert not any(p.name.startswith(("layer_reduce", "fc")) for p in plain.get_parameters())
    assert plain(x).shape == fast(x).shape == (2, 5) and fast.pooling.out_features == 21
    with pytest.raises(ValueError, match="no pooling_args"):
        ours(pooling_args={"rate": 0.5})
    with pytest.raises(ValueError, match="images of 40x40 do not fit patches of 16x16"):
        ours(image_size=40)


def test_folding_and_onnx(tmp_path: Path, pynative_mode):
    cell, _ = both()
    x = images(32, 3)
    folded = fold_batch_norm(cell)
    assert not any(isinstance(c, nn.BatchNorm2d) for _, c in folded.cells_and_names())
    assert relative(folded(ms.Tensor(x)).asnumpy(), cell(ms.Tensor(x)).asnumpy()) < 1e-5
    assert exported_error(cell, tmp_path, "ONNX", x) < 1e-5


def test_reconstructed_swin(tmp_path: Path, pynative_mode):
    sizes = {"image_size": 32, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 2, "head_dim": 4}
    cell = create_model("swin_tiny_dropcov", pooling="dropcov", num_classes=5, **sizes).set_train(False)
    x = ms.Tensor(images(32))
    tokens = cell.forward_features(x)
    vector = cell.forward_head(tokens, pre_logits=True)
    assert tokens.shape == (2, 16, 16) and vector.shape == (2, 6 * 16)
    np.testing.assert_array_equal(cell.fc(vector).asnumpy(), cell(x).asnumpy())
    assert not any(p.name.startswith("head") for p in cell.get_parameters())
    cell.reset_classifier(3)
    assert cell(x).shape == (2, 3)
    cell.reset_classifier(0)
    np.testing.assert_array_equal(cell(x).asnumpy(), vector.asnumpy())
    summed = create_model("swin_tiny_dropcov", pooling="gcp", reduction_dim=6, num_classes=5, **sizes).set_train(False)
    assert summed(x).shape == (2, 5) and summed.fc.in_channels == 21

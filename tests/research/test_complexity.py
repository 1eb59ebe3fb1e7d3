"""Counts of parameters and multiply-adds: by hand on small networks, against the published figures on large ones."""

from __future__ import annotations

import subprocess
import sys

import mindspore as ms
import pytest
from mindspore import nn, ops

from covpool.models import create_model
from covpool.pooling import create_pooling, list_poolings
from covpool.research.complexity import PUBLISHED, TOLERANCE, Complexity, footnotes, measure, table

DECOMPOSED = ("apn", "cholesky", "ibcnn", "ibcnn_lt", "ilogm", "logm", "mpn", "seb")


class Head(nn.Cell):
    """A pooling alone, under the name that a network gives it."""

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        self.pooling = create_pooling(name, channels)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.pooling(x)


class Products(nn.Cell):
    """A grouped convolution, and products with either factor transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, pad_mode="pad", padding=1, group=2)
        self.transposed_b = ops.BatchMatMul(transpose_b=True)
        self.transposed_a = ops.BatchMatMul(transpose_a=True)
        self.fc = nn.Dense(8, 5)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        x = self.conv(x).reshape(-1, 8, 12)
        wide = self.transposed_a(x, x)  # (N, 12, 12)
        narrow = self.transposed_b(ops.matmul(x, wide), x)  # (N, 8, 12), (N, 8, 8)
        return self.fc(narrow.sum(1))


def test_products_by_hand():
    count = measure(Products(), (4, 6, 8))
    convolution = 8 * 3 * 4 * (2 * 9)
    products = 12 * 12 * 8 + 8 * 12 * 12 + 8 * 8 * 12
    assert count.multiply_adds == convolution + products + 8 * 5
    assert count.parts == {"backbone": convolution + products, "classifier": 40}
    assert count.parameters == 8 * 2 * 9 + 8 * 5 + 5


@pytest.mark.parametrize("pooling", list_poolings())
def test_products_of_the_poolings(pooling):
    d, positions = 8, 20
    covariance, product = d * d * positions, d**3
    expected = {"gap": 0, "gcp": covariance, "dropcov": covariance, "fast_mpn": covariance + 12 * product}
    count = measure(Head(pooling, d), (d, 4, 5))
    if pooling in expected:
        assert count.multiply_adds == expected[pooling]
    else:
        assert count.multiply_adds >= covariance
    assert set(count.parts) <= {"pooling"}
    assert bool(count.decompositions) == (pooling in DECOMPOSED)


def test_a_small_network_by_hand():
    network = create_model("resnet10", pooling="gcp", reduction_dim=8, num_classes=3, base_width=4)
    network.set_train()
    count = measure(network, (3, 32, 32))
    assert network.training
    stem = 16 * 16 * 4 * 3 * 49
    blocks, shortcuts = 0, 0
    for stage, (c_in, c_out, side) in enumerate([(4, 4, 8), (4, 8, 4), (8, 16, 2), (16, 32, 2)]):
        blocks += side * side * 9 * (c_in * c_out + c_out * c_out)
        shortcuts += side * side * c_in * c_out if stage else 0
    assert count.parts == {
        "backbone": stem + blocks + shortcuts,
        "reduction": 2 * 2 * 32 * 8,
        "pooling": 8 * 8 * 4,
        "classifier": 36 * 3,
    }
    assert count.multiply_adds == sum(count.parts.values())
    assert count.parameters == sum(p.size for p in network.trainable_params())


@pytest.fixture(scope="module")
def counts() -> dict[tuple[str, str], Complexity]:
    return {}


def counted(counts: dict, name: str, pooling: str, reduction_dim: int = 128) -> Complexity:
    key = (name, pooling, reduction_dim)
    if key not in counts:
        counts[key] = measure(create_model(name, pooling=pooling, reduction_dim=reduction_dim), (3, 224, 224))
    return counts[key]


DEEP = ("resnet101", "resnet152")


def published() -> list:
    """All rows with --all; transformers and the deepest ResNets take ten seconds each."""
    slow = {"marks": pytest.mark.only_with_all}
    left_out = (*DEEP, "deit", "swin", "t2t", "shufflenet_v2_x1_5", "shufflenet_v2_x2")
    return [pytest.param(*key, **(slow if key[0].startswith(left_out) else {})) for key in PUBLISHED]


@pytest.mark.parametrize(("name", "pooling"), published())
def test_published_figures(counts, name, pooling):
    count = counted(counts, name, pooling)
    parameters, multiply_adds = PUBLISHED[name, pooling]
    assert count.parameters / 1e6 == pytest.approx(parameters, rel=TOLERANCE)
    if not footnotes(name, pooling):
        assert count.multiply_adds / 1e9 == pytest.approx(multiply_adds, rel=TOLERANCE)


def stride_on_the_first_convolution(network: str, pooling: str) -> int:
    """Multiply-adds saved when the stride of a stage is on its first 1x1 convolution, at 224x224."""
    if network in ("resnet18", "resnet34"):
        return 0
    stages = [(56, 256, 128), (28, 512, 256)] + ([(14, 1024, 512)] if pooling == "gap" else [])
    return sum((side * side - side * side // 4) * c_in * c_out for side, c_in, c_out in stages)


@pytest.mark.parametrize("name", ["resnet50", *(pytest.param(name, marks=pytest.mark.only_with_all) for name in DEEP)])
def test_the_footnote_on_the_stride_explains_the_difference(counts, name):
    count = counted(counts, name, "gap")
    explained = count.multiply_adds - stride_on_the_first_convolution(name, "gap")
    assert explained / 1e9 == pytest.approx(PUBLISHED[name, "gap"][1], abs=0.005)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("resnet18", 3.11),
        ("resnet34", 5.65),
        ("resnet50", 6.19),
        pytest.param("resnet101", 9.90, marks=pytest.mark.only_with_all),
    ],
)
def test_the_footnotes_on_the_width_explain_the_difference(counts, name, published):
    parts = counted(counts, name, "gcp", 256).parts
    explained = sum(parts.values()) - parts["pooling"] - stride_on_the_first_convolution(name, "gcp")
    assert explained / 1e9 == pytest.approx(published, abs=0.005)
    assert PUBLISHED[name, "dropcov"][1] == (5.56 if name == "resnet34" else published)


@pytest.mark.only_with_all
@pytest.mark.parametrize(("name", "depth"), [("deit_small_dropcov", 12), ("t2t_vit_14_dropcov", 14)])
def test_the_footnote_on_attention_explains_the_difference(counts, name, depth):
    attention = depth * 2 * 197 * 197 * 384
    explained = counted(counts, name, "dropcov").multiply_adds - attention
    assert explained / 1e9 == pytest.approx(PUBLISHED[name, "dropcov"][1], abs=0.05)


def test_table_shows_published_figures_where_they_belong():
    lines = list(table(["resnet18"], ["gap", "dropcov"]))
    assert lines[2] == "| resnet18 | gap | 11.690 | 11.7 | -0.1% | 1.814 | 1.81 | +0.2% |"
    assert lines[3] == "| resnet18 | dropcov | 19.499 | 19.6 | -0.5% | 3.071 [1] | 3.11 | -1.3% |"
    assert len(lines) == 5 and lines[4].startswith("[1] The published multiply-adds are those of d = 256")
    other = list(table(["resnet18"], ["gap"], image_size=64))
    assert other[2].startswith("| resnet18 | gap | 11.690 |  |  | 0.149 |")


def test_a_matrix_decomposition_is_said():
    lines = list(table(["resnet10"], ["mpn"], image_size=32, reduction_dim=8))
    assert "[1]" in lines[2] and lines[3].startswith("[1] Without the matrix decomposition itself (")


def test_command_line(root, tmp_path):
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "covpool", "complexity", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    result = run(
        "--models", "resnet10", "--poolings", "gcp", "--image_size=64", "--reduction_dim=16", "--num_classes=7"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[2].startswith("| resnet10 | gcp | 4.9")
    wrong = run("--models", "resnet11")
    assert wrong.returncode == 2 and "resnet10" in wrong.stderr
    assert list(tmp_path.iterdir()) == []

"""Parameters and multiply-adds of a network, counted in its own compiled graph, beside the published figures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import nn
from mindspore.common.api import _cell_graph_executor
from mindspore.train.mind_ir_pb2 import ModelProto

from covpool.models import create_model
from covpool.research.tables import table_head

_CONVOLUTIONS = ("Conv2D", "Conv3D")
_PRODUCTS = ("MatMul", "MatMulExt", "BatchMatMul", "BatchMatMulExt", "Dense")
# Their cost is no number of products; the table says so.
_DECOMPOSITIONS = ("Svd", "Eigh", "SelfAdjointEig", "Cholesky")

# (network, pooling) -> parameters (10^6), multiply-adds (10^9) at 224x224 with 1000 classes, as the papers and the
# released MindSpore ports print them, timm's model cards for plain transformers, torchvision for light networks.
PUBLISHED: dict[tuple[str, str], tuple[float, float]] = {
    ("resnet18", "gap"): (11.7, 1.81),
    ("resnet34", "gap"): (21.8, 3.66),
    ("resnet50", "gap"): (25.6, 3.86),
    ("resnet101", "gap"): (44.6, 7.57),
    ("resnet152", "gap"): (60.2, 11.28),
    ("resnet18", "dropcov"): (19.6, 3.11),
    ("resnet18", "fast_mpn"): (19.6, 3.11),
    ("resnet34", "dropcov"): (29.6, 5.56),
    ("resnet34", "fast_mpn"): (29.7, 5.56),
    ("resnet50", "dropcov"): (32.0, 6.19),
    ("resnet50", "fast_mpn"): (32.3, 6.19),
    ("resnet101", "dropcov"): (51.0, 9.90),
    ("mobilenet_v2_100", "gap"): (3.505, 0.301),
    ("shufflenet_v2_x1_0", "gap"): (2.279, 0.145),
    ("shufflenet_v2_x1_5", "gap"): (3.504, 0.296),
    ("shufflenet_v2_x2_0", "gap"): (7.394, 0.583),
    ("deit_small_patch16_224", "gap"): (22.1, 4.6),
    ("deit_base_patch16_224", "gap"): (86.6, 17.6),
    ("swin_tiny_patch4_window7_224", "gap"): (28.3, 4.5),
    ("deit_small_dropcov", "dropcov"): (25.6, 5.5),
    ("t2t_vit_14_dropcov", "dropcov"): (24.9, 5.4),
    ("swin_tiny_dropcov", "dropcov"): (31.6, 6.0),
}
PUBLISHED_FOR = {"image_size": 224, "reduction_dim": 128, "num_classes": 1000}
TOLERANCE = 0.01

_STRIDE = (
    "The published figure has the stride of a stage on the first 1x1 convolution of its bottleneck. Here it is on the "
    "3x3 convolution, as in the released weights, so the 1x1 convolution works on four times the positions."
)
_WIDTH = (
    "The published multiply-adds are those of d = 256 without the covariance itself, the published parameters those "
    "of d = 128, which is counted here."
)
_ATTENTION = "The published multiply-adds leave out the two products of every attention."
_DIGITS = "With d = 256 it would be 5.65: the digits of the published 5.56 seem to be swapped."


@dataclass(frozen=True)
class Complexity:
    """Size of a network."""

    parameters: int  # trainable numbers
    multiply_adds: int  # multiply-adds of one image in evaluation: convolutions and matrix products
    parts: Mapping[str, int]  # the same by part: 'backbone', 'reduction', 'pooling', 'classifier'
    decompositions: tuple[str, ...] = ()  # matrix decompositions (Svd) in the graph, whose cost is not in the counts


def measure(network: nn.Cell, image_shape: Sequence[int]) -> Complexity:
    """Compile a network for one image (C, H, W) in evaluation mode, without running it, and count in its graph.

    A convolution counts output elements times weights per output channel, a product of matrices the elements of the
    result times the summed length. Element-wise operations, sums (also those that the poolings write as a product with
    a constant vector), normalisation and pooling windows are not counted, as usual. ValueError: the graph calls
    sub-graphs (data-dependent control flow), which have no fixed count.
    """
    parts: Counter[str] = Counter()
    decompositions = set()
    for operator, scope, shapes, constants, output in _operations(_graph(network, image_shape)):
        if operator in _CONVOLUTIONS:
            parts[_part(scope)] += math.prod(output) * math.prod(shapes[1][1:])
        elif operator in _PRODUCTS and not _is_sum(constants):
            parts[_part(scope)] += math.prod(output) * _summed_length(shapes[0], shapes[1], output)
        elif operator in _DECOMPOSITIONS:
            decompositions.add(operator)
    parameters = sum(p.size for p in network.trainable_params())
    return Complexity(parameters, sum(parts.values()), dict(parts), tuple(sorted(decompositions)))


def footnotes(network: str, pooling: str) -> list[str]:
    """Why the count of a network differs from the published one; every reason is tested by counting it away."""
    if network.endswith("_dropcov"):
        return [] if network.startswith("swin") else [_ATTENTION]
    notes = []
    if network in ("resnet50", "resnet101", "resnet152"):
        notes.append(_STRIDE)
    if pooling != "gap":
        notes.append(_WIDTH)
        if network == "resnet34":
            notes.append(_DIGITS)
    return notes


def table(
    models: Sequence[str],
    poolings: Sequence[str],
    image_size: int = 224,
    reduction_dim: int = 128,
    num_classes: int = 1000,
) -> Iterator[str]:
    """Lines of a Markdown table, each as soon as it is counted, and its footnotes.

    Published figures stand beside the counts where the arguments are those that they were published for. A
    difference of more than 1 % has a footnote. UnknownNameError: no such network or pooling. ValueError: a size out of
    range.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, not {image_size}")
    sizes = {"image_size": image_size, "reduction_dim": reduction_dim, "num_classes": num_classes}
    notes: list[str] = []
    figures = ("parameters (M)", "published", "difference", "multiply-adds (G)", "published", "difference")
    yield from table_head(["network", "pooling", *figures])
    for model in models:
        for pooling in poolings:
            network = create_model(model, pooling=pooling, reduction_dim=reduction_dim, num_classes=num_classes)
            count = measure(network, (3, image_size, image_size))
            published = PUBLISHED.get((model, pooling)) if sizes == PUBLISHED_FOR else None
            marks = _marks(model, pooling, count, published, notes)
            cells = [model, pooling]
            for i, value in enumerate((count.parameters / 1e6, count.multiply_adds / 1e9)):
                cells.append(f"{value:.3f}" + (marks if i == 1 else ""))
                cells += ["", ""] if published is None else [f"{published[i]:g}", f"{value / published[i] - 1:+.1%}"]
            yield f"| {' | '.join(cells)} |"
    for number, note in enumerate(notes, start=1):
        yield f"[{number}] {note}"


def _marks(model: str, pooling: str, count: Complexity, published: tuple[float, float] | None, notes: list[str]) -> str:
    """References to the footnotes of a row; new footnotes are added to `notes`."""
    own = []
    if published is not None and abs(count.multiply_adds / 1e9 / published[1] - 1) > TOLERANCE:
        own += footnotes(model, pooling)
    if count.decompositions:
        own.append(f"Without the matrix decomposition itself ({', '.join(count.decompositions)}).")
    notes += [note for note in own if note not in notes]
    return "".join(f" [{notes.index(note) + 1}]" for note in own)


def _graph(network: nn.Cell, image_shape: Sequence[int]) -> ModelProto:
    """The evaluation graph with the shape of every result, as `mindspore.export` would write it, without weights."""
    training = network.training
    network.set_train(False)
    try:
        image = ms.Tensor(np.zeros((1, *image_shape), np.float32))
        phase, _ = _cell_graph_executor.compile(network, image, phase="complexity", do_convert=False)
        model = ModelProto()
        model.ParseFromString(_cell_graph_executor._get_func_graph_proto(network, phase, "mind_ir"))
        _cell_graph_executor.del_net_res(network, {phase})
    finally:
        network.set_train(training)
    if model.functions:
        raise ValueError("the graph calls sub-graphs; their operations have no fixed count")
    return model


_Operation = tuple[str, str, list[tuple[int, ...]], list[tuple[int, ...]], tuple[int, ...]]


def _operations(model: ModelProto) -> Iterator[_Operation]:
    """Operator, scope, shapes of the inputs, of the constants among them and of the result, for every operation."""
    shapes: dict[str, tuple[int, ...]] = {p.name: tuple(p.dims) for p in model.graph.parameter}
    shapes.update({value.name: tuple(value.tensor[0].dims) for value in model.graph.input if value.tensor})
    constants: dict[str, tuple[int, ...]] = {}
    for node in model.graph.node:
        if node.op_type == "Constant":
            tensors = node.attribute[0].tensors
            constants[node.output[0]] = shapes[node.output[0]] = tuple(tensors[0].dims) if tensors else ()
            continue
        output = _shape(node)
        shapes.update(dict.fromkeys(node.output, output))
        operator = node.op_type.split(":")[2] if node.op_type.startswith("REF::") else node.op_type
        fixed = [constants[name] for name in node.input if name in constants]
        yield operator, node.domain, [shapes.get(name, ()) for name in node.input], fixed, output


def _shape(node: Any) -> tuple[int, ...]:
    for attribute in node.attribute:
        if attribute.name == "shape" and attribute.tensors:
            return tuple(attribute.tensors[0].dims)
    return ()


def _is_sum(constants: Sequence[tuple[int, ...]]) -> bool:
    """Whether a product with these constant factors is a sum or a repetition: one of them is a vector."""
    return any(len(shape) > 1 and 1 in shape[-2:] for shape in constants)


def _summed_length(a: tuple[int, ...], b: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Length k of a product (m, k) (k, n), either factor possibly transposed: m k * k n / m n = k^2."""
    return math.isqrt(math.prod(a[-2:]) * math.prod(b[-2:]) // math.prod(output[-2:]))


def _part(scope: str) -> str:
    cell = scope.split("/")[1].partition("-")[0]
    names = {"layer_reduce": "reduction", "pooling": "pooling", "fc": "classifier", "head": "classifier"}
    return names.get(cell, "backbone")

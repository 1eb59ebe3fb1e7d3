"""Parameter names: PyTorch's on one side, MindSpore's on the other, mapped by rule and both ways."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any, Iterable, Mapping, Optional

import mindspore as ms
import numpy as np

from covpool.errors import UserError

# Batch normalisation. A module is one when it has running statistics; `weight` alone would not tell.
_BN_TO_MINDSPORE = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_BN_TO_PYTORCH = {value: key for key, value in _BN_TO_MINDSPORE.items()}
_STATISTICS = ("running_mean", "running_var")
_BATCHES = "num_batches_tracked"

# Ranks of what a module other than a normalisation holds: dense layers and 2D convolutions. Then parameters of
# transformers that are no module's.
_RANKS = {
    **{"weight": (2, 4), "bias": (1,), "relative_position_bias_table": (2,)},
    **{"cls_token": (3,), "dist_token": (3,), "pos_embed": (3,)},
}

# The released DropCov checkpoints keep the channel convolution of the pooling under this name.
_RELEASED_KERNEL = "eca_layer.conv.weight"
_POOLING = "pooling."
_KERNEL = _POOLING + "conv.weight"
# How many dropout masks were drawn so far; PyTorch keeps that in its global generator.
COUNTER = _POOLING + "dropout.counter"

_PARALLEL = "module."

# The trainer of fast-MPN-COV takes a network apart: the children of the backbone, by number, then pooling and
# classifier. Reduction and its normalisation are children 8 and 9 where it started from a pretrained network.
_TRAINER_MARK = re.compile(r"features\.4\.0\.conv1\.weight")
_TRAINER = {
    "features.0.": "conv1.",
    "features.1.": "bn1.",
    **{f"features.{stage + 3}.": f"layer{stage}." for stage in (1, 2, 3, 4)},
    "features.8.": "layer_reduce.",
    "features.9.": "layer_reduce_bn.",
    "representation.conv_dr_block.0.": "layer_reduce.",
    "representation.conv_dr_block.1.": "layer_reduce_bn.",
    "classifier.": "fc.",
}

# MobileNetV2 and ShuffleNetV2 of torchvision and of the CVPR 2020 study: a name that tells the family, then the parts
# of the head, theirs and ours. The backbones have the same names.
_REDUCTION = {"dimension_reduction.0.": "layer_reduce.", "dimension_reduction.1.": "layer_reduce_bn."}
_MOBILENET_MARK = "features.0.0.weight"
_LIGHT = {_MOBILENET_MARK: {**_REDUCTION, "classifier.1.": "fc."}, "conv5.0.weight": _REDUCTION}
# MobileNetV2 of timm, which counts the blocks within each of its groups; the first one expands nothing.
_TIMM_MARK = "blocks.0.0.conv_dw.weight"
_FIRST = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
_OTHER = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}
_ENDS = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.18.0", "bn2": "features.18.1"}
_LIGHT[_TIMM_MARK] = {f"{theirs}.": f"{ours}." for theirs, ours in {**_ENDS, "classifier": "fc"}.items()}
for _index, _place in enumerate(f"{i}.{j}" for i, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)) for j in range(blocks)):
    for _theirs, _ours in (_OTHER if _index else _FIRST).items():
        _LIGHT[_TIMM_MARK][f"blocks.{_place}.{_theirs}."] = f"features.{_index + 1}.conv.{_ours}."
# The transformers of the DropCov release, likewise.
_DENSE_STEM_MARK = "visual_tokens.tokens.stem.0.weight"
_LIGHT[_DENSE_STEM_MARK] = {
    "classifier.representation.wr.": "layer_reduce.",
    "classifier.visual_fc.": "fc.",
    "classifier.cls_fc.": "head.",
}
_COUNTERS = {
    _RELEASED_KERNEL: (COUNTER,),
    _MOBILENET_MARK: ("dropout.counter",),
    _DENSE_STEM_MARK: (COUNTER, _POOLING + "token_dropout.counter"),
}

# Swin as its authors published it, and timm did at first: the merging of patches ends a stage there, and begins the
# next one here. Buffers are tables that follow from the sizes.
_SWIN_MARK = "layers.0.downsample.reduction.weight"
_SWIN_STAGE = re.compile(r"layers\.(\d+)\.downsample\.")
_SWIN_BUFFERS = ("relative_position_index", "attn_mask")

# The public MindSpore ports took their residual blocks from MindSpore's model zoo: parts of names, theirs and ours.
_PORT = {"bn1d": "bn1", "bn2d": "bn2", "down_sample_layer": "downsample", "end_point": "fc"}
_PORT_MARK = re.compile(r"layer\d\.\d+\.(bn1d|down_sample_layer)\.")
# What MindSpore's training loop stores beside the network.
_PORT_TRAINING = re.compile(
    r"(moments|accum|stat)\..*|learning_rate|momentum|global_step|epoch_num|step_num|loss_scale|scale_sense"
    r"|current_iterator_step|last_overflow_iterator_step|about\..*"
)

logger = logging.getLogger(__name__)


def convert_state_dict(state_dict: Mapping[str, np.ndarray]) -> dict[str, ms.Parameter]:
    """Convert a PyTorch state dict of a classification network to MindSpore parameters.

    Rules, with `m` any module:

    * `module.` (data parallel training), at the beginning or after `features.`, is dropped;
    * in a checkpoint of the trainer of fast-MPN-COV, `features.N`, `representation.conv_dr_block.N` and `classifier`
      become the backbone's names, `layer_reduce`, `layer_reduce_bn` and `fc`;
    * in a MobileNetV2 or ShuffleNetV2, `dimension_reduction.0`, `dimension_reduction.1` and `classifier.1` become
      `layer_reduce`, `layer_reduce_bn` and `fc`; `dropout.counter` starts at 0; timm's names become these;
    * in a transformer of the DropCov release, `classifier.representation.wr`, `classifier.visual_fc` and
      `classifier.cls_fc` become `layer_reduce`, `fc` and `head`; its two counters of dropout masks start at 0;
    * `m` with `running_mean` is a batch normalisation: `weight, bias, running_mean, running_var` become
      `gamma, beta, moving_mean, moving_variance`; `num_batches_tracked` has no counterpart and is dropped;
    * `m` with a `weight` of rank 1 and no `running_mean` is a layer normalisation, with `gamma` and `beta`;
    * `cls_token`, `dist_token`, `pos_embed` and `relative_position_bias_table` keep their names; of a Swin Transformer
      as its authors published it, `layers.i.downsample` becomes `layers.i+1.downsample`, `head` becomes `head.fc`, and
      `relative_position_index` and `attn_mask` are dropped;
    * `eca_layer.conv.weight` (1, 1, k) becomes `pooling.conv.weight`, and the count of drawn dropout masks,
      `pooling.dropout.counter`, which PyTorch does not have, starts at 0;
    * `pooling.*` keeps its name: the learnable poolings that have no released counterpart;
    * a `weight` of rank 2 or 4 and a `bias` of rank 1 keep their names.

    Values are kept bit by bit in float32; other floating-point types are cast to it.

    Args:
        state_dict: PyTorch name -> array.

    Returns:
        MindSpore name -> parameter, with `requires_grad` False for statistics and counters.

    Raises:
        UserError: Names, ranks or types that no rule knows, all in one line; two names that become one.
    """
    arrays = _renamed(state_dict)
    normalisations = {_module(name) for name in arrays if _leaf(name) == _STATISTICS[0]} | {
        _module(name) for name, value in arrays.items() if _leaf(name) == "weight" and np.ndim(value) == 1
    }
    parameters: dict[str, ms.Parameter] = {}
    unknown = []
    for name, value in arrays.items():
        if _leaf(name) == _BATCHES:
            continue
        array = np.asarray(value)
        target = _by_rule(name, array.shape, _module(name) in normalisations, _BN_TO_MINDSPORE)
        if name == _RELEASED_KERNEL:
            target = _KERNEL if array.ndim == 3 and array.shape[:2] == (1, 1) else None
        if target is None or array.dtype.kind != "f":
            unknown.append(f"{name} {list(array.shape)} {array.dtype}")
        elif target in parameters:
            raise UserError(f"checkpoint: two tensors become {target}")
        else:
            parameters[target] = _parameter(target, array.astype(np.float32))
    if unknown:
        raise UserError(
            f"checkpoint: no rule for {listed(unknown)}; known are normalisations, weights of rank 2 or 4, "
            f"biases and {_RELEASED_KERNEL}"
        )
    for counter in [counter for mark, counters in _COUNTERS.items() if mark in arrays for counter in counters]:
        parameters[counter] = _parameter(counter, np.zeros((), np.int32))
    return parameters


def to_pytorch(parameters: Mapping[str, ms.Parameter]) -> dict[str, np.ndarray]:
    """Convert MindSpore parameters to a PyTorch state dict: the inverse of :func:`convert_state_dict`.

    `num_batches_tracked` is 0 for every batch normalisation: MindSpore does not count batches, and PyTorch reads the
    number only with `momentum=None`. Counters of dropout masks are left out.

    Args:
        parameters: MindSpore name -> parameter.

    Returns:
        PyTorch name -> array, the same bits.

    Raises:
        UserError: Names or ranks that no rule knows.
    """
    normalisations = {_module(name) for name in parameters if _leaf(name) in ("moving_mean", "gamma")}
    prefixes = {ours: theirs for theirs, ours in _light(parameters).items()}
    arrays: dict[str, np.ndarray] = {}
    unknown = []
    for name, parameter in parameters.items():
        if is_counter(name):
            continue
        value = parameter.asnumpy()
        target = _by_rule(name, value.shape, _module(name) in normalisations, _BN_TO_PYTORCH)
        target = _RELEASED_KERNEL if name == _KERNEL else target
        if target is None:
            unknown.append(f"{name} {list(value.shape)}")
            continue
        target = _replaced(target, prefixes)
        arrays[target] = value
        if _leaf(target) == "running_var":
            arrays[f"{_module(target)}.{_BATCHES}"] = np.zeros((), np.int64)
    if unknown:
        raise UserError(f"parameters: no rule for {listed(unknown)}")
    return arrays


def from_port(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    """A checkpoint of the public MindSpore ports by the names of this project; any other one as it is.

    `bn1d`, `bn2d`, `down_sample_layer` and `end_point` become `bn1`, `bn2`, `downsample` and `fc`; the rank of
    `eca_layer.conv.weight` (1, 1, 1, k) sinks to 3, and it becomes `pooling.conv.weight`; what the optimiser stored is
    left out. The entry `about.conventions` says that the network computes as the ports' do, see
    `ResNet.set_conventions`.

    Args:
        entries: Name -> parameter or text.
        path: The file, for messages.

    Raises:
        UserError: Two names that become one.
    """
    if not any(map(_PORT_MARK.match, entries)):
        return entries
    renamed: dict[str, Any] = {"about.conventions": json.dumps("model_zoo")}
    for name, value in entries.items():
        if _PORT_TRAINING.fullmatch(name):
            continue
        target = ".".join(_PORT.get(part, part) for part in name.split("."))
        array = value.asnumpy()
        if name == _RELEASED_KERNEL and array.ndim == 4 and array.shape[:3] == (1, 1, 1):
            target, array = _KERNEL, array[0]
            renamed[COUNTER] = _parameter(COUNTER, np.zeros((), np.int32))
        if target in renamed:
            raise UserError(f"{path}: two tensors become {target}")
        renamed[target] = _parameter(target, array)
    logger.info("%s: a checkpoint of the MindSpore ports; the network computes as theirs", path)
    return renamed


def is_counter(name: str) -> bool:
    """Whether a parameter counts dropout masks, which PyTorch's networks do not."""
    return _leaf(name) == "counter"


def listed(names: Iterable[str], limit: int = 6) -> str:
    """Names as one line, the first `limit` of them and the number of the others."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _by_rule(name: str, shape: tuple[int, ...], is_norm: bool, leaves: Mapping[str, str]) -> Optional[str]:
    """The name on the other side, whose normalisations have other ``leaves``; None where no rule knows it."""
    module, leaf = _module(name), _leaf(name)
    if name.startswith(_POOLING):
        return name
    if is_norm:
        return f"{module}.{leaves[leaf]}" if leaf in leaves and len(shape) == 1 else None
    return name if len(shape) in _RANKS.get(leaf, ()) else None


def _renamed(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dict by the names of the network itself: without wrappers of data parallel training and trainers."""
    short = {name: _without_wrapper(name) for name in state_dict}
    prefixes = _TRAINER if any(map(_TRAINER_MARK.match, short.values())) else _light(short.values())
    short = {name: _replaced(value, prefixes) for name, value in short.items()}
    if _SWIN_MARK in short.values():
        short = {name: _swin(value) for name, value in short.items() if _leaf(value) not in _SWIN_BUFFERS}
    arrays: dict[str, np.ndarray] = {}
    for name, target in short.items():
        if target in arrays:
            first = next(other for other in short if short[other] == target)
            raise UserError(f"checkpoint: both {first} and {name} are there")
        arrays[target] = state_dict[name]
    return arrays


def _light(names: Iterable[str]) -> Mapping[str, str]:
    """What the head is called there and here, of networks known by the name of one weight; empty for others."""
    found = set(names)
    return next((prefixes for mark, prefixes in _LIGHT.items() if mark in found), {})


def _replaced(name: str, prefixes: Mapping[str, str]) -> str:
    prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
    return prefixes[prefix] + name[len(prefix) :] if prefix else name


def _swin(name: str) -> str:
    name = name.replace("head.", "head.fc.", 1) if name.startswith("head.") else name
    return _SWIN_STAGE.sub(lambda match: f"layers.{int(match[1]) + 1}.downsample.", name)


def _without_wrapper(name: str) -> str:
    name = name[len(_PARALLEL) :] if name.startswith(_PARALLEL) else name
    return name.replace(f"features.{_PARALLEL}", "features.", 1) if name.startswith("features.") else name


def _parameter(name: str, value: np.ndarray) -> ms.Parameter:
    fixed = _leaf(name) in ("moving_mean", "moving_variance", "counter")
    return ms.Parameter(ms.Tensor(value), name=name, requires_grad=not fixed)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]

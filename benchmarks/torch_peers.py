"""PyTorch's networks, the references: ``from benchmarks.torch_peers import timm, torchvision``.

A torchvision that was built for CUDA does not load its operators beside a CPU build of PyTorch, and its import then
ends with an error about the two that it describes without asking. No network here uses them; their names are enough.
"""

import torch

try:
    import torchvision
except RuntimeError:
    _OPERATORS = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
import timm
import timm.data
import timm.loss
import timm.optim
import timm.scheduler

__all__ = ["timm", "torchvision"]

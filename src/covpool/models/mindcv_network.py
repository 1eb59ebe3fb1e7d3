"""Networks of MindCV, an optional package, with any pooling of this one."""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any, Callable

import mindspore as ms
from mindspore import nn

from covpool.errors import UserError
from covpool.models.classifier import ImageClassifier
from covpool.models.token_head import token_map
from covpool.pooling.counter_random import Dropout
from covpool.registry import UnknownNameError

MINDCV = "mindcv/"


class MindCVNetwork(ImageClassifier):
    """The features of a network of MindCV, then reduction, pooling and classifier.

    Tokens (N, L, C) become a map (N, C, L, 1), without those of classes. MindCV's own head is left out; strides stay
    as they are. Global average pooling at the end of MindCV's ``forward_features`` is taken out where it is a cell.

    Args:
        name: Its name in MindCV.
        pooling: A name of ``list_poolings()``.
        reduction_dim: Channels that enter a covariance head.
        num_classes: Outputs of the classifier; 0 for none.
        pooling_args: Arguments of the pooling.
        in_channels: Channels of the images.

    Raises:
        UserError: The network gives no map and no tokens, or does not run under this MindSpore.
    """

    backbone_prefix = "backbone."

    def __init__(
        self,
        name: str,
        pooling: str,
        reduction_dim: int,
        num_classes: int,
        pooling_args: dict[str, Any] | None = None,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        mindcv = _mindcv(name)
        from mindcv.models.layers.pooling import GlobalAvgPooling

        config = mindcv.models.registry.get_pretrained_cfg(name)
        size = (config.get("input_size") or (3, 224, 224))[-1]
        try:
            backbone = mindcv.create_model(name, in_channels=in_channels)
            _replace_dropout(backbone)
            self.backbone = backbone
            if getattr(self.backbone, "aux_logits", False):
                self.backbone.aux_logits = False  # a second output in training
            for child, cell in self.backbone.name_cells().items():
                if isinstance(cell, GlobalAvgPooling):
                    setattr(self.backbone, child, nn.Identity())
            shape = _probe(self.backbone, in_channels, size)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(f"{MINDCV}{name} gives no features under this MindSpore: {reason}") from error
        prefix = getattr(self.backbone, "num_prefix_tokens", int(hasattr(self.backbone, "cls_token")))
        self.tokens = len(shape) == 3
        self.class_tokens = prefix if self.tokens else 0
        if len(shape) not in (3, 4) or (self.tokens and shape[1] - self.class_tokens < 2):
            raise UserError(
                f"{MINDCV}{name} cannot have another pooling: its forward_features gives {shape}, which is pooled "
                "already or several maps; needed are a map (N, C, H, W) or tokens (N, L, C)"
            )
        self.build_head(shape[2] if self.tokens else shape[1], pooling, reduction_dim, num_classes, pooling_args)

    def forward_backbone(self, x: ms.Tensor) -> ms.Tensor:
        """Images (N, in_channels, H, W) to a map (N, C, H', W'), or (N, C, L, 1) of tokens."""
        x = self.backbone.forward_features(x)
        if self.tokens:
            x = token_map(x[:, self.class_tokens :])
        return x


class _AnyDropout(Dropout):
    """Dropout of entries of any tensor (N, ...)."""

    def construct(self, x: ms.Tensor) -> ms.Tensor:  # type: ignore[override]
        return super().construct(x.reshape(x.shape[0], -1)).reshape(x.shape)


def _replace_dropout(network: nn.Cell) -> None:
    """Draw what is dropped from the counter-based generator: a checkpoint keeps its state, unlike MindSpore's."""
    found = [(path, parent) for path, parent in network.cells_and_names() if not isinstance(parent, nn.Dropout)]
    seed = 0
    for path, parent in found:
        for child, cell in parent.name_cells().items():
            if isinstance(cell, nn.Dropout) and cell.p > 0:
                seed += 1
                own = _AnyDropout(cell.p, seed)
                own.update_parameters_name(f"{path}.{child}.".lstrip("."))
                parent._cells[child] = own
        if isinstance(parent, nn.SequentialCell):
            parent.cell_list = list(parent.cells())


def _probe(network: nn.Cell, channels: int, size: int) -> tuple[int, ...]:
    """Shape of the features of one image; children that took no part become the identity.

    These are the head. Several outputs have the shape ().
    """
    used = set()
    network.set_train(False)
    hooks = [
        cell.register_forward_pre_hook(lambda _cell, _inputs, child=child: used.add(child))
        for child, top in network.name_cells().items()
        for _, cell in top.cells_and_names()
    ]
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        features = network.forward_features(ms.ops.zeros((1, channels, size, size), ms.float32))
    finally:
        ms.set_context(mode=mode)
        for hook in hooks:
            hook.remove()
    for child in [child for child in network.name_cells() if child not in used]:
        setattr(network, child, nn.Identity())
    return tuple(features.shape) if isinstance(features, ms.Tensor) else ()


def _mindcv(name: str) -> ModuleType:
    try:
        import mindcv
    except ImportError as error:
        raise UserError(f"{MINDCV}{name} needs the package mindcv: pip install mindcv==0.3.0", exit_code=2) from error
    return mindcv


def mindcv_builder(name: str) -> Callable[..., nn.Cell]:
    """What makes the network of a name "mindcv/NAME".

    Raises:
        UserError: MindCV is missing.
        UnknownNameError: MindCV has no such network.
    """
    short = name[len(MINDCV) :]
    names = _mindcv(short).list_models()
    if short not in names:
        raise UnknownNameError("model of MindCV", short, names)
    return partial(MindCVNetwork, short)

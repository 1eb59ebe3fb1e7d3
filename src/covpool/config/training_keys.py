"""The keys of a training: batches, optimiser, rates and loss."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

_ADJUST = {"lrnorm": "lr_norm", "lrfast": "lr_fast", "lradju": "lr_adju"}


def key(default: Any, text: str, bounds: str = "", **rules: Any) -> Any:
    """A field of a configuration."""
    metadata = {"help": text, "bounds": bounds, **rules}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrainingKeys:
    """See `covpool.config.Config`, which has them."""

    batch_size: int = key(64, "Images per step and device.", "1 <= x <= 65536")
    epoch_size: int = key(100, "Number of epochs.", "1 <= x <= 100000")
    optimizer: str = key(
        "momentum",
        "Optimiser. momentum and sgd are one update rule in two of MindSpore's optimisers, of which momentum is faster "
        "(nesterov always takes sgd).",
        choices=("sgd", "momentum", "adamw", "lamb", "lion"),
    )
    betas: Optional[tuple[float, ...]] = key(
        None,
        "Decay of both moments of adamw, lamb (null: 0.9, 0.999) and lion (null: 0.9, 0.99).",
        "0 <= x < 1",
        length=2,
    )
    eps: Optional[float] = key(None, "Added to the root of adamw (null: 1e-8) and lamb (null: 1e-6).", "0 < x <= 1")
    momentum: float = key(0.9, "Momentum of momentum and sgd.", "0 <= x < 1")
    nesterov: bool = key(False, "Nesterov's form of the momentum.")
    weight_decay: float = key(
        1e-4, "Weight decay, not applied to vectors (beta, gamma, bias) and tables of tokens.", "0 <= x <= 1e38"
    )
    decay_all: bool = key(False, "Apply the weight decay to all parameters.")
    layer_decay: float = key(
        1.0, "Factor of the rate from each group of layers to the one before it, as timm counts them.", "0 < x <= 1"
    )
    head_lr_factor: float = key(1.0, "Factor of the rate of everything after the backbone.", "0 < x <= 1e6")
    freeze: tuple[str, ...] = key(
        (), "Parts of the network that do not train, e.g. [layer1, layer2]; backbone for all but the head."
    )
    freeze_bn: bool = key(False, "Keep the running statistics of batch normalisation as loaded.")
    clip_grad: Optional[float] = key(None, "Bound of the gradients, see clip_mode; null for none.", "0 < x <= 1e38")
    clip_mode: str = key(
        "norm", "What clip_grad bounds: the norm of all gradients together, or each value.", choices=("norm", "value")
    )
    accumulate_steps: int = key(
        1, "Batches of batch_size whose gradients make one step; they are taken one after the other.", "1 <= x <= 65536"
    )
    ema_decay: float = key(
        0.0, "Decay of the moving average of the weights, which is evaluated and saved; 0 for none.", "0 <= x < 1"
    )
    ema_warmup: bool = key(True, "Begin the moving average with a smaller decay: (1 + step) / (10 + step).")
    recompute: bool = key(False, "Compute the activations of each block again in the backward pass: less memory.")
    amp_level: str = key("O0", "Mixed precision level.", choices=("O0", "O1", "O2", "O3", "auto"))
    loss_scale_mode: str = key(
        "fixed",
        "Loss scale of mixed precision: fixed, or dynamic (starts at loss_scale; GPU and Ascend).",
        choices=("fixed", "dynamic"),
    )
    loss_scale: float = key(1024.0, "Loss scale of mixed precision; none is applied at amp_level O0.", "0 < x <= 1e38")
    cpu_kernels: str = key(
        "auto",
        "Kernels of training and evaluation on CPU in float32: MindSpore's, or compiled for the faster ones of this "
        "project, which need a C++ compiler (g++, or the one named in CXX); auto takes these where they can be.",
        choices=("auto", "compiled", "mindspore"),
    )
    keep_graphs: bool = key(
        True,
        "Keep compiled graphs in the user's cache folder: the same training starts faster again (CPU).",
    )
    seed: int = key(1, "Seed of initialisation, shuffling, augmentation and dropout.", "0 <= x <= 4294967295")
    log_interval: int = key(100, "Steps between two lines of the log.", "x >= 1")

    lr_decay_mode: str = key(
        "cosine",
        "Learning-rate schedule; lr_norm, lr_fast and lr_adju are those of CVPR 2020, port_cosine is the cosine of the "
        "MindSpore ports.",
        choices=(
            "linear",
            "poly",
            "cosine",
            "one_cycle",
            "port_cosine",
            "step",
            "steps",
            "lr_norm",
            "lr_fast",
            "lr_adju",
        ),
        aliases=_ADJUST,
    )
    lr_family: str = key("resnet", "Networks whose CVPR 2020 schedules are meant.", choices=("resnet", "mobilenetv2"))
    lr_designed_epochs: Optional[int] = key(
        None, "Epochs that lr_norm, lr_fast, lr_adju are meant for, to be stretched to epoch_size.", "x >= 1"
    )
    lr_init: float = key(0.0, "Rate at the start of the warm-up, and of one_cycle (0: lr_max / 25).", "0 <= x <= 1e38")
    lr_max: float = key(0.1, "Highest (base) rate.", "0 <= x <= 1e38")
    lr_base: Optional[float] = key(
        None, "Rate for a global batch of lr_base_size images; gives lr_max in proportion.", "0 <= x <= 1e38"
    )
    lr_base_size: int = key(256, "Global batch that lr_base is meant for.", "1 <= x <= 1000000")
    lr_factor: Union[float, Literal["auto"]] = key(
        1.0, "Factor of the rates; auto takes the one that the pooling brings, see docs/poolings.md.", "x > 0"
    )
    lr_end: float = key(
        0.0,
        "Last rate of linear, cosine and one_cycle (0: its first / 10000), and that of the cool-down.",
        "0 <= x <= 1e38",
    )
    lr_power: float = key(2.0, "Power of poly.", "0 < x <= 100")
    warmup_epochs: int = key(
        0, "Epochs of linear warm-up from lr_init to lr_max; none in a training of one epoch.", "x >= 0"
    )
    cooldown_epochs: int = key(0, "Last epochs, at the rate lr_end.", "x >= 0")
    lr_epochs: Optional[tuple[int, ...]] = key(
        None,
        "Epochs at which step and steps multiply the rate by lr_gamma; null for the points of the ports: 0.2, 0.5, "
        "0.7, 0.9 of the training for step, 0.3, 0.6, 0.8 for steps.",
        "x >= 1",
    )
    lr_gamma: float = key(0.1, "Factor at each of lr_epochs.", "0 < x <= 1")
    use_label_smooth: bool = key(True, "Smooth the labels of the training loss.")
    label_smooth_factor: float = key(
        0.1, "Probability spread evenly over all classes by label smoothing.", "0 <= x < 1"
    )
    loss: str = key(
        "cross_entropy",
        "Training loss: cross_entropy, bce (binary, of every class apart) or focal.",
        choices=("cross_entropy", "bce", "focal"),
    )
    focal_gamma: float = key(2.0, "Exponent of the focal loss.", "0 <= x <= 100")
    class_weights: Optional[tuple[float, ...]] = key(
        None, "Weight of each class in the loss, in the order of the classes; null for equal ones.", "0 <= x <= 1e6"
    )
    teacher: str = key("", "Checkpoint of a network to learn from (distillation).", path=True)
    distillation: str = key(
        "soft",
        "What is learned from the teacher: its probabilities (soft), or its answer (hard).",
        choices=("soft", "hard"),
    )
    distillation_alpha: float = key(0.5, "Weight of the teacher in the loss.", "0 <= x <= 1")
    distillation_tau: float = key(1.0, "Temperature of soft distillation.", "0 < x <= 1000")

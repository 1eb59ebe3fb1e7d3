"""The configuration: every key with its type, default, help text and allowed values."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Optional, Union

from covpool.config.contradictions import contradictions
from covpool.config.values import Option, check, kind_of, plain, show, suggestion
from covpool.config.yaml_file import write_yaml
from covpool.errors import ConfigError


def _key(default: Any, text: str, bounds: str = "", **rules: Any) -> Any:
    metadata = {"help": text, "bounds": bounds, **rules}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


# The first key of each section, and its heading.
_SECTIONS = {
    "net_name": "Network",
    "dataset": "Data",
    "batch_size": "Training",
    "lr_decay_mode": "Learning rate and loss",
    "run_eval": "Evaluation while training and checkpoints",
    "mode_name": "Device and run",
    "checkpoint_file_path": "Evaluation and export",
    "enable_modelarts": "ModelArts",
}
_ADJUST = {"lrnorm": "lr_norm", "lrfast": "lr_fast", "lradju": "lr_adju"}


@dataclass(frozen=True)
class Config:
    """A valid configuration. Construction checks every value; see `options` for the keys.

    Raises:
        ConfigError: A value is of the wrong type, out of range, or contradicts another one.
    """

    net_name: str = _key("resnet18", "Network, by its name in the model registry.")
    pooling: str = _key("dropcov", "Pooling before the classifier, by its name in the pooling registry.")
    pooling_args: Mapping[str, Any] = _key(
        {}, "Arguments of the pooling, e.g. {iterations: 5}; on the command line also --pooling_args.NAME=VALUE."
    )
    reduction_dim: int = _key(
        128, "Channels d that the 1x1 convolution leaves for a covariance pooling.", "1 <= x <= 4096"
    )
    class_num: Union[int, Literal["auto"]] = _key(
        1000, "Number of classes; auto takes the data's, or the checkpoint's in eval and export.", "1 <= x <= 1000000"
    )
    in_channels: int = _key(3, "Channels of the input images.", choices=(1, 3))
    stem: str = _key(
        "imagenet",
        "First layers: imagenet (of a ResNet, 7x7 stride 2 and max-pooling) or small (stride 1, for 28 to 64 pixels).",
        choices=("imagenet", "small"),
    )
    base_width: int = _key(64, "Channels of the first stage of a ResNet.", "1 <= x <= 4096")
    model_args: Mapping[str, Any] = _key(
        {}, "Further arguments of the network, e.g. {depth: 4}; on the command line also --model_args.NAME=VALUE."
    )
    drop_rate: Optional[float] = _key(
        None, "Dropout before the classifier; null for the network's own (0.2 of MobileNetV2, else 0).", "0 <= x < 1"
    )
    drop_path_rate: float = _key(
        0.0, "Stochastic depth: how often the last block is left out, rising from 0 at the first.", "0 <= x < 1"
    )

    dataset: str = _key(
        "image_folder",
        "Kind of data set; imagenet2012 is an image folder, mindrecord one that covpool pack packed.",
        choices=("image_folder", "imagenet2012", "mindrecord", "fashion_mnist", "cifar10"),
        aliases={"imagenet": "imagenet2012", "flower_photos": "image_folder"},
    )
    data_path: str = _key("", "Root of the data set; an image folder holds train/ and val/.", path=True)
    image_list: str = _key(
        "", "File that names the images of an image folder to use, from covpool check-data; empty for all.", path=True
    )
    val_fraction: float = _key(0.0, "Part of train/ to evaluate on where there is no val/.", "0 <= x < 1")
    train_images: Optional[int] = _key(
        None, "Train on this many images, drawn once and whatever the seed; null for all.", "x >= 1"
    )
    bad_images: str = _key(
        "error",
        "Images that cannot be decoded: error stops at the first, by name; skip looks for them before the first epoch "
        "and leaves them out.",
        choices=("error", "skip"),
    )
    max_pixels: int = _key(
        50_000_000,
        "Greatest width x height of an image file; a larger one counts as damaged, and no memory is taken for it.",
        "1 <= x <= 1000000000",
    )
    train_image_size: int = _key(224, "Height and width of training images, in pixels.", "1 <= x <= 8192")
    eval_image_size: int = _key(224, "Height and width of evaluation images, in pixels.", "1 <= x <= 8192")
    eval_crop_ratio: float = _key(
        0.875, "Evaluation resizes the shorter side to eval_image_size / eval_crop_ratio.", "0.05 <= x <= 1"
    )
    augmentation: str = _key(
        "imagenet",
        "Training images: imagenet (random resized crop, flip), small (pad 4, random crop, flip) or none (as "
        "evaluated).",
        choices=("imagenet", "small", "none"),
    )
    crop_scale: tuple[float, ...] = _key(
        (0.08, 1.0), "Smallest and largest area of the random resized crop.", "0 < x <= 1", length=2
    )
    crop_ratio: tuple[float, ...] = _key(
        (0.75, 1.3333333), "Smallest and largest aspect ratio of the random resized crop.", "x > 0", length=2
    )
    flip_probability: float = _key(0.5, "Probability of a horizontal flip in training.", "0 <= x <= 1")
    vertical_flip: float = _key(0.0, "Probability of a vertical flip in training.", "0 <= x <= 1")
    color_jitter: float = _key(
        0.0, "Strength of random brightness, contrast and saturation; 0 for none.", "0 <= x <= 1"
    )
    auto_augment: str = _key(
        "", "Random operations on training images, as timm writes them: rand-m9-mstd0.5-inc1, trivial; empty for none."
    )
    random_erasing: float = _key(0.0, "Probability of erasing a rectangle of a training image.", "0 <= x <= 1")
    erasing_mode: str = _key(
        "pixel",
        "What random_erasing fills in: pixel (normal noise) or const (0, the mean).",
        choices=("pixel", "const"),
    )
    repeated_augmentation: int = _key(
        1, "Times that an image is drawn, each time augmented anew; an epoch stays as long.", "1 <= x <= 64"
    )
    mixup: float = _key(0.0, "Alpha of mixup; 0 for none.", "0 <= x <= 100")
    cutmix: float = _key(0.0, "Alpha of CutMix; 0 for none.", "0 <= x <= 100")
    mix_probability: float = _key(1.0, "Part of the batches that mixup and cutmix mix.", "0 <= x <= 1")
    mix_switch_probability: float = _key(
        0.5, "Part of the mixed batches that cutmix takes, where both are on.", "0 <= x <= 1"
    )
    mix_off_epoch: int = _key(0, "Epochs after which batches are mixed no more; 0 for never.", "x >= 0")
    mean: Optional[tuple[float, ...]] = _key(None, "Mean per channel, of 0 to 1; null for the data set's own.")
    std: Optional[tuple[float, ...]] = _key(
        None, "Standard deviation per channel; null for the data set's own.", "x > 0"
    )
    interpolation: str = _key(
        "bilinear",
        "Interpolation of resized images; area and pilcubic smooth before they shrink.",
        choices=("bilinear", "bicubic", "nearest", "area", "pilcubic"),
    )
    num_workers: Optional[int] = _key(
        None, "Parallel workers of the data pipeline per process; null to follow the cores.", "1 <= x <= 1024"
    )

    batch_size: int = _key(64, "Images per step and device.", "1 <= x <= 65536")
    epoch_size: int = _key(100, "Number of epochs.", "1 <= x <= 100000")
    optimizer: str = _key(
        "momentum",
        "Optimiser. momentum and sgd are one update rule in two of MindSpore's optimisers, of which momentum is faster "
        "(nesterov always takes sgd).",
        choices=("sgd", "momentum", "adamw", "lamb", "lion"),
    )
    betas: Optional[tuple[float, ...]] = _key(
        None,
        "Decay of both moments of adamw, lamb (null: 0.9, 0.999) and lion (null: 0.9, 0.99).",
        "0 <= x < 1",
        length=2,
    )
    eps: Optional[float] = _key(None, "Added to the root of adamw (null: 1e-8) and lamb (null: 1e-6).", "0 < x <= 1")
    momentum: float = _key(0.9, "Momentum.", "0 <= x < 1")
    nesterov: bool = _key(False, "Nesterov's form of the momentum.")
    weight_decay: float = _key(1e-4, "Weight decay, not applied to beta, gamma and bias.", "0 <= x <= 1e38")
    decay_all: bool = _key(False, "Apply the weight decay to beta, gamma and bias, too.")
    layer_decay: float = _key(
        1.0, "Factor of the rate from each group of layers to the one before it, as timm counts them.", "0 < x <= 1"
    )
    head_lr_factor: float = _key(1.0, "Factor of the rate of everything after the backbone.", "0 < x <= 1e6")
    freeze: tuple[str, ...] = _key(
        (), "Parts of the network that do not train, e.g. [layer1, layer2]; backbone for all but the head."
    )
    freeze_bn: bool = _key(False, "Keep the running statistics of batch normalisation as loaded.")
    clip_grad: Optional[float] = _key(None, "Bound of the gradients, see clip_mode; null for none.", "0 < x <= 1e38")
    clip_mode: str = _key(
        "norm", "What clip_grad bounds: the norm of all gradients together, or each value.", choices=("norm", "value")
    )
    accumulate_steps: int = _key(
        1, "Batches of batch_size whose gradients make one step; they are taken one after the other.", "1 <= x <= 65536"
    )
    ema_decay: float = _key(
        0.0, "Decay of the moving average of the weights, which is evaluated and saved; 0 for none.", "0 <= x < 1"
    )
    ema_warmup: bool = _key(True, "Begin the moving average with a smaller decay: (1 + step) / (10 + step).")
    recompute: bool = _key(False, "Compute the activations of each block again in the backward pass: less memory.")
    amp_level: str = _key("O0", "Mixed precision level.", choices=("O0", "O1", "O2", "O3", "auto"))
    loss_scale_mode: str = _key(
        "fixed",
        "Loss scale of mixed precision: fixed, or dynamic (starts at loss_scale; GPU and Ascend).",
        choices=("fixed", "dynamic"),
    )
    loss_scale: float = _key(1024.0, "Loss scale of mixed precision; none is applied at amp_level O0.", "0 < x <= 1e38")
    cpu_kernels: str = _key(
        "mindspore",
        "Kernels of a training on CPU in float32: MindSpore's, or compiled for the faster ones of this project, which "
        "need a C++ compiler (g++, or the one named in CXX).",
        choices=("mindspore", "compiled"),
    )
    seed: int = _key(1, "Seed of initialisation, shuffling, augmentation and dropout.", "0 <= x <= 4294967295")
    log_interval: int = _key(100, "Steps between two lines of the log.", "x >= 1")

    lr_decay_mode: str = _key(
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
    lr_family: str = _key("resnet", "Networks whose CVPR 2020 schedules are meant.", choices=("resnet", "mobilenetv2"))
    lr_designed_epochs: Optional[int] = _key(
        None, "Epochs that lr_norm, lr_fast, lr_adju are meant for, to be stretched to epoch_size.", "x >= 1"
    )
    lr_init: float = _key(0.0, "Rate at the start of the warm-up.", "0 <= x <= 1e38")
    lr_max: float = _key(0.1, "Highest (base) rate.", "0 <= x <= 1e38")
    lr_base: Optional[float] = _key(
        None, "Rate for a global batch of lr_base_size images; gives lr_max in proportion.", "0 <= x <= 1e38"
    )
    lr_base_size: int = _key(256, "Global batch that lr_base is meant for.", "1 <= x <= 1000000")
    lr_factor: Union[float, Literal["auto"]] = _key(
        1.0, "Factor of the rates; auto takes the one that the pooling brings, see docs/poolings.md.", "x > 0"
    )
    lr_end: float = _key(0.0, "Last rate of linear and cosine.", "0 <= x <= 1e38")
    lr_power: float = _key(2.0, "Power of poly.", "0 < x <= 100")
    warmup_epochs: int = _key(
        0, "Epochs of linear warm-up from lr_init to lr_max; none in a training of one epoch.", "x >= 0"
    )
    cooldown_epochs: int = _key(0, "Last epochs, at the rate lr_end.", "x >= 0")
    lr_epochs: Optional[tuple[int, ...]] = _key(
        None,
        "Epochs at which step and steps multiply the rate by lr_gamma; null for the points of the ports: 0.2, 0.5, "
        "0.7, 0.9 of the training for step, 0.3, 0.6, 0.8 for steps.",
        "x >= 1",
    )
    lr_gamma: float = _key(0.1, "Factor at each of lr_epochs.", "0 < x <= 1")
    use_label_smooth: bool = _key(True, "Smooth the labels of the training loss.")
    label_smooth_factor: float = _key(
        0.1, "Probability spread evenly over all classes by label smoothing.", "0 <= x < 1"
    )
    loss: str = _key(
        "cross_entropy",
        "Training loss: cross_entropy, bce (binary, of every class apart) or focal.",
        choices=("cross_entropy", "bce", "focal"),
    )
    focal_gamma: float = _key(2.0, "Exponent of the focal loss.", "0 <= x <= 100")
    class_weights: Optional[tuple[float, ...]] = _key(
        None, "Weight of each class in the loss, in the order of the classes; null for equal ones.", "0 <= x <= 1e6"
    )
    teacher: str = _key("", "Checkpoint of a network to learn from (distillation).", path=True)
    distillation: str = _key(
        "soft",
        "What is learned from the teacher: its probabilities (soft), or its answer (hard).",
        choices=("soft", "hard"),
    )
    distillation_alpha: float = _key(0.5, "Weight of the teacher in the loss.", "0 <= x <= 1")
    distillation_tau: float = _key(1.0, "Temperature of soft distillation.", "0 < x <= 1000")

    run_eval: bool = _key(True, "Evaluate on val/ while training.")
    eval_interval: int = _key(1, "Epochs between two evaluations.", "x >= 1")
    eval_start_epoch: int = _key(0, "Epoch of the first evaluation.", "x >= 0")
    save_best_ckpt: bool = _key(True, "Keep the checkpoint of the best evaluation.")
    save_checkpoint: bool = _key(True, "Save checkpoints while training.")
    save_checkpoint_epochs: int = _key(1, "Epochs between two checkpoints.", "x >= 1")
    save_checkpoint_steps: int = _key(0, "Steps between two checkpoints within an epoch; 0 for none.", "x >= 0")
    keep_checkpoint_max: int = _key(5, "Number of checkpoints kept besides the best one.", "x >= 1")
    pre_trained: str = _key("", "Checkpoint to start from; another number of classes skips the classifier.", path=True)
    fine_tune: bool = _key(False, "Warn of a training without pre_trained: the recipe is for given weights.")
    resume_ckpt: str = _key("", "Checkpoint to resume from, or auto: the newest in output_path.", path=True)

    mode_name: str = _key(
        "GRAPH",
        "Execution mode.",
        choices=("GRAPH", "PYNATIVE"),
        aliases={"graph_mode": "GRAPH", "pynative_mode": "PYNATIVE"},
    )
    device_target: str = _key("CPU", "Kind of device.", choices=("CPU", "GPU", "Ascend"))
    device_id: int = _key(0, "Device of a run that is not distributed.", "x >= 0")
    run_distribute: bool = _key(False, "Train data-parallel over the ranks that mpirun or msrun started.")
    device_num: int = _key(1, "Number of ranks.", "1 <= x <= 65536")
    rank_timeout: float = _key(300.0, "Seconds until a silent rank counts as lost (mpirun on CPU).", "x > 0")
    enable_sink: bool = _key(False, "Let the device fetch the data itself (dataset sink mode).")
    output_path: str = _key("./outputs", "Run folder; everything that is written goes there.", path=True, filled=True)
    progress: str = _key(
        "auto", "Progress: bar, plain lines, or auto for a bar on a terminal.", choices=("auto", "bar", "plain")
    )
    tensorboard: bool = _key(False, "Write TensorBoard event files too (needs pip install tensorboardX).")
    debug: bool = _key(False, "Show the traceback of an error.")

    checkpoint_file_path: str = _key("", "Checkpoint to evaluate or to export.", path=True)
    split: str = _key("val", "What eval evaluates on: val/, or an image folder's test/.", choices=("val", "test"))
    use_ema: bool = _key(True, "Take the averaged weights of a checkpoint that has them (ema_decay).")
    result_path: str = _key("", "JSON file for the result of an evaluation.", path=True)
    report_path: str = _key("", "Folder for the confusion matrix and mistakes of an evaluation.", path=True)
    robustness: str = _key(
        "none",
        "Robustness set in data_path to evaluate on instead of val/, see docs/measurements/robustness.md.",
        choices=("none", "imagenet_c", "imagenet_p", "imagenet_a", "stylized"),
    )
    class_names: str = _key(
        "", "File with the network's classes, one a line; empty for the checkpoint's (robustness).", path=True
    )
    file_name: str = _key("net", "Name of the exported file, without its ending.", path=True, filled=True)
    file_format: str = _key("MINDIR", "Format of the exported file.", choices=("MINDIR", "ONNX"))
    height: Optional[int] = _key(None, "Height of exported images; null for eval_image_size.", "1 <= x <= 8192")
    width: Optional[int] = _key(None, "Width of exported images; null for eval_image_size.", "1 <= x <= 8192")

    enable_modelarts: bool = _key(False, "Synchronise folders with the object store of ModelArts.")
    data_url: str = _key("", "Data set in the object store, copied to data_path.")
    train_url: str = _key("", "Folder in the object store that receives output_path at the end.")
    checkpoint_url: str = _key("", "Checkpoints in the object store, copied to load_path.")
    load_path: str = _key("", "Local folder of the copied checkpoints.", path=True)

    # Keys that a file or the command line gave, also where they gave the default.
    given: frozenset[str] = dataclasses.field(default=frozenset(), repr=False, compare=False)

    def __post_init__(self) -> None:
        for option in options().values():
            value = check(option, getattr(self, option.name), "configuration")
            object.__setattr__(self, option.name, value)
        for problem in contradictions(self):
            raise ConfigError(problem)

    @property
    def num_classes(self) -> int:
        """`class_num` as a number.

        Raises:
            ConfigError: It is `auto` still, which `covpool.build.resolve_class_num` turns into a number.
        """
        if self.class_num == "auto":
            raise ConfigError("class_num = auto: needs data or a checkpoint that says how many; give --class_num=N")
        return self.class_num

    def says(self, name: str) -> bool:
        """Whether somebody chose the value of a key: it was given, or is not the default."""
        return name in self.given or getattr(self, name) != options()[name].default

    def to_dict(self) -> dict[str, Any]:
        """Returns all keys with plain values (lists for tuples)."""
        values = ((name, getattr(self, name)) for name in options())
        return {name: plain(value) for name, value in values}

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Writes all keys as YAML; `load_config` reads an equal configuration from it.

        Raises:
            OSError: The file cannot be written; an earlier file of that name stays as it was.
        """
        write_yaml(path, self.to_dict())

    def replace(self, **changes: Any) -> Config:
        """Returns a checked copy with other values.

        Raises:
            ConfigError: Unknown key or invalid value.
        """
        for name in changes:
            find_option(name, "configuration")
        return dataclasses.replace(self, **changes)


@functools.lru_cache(maxsize=1)
def options() -> Mapping[str, Option]:
    """Returns every key, in the order of the sections."""
    hints = typing.get_type_hints(Config)
    table, section = {}, ""
    for item in dataclasses.fields(Config):
        if "help" in item.metadata:
            section = _SECTIONS.get(item.name, section)
            default = {} if item.default is dataclasses.MISSING else item.default
            table[item.name] = Option(item.name, *kind_of(hints[item.name]), default, section=section, **item.metadata)
    return types.MappingProxyType(table)


def find_option(name: str, where: str) -> Option:
    """Returns the key of that name.

    Raises:
        ConfigError: Unknown key; names `where` and the closest known key.
    """
    if name not in options():
        raise ConfigError(f"{where}: unknown key {show(name)} ({suggestion(name, options())})")
    return options()[name]

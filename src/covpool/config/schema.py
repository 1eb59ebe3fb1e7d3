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
from covpool.config.training_keys import TrainingKeys, key
from covpool.config.values import Option, check, kind_of, plain, show, suggestion
from covpool.config.yaml_file import write_yaml
from covpool.errors import ConfigError

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


@dataclass(frozen=True)
class Config(TrainingKeys):
    """A valid configuration. Construction checks every value; see `options` for the keys.

    Raises:
        ConfigError: A value is of the wrong type, out of range, or contradicts another one.
    """

    net_name: str = key("resnet18", "Network, by its name in the model registry.")
    pooling: str = key("dropcov", "Pooling before the classifier, by its name in the pooling registry.")
    pooling_args: Mapping[str, Any] = key(
        {}, "Arguments of the pooling, e.g. {iterations: 5}; on the command line also --pooling_args.NAME=VALUE."
    )
    reduction_dim: int = key(
        128, "Channels d that the 1x1 convolution leaves for a covariance pooling.", "1 <= x <= 4096"
    )
    class_num: Union[int, Literal["auto"]] = key(
        1000, "Number of classes; auto takes the data's, or the checkpoint's in eval and export.", "1 <= x <= 1000000"
    )
    in_channels: int = key(3, "Channels of the input images.", choices=(1, 3))
    stem: str = key(
        "imagenet",
        "First layers: imagenet (of a ResNet, 7x7 stride 2 and max-pooling) or small (stride 1, for 28 to 64 pixels).",
        choices=("imagenet", "small"),
    )
    base_width: int = key(64, "Channels of the first stage of a ResNet.", "1 <= x <= 4096")
    model_args: Mapping[str, Any] = key(
        {}, "Further arguments of the network, e.g. {depth: 4}; on the command line also --model_args.NAME=VALUE."
    )
    drop_rate: Optional[float] = key(
        None, "Dropout before the classifier; null for the network's own (0.2 of MobileNetV2, else 0).", "0 <= x < 1"
    )
    drop_path_rate: float = key(
        0.0, "Stochastic depth: how often the last block is left out, rising from 0 at the first.", "0 <= x < 1"
    )

    dataset: str = key(
        "image_folder",
        "Kind of data set; imagenet2012 is an image folder, mindrecord one that covpool pack packed.",
        choices=("image_folder", "imagenet2012", "mindrecord", "fashion_mnist", "cifar10"),
        aliases={"imagenet": "imagenet2012", "flower_photos": "image_folder"},
    )
    data_path: str = key("", "Root of the data set; an image folder holds train/ and val/.", path=True)
    image_list: str = key(
        "", "File that names the images of an image folder to use, from covpool check-data; empty for all.", path=True
    )
    val_fraction: float = key(0.0, "Part of train/ to evaluate on where there is no val/.", "0 <= x < 1")
    train_images: Optional[int] = key(
        None, "Train on this many images, drawn once and whatever the seed; null for all.", "x >= 1"
    )
    bad_images: str = key(
        "error",
        "Images that cannot be decoded: error stops at the first, by name; skip looks for them before the first epoch "
        "and leaves them out.",
        choices=("error", "skip"),
    )
    max_pixels: int = key(
        50_000_000,
        "Greatest width x height of an image file; a larger one counts as damaged, and no memory is taken for it.",
        "1 <= x <= 1000000000",
    )
    train_image_size: int = key(224, "Height and width of training images, in pixels.", "1 <= x <= 8192")
    eval_image_size: int = key(224, "Height and width of evaluation images, in pixels.", "1 <= x <= 8192")
    eval_crop_ratio: float = key(
        0.875, "Evaluation resizes the shorter side to eval_image_size / eval_crop_ratio.", "0.05 <= x <= 1"
    )
    augmentation: str = key(
        "imagenet",
        "Training images: imagenet (random resized crop, flip), small (pad 4, random crop, flip) or none (as "
        "evaluated).",
        choices=("imagenet", "small", "none"),
    )
    crop_scale: tuple[float, ...] = key(
        (0.08, 1.0), "Smallest and largest area of the random resized crop.", "0 < x <= 1", length=2
    )
    crop_ratio: tuple[float, ...] = key(
        (0.75, 1.3333333), "Smallest and largest aspect ratio of the random resized crop.", "x > 0", length=2
    )
    flip_probability: float = key(0.5, "Probability of a horizontal flip in training.", "0 <= x <= 1")
    vertical_flip: float = key(0.0, "Probability of a vertical flip in training.", "0 <= x <= 1")
    color_jitter: float = key(0.0, "Strength of random brightness, contrast and saturation; 0 for none.", "0 <= x <= 1")
    auto_augment: str = key(
        "", "Random operations on training images, as timm writes them: rand-m9-mstd0.5-inc1, trivial; empty for none."
    )
    random_erasing: float = key(0.0, "Probability of erasing a rectangle of a training image.", "0 <= x <= 1")
    erasing_mode: str = key(
        "pixel",
        "What random_erasing fills in: pixel (normal noise) or const (0, the mean).",
        choices=("pixel", "const"),
    )
    repeated_augmentation: int = key(
        1, "Times that an image is drawn, each time augmented anew; an epoch stays as long.", "1 <= x <= 64"
    )
    mixup: float = key(0.0, "Alpha of mixup; 0 for none.", "0 <= x <= 100")
    cutmix: float = key(0.0, "Alpha of CutMix; 0 for none.", "0 <= x <= 100")
    mix_probability: float = key(1.0, "Part of the batches that mixup and cutmix mix.", "0 <= x <= 1")
    mix_switch_probability: float = key(
        0.5, "Part of the mixed batches that cutmix takes, where both are on.", "0 <= x <= 1"
    )
    mix_off_epoch: int = key(0, "Epochs after which batches are mixed no more; 0 for never.", "x >= 0")
    mean: Optional[tuple[float, ...]] = key(None, "Mean per channel, of 0 to 1; null for the data set's own.")
    std: Optional[tuple[float, ...]] = key(
        None, "Standard deviation per channel; null for the data set's own.", "x > 0"
    )
    interpolation: str = key(
        "bilinear",
        "Interpolation of resized images; area and pilcubic smooth before they shrink.",
        choices=("bilinear", "bicubic", "nearest", "area", "pilcubic"),
    )
    num_workers: Optional[int] = key(
        None, "Parallel workers of the data pipeline per process; null to follow the cores.", "1 <= x <= 1024"
    )

    run_eval: bool = key(True, "Evaluate on val/ while training.")
    eval_interval: int = key(1, "Epochs between two evaluations.", "x >= 1")
    eval_start_epoch: int = key(0, "Epoch of the first evaluation.", "x >= 0")
    save_best_ckpt: bool = key(True, "Keep the checkpoint of the best evaluation.")
    save_checkpoint: bool = key(True, "Save checkpoints while training.")
    save_checkpoint_epochs: int = key(1, "Epochs between two checkpoints.", "x >= 1")
    save_checkpoint_steps: int = key(0, "Steps between two checkpoints within an epoch; 0 for none.", "x >= 0")
    keep_checkpoint_max: int = key(5, "Number of checkpoints kept besides the best one.", "x >= 1")
    pre_trained: str = key("", "Checkpoint to start from; another number of classes skips the classifier.", path=True)
    fine_tune: bool = key(False, "Warn of a training without pre_trained: the recipe is for given weights.")
    resume_ckpt: str = key("", "Checkpoint to resume from, or auto: the newest in output_path.", path=True)

    mode_name: str = key(
        "GRAPH",
        "Execution mode.",
        choices=("GRAPH", "PYNATIVE"),
        aliases={"graph_mode": "GRAPH", "pynative_mode": "PYNATIVE"},
    )
    device_target: str = key("CPU", "Kind of device.", choices=("CPU", "GPU", "Ascend"))
    device_id: int = key(0, "Device of a run that is not distributed.", "x >= 0")
    run_distribute: bool = key(False, "Train data-parallel over the ranks that mpirun or msrun started.")
    device_num: int = key(1, "Number of ranks.", "1 <= x <= 65536")
    rank_timeout: float = key(300.0, "Seconds until a silent rank counts as lost (mpirun on CPU).", "x > 0")
    enable_sink: bool = key(False, "Let the device fetch the data itself (dataset sink mode).")
    output_path: str = key("./outputs", "Run folder; everything that is written goes there.", path=True, filled=True)
    progress: str = key(
        "auto", "Progress: bar, plain lines, or auto for a bar on a terminal.", choices=("auto", "bar", "plain")
    )
    tensorboard: bool = key(False, "Write TensorBoard event files too (needs pip install tensorboardX).")
    debug: bool = key(False, "Show the traceback of an error.")

    checkpoint_file_path: str = key("", "Checkpoint to evaluate or to export.", path=True)
    split: str = key("val", "What eval evaluates on: val/, or an image folder's test/.", choices=("val", "test"))
    use_ema: bool = key(True, "Take the averaged weights of a checkpoint that has them (ema_decay).")
    result_path: str = key("", "JSON file for the result of an evaluation.", path=True)
    report_path: str = key("", "Folder for the confusion matrix and mistakes of an evaluation.", path=True)
    robustness: str = key(
        "none",
        "Robustness set in data_path to evaluate on instead of val/, see docs/measurements/robustness.md.",
        choices=("none", "imagenet_c", "imagenet_p", "imagenet_a", "stylized"),
    )
    class_names: str = key(
        "", "File with the network's classes, one a line; empty for the checkpoint's (robustness).", path=True
    )
    file_name: str = key("net", "Name of the exported file, without its ending.", path=True, filled=True)
    file_format: str = key("MINDIR", "Format of the exported file.", choices=("MINDIR", "ONNX"))
    height: Optional[int] = key(None, "Height of exported images; null for eval_image_size.", "1 <= x <= 8192")
    width: Optional[int] = key(None, "Width of exported images; null for eval_image_size.", "1 <= x <= 8192")

    enable_modelarts: bool = key(False, "Synchronise folders with the object store of ModelArts.")
    data_url: str = key("", "Data set in the object store, copied to data_path.")
    train_url: str = key("", "Folder in the object store that receives output_path at the end.")
    checkpoint_url: str = key("", "Checkpoints in the object store, copied to load_path.")
    load_path: str = key("", "Local folder of the copied checkpoints.", path=True)

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
    order = list(_SECTIONS.values())  # fields of the base class come first
    return types.MappingProxyType(dict(sorted(table.items(), key=lambda entry: order.index(entry[1].section))))


def find_option(name: str, where: str) -> Option:
    """Returns the key of that name.

    Raises:
        ConfigError: Unknown key; names `where` and the closest known key.
    """
    if name not in options():
        raise ConfigError(f"{where}: unknown key {show(name)} ({suggestion(name, options())})")
    return options()[name]

"""Values of a configuration that are valid alone, not together."""

from __future__ import annotations

import re
from typing import Any

from covpool.config.values import plain, show

# First epoch, counted from 0, at which (1 - (e - 1) / 52)^11 and (1 - (e - 1) / 49)^2 are 0, and the designed length.
_ZERO_FROM = {"lr_fast": (53, 30), "lr_adju": (50, 50)}
_MAX_SIDE = 16384  # pixels of an image that is resized before it is cropped: 768 MiB
_MAX_CLASSIFIER = 2**32  # weights: 16 GiB, and as much again for each of gradient and momentum
# What covpool.data.auto_augment understands of timm's strings.
_AUTO_AUGMENT = re.compile(
    r"|trivial|rand(?!.*-([a-z]+)\d.*-\1\d)"  # no part twice
    r"(-(m\d\d?|n[1-9]|p(0(\.\d+)?|1(\.0)?)|mstd\d{1,3}(\.\d+)?|mmax[1-9]\d?|inc[01]))*"
)


def contradictions(config: Any) -> list[str]:
    """Returns one line for each pair of keys of a `Config` that exclude each other."""
    found = []
    default = type(config)  # counts as left out: a run's own config.yaml, which repeats the run, gives every key
    if config.warmup_epochs + config.cooldown_epochs >= config.epoch_size > 1:
        cooldown = f" and cooldown_epochs = {config.cooldown_epochs}" if config.cooldown_epochs else ""
        found.append(
            f"warmup_epochs = {config.warmup_epochs}{cooldown}: must be below epoch_size = {config.epoch_size}"
            f"; give {'both' if cooldown else '--warmup_epochs'}, too"
        )
    if config.cooldown_epochs and config.lr_end == 0:
        found.append(f"cooldown_epochs = {config.cooldown_epochs}: needs lr_end above 0, the rate of these epochs")
    if config.cooldown_epochs and config.lr_decay_mode not in ("linear", "cosine", "one_cycle"):
        found.append(
            f"cooldown_epochs = {config.cooldown_epochs}: {config.lr_decay_mode} does not end at lr_end as linear, "
            "cosine and one_cycle do"
        )
    if config.warmup_epochs and config.lr_decay_mode == "one_cycle":
        found.append(f"warmup_epochs = {config.warmup_epochs}: lr_decay_mode = one_cycle has its own warm-up; give 0")
    if config.lr_base is not None and config.lr_max != default.lr_max:
        found.append(
            f"lr_base = {config.lr_base:g} and lr_max = {config.lr_max:g}: both say the highest rate; leave out "
            f"lr_base (null) or lr_max ({default.lr_max:g})"
        )
    if config.lr_epochs is not None and list(config.lr_epochs) != sorted(set(config.lr_epochs)):
        found.append(f"lr_epochs = {list(config.lr_epochs)}: must be increasing")
    zero_from, designed = _ZERO_FROM.get(config.lr_decay_mode, (0, 0))
    if zero_from and config.lr_family == "resnet" and (config.lr_designed_epochs or config.epoch_size) > zero_from:
        found.append(
            f"lr_decay_mode = {config.lr_decay_mode}: its rate is 0 from epoch {zero_from} on; lr_designed_epochs = "
            f"{designed} stretches its {designed} epochs to epoch_size = {config.epoch_size}"
        )
    if config.eval_image_size > _MAX_SIDE * config.eval_crop_ratio:
        found.append(
            f"eval_crop_ratio = {config.eval_crop_ratio:g}: eval_image_size / eval_crop_ratio = "
            f"{config.eval_image_size / config.eval_crop_ratio:g} pixels, must be at most {_MAX_SIDE}"
        )
    if not _AUTO_AUGMENT.fullmatch(config.auto_augment):
        found.append(
            f"auto_augment = {show(config.auto_augment)}: must be trivial, or rand and any of -m9 (0 to 99), "
            "-n2 (1 to 9), -p0.5 (0 to 1), -mstd0.5 (0 to 999), -mmax10 (1 to 99), -inc1 (0 or 1)"
        )
    if config.auto_augment and config.color_jitter:
        found.append(f"color_jitter = {config.color_jitter:g}: auto_augment changes the colours already")
    if config.pooling != "gap" and config.class_num != "auto":
        weights = config.reduction_dim * (config.reduction_dim + 1) // 2 * config.class_num
        if weights > _MAX_CLASSIFIER:
            found.append(
                f"reduction_dim = {config.reduction_dim} and class_num = {config.class_num}: the classifier alone "
                f"would hold {weights * 4 / 2**30:.0f} GiB"
            )
    for name in ("crop_scale", "crop_ratio"):
        low, high = getattr(config, name)
        if low > high:
            found.append(f"{name} = {[low, high]}: the first number must not be above the second")
    for name in ("mean", "std"):
        values = getattr(config, name)
        if values is not None and len(values) != config.in_channels:
            found.append(f"{name} = {list(values)}: must have in_channels = {config.in_channels} numbers")
    if config.nesterov and config.momentum == 0:
        found.append("nesterov = True: needs a momentum above 0")
    of_sgd = {"momentum": config.momentum != default.momentum, "nesterov": config.nesterov}
    without = {"adamw": of_sgd, "lamb": of_sgd, "lion": {**of_sgd, "eps": config.eps is not None}}
    of_others = {"betas": config.betas is not None, "eps": config.eps is not None}
    for key in [key for key, given in without.get(config.optimizer, of_others).items() if given]:
        found.append(f"{key} = {plain(getattr(config, key))}: optimizer = {config.optimizer} has none")
    without_effect = {
        "distillation": config.distillation != default.distillation and not config.teacher,
        "distillation_alpha": config.distillation_alpha != default.distillation_alpha and not config.teacher,
        "clip_mode": config.clip_mode != default.clip_mode and config.clip_grad is None,
        "focal_gamma": config.focal_gamma != default.focal_gamma and config.loss != "focal",
    }
    needed = {"clip_mode": "clip_grad", "focal_gamma": "loss = focal"}
    for key in [key for key, idle in without_effect.items() if idle]:
        found.append(f"{key} = {plain(getattr(config, key))}: has no effect without {needed.get(key, 'teacher')}")
    if config.cpu_kernels == "compiled" and (config.device_target != "CPU" or config.amp_level != "O0"):
        found.append("cpu_kernels = compiled: needs device_target = CPU and amp_level = O0")
    if config.recompute and (config.mode_name != "GRAPH" or config.cpu_kernels == "compiled"):
        found.append("recompute = True: needs mode_name = GRAPH and not cpu_kernels = compiled")
    if config.accumulate_steps > 1 and (config.amp_level != "O0" or config.enable_sink):
        key = "enable_sink = True" if config.enable_sink else f"amp_level = {config.amp_level}"
        found.append(f"accumulate_steps = {config.accumulate_steps}: not with {key}")
    weights, classes = config.class_weights, config.class_num
    if weights is not None and classes != "auto" and len(weights) != classes:
        found.append(f"class_weights: {len(weights)} numbers for class_num = {classes} classes")
    if weights is not None and not any(weights):
        found.append("class_weights: all are 0")
    if config.robustness != "none" and (config.report_path or config.split != "val"):
        key = "report_path" if config.report_path else "split"
        found.append(f"{key} = {getattr(config, key)}: not for robustness sets (robustness = {config.robustness})")
    if config.enable_modelarts and not (config.data_url or config.train_url or config.checkpoint_url):
        found.append("enable_modelarts = True: needs data_url, train_url or checkpoint_url")
    return found

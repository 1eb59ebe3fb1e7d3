"""Values that are valid alone, but not together."""

from __future__ import annotations

import typing

if typing.TYPE_CHECKING:
    from covpool.config.schema import Config


def contradictions(config: Config) -> list[str]:
    """Returns one line for each pair of keys that exclude each other."""
    found = []
    if config.warmup_epochs >= config.epoch_size:
        found.append(f"warmup_epochs = {config.warmup_epochs}: must be below epoch_size = {config.epoch_size}")
    if config.lr_epochs is not None and list(config.lr_epochs) != sorted(set(config.lr_epochs)):
        found.append(f"lr_epochs = {list(config.lr_epochs)}: must be increasing")
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
    if config.cpu_kernels != "mindspore" and (config.device_target != "CPU" or config.amp_level != "O0"):
        found.append(f"cpu_kernels = {config.cpu_kernels}: needs device_target = CPU and amp_level = O0")
    if config.device_num > 1 and not config.run_distribute:
        found.append(f"device_num = {config.device_num}: needs run_distribute = True")
    if config.enable_modelarts and not (config.data_url or config.train_url or config.checkpoint_url):
        found.append("enable_modelarts = True: needs data_url, train_url or checkpoint_url")
    return found

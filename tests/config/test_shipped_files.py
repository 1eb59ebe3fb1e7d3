"""The files of config/: each loads, and opens with what a user needs to know."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from covpool.config import load_config
from covpool.config.reference import render
from covpool.config.schema import options
from covpool.training.recipe import rate_factor, recipe_rates

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "config").glob("*.yaml"))
BASES = sorted((ROOT / "src" / "covpool" / "config" / "base").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES + BASES, ids=lambda path: path.name)
def test_every_file_loads(path, caplog):
    load_config(path)
    assert not caplog.records


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_opens_with_paper_launch_devices_and_accuracy(path):
    text = path.read_text(encoding="utf-8")
    opening = text[: text.index("base: ")]
    for word in ("# Paper: ", "# Launch: ", "# Devices: ", "# Expected: ", f"config/{path.name}"):
        assert word in opening
    assert "reported" in opening
    assert "reproduced" in opening
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize("pooling", ["dropcov", "fast_mpn", "gcp", "gap"])
def test_imagenet_files_follow_the_ports_recipe(depth, pooling):
    part = "" if pooling == "dropcov" else f"{pooling}_"
    config = load_config(ROOT / "config" / f"resnet{depth}_{part}imagenet2012_config.yaml")
    assert (config.net_name, config.pooling, config.reduction_dim) == (f"resnet{depth}", pooling, 128)
    assert (config.batch_size, config.epoch_size, config.class_num) == (64, 100, 1000)
    assert (config.momentum, config.weight_decay, config.loss_scale) == (0.9, 1e-4, 1024.0)
    assert (config.lr_max, config.use_label_smooth, config.label_smooth_factor) == (0.1, True, 0.1)


@pytest.mark.parametrize("depth", [18, 34, 50])
@pytest.mark.parametrize(("schedule", "epochs"), [("lr_norm", 100), ("lr_fast", 30), ("lr_adju", 50)])
def test_cvpr2020_files_have_their_schedules(depth, schedule, epochs):
    config = load_config(ROOT / "config" / f"resnet{depth}_cvpr2020_{schedule}_imagenet2012_config.yaml")
    assert (config.lr_decay_mode, config.epoch_size, config.lr_max) == (schedule, epochs, 0.1)
    assert (config.pooling, config.reduction_dim, config.use_label_smooth) == ("fast_mpn", 256, False)


@pytest.mark.parametrize(
    ("schedule", "epochs", "batch", "rate", "shuffle_epochs"),
    [("lr_norm", 400, 96, 0.045, 240), ("lr_fast", 100, 96, 0.06, 60), ("lr_adju", 150, 192, 0.06, 100)],
)
def test_cvpr2020_files_of_light_networks(schedule, epochs, batch, rate, shuffle_epochs):
    mobile, shuffle = (
        load_config(ROOT / "config" / f"{name}_cvpr2020_{schedule}_imagenet2012_config.yaml")
        for name in ("mobilenet_v2", "shufflenet_v2_x1_0")
    )
    assert (mobile.net_name, mobile.batch_size, mobile.epoch_size, mobile.lr_max) == (
        "mobilenet_v2_100",
        batch,
        epochs,
        rate,
    )
    assert (mobile.lr_decay_mode, mobile.lr_family) == (schedule, "mobilenetv2")
    assert (shuffle.net_name, shuffle.batch_size, shuffle.epoch_size) == ("shufflenet_v2_x1_0", 256, shuffle_epochs)
    assert (shuffle.lr_decay_mode, shuffle.lr_max, shuffle.lr_end, shuffle.warmup_epochs) == ("linear", 0.5, 0.0, 0)
    assert (mobile.color_jitter, shuffle.color_jitter) == (0.0, 0.4)
    for config in (mobile, shuffle):
        assert (config.pooling, config.reduction_dim, config.use_label_smooth) == ("fast_mpn", 256, False)
        assert (config.weight_decay, config.decay_all, config.momentum) == (4e-5, True, 0.9)


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10"])
def test_small_image_files_differ_in_the_pooling_only(dataset):
    paths = sorted((ROOT / "config").glob(f"resnet18_*{dataset}_config.yaml"))
    configs = [load_config(path) for path in paths]
    assert {config.pooling for config in configs} == {"dropcov", "fast_mpn", "gcp", "gap"}
    assert len({repr(config.replace(pooling="gap")) for config in configs}) == 1
    assert configs[0].use_label_smooth == (dataset != "cifar10")  # the ports smooth no labels of CIFAR-10


def test_the_reference_is_in_sync_with_the_schema():
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == render()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_trial_of_one_epoch_needs_no_other_change(path):
    """A warm-up or milestones of the whole training would leave one epoch without a rate, or be refused."""
    rates = recipe_rates(load_config(path, ["--epoch_size=1"]), 20, 256)
    assert rates.shape == (20,) and np.isfinite(rates).all()
    whole = load_config(path)
    assert rates[0] > 0 and 0.05 < rates.max() / (rate_factor(whole) * whole.lr_max) < 1.5


def test_every_key_is_read_by_the_program():
    folder = ROOT / "src" / "covpool"
    sources = [path.read_text(encoding="utf-8") for path in folder.rglob("*.py") if "config" not in path.parts]
    sources += [(folder / "config" / name).read_text(encoding="utf-8") for name in ("command_line.py", "modelarts.py")]
    read = set(re.findall(r'config\.(\w+)|"(\w+)"', "\n".join(sources)))
    assert set(options()) - {name for pair in read for name in pair} == set()

"""Values of single keys: types, ranges, choices."""

from __future__ import annotations

import math

import pytest

from covpool.config import load_config
from covpool.config.schema import Config, options
from covpool.config.values import check, closest, resolve
from covpool.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("True", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("TRUE", "TRUE"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("nan", "nan"),
        ("٣", "٣"),
    ],
)
def test_resolve_reads_plain_scalars(text, value):
    result = resolve(text)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("lr_init", 0, 0.0),
        ("loss_scale", 1024, 1024.0),
        ("optimizer", "Momentum", "momentum"),
        ("optimizer", "SGD", "sgd"),
        ("mode_name", "PYNATIVE_MODE", "PYNATIVE"),
        ("mode_name", "graph", "GRAPH"),
        ("device_target", "ascend", "Ascend"),
        ("lr_decay_mode", "LRnorm", "lr_norm"),
        ("dataset", "imagenet", "imagenet2012"),
        ("class_num", "Auto", "auto"),
        ("data_path", "a/~/", "a/~/"),
        ("lr_epochs", [30, 60], (30, 60)),
        ("lr_epochs", [], ()),
        ("lr_epochs", None, None),
        ("mean", None, None),
        ("mean", [0, 0.5, 1], (0.0, 0.5, 1.0)),
        ("pooling_args", {"gates": ("a", [1])}, {"gates": ["a", [1]]}),
    ],
)
def test_check_converts_to_the_type_of_the_key(key, given, expected):
    result = check(options()[key], given, "here")
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("key", "given", "allowed"),
    [
        ("batch_size", 0, "1 <= batch_size <= 65536"),
        ("batch_size", 64.0, "an integer"),
        ("batch_size", True, "an integer"),
        ("batch_size", 2**32, "1 <= batch_size <= 65536"),
        ("train_images", 2**32, "train_images >= 1, or null, at most 4294967295"),
        ("train_image_size", 10**9, "<= 8192"),
        ("eval_image_size", 10**9, "<= 8192"),
        ("height", 10**9, "<= 8192"),
        ("eval_crop_ratio", 1e-30, "0.05 <= eval_crop_ratio <= 1"),
        ("reduction_dim", 100_000, "1 <= reduction_dim <= 4096"),
        ("base_width", 10**6, "<= 4096"),
        ("class_num", 10**9, "1 <= class_num <= 1000000, or auto"),
        ("class_num", "some", "or auto"),
        ("epoch_size", 10**9, "<= 100000"),
        ("num_workers", 10**6, "<= 1024"),
        ("lr_max", 1e39, "<= 1e38"),
        ("loss_scale", 1e39, "<= 1e38"),
        ("output_path", "", "a string that is not empty"),
        ("output_path", "run-\udcff", "UTF-8"),
        ("pooling_args", {"a": "\udcff"}, "a mapping"),
        ("momentum", 1.0, "0 <= momentum < 1"),
        ("momentum", math.nan, "a number"),
        ("weight_decay", math.inf, "a number"),
        ("weight_decay", 10**400, "a number"),
        ("run_eval", "True", "True or False, without quotes"),
        ("run_eval", 1, "True or False"),
        ("batch_size", "64", "without quotes"),
        ("net_name", 5, "a string"),
        ("net_name", None, "a string"),
        ("data_path", "a\0b", "a string"),
        ("lr_epochs", [30, 0], "list of integers with x >= 1"),
        ("lr_epochs", 30, "a list of integers"),
        ("crop_scale", [0.1], "a list of 2 numbers"),
        ("in_channels", 2, "one of 1, 3"),
        ("file_format", "AIR", "one of MINDIR, ONNX"),
        ("lr_decay_mode", "linaer", "closest: linear"),
        ("num_workers", 0, "or null"),
        ("pooling_args", [1], "a mapping"),
        ("pooling_args", {"a b": 1}, "a mapping"),
        ("pooling_args", {"a": {"b": 1}}, "a mapping"),
    ],
)
def test_check_names_key_value_place_and_what_is_allowed(key, given, allowed):
    with pytest.raises(ConfigError) as caught:
        check(options()[key], given, "file.yaml:7")
    message = str(caught.value)
    assert message.startswith(f"file.yaml:7: {key} = ")
    assert allowed in message
    assert "\n" not in message


def test_a_leading_tilde_is_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    paths = [name for name, option in options().items() if option.path]
    assert {"output_path", "data_path", "checkpoint_file_path", "result_path", "resume_ckpt"} <= set(paths)
    for name in paths:
        assert getattr(Config(**{name: "~/x/"}), name) == "/home/someone/x/"
    assert Config(net_name="~").net_name == "~"


def test_long_values_are_shortened():
    with pytest.raises(ConfigError) as caught:
        check(options()["mode_name"], "x" * 10_000, "here")
    assert len(str(caught.value)) < 300


def test_every_default_is_valid_and_described():
    for option in options().values():
        assert check(option, option.default, "here") == option.default
        assert option.help.endswith(".")
    assert Config() == Config()


def test_closest_always_answers():
    assert closest("batchsize", options()) == "batch_size"
    assert closest("", options()) in options()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"warmup_epochs": 5, "epoch_size": 5}, ["warmup_epochs = 5", "epoch_size = 5"]),
        ({"lr_epochs": (60, 30)}, ["lr_epochs", "increasing"]),
        ({"crop_scale": (1.0, 0.1)}, ["crop_scale"]),
        ({"mean": (0.5,)}, ["mean", "in_channels = 3"]),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, ["std", "in_channels = 3"]),
        ({"nesterov": True, "momentum": 0}, ["nesterov", "momentum"]),
        ({"class_weights": (1.0, 2.0), "class_num": 3}, ["class_weights: 2 numbers", "class_num = 3"]),
        ({"class_weights": (0.0, 0.0), "class_num": 2}, ["class_weights: all are 0"]),
        ({"warmup_epochs": 3, "cooldown_epochs": 2, "epoch_size": 5, "lr_end": 0.1}, ["cooldown_epochs = 2", "below"]),
        ({"cooldown_epochs": 2}, ["cooldown_epochs = 2", "lr_end above 0"]),
        (
            {"cooldown_epochs": 2, "lr_end": 0.01, "lr_decay_mode": "poly"},
            ["poly does not end at lr_end"],
        ),
        ({"distillation": "hard"}, ["distillation = hard: has no effect without teacher"]),
        ({"clip_mode": "value"}, ["clip_mode = value: has no effect without clip_grad"]),
        ({"focal_gamma": 1.0}, ["focal_gamma = 1.0: has no effect without loss = focal"]),
        ({"lr_decay_mode": "one_cycle", "warmup_epochs": 5}, ["warmup_epochs = 5", "its own warm-up"]),
        ({"lr_base": 0.1, "lr_max": 0.2}, ["lr_base = 0.1", "lr_max = 0.2", "(0.1)"]),
        ({"betas": (0.9, 0.99)}, ["betas = [0.9, 0.99]", "optimizer = momentum has none"]),
        ({"optimizer": "sgd", "eps": 1e-6}, ["eps = 1e-06", "optimizer = sgd has none"]),
        ({"optimizer": "lion", "eps": 1e-6}, ["eps", "optimizer = lion has none"]),
        ({"optimizer": "lamb", "nesterov": True}, ["nesterov = True", "optimizer = lamb has none"]),
        ({"optimizer": "adamw", "momentum": 0.8}, ["momentum = 0.8", "optimizer = adamw has none"]),
        ({"cpu_kernels": "compiled", "device_target": "GPU"}, ["cpu_kernels", "device_target = CPU"]),
        ({"cpu_kernels": "compiled", "amp_level": "O1"}, ["cpu_kernels", "amp_level = O0"]),
        ({"recompute": True, "mode_name": "PYNATIVE"}, ["recompute = True", "mode_name = GRAPH"]),
        ({"recompute": True, "cpu_kernels": "compiled"}, ["recompute = True", "not cpu_kernels = compiled"]),
        ({"eval_image_size": 8000, "eval_crop_ratio": 0.1}, ["eval_crop_ratio", "80000 pixels", "at most 16384"]),
        ({"reduction_dim": 4096, "class_num": 20_000}, ["reduction_dim = 4096", "class_num = 20000", "625 GiB"]),
        ({"auto_augment": "rand-m9-x3"}, ["auto_augment = 'rand-m9-x3'", "trivial, or rand", "-mstd0.5"]),
        ({"auto_augment": "trivial", "color_jitter": 0.4}, ["color_jitter = 0.4", "auto_augment"]),
        ({"enable_modelarts": True}, ["data_url", "train_url"]),
        ({"batch_sise": 2}, ["batch_sise", "closest: batch_size"]),
        ({"batch_size": "2"}, ["batch_size", "an integer"]),
    ],
)
def test_replace_checks_values_and_combinations(changes, words):
    with pytest.raises(ConfigError) as caught:
        Config().replace(**changes)
    assert all(word in str(caught.value) for word in words)


def test_a_default_contradicts_nothing(tmp_path):
    """Shipped files give `momentum` and `lr_max`, a run's own config.yaml every key."""
    config = Config(optimizer="adamw", betas=(0.9, 0.95), lr_base=5e-4)
    config.dump(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_configuration_is_immutable_and_replace_makes_a_new_one():
    config = Config()
    with pytest.raises(AttributeError):
        config.batch_size = 2
    assert config.replace(batch_size=2).batch_size == 2
    assert config.batch_size == 64
    config.replace(pooling_args={"a": 1})
    assert Config().pooling_args == {}

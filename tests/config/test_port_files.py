"""YAML files as the papers' MindSpore ports have them (those of MindSpore's model zoo), unmodified.

The files are put together here from their keys: one list that all have, and what each has besides or otherwise.
"""

from __future__ import annotations

import logging

import pytest
import yaml

from covpool.config import Config, ConfigError, load_config
from covpool.config.command_line import Program, parse_args

COMMON = """\
enable_modelarts: False
data_url: ""
train_url: ""
checkpoint_url: ""
run_distribute: False
enable_profiling: False
data_path: "/cache/data"
output_dir: "../outputs"
load_path: "/cache/checkpoint_path/"
device_target: "Ascend"
checkpoint_path: "./checkpoint/"
checkpoint_file_path: ""
optimizer: "Momentum"
infer_label: ""
batch_size: 32
epoch_size: 90
start_epoch: 0
resume_ckpt: ""
mode_name: "GRAPH"
boost_mode: "O0"
conv_init: "XavierUniform"
dense_init: "TruncatedNormal"
train_image_size: 224
eval_image_size: 224
device_id: 0
width: 224
height: 224
file_name: "resnet"
file_format: "MINDIR"
ckpt_file: ""
network_dataset: "resnet_imagenet2012"
save_graphs: False
save_graphs_path: "./graphs"
has_trained_epoch: 0
has_trained_step: 0
result_path: ''
label_path: ''
"""
HELPS = """
---
enable_modelarts: "Whether training on modelarts, default: False"
device_target: "Target device type, available: [Ascend, GPU, CPU]"
num_classes: "Class for dataset"
checkpoint_path: "The location of the checkpoint file."
save_graphs: "Whether save graphs during training, default: False."
img_path: "image file path."
"""
TRAINING = {
    "class_num": 1001,
    "loss_scale": 1024,
    "momentum": 0.9,
    "weight_decay": 0.0001,
    "save_checkpoint": True,
    "save_checkpoint_epochs": 5,
    "keep_checkpoint_max": 10,
    "warmup_epochs": 2,
    "lr_decay_mode": "linear",
    "use_label_smooth": True,
    "label_smooth_factor": 0.1,
    "lr_init": 0,
    "lr_max": 0.8,
    "lr_end": 0.0,
    "lars_epsilon": 0.0,
    "lars_coefficient": 0.001,
    "dataset": "imagenet2012",
    "device_num": 1,
    "pre_trained": "",
    "run_eval": False,
    "eval_dataset_path": "",
    "parameter_server": False,
    "filter_weight": False,
    "save_best_ckpt": True,
    "eval_start_epoch": 40,
    "eval_interval": 1,
    "enable_cache": False,
    "cache_session_id": "",
    "all_reduce_fusion_config": [85, 160],
}
CIFAR = {
    **{k: v for k, v in TRAINING.items() if "label_smooth" not in k},
    **{"dataset": "cifar10", "class_num": 10, "warmup_epochs": 5, "lr_decay_mode": "poly", "lr_init": 0.01},
    **{"lr_end": 0.00001, "lr_max": 0.1},
}
LITE = {
    "img_path": "",
    "enable_predict_lite_backend": False,
    "enable_predict_lite_mindir": False,
    "lite_context_config": {"target": "gpu", "device_id": 0, "precision_mode": "preferred_fp16"},
}
COSINE_OF_RESNET101 = {k: v for k, v in TRAINING.items() if k not in ("lr_init", "lr_max", "lr_end")}
FILES = {
    **{f"resnet{n}_imagenet2012": {**TRAINING, **LITE, "net_name": f"resnet{n}"} for n in (18, 34, 50)},
    "resnet18_imagenet2012_gpu": {**TRAINING, "net_name": "resnet18", "device_num": 4, "mode_name": "PYNATIVE_MODE"},
    "resnet50_cosine": {**TRAINING, "net_name": "resnet50", "lr_decay_mode": "cosine", "save_checkpoint_path": "./"},
    "resnet101_imagenet2012": {**COSINE_OF_RESNET101, "net_name": "resnet101", "lr_decay_mode": "cosine", "lr": 0.1},
    "resnet152_imagenet2012": {
        **{**TRAINING, "net_name": "resnet152", "lr_decay_mode": "step", "lr_max": 0.1, "lr_end": 0.0001},
        **{"save_checkpoint_path": "./", "epoch_size": 140},
    },
    **{f"resnet{n}_cifar10": {**CIFAR, "net_name": f"resnet{n}"} for n in (18, 34, 50, 152)},
    "resnet34_cpu": {**CIFAR, **LITE, "net_name": "resnet34", "dataset": "flower_photos", "learning_rate": 0.001},
    "resnet_benchmark_gpu": {"print_per_steps": 20, "eval": False, "save_ckpt": False, "dtype": "fp16"},
}


@pytest.fixture
def write(tmp_path):
    def write(changes, text=""):
        values = {**yaml.safe_load(COMMON), **changes}
        path = tmp_path / "port.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False) + text + HELPS, encoding="utf-8")
        return path

    return write


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_ports_load_unmodified(write, name):
    config = load_config(write(FILES[name]))
    assert config.pooling == "dropcov" and config.output_path == "../outputs"
    assert config.lr_max == FILES[name].get("lr", FILES[name].get("lr_max", 0.1))
    assert config.use_label_smooth == ("use_label_smooth" in FILES[name])
    assert config.dataset == {"flower_photos": "image_folder"}.get(*[FILES[name].get("dataset", "image_folder")] * 2)


@pytest.mark.parametrize("name", [*(f"resnet{n}_imagenet2012" for n in (18, 34, 50)), "resnet18_imagenet2012_gpu"])
def test_the_ports_command_lines_run_word_for_word(write, name):
    path = write(FILES[name])
    training = [f"--config_path={path}", "--run_distribute=True", "--device_num=4", "--device_target=CPU"]
    config = parse_args([*training, "--data_path=./imagenet", "--output_path", "./output"], Program("Train."))
    assert (config.run_distribute, config.device_num, config.output_path) == (True, 4, "./output")
    evaluation = ["--data_path=./imagenet", "--checkpoint_file_path=net.ckpt", "--device_target=CPU"]
    config = parse_args([*evaluation, f"--config_path={path}"], Program("Evaluate."))
    assert (config.run_distribute, config.checkpoint_file_path, config.class_num) == (False, "net.ckpt", 1001)


def test_what_a_port_file_leaves_open_is_told_in_one_line(write, caplog):
    load_config(write({**CIFAR, "lr_decay_mode": "cosine", "device_num": 4}))
    assumed, ignored = lines_of(caplog)[1:]
    assert (
        "assumed: pooling = dropcov (--pooling=fast_mpn for a file of the TPAMI port); use_label_smooth = False"
        in assumed
    )
    assert "--lr_decay_mode=port_cosine" in assumed
    assert ignored.endswith("port.yaml: device_num = 4 is ignored: not distributed")
    caplog.clear()
    overrides = ["--pooling=fast_mpn", "--use_label_smooth=True", "--lr_decay_mode=cosine", "--device_num=1"]
    assert load_config(write({**CIFAR, "lr_decay_mode": "cosine", "device_num": 4}), overrides).use_label_smooth
    (legacy,) = lines_of(caplog)
    assert "legacy keys" in legacy


def test_a_file_of_this_project_is_not_taken_for_one_of_the_ports(write, tmp_path, caplog):
    write(FILES["resnet18_cifar10"])
    own = tmp_path / "own.yaml"
    own.write_text("base: port.yaml\nboost_mode: O0\n")
    assert load_config(own).use_label_smooth
    assert not any("assumed" in line for line in lines_of(caplog))


@pytest.mark.parametrize(
    ("changes", "override", "message"),
    [
        ({"optimizer": "LARS"}, "--optimizer=momentum", "optimizer = 'LARS': must be one of sgd, momentum"),
        ({"optimizer": "Thor", "frequency": 834}, "--optimizer=sgd", "optimizer = 'Thor'"),
        ({"dataset": "coco"}, "--dataset=cifar10", "dataset = 'coco'"),
        ({"warmup_epochs": 90}, "--epoch_size=91", "warmup_epochs = 90: must be below epoch_size = 90"),
    ],
)
def test_a_value_that_the_command_line_replaces_is_not_judged(write, changes, override, message):
    path = write({**TRAINING, **changes})
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    assert isinstance(load_config(path, [override]), Config)


def test_a_key_given_twice_needs_equal_values(write):
    assert load_config(write(TRAINING, "momentum: 0.9\n")).momentum == 0.9
    path = write(TRAINING, "momentum: 0.8\n")
    lines = path.read_text().splitlines()
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    first, second = (lines.index(f"momentum: {value}") + 1 for value in (0.9, 0.8))
    assert f"port.yaml:{second}: key 'momentum' is given twice: 0.8 here, 0.9 in line {first}" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--learning_rate=0.05", "learning_rate is a key .* without effect here: the key that counts is lr_max"),
        ("--save_checkpoint_path=x", "the key that counts is output_path"),
        ("--parameter_server=False", "parameter_server is a key .*: leave it out"),
        ("--device_num=4", "device_num = 4: needs run_distribute = True"),
    ],
)
def test_a_key_without_effect_on_the_command_line_is_an_error(write, override, message, caplog):
    with caplog.at_level(logging.WARNING), pytest.raises(ConfigError, match=f"^command line: .*{message}"):
        load_config(write({}), [override])
    assert load_config(write({}), ["--lr=0.05"]).lr_max == 0.05

"""What a checkpoint knows counts in its evaluation: network, image transform, classes; and where results go."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from covpool.build import architecture, build_model, build_source, description
from covpool.checkpoints.format import load_network, read_checkpoint, save_checkpoint
from covpool.config import Config
from covpool.config.command_line import Program, parse_args
from covpool.errors import ConfigError, UserError
from covpool.evaluation.run import evaluate_checkpoint
from covpool.runtime.distributed import World

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "fashion_mnist_sample"
NETWORK = {"net_name": "resnet10", "base_width": 4, "pooling": "gcp", "reduction_dim": 8, "stem": "small"}
TRAINED = {"eval_image_size": 24, "eval_crop_ratio": 0.8, "interpolation": "bicubic", "mean": (0.1, 0.2, 0.3)}

pytestmark = pytest.mark.usefixtures("graph_mode")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images a class."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        for folder in sorted((SAMPLE / "val").iterdir()):
            (root / split / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir())[:2]:
                (root / split / folder.name / file.name).symlink_to(file)
    return root


@pytest.fixture(scope="module")
def config(data: Path) -> Config:
    """What the network was trained with, nothing of it by default."""
    return Config(**NETWORK, **TRAINED, std=(0.5,) * 3, class_num=10, data_path=str(data), progress="plain")


@pytest.fixture(scope="module")
def checkpoint(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that has learned nothing, and says what it is."""
    ms.set_seed(3)
    path = tmp_path_factory.mktemp("checkpoint") / "net.ckpt"
    save_checkpoint(path, build_model(config), about=description(config, build_source(config, "val", World())))
    return path


@pytest.fixture(scope="module")
def expected(config: Config, checkpoint: Path) -> dict[str, Any]:
    """The result when everything is given."""
    ms.set_context(mode=ms.GRAPH_MODE)
    return evaluate_checkpoint(config.replace(checkpoint_file_path=str(checkpoint)), World())


def saved_as(path: Path, checkpoint: Path, config: Config, **about: Any) -> Path:
    """The same network in a file that says something else of itself."""
    network = build_model(config)
    load_network(network, read_checkpoint(checkpoint))
    save_checkpoint(path, network, about=about)
    return path


def evaluate(data: Path, checkpoint: Path, *options: str) -> dict[str, Any]:
    argv = [f"--data_path={data}", f"--checkpoint_file_path={checkpoint}", "--progress=plain", *options]
    return evaluate_checkpoint(parse_args(argv, Program("", config_optional=True)), World())


def test_no_configuration_is_needed(data: Path, checkpoint: Path, expected: dict[str, Any], config: Config) -> None:
    found = evaluate(data, checkpoint)
    for key in ("top_1_accuracy", "loss", "per_class", "num_samples", "architecture", "transform"):
        assert found[key] == expected[key]
    assert found["transform"]["mean"] == [0.1, 0.2, 0.3] and found["transform"]["height"] == 24
    assert evaluate(data, checkpoint, "--mean=null", "--class_num=auto")["loss"] == expected["loss"]


def test_a_report_shows_what_is_confused(
    data: Path, checkpoint: Path, expected: dict[str, Any], tmp_path: Path
) -> None:
    found = evaluate(data, checkpoint, f"--report_path={tmp_path / 'a' / 'report'}")
    assert found["confusion_matrix"] == expected["confusion_matrix"] and found["mistakes"] == expected["mistakes"]
    report = tmp_path / "a" / "report"
    assert {p.name for p in report.iterdir()} == {"confusion_matrix.csv", "confusion_matrix.png", "mistakes.png"}
    rows = [line.split(",") for line in (report / "confusion_matrix.csv").read_text().splitlines()]
    assert rows[0] == ["true class", *found["classes"]] and [row[0] for row in rows[1:]] == found["classes"]
    assert [[int(n) for n in row[1:]] for row in rows[1:]] == found["confusion_matrix"]
    hits = {name: row[i] / sum(row) for i, (name, row) in enumerate(zip(found["classes"], found["confusion_matrix"]))}
    assert hits == {name: entry["top_1_accuracy"] for name, entry in found["per_class"].items()}
    assert len(found["mistakes"]) == 10 and all(Path(m["image"]).parent.name == m["class"] for m in found["mistakes"])
    for name in ("confusion_matrix.png", "mistakes.png"):
        with Image.open(report / name) as picture:
            assert picture.size[0] > 600


def test_the_images_of_test_are_evaluated(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / name).symlink_to(data / name)
    (tmp_path / "test" / "bag").mkdir(parents=True)
    for file in (data / "val" / "bag").iterdir():
        (tmp_path / "test" / "bag" / file.name).symlink_to(file)
    found = evaluate(tmp_path, checkpoint, "--split=test")
    assert found["num_samples"] == 2 and list(found["per_class"]) == ["bag"] and len(found["classes"]) == 10
    with pytest.raises(UserError, match=r"no folder .*test"):
        evaluate(data, checkpoint, "--split=test")


def test_a_given_transform_counts_and_the_contradiction_is_named(
    data: Path, checkpoint: Path, expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    other = evaluate(data, checkpoint, "--mean=[0.1,0.2,0.3]", "--eval_crop_ratio=0.875")
    assert other["loss"] != expected["loss"] and other["transform"]["crop_ratio"] == 0.875
    (record,) = caplog.records
    difference = "eval_crop_ratio is 0.8 in the checkpoint and 0.875 in the configuration"
    assert record.getMessage() == f"{checkpoint}: {difference}: the configuration holds"


def test_a_checkpoint_that_knows_mean_and_std_alone(
    data: Path, checkpoint: Path, expected: dict[str, Any], config: Config, tmp_path: Path
) -> None:
    known = {"architecture": architecture(config), "mean": list(config.mean or ()), "std": [0.5] * 3}
    old = saved_as(tmp_path / "old.ckpt", checkpoint, config, **known)
    given = [f"--{key}={TRAINED[key]}" for key in ("eval_image_size", "eval_crop_ratio", "interpolation")]
    assert evaluate(data, old, *given)["loss"] == expected["loss"]


def test_the_network_is_what_the_checkpoint_says_or_one_line(
    data: Path, checkpoint: Path, config: Config, tmp_path: Path
) -> None:
    for option, said in (
        ("--pooling=dropcov", "pooling is 'gcp' in the checkpoint and 'dropcov'"),
        ("--class_num=3", "3"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(data, checkpoint, option)
    nameless = saved_as(tmp_path / "nameless.ckpt", checkpoint, config)
    with pytest.raises(UserError, match=r"nameless\.ckpt does not say which network it holds: give --config_path=FILE"):
        evaluate(data, nameless)
    for said in ({"architecture": ["resnet"]}, {"transform": {"height": 1}, "architecture": architecture(config)}):
        damaged = saved_as(tmp_path / "damaged.ckpt", checkpoint, config, **said)
        with pytest.raises(UserError, match=r"damaged\.ckpt: damaged, "):
            evaluate(data, damaged)


def test_other_classes_are_named(data: Path, checkpoint: Path, config: Config, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "more" / split).mkdir(parents=True)
        for number, folder in enumerate([*sorted((data / split).iterdir()), data / split / "bag"]):
            (tmp_path / "more" / split / (folder.name if number < 10 else "zebra")).symlink_to(folder)
    advice = (
        r"\. Give a data set whose train/ .* \(ankle_boot, .*\); or train on this one, .*: --pre_trained=.*net\.ckpt$"
    )
    with pytest.raises(UserError, match=f"'zebra' is not among the 10 classes it was trained on{advice}"):
        evaluate(tmp_path / "more", checkpoint)
    nameless = saved_as(tmp_path / "nameless.ckpt", checkpoint, config, architecture=architecture(config))
    with pytest.raises(UserError, match="it has 10 outputs, the data has 11 classes"):
        evaluate(tmp_path / "more", nameless)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("fc.bias", np.inf, "20 of 20 .* logits, first .*png; 1 parameters .* are NaN or infinite, first fc.bias"),
        ("bn1.moving_mean", -1e38, r"20 of 20 .*; every parameter is finite, the largest .* is 1e\+38 \(bn1\.moving_m"),
        ("bn1.moving_variance", np.nan, r"nothing: 1 parameters .* first bn1\.moving_variance"),  # ReLU hides it
    ],
)
def test_an_evaluation_that_is_nan_is_shown_written_and_fails(
    data: Path, checkpoint: Path, config: Config, tmp_path: Path, name: str, value: float, said: str
) -> None:
    network = build_model(config)
    load_network(network, read_checkpoint(checkpoint))
    parameter = dict(network.parameters_and_names())[name]
    parameter.set_data(ms.Tensor(np.full(parameter.shape, value, np.float32)))
    save_checkpoint(tmp_path / "bad.ckpt", network, about=read_checkpoint(checkpoint).about)
    shown: list[dict[str, Any]] = []
    options = Config(data_path=str(data), checkpoint_file_path=str(tmp_path / "bad.ckpt"), progress="plain")
    with pytest.raises(UserError, match=said) as e:
        evaluate_checkpoint(options.replace(result_path=str(tmp_path / "out.json")), World(), shown.append)
    assert e.value.exit_code == 1 and len(shown) == 1
    written = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert (written["loss"] is None) == (name != "bn1.moving_variance") and written["num_samples"] == 20


def test_a_result_that_cannot_be_written_is_shown_first(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Beforehand where that can be seen, else when the folder has gone meanwhile."""
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "out.json", tmp_path / ("x" * 300), Path("/proc/self/fd/out.json")):
        shown: list[dict[str, Any]] = []
        config = Config(data_path=str(data), checkpoint_file_path="not opened", result_path=str(target))
        if os.access(target.parent, os.W_OK) and target.parent != tmp_path:  # root may write where nobody can
            continue
        with pytest.raises(UserError, match="cannot write result_path"):
            evaluate_checkpoint(config, World(), shown.append)
        if target != tmp_path:
            with pytest.raises(UserError, match="cannot write report_path"):
                evaluate_checkpoint(config.replace(result_path="", report_path=str(target)), World(), shown.append)
        assert not shown
    folder = tmp_path / "folder"
    folder.mkdir()

    def show(result: dict[str, Any]) -> None:
        shown.append(result)
        folder.rmdir()
        folder.touch()

    config = Config(data_path=str(data), checkpoint_file_path=str(checkpoint), progress="plain")
    with pytest.raises(UserError, match=r"cannot write result_path .*folder/out\.json"):
        evaluate_checkpoint(config.replace(result_path=str(folder / "out.json")), World(), show)
    assert len(shown) == 1 and shown[0]["num_samples"] == 20


def test_the_part_of_train_that_was_held_out_is_remembered(
    data: Path, config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder without val/: what is evaluated is what the training did not see, unless told otherwise."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "train").symlink_to(SAMPLE / "val")  # 50 images a class
    held = config.replace(data_path=str(root), val_fraction=0.2)
    about = description(held, build_source(held, "train", World()))
    save_checkpoint(tmp_path / "net.ckpt", build_model(held), about=about)
    count = build_source(held, "val", World()).num_samples
    assert 50 < count < 200
    assert evaluate(root, tmp_path / "net.ckpt")["num_samples"] == count
    assert "trained on" not in caplog.text
    assert evaluate(root, tmp_path / "net.ckpt", "--val_fraction=0.5")["num_samples"] > count
    assert "val_fraction is 0.5 here and was 0.2 in the training" in caplog.text
    assert evaluate(data, tmp_path / "net.ckpt")["num_samples"] == 20, "where there is a val/, it counts"


def test_a_checkpoint_needs_no_key() -> None:
    program = Program("", required=("checkpoint_file_path",), config_optional=True)
    assert parse_args(["net.ckpt", "--batch_size=4"], program).checkpoint_file_path == "net.ckpt"
    with pytest.raises(ConfigError, match=r"'net\.ckpt': must have the form --key=value"):
        parse_args(["net.ckpt"], Program("", config_optional=True))

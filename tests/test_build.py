"""Construction from a configuration: the number of classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from covpool.build import architecture, build_model, build_source, resolve_class_num, with_checkpoint
from covpool.checkpoints.format import Checkpoint
from covpool.config import Config
from covpool.errors import UserError
from covpool.runtime.distributed import World

SAMPLE = Config(
    dataset="image_folder",
    data_path=str(Path(__file__).resolve().parents[1] / "data" / "fashion_mnist_sample"),
    net_name="resnet10",
    pooling="gap",
    base_width=4,
    stem="small",
)


def test_class_num_auto_takes_the_classes_of_the_data_or_of_the_checkpoint() -> None:
    config = SAMPLE.replace(class_num="auto")
    with pytest.raises(UserError, match="class_num = auto: needs data or a checkpoint"):
        build_model(config)
    resolved = resolve_class_num(config, build_source(config, "train", World()))
    assert resolved == config.replace(class_num=10) and architecture(resolved)["class_num"] == 10
    parameters = {p.name: p for p in build_model(SAMPLE.replace(class_num=7)).get_parameters()}
    assert resolve_class_num(config, Checkpoint(Path("a.ckpt"), parameters)).class_num == 7
    assert resolve_class_num(SAMPLE.replace(class_num=3), Checkpoint(Path("a.ckpt"), parameters)).class_num == 3
    with pytest.raises(UserError, match=r"a\.ckpt holds no classifier; give --class_num=N"):
        resolve_class_num(config, Checkpoint(Path("a.ckpt"), {}))


def test_a_checkpoint_of_a_pooling_that_does_not_exist() -> None:
    about = {"architecture": {**architecture(SAMPLE), "pooling": "\u2064ropcov"}}
    with pytest.raises(UserError, match=r"a\.ckpt names a pooling that is not known here, '.u2064ropcov'") as refused:
        with_checkpoint(Config(), Checkpoint(Path("a.ckpt"), {}, about=about))
    assert refused.value.exit_code == 1


def test_more_outputs_than_classes_are_named_once_and_fewer_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="covpool.build"):
        for split in ("train", "val"):
            build_source(SAMPLE.replace(class_num=12), split, World())
            build_source(SAMPLE.replace(class_num=10), split, World())
    (record,) = caplog.records
    assert "class_num = 12, but" in record.getMessage() and "has 10 classes" in record.getMessage()
    with pytest.raises(UserError, match=r"has 10 classes, the configuration class_num=9; add --class_num=10 \(or auto"):
        build_source(SAMPLE.replace(class_num=9), "train", World())

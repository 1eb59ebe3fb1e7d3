"""Train, evaluate, export, predict: by command line, in one process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from road_commands import ROOT, SMALL, Run

from covpool.checkpoints.format import read_checkpoint
from covpool.config import load_config
from covpool.training.run_folder import RunFolder

CONFIG = f"--config_path={ROOT / 'config' / 'quickstart.yaml'}"


def test_run_folder_holds_what_it_should(trained: Path) -> None:
    assert {p.name for p in trained.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "curves.png",
        "evaluation",
        "train.log",
    }
    epochs = RunFolder(trained).records("epoch")
    assert [e["epoch"] for e in epochs] == [1, 2]
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert all(e["num_samples"] == 103 for e in epochs)
    steps = RunFolder(trained).records("step")
    assert [s["step"] for s in steps] == [5, 10, 15, 20]
    config = load_config(trained / "config.yaml")
    assert config.net_name == "resnet10" and config.epoch_size == 2
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["versions"]["mindspore"] and environment["ranks"] == 1
    index = json.loads((trained / "checkpoints" / "index.json").read_text())
    assert index["last"] == "epoch_0002.ckpt"
    with Image.open(trained / "curves.png") as picture:
        assert picture.size[0] > 800


def test_eval_repeats_the_evaluation_of_training(trained: Path, images: Path, run: Run, tmp_path: Path) -> None:
    done = run(
        [
            "python",
            "eval.py",
            CONFIG,
            *SMALL,
            f"--data_path={images}",
            f"--checkpoint_file_path={trained / 'checkpoints' / 'epoch_0002.ckpt'}",
            "--result_path=result.json",
            "--batch_size=50",
        ],
        cwd=tmp_path,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    last = RunFolder(trained).records("epoch")[-1]
    assert result["top_1_accuracy"] == last["top_1_accuracy"] and result["top_5_accuracy"] == last["top_5_accuracy"]
    assert result["loss"] == pytest.approx(last["eval_loss"], rel=1e-5)
    assert result["num_samples"] == 103
    assert sum(c["num_samples"] for c in result["per_class"].values()) == 103 and "ankle_boot" in result["per_class"]
    assert f"result: {{'top_1_accuracy': {result['top_1_accuracy']}, 'top_5_accuracy': " in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--pooling=gap", "pooling is 'dropcov' in the checkpoint and 'gap' in the configuration"),
        ("--net_name=resnet18", "net_name is 'resnet10' in the checkpoint and 'resnet18'"),
        ("--class_num=11", "class_num is 10 in the checkpoint and 11"),
        ("--checkpoint_file_path=none.ckpt", "none.ckpt"),
        ("--data_path=nowhere", "nowhere"),
    ],
)
def test_wrong_checkpoint_is_one_clear_line(
    trained: Path, images: Path, run: Run, tmp_path: Path, change: str, message: str
) -> None:
    checkpoint = f"--checkpoint_file_path={trained / 'checkpoints' / 'best.ckpt'}"
    done = run(
        ["python", "eval.py", CONFIG, *SMALL, f"--data_path={images}", checkpoint, change], cwd=tmp_path, expect=None
    )
    assert done.returncode in (1, 2)
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert "result:" not in done.stdout


def test_export_and_predict(trained: Path, images: Path, run: Run, tmp_path: Path) -> None:
    checkpoint = f"--checkpoint_file_path={trained / 'checkpoints' / 'best.ckpt'}"
    done = run(["python", "export.py", CONFIG, *SMALL, checkpoint, "--file_name=net"], cwd=tmp_path)
    assert "exported: net.mindir" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["net.mindir"]
    done = run(
        ["covpool", "predict", "--file", "net.mindir", "--images", str(images / "val" / "bag"), "--top", "2"],
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(list((images / "val" / "bag").iterdir()))
    assert all("%" in line and line.count(",") == 1 for line in lines)


def test_resumed_training_equals_the_uninterrupted_one(trained: Path, images: Path, run: Run, tmp_path: Path) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run"]
    first = trained / "checkpoints" / "epoch_0001.ckpt"
    done = run([*command, f"--resume_ckpt={first}"], cwd=tmp_path)
    assert f"resumed from {first} after epoch 1" in done.stdout
    assert_same_end(trained, tmp_path / "run")


def test_a_second_run_moves_the_first_aside(images: Path, run: Run, tmp_path: Path) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run", "--epoch_size=1"]
    run(command, cwd=tmp_path)
    done = run(command, cwd=tmp_path)
    assert "held an earlier run" in done.stdout
    assert (tmp_path / "run" / "earlier-1" / "checkpoints" / "epoch_0001.ckpt").is_file()
    assert len(RunFolder(tmp_path / "run").records("epoch")) == 1


def test_fine_tuning_on_other_classes(trained: Path, images: Path, run: Run, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("bag", "coat", "dress"):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / split / name).symlink_to(images / split / name)
    best = trained / "checkpoints" / "best.ckpt"
    command = ["python", "train.py", CONFIG, *SMALL, "--data_path=data", "--epoch_size=1", "--output_path=run"]
    done = run([*command, "--class_num=3", f"--pre_trained={best}"], cwd=tmp_path)
    assert "without its classifier: it has other classes" in done.stdout
    done = run([*command, f"--pre_trained={best}", "--class_num=2"], cwd=tmp_path, expect=2)
    assert "has 3 classes" in done.stderr and "--class_num=3" in done.stderr


def test_a_loss_that_is_no_number_stops_the_training(images: Path, run: Run, tmp_path: Path) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run"]
    done = run([*command, "--lr_max=1e30", "--weight_decay=0"], cwd=tmp_path, expect=1)
    assert done.stderr.startswith("error: the loss is ") and "at step" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


@pytest.mark.parametrize("level", ["O1", "O2", "O3", "auto"])
def test_mixed_precision_trains_or_says_why_not(images: Path, run: Run, tmp_path: Path, level: str) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run", "--epoch_size=1"]
    done = run([*command, f"--amp_level={level}"], cwd=tmp_path)
    (epoch,) = RunFolder(tmp_path / "run").records("epoch")
    assert epoch["loss"] < 2.6, done.stdout


def test_pynative_mode(images: Path, run: Run, tmp_path: Path) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run", "--epoch_size=1"]
    done = run([*command, "--mode_name=PYNATIVE_MODE"], cwd=tmp_path)
    assert "PYNATIVE mode" in done.stdout


@pytest.mark.parametrize("script", ["train.py", "eval.py", "export.py"])
def test_help_and_usage_errors(run: Run, tmp_path: Path, script: str) -> None:
    done = run(["python", script, "--help"], cwd=tmp_path)
    assert "--device_target" in done.stdout and "--config_path" in done.stdout
    done = run(["python", script, CONFIG, "--bath_size=3"], cwd=tmp_path, expect=2)
    assert done.stderr.startswith("error: ") and "batch_size" in done.stderr and done.stderr.count("\n") == 1
    run(["python", script], cwd=tmp_path, expect=2)


def start(run_dir: Path, images: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), CONFIG, *SMALL, f"--data_path={images}", "--output_path=run"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_"))}
    return subprocess.Popen(
        [*command, *arguments], cwd=run_dir, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the training ended or hung before its time"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_resumed_run_ends_bit_identical(
    trained: Path, images: Path, run: Run, tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, images, "--log_interval=1")
    log = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: log.is_file() and '"step": 2' in log.read_text(), process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors.startswith(f"error: stopped by {number.name} after step ")
    (saved,) = (tmp_path / "run" / "checkpoints").glob("epoch_0000_step_*.ckpt")
    assert read_checkpoint(saved).about["step"] >= 2
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run"]
    done = run([*command, "--resume_ckpt=auto"], cwd=tmp_path)
    assert f"resumed from run/checkpoints/{saved.name} after epoch 0 and" in done.stdout
    assert_same_end(trained, tmp_path / "run")


def test_a_checkpoint_within_an_epoch_resumes_bit_identical(
    trained: Path, images: Path, run: Run, tmp_path: Path
) -> None:
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}"]
    run([*command, "--output_path=one", "--save_checkpoint_steps=4"], cwd=tmp_path)
    assert_same_end(trained, tmp_path / "one")
    saved = tmp_path / "one" / "checkpoints" / "epoch_0001_step_00000018.ckpt"
    run([*command, "--output_path=two", f"--resume_ckpt={saved}"], cwd=tmp_path)
    assert_same_end(trained, tmp_path / "two")
    done = run([*command, "--batch_size=16", f"--resume_ckpt={saved}", "--output_path=three"], cwd=tmp_path, expect=1)
    assert "was saved within an epoch of 10 steps; here an epoch has 20" in done.stderr


def assert_same_end(one: Path, two: Path) -> None:
    name = Path("checkpoints") / "epoch_0002.ckpt"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    last, again = (RunFolder(folder).records("epoch")[-1] for folder in (one, two))
    for key in ("loss", "learning_rate", "top_1_accuracy", "top_5_accuracy", "eval_loss"):
        assert last[key] == again[key], key


def test_bad_images_stop_the_training_or_are_left_out(images: Path, run: Run, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "data")
    victims = sorted((tmp_path / "data" / "train" / "coat").iterdir())[:2]
    victims[0].write_bytes(victims[0].read_bytes()[:100])
    victims[1].write_bytes(b"")
    command = ["python", "train.py", CONFIG, *SMALL, "--data_path=data", "--epoch_size=1"]
    done = run([*command, "--output_path=one"], cwd=tmp_path, expect=1)
    assert "damaged image" in done.stderr and str(Path("data") / "train" / "coat") in done.stderr
    done = run([*command, "--output_path=two", "--bad_images=skip"], cwd=tmp_path)
    assert "2 bad images of train left out, 318 used" in done.stdout and victims[0].name in done.stdout
    (epoch,) = RunFolder(tmp_path / "two").records("epoch")
    assert epoch["num_samples"] == 103

"""Train, evaluate, export, predict: by command line, in one process."""

from __future__ import annotations

import json
import os
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
    trained: Path, images: Path, here: Run, tmp_path: Path, change: str, message: str
) -> None:
    checkpoint = f"--checkpoint_file_path={trained / 'checkpoints' / 'best.ckpt'}"
    done = here(["eval.py", CONFIG, *SMALL, f"--data_path={images}", checkpoint, change], cwd=tmp_path, expect=None)
    assert done.returncode in (1, 2)
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert "result:" not in done.stdout


def test_export_and_predict(trained: Path, images: Path, here: Run, tmp_path: Path) -> None:
    """tests/export/test_command_lines.py starts these commands as a user does."""
    checkpoint = f"--checkpoint_file_path={trained / 'checkpoints' / 'best.ckpt'}"
    done = here(["export.py", CONFIG, *SMALL, checkpoint, "--file_name=net"], cwd=tmp_path)
    assert "exported: net.mindir" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["net.mindir"]
    bags = images / "val" / "bag"
    done = here(["predict", "--file", "net.mindir", "--images", str(bags), "--top", "2"], cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == len(list(bags.iterdir()))
    assert all("%" in line and line.count(",") == 1 for line in lines)


@pytest.fixture(scope="module")
def resumed(
    trained: Path, images: Path, run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The same training from its first checkpoint, with checkpoints within the second epoch."""
    work = tmp_path_factory.mktemp("resumed")
    command = ["python", "train.py", CONFIG, *SMALL, f"--data_path={images}", "--save_checkpoint_steps=4"]
    first = trained / "checkpoints" / "epoch_0001.ckpt"
    return work / "run", run([*command, "--output_path=run", f"--resume_ckpt={first}"], cwd=work)


def test_resumed_training_equals_the_uninterrupted_one(
    trained: Path, resumed: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    folder, done = resumed
    assert f"resumed from {trained / 'checkpoints' / 'epoch_0001.ckpt'} after epoch 1" in done.stdout
    assert_same_end(trained, folder)


def test_a_checkpoint_within_an_epoch_resumes_bit_identical(
    trained: Path,
    resumed: tuple[Path, subprocess.CompletedProcess[str]],
    images: Path,
    here: Run,
    tmp_path: Path,
) -> None:
    saved = resumed[0] / "checkpoints" / "epoch_0001_step_00000018.ckpt"
    command = ["train.py", CONFIG, *SMALL, f"--data_path={images}", f"--resume_ckpt={saved}"]
    here([*command, "--output_path=two"], cwd=tmp_path)
    assert_same_end(trained, tmp_path / "two")
    done = here([*command, "--batch_size=16", "--output_path=three"], cwd=tmp_path, expect=1)
    assert "was saved within an epoch of 10 steps; here an epoch has 20" in done.stderr


def test_a_loss_that_is_no_number_stops_the_training(images: Path, here: Run, tmp_path: Path) -> None:
    command = ["train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run"]
    done = here([*command, "--lr_max=1e30", "--weight_decay=0"], cwd=tmp_path, expect=1)
    assert done.stderr.startswith("error: the loss is ") and "at step" in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))


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


ALL = pytest.mark.only_with_all


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=ALL), pytest.param(signal.SIGUSR1, marks=ALL)]
)
def test_a_signal_saves_and_the_resumed_run_ends_bit_identical(
    trained: Path, images: Path, here: Run, tmp_path: Path, number: signal.Signals
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
    command = ["train.py", CONFIG, *SMALL, f"--data_path={images}", "--output_path=run", "--resume_ckpt=auto"]
    done = here(command, cwd=tmp_path)
    assert f"resumed from run/checkpoints/{saved.name} after epoch 0 and" in done.stdout
    assert_same_end(trained, tmp_path / "run")


def assert_same_end(one: Path, two: Path) -> None:
    name = Path("checkpoints") / "epoch_0002.ckpt"
    assert (one / name).read_bytes() == (two / name).read_bytes()
    last, again = (RunFolder(folder).records("epoch")[-1] for folder in (one, two))
    for key in ("loss", "learning_rate", "top_1_accuracy", "top_5_accuracy", "eval_loss", "training_accuracy"):
        assert last[key] == again[key], key

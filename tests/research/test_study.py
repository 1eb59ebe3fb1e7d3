"""Studies: what a file may say, what is left to do after a stop, and the figures of the table."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import psutil
import pytest

from covpool.errors import ConfigError, UserError
from covpool.research.study.report import markdown, plot_final, plot_study, spread, summarise, write_summary
from covpool.research.study.runner import State, run_study, states
from covpool.research.study.spec import read_study

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "config" / "quickstart.yaml"
SMALL = (
    "net_name=resnet10",
    "base_width=2",
    "reduction_dim=4",
    "batch_size=200",
    "epoch_size=2",
    "save_best_ckpt=False",
)
DATA = f"data_path={ROOT / 'data' / 'fashion_mnist_sample'}"


def study_file(folder: Path, text: str) -> Path:
    path = folder / "tried.yaml"
    path.write_text(text.replace("BASE", str(BASE)), encoding="utf-8")
    return path


def test_grid_and_variants_are_combined_and_seeds_come_last(tmp_path: Path) -> None:
    text = "config: BASE\ngrid: {pooling: [gap, gcp], epoch_size: [2]}\nseeds: [3, 1]\n"
    study = read_study(study_file(tmp_path, text + "variants: {fast: {lr_max: 0.2}, 'long, slow': {lr_max: 0.01}}\n"))
    names = ["gap, epoch_size=2, fast", "gap, epoch_size=2, long, slow"]
    assert [group.name for group in study.groups] == names + [name.replace("gap", "gcp") for name in names]
    assert study.groups[1].overrides == ("pooling=gap", "epoch_size=2", "lr_max=0.01")
    assert [run.seed for run in study.runs()] == [3, 3, 3, 3, 1, 1, 1, 1]
    assert study.runs()[1].name == "gap_epoch_size=2_long_slow/seed-3"


def test_a_run_can_start_from_one_of_another_study(tmp_path: Path) -> None:
    grid = "config: BASE\ngrid: {pooling: [gap, gcp]}\nseeds: [3, 1]\n"
    text = grid + "variants: {on: {pre_trained: 'a/{pooling}/{seed}'}}\n"
    runs = read_study(study_file(tmp_path, text)).runs()
    assert [run.overrides[1] for run in runs] == [f"pre_trained=a/{p}/{s}" for s in (3, 1) for p in ("gap", "gcp")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("config: BASE\nseed: [1]\n", "unknown key 'seed' (closest: seeds)"),
        ("seeds: [1]\ngrid: {pooling: [gap]}\n", "config must name"),
        ("config: BASE\nseeds: [1]\n", "nothing to compare"),
        ("config: BASE\nseeds: [1, 1]\ngrid: {pooling: [gap]}\n", "twice"),
        ("config: BASE\nseeds: [a]\ngrid: {pooling: [gap]}\n", "whole numbers"),
        ("config: BASE\nseeds: [1]\ngrid: {poling: [gap]}\n", "closest: pooling"),
        ("config: BASE\nseeds: [1]\ngrid: {pooling: gap}\n", "lists of values"),
        ("config: BASE\nseeds: [1]\nvariants: {a: 1}\n", "mapping"),
        ("config: BASE\nseeds: [1]\nvariants: {a b: {}, a/b: {}}\n", "same name"),
        ("config: BASE\nseeds: [1]\ngrid: {pooling: [gap]}\naccuracies: [90.0]\n", "between 0 and 1"),
        ("[", "cannot read the study"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_study(study_file(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_have_three_seeds(path: Path) -> None:
    study = read_study(path)
    assert len(study.seeds) >= 3 or path.stem.endswith("_rates")  # these only look for a rate to use in others
    assert f"config/studies/{path.name}" in path.read_text(encoding="utf-8")


def epoch(number: int, top_1: float, cpu: float = 2.0) -> dict[str, float]:
    return {
        "epoch": number,
        "top_1_accuracy": top_1,
        "loss": 1 / number,
        "train_cpu_s": cpu,
        "images_per_s": 1000.0,
    }


def test_figures_of_the_table(tmp_path: Path) -> None:
    text = "config: BASE\nseeds: [1, 2, 3]\ngrid: {pooling: [gap, gcp]}\naccuracies: [0.5, 0.9]\n"
    study = read_study(study_file(tmp_path, text))
    known = {run: State([], 3, "") for run in study.runs()}
    curves = {1: [0.4, 0.8, 0.7], 2: [0.6, 0.95, 0.9], 3: [0.5, 0.6, 0.8]}
    for run in known:
        if run.group.name == "gap":
            epochs = [epoch(i + 1, top_1, 50.0 if i == 0 else 2.0) for i, top_1 in enumerate(curves[run.seed])]
            known[run] = State(epochs, 3, "")
    failed = study.runs()[1]
    known[failed] = State([epoch(1, 0.1)], 3, "exit code 1: the loss is nan at step 7")
    gap, gcp = summarise(study, known)
    assert gap["n"] == 3 and gap["failed"] == 0
    assert gap["final"]["mean"] == pytest.approx(0.8) and gap["final"]["std"] == pytest.approx(0.1)
    assert gap["best"]["values"] == [0.8, 0.95, 0.8]
    assert gap["epochs_to_0.5"]["values"] == [2.0, 1.0, 1.0]
    assert gap["epochs_to_0.9"] == {"mean": 2.0, "std": None, "n": 1, "values": [2.0]}
    assert gap["train_cpu_s"]["mean"] == 2.0  # the first epoch compiles
    assert gcp["n"] == 0 and gcp["failed"] == 1 and gcp["final"]["mean"] is None
    rows = markdown(study, [gap, gcp]).splitlines()
    assert rows[2].startswith("| gap | 3 | 80.00 ± 10.00 | 85.00 ± 8.66 |")
    assert "2.0 (1 of 3)" in rows[2]
    assert rows[3].startswith("| gcp | 0 (1 failed) | - |")

    write_summary(study, known, tmp_path)
    plot_study(study, known, tmp_path / "curves.png")
    plot_final(study, known, tmp_path / "final.png")
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [run["done"] for run in content["runs"]] == [True, False] * 3
    with (tmp_path / "results.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert float(table[0]["final_mean"]) == pytest.approx(0.8) and table[1]["final_mean"] == ""
    for name in ("curves.png", "final.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_spread_leaves_out_what_is_no_number() -> None:
    assert spread([1.0, float("nan"), 3.0])["mean"] == 2.0
    assert spread([])["mean"] is None


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def trainings(output: Path) -> list[str]:
    """Processes that still train for a study."""
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in lines if f"output_path={output}" in line]


def test_a_stopped_study_goes_on_and_failures_do_not_stop_it(tmp_path: Path, clean_env: dict[str, str]) -> None:
    text = "config: BASE\nseeds: [1]\nvariants: {good: {pooling: gap}, bad: {pooling: gap, class_num: 3}}\n"
    path = study_file(tmp_path, text)
    output = tmp_path / "out"
    command = [sys.executable, "-m", "covpool", "study", "--study", str(path), "--output", str(output)]
    command += [f"--{text}" for text in (*SMALL, DATA)]
    run = output / "good" / "seed-1"

    def stop_by(number: int, ready: Callable[[], bool]) -> tuple[int, str]:
        """Start the study and signal it and all of its group, as Ctrl-C does; exit code and errors."""
        process = subprocess.Popen(
            command, env=clean_env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        wait_for(ready)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=120)[1]
        wait_for(lambda: not trainings(output))
        return process.returncode, said

    assert stop_by(signal.SIGKILL, lambda: bool(trainings(output)))[0] == -signal.SIGKILL
    begun = run / "train.log"
    code, said = stop_by(signal.SIGINT, lambda: begun.is_file() and "steps an epoch" in begun.read_text())
    assert code == 128 + signal.SIGINT and "goes on from here" in said
    (saved,) = (run / "checkpoints").glob("epoch_0000_step_*.ckpt")
    assert not (run / "failure.txt").exists()
    done = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stderr
    assert f"{saved.name} after epoch 0 and" in (run / "train.log").read_text(encoding="utf-8")
    assert "failed: bad/seed-1: exit code 2" in done.stderr and "class_num" in done.stderr
    assert "| good | 1 |" in done.stdout and "| bad | 0 (1 failed) |" in done.stdout
    study = read_study(path)
    found = states(study, output, [*SMALL, DATA])
    assert [state.done for state in found.values()] == [True, False]
    assert "train_cpu_s" in found[study.runs()[0]].epochs[0]
    with pytest.raises(UserError, match="base_width = 2, the study asks for 3"):
        states(study, output, [*SMALL, DATA, "base_width=3"])


def test_two_processes_do_not_share_a_study(tmp_path: Path) -> None:
    import fcntl

    study = read_study(study_file(tmp_path, "config: BASE\nseeds: [1]\ngrid: {pooling: [gap]}\n"))
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"):
            run_study(study, tmp_path)


def test_training_on_some_images_takes_the_same_ones_for_every_seed(tmp_path: Path) -> None:
    from covpool.build import build_source
    from covpool.config import load_config
    from covpool.runtime.distributed import World

    configs = [load_config(BASE, [DATA, "train_images=50", f"seed={seed}"]) for seed in (1, 2)]
    one, two = (build_source(config, "train", World()) for config in configs)
    assert one.num_samples == 50 and len(set(one.labels.tolist())) > 5
    assert [one.describe(i) for i in range(50)] == [two.describe(i) for i in range(50)]
    assert build_source(configs[0], "val", World()).num_samples == 500
    with pytest.raises(UserError, match="train_images = 2001"):
        build_source(configs[0].replace(train_images=2001), "train", World())

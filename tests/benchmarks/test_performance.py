"""The performance benchmarks, each run very small with --all; figures are not looked at, what they are made of is."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import data, growth, network, scaling, startup

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path: Path, name: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(tmp_path), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / f"{name}.md").read_text()
    assert text in done.stdout and "mindspore 2." in text and f"python -m benchmarks.{name}" in text
    assert not [path for path in tmp_path.iterdir() if path.name.split(".")[0] != name], "nothing else is left"
    return json.loads((tmp_path / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["network", "data", "startup", "scaling", "growth", "progress", "inference", "device"])
def test_help(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0 and "--output" in done.stdout and f"benchmarks.{name}" in done.stdout


@pytest.mark.only_with_all
def test_network(tmp_path: Path) -> None:
    report = run(tmp_path, "network", "--small", "--networks", "resnet18", "--poolings", "fast_mpn")
    (found,) = report["results"]
    losses = found["first losses"]
    for runtime in ("mindspore", "compiled"):
        assert len(losses[runtime]) == 2 and losses[runtime] == pytest.approx(losses["torch"], rel=1e-3)
    for phase in ("training", "evaluation"):
        assert all(found[phase][r]["n"] == 2 and found[phase][r]["median"] > 0 for r in network.RUNTIMES)
    assert all(size > 100 << 20 for size in found["memory"].values())


@pytest.mark.only_with_all
def test_device(tmp_path: Path) -> None:
    """The table of docs/measurements/performance.md, made on a CPU."""
    sizes = ("--batch_size", "4", "--image_size", "32", "--rounds", "1", "--steps", "1", "--levels", "O0")
    what = ("--networks", "resnet18", "--poolings", "gcp", "--alone", "dropcov")
    report = run(tmp_path, "device", "--device_target", "CPU", *what, *sizes)
    assert [row["key"] for row in report["results"]] == ["resnet18-gcp-4-32", "dropcov-128-4"]
    for row in report["results"]:
        for runtime in ("mindspore", "torch"):
            assert row[runtime]["prepared"] is not None
            assert all(row[runtime][phase]["median"] > 0 for phase in ("train", "evaluate"))


@pytest.mark.only_with_all
def test_data(tmp_path: Path) -> None:
    sizes = ("--height", "48", "--width", "64", "--image_size", "32", "--batch_size", "4")
    report = run(tmp_path, "data", "--images", "8", "--repeat", "2", "--rounds", "2", "--workers", "2", *sizes)
    for found in report["result"]["phases"].values():
        assert all(entry["images_per_second"]["n"] == 2 for entry in found.values())
        assert all(0 < entry["cpu_seconds"]["median"] < 1 for entry in found.values())


def test_both_pipelines_make_the_same_of_an_even_image(tmp_path: Path) -> None:
    """Without detail smoothing and places of the crop do not matter: what is left is normalisation and layout."""
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / split / "a" / "0.jpg", quality=100)
    arguments = Namespace(image_size=32, batch_size=1, repeat=1, workers=1)
    peer = data.TorchImages(tmp_path / "train", True, 32, 1)[0][0].numpy()
    for training in (True, False):
        ((images, labels),) = list(data.mindspore_passes(arguments, tmp_path)(training))
        assert images.shape == (1, 3, 32, 32) and labels.tolist() == [0]
        np.testing.assert_allclose(images[0], peer, atol=1e-5)


def test_textures_look_like_photos() -> None:
    image = data.texture(np.random.default_rng(0), 96, 128).astype(float)
    assert image.shape == (96, 128, 3) and 100 < image.mean() < 156 and 30 < image.std() < 80
    neighbours = np.corrcoef(image[:, 1:, 0].ravel(), image[:, :-1, 0].ravel())[0, 1]
    assert neighbours > 0.75


@pytest.mark.only_with_all
def test_start_to_the_first_step(tmp_path: Path) -> None:
    data.write_images(tmp_path / "data", 4, 48, 64)
    (tmp_path / "work").mkdir()
    arguments = Namespace(pooling="gap", batch_size=4, image_size=32, rounds=1)
    starts = startup.Starts(arguments, "resnet18", tmp_path / "data", tmp_path / "work")
    found = starts.train(True)
    assert 0 < found["first_step_s"] < found["seconds"] < startup.LIMIT_S
    assert list((tmp_path / "work" / "cache").rglob("*.mindir")), "the graph is kept"
    assert 0 < starts.torch()["seconds"] < startup.LIMIT_S
    starts.data = tmp_path / "nothing"
    with pytest.raises(SystemExit, match="not a folder"):
        starts.train(True)


@pytest.mark.only_with_all
@pytest.mark.world_size
def test_scaling(tmp_path: Path) -> None:
    report = run(tmp_path, "scaling", "--batches", "4", "--image_size", "32", "--rounds", "1", "--pooling", "gap")
    (found,) = report["results"]
    assert found["speed"] == pytest.approx(found["one"]["median"] / found["ranks"]["median"])
    assert found["all-reduce"]["n"] == scaling.REDUCTIONS and 0 < found["all-reduce"]["median"] < 10


def test_prediction_of_scaling_is_that_of_the_formulas() -> None:
    arguments = Namespace(network="resnet18", pooling="gap")
    overlapped, serial = scaling.predicted(arguments, 32, compute=0.9, reduce=0.1)
    assert serial == pytest.approx(0.9)
    assert serial < overlapped < 1


def points(axis: str, values: list[Any], time_power: float, memory_power: float) -> list[dict[str, Any]]:
    found = []
    for value in values:
        point = {**growth.BASE, axis: value, "classifier share": 0.5}
        x = growth.place(axis, point)
        point["seconds"] = {"median": 1e-3 * x**time_power * point["batch"], "spread": 0.1}
        point["peak bytes"] = 2**20 * x**memory_power * point["batch"]
        found.append(point)
    return found


def test_exponents_and_chart_of_growth(tmp_path: Path) -> None:
    values = {"size": [96, 224, 320], "d": [64, 128, 256, 512], "network": ["resnet18", "resnet50"]}
    axes = {axis: points(axis, entries, 2.0, 1.5) for axis, entries in values.items()}
    for axis, found in axes.items():
        assert growth.exponents(axis, found) == pytest.approx((2.0, 1.5))
    about = {"date": "", "command": "", "machine": "", "cores": 2, "versions": {}}
    (tmp_path / "a.json").write_text(json.dumps({"about": about, "axes": axes}))
    command = [sys.executable, "-m", "benchmarks.growth", "--from_json", str(tmp_path / "a.json")]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "| 512 | 262144.0 (±5%) | 11585 |" in done.stdout and (tmp_path / "growth.png").stat().st_size > 10_000


def test_where_the_classifier_dominates() -> None:
    found = []
    for classes in (10, 1000, 20000):
        point = {"classes": classes, "seconds": {"median": 2.0 + 1e-3 * classes}, "peak bytes": 1e9 + 1e5 * classes}
        found.append(point)
    result = growth.dominance(found)
    assert result["classes where the classifier has half of the time"] == pytest.approx(2000)
    assert result["classes where the classifier has half of the memory"] == pytest.approx(10000)


@pytest.mark.only_with_all
def test_growth_measures_a_point(tmp_path: Path) -> None:
    options = ("--axes", "batch", "--points", "1", "--image_size", "32", "--steps", "1", "--pooling", "gap")
    command = [sys.executable, "-m", "benchmarks.growth", *options, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (point,) = json.loads((tmp_path / "growth.json").read_text())["axes"]["batch"]
    assert point["batch"] == 1 and point["peak bytes"] > 11_689_512 * 8, "weights and their velocity at least"


@pytest.mark.only_with_all
def test_progress(tmp_path: Path) -> None:
    report = run(tmp_path, "progress", "--intervals", "5", "--steps", "20", "--rounds", "1")
    (found,) = report["results"]
    assert found["cost"]["none"] == 0 and all(found[way]["median"] > 0 for way in ("none", "lines", "bar"))

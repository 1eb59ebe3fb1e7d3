"""Robustness sets: metrics against loops, layouts, and the command line on a few images."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from PIL import Image

from covpool.build import architecture, build_model
from covpool.checkpoints.format import save_checkpoint
from covpool.config import Config
from covpool.config.command_line import Program, parse_args
from covpool.data import ImageTransform
from covpool.errors import UserError
from covpool.research.robustness.corruptions import CORRUPTIONS
from covpool.research.robustness.metrics import ALEXNET_ERRORS, corruption_summary, flip_rate, relative_errors
from covpool.research.robustness.run import evaluate_robustness
from covpool.research.robustness.sets import corruption_folders, folder_source, network_classes, read_frames, sequences
from covpool.research.robustness.tree import Plan, list_images, write_tree
from covpool.runtime.distributed import World
from tests.data.image_files import bomb, encoded

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "fashion_mnist_sample"


def test_mce_of_alexnet_is_100_and_of_half_its_errors_50() -> None:
    errors = {name: dict.fromkeys(range(1, 6), error) for name, error in ALEXNET_ERRORS.items()}
    assert corruption_summary(errors)["mce"] == pytest.approx(100)
    half = {name: {s: error / 2 for s, error in by.items()} for name, by in errors.items()}
    summary = corruption_summary({**half, "spatter": {1: 0.9}})
    assert summary["mce"] == pytest.approx(50)
    assert summary["mean_error"] == pytest.approx(np.mean(list(ALEXNET_ERRORS.values())) / 2)
    assert summary["corruptions"]["spatter"]["ce"] is None
    assert np.mean(list(ALEXNET_ERRORS.values())) == pytest.approx(0.789, abs=5e-4)


def test_an_incomplete_set_has_no_mce() -> None:
    summary = corruption_summary({"fog": {1: 0.2, 3: 0.4}})
    assert summary["mce"] is None and summary["mean_error"] == pytest.approx(0.3)
    assert summary["missing"] == list(CORRUPTIONS)
    with pytest.raises(ValueError):
        corruption_summary({})


def test_relative_errors() -> None:
    assert relative_errors({"fog": 0.3}, {"fog": 0.2}) == {"fog": pytest.approx(150)}
    with pytest.raises(ValueError, match="snow"):
        relative_errors({"fog": 0.3}, {"snow": 0.2})


def test_flip_rate_against_loops() -> None:
    generator = np.random.default_rng(0)
    films = [generator.integers(0, 3, 8) for _ in range(5)]
    to_last = np.mean([np.mean([a != b for a, b in zip(film, film[1:])]) for film in films])
    to_first = np.mean([np.mean([film[0] != b for b in film[1:]]) for film in films])
    assert flip_rate(films, against_first=False) == pytest.approx(to_last)
    assert flip_rate(films, against_first=True) == pytest.approx(to_first)
    with pytest.raises(ValueError):
        flip_rate([np.zeros(1)], against_first=False)


def test_folders_are_found_one_level_deeper_and_odd_ones_refused(tmp_path: Path) -> None:
    for place in ("blur/glass_blur/1", "blur/glass_blur/5", "fog/2", "other/3"):
        (tmp_path / place).mkdir(parents=True)
    found = corruption_folders(tmp_path)
    assert {name: list(by) for name, by in found.items()} == {"glass_blur": [1, 5], "fog": [2]}
    (tmp_path / "fog" / "mild").mkdir()
    with pytest.raises(UserError, match="1 to 5"):
        corruption_folders(tmp_path)
    with pytest.raises(UserError, match="holds none"):
        corruption_folders(tmp_path / "blur" / "glass_blur")


def test_labels_follow_the_network_whatever_the_folders(tmp_path: Path) -> None:
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / name / "1.png")
    source = folder_source(tmp_path, ["c", "a", "b"], "tried")
    assert source.labels.tolist() == [2, 0]
    with pytest.raises(UserError, match="'c' is not among the 2 classes"):
        folder_source(tmp_path, ["a", "b"], "tried")


def test_where_class_names_come_from(tmp_path: Path) -> None:
    listed = tmp_path / "names.txt"
    listed.write_text("\ufeffgreat white shark\r\n\n y\u2028z \n", encoding="utf-8")
    assert network_classes(listed, ["a", "b"], [], 2) == ["great white shark", "y\u2028z"]
    assert network_classes(None, ["b", "a"], ["a"], 2) == ["b", "a"]
    assert network_classes(None, [], ["b", "a"], 2) == ["a", "b"]
    with pytest.raises(UserError, match="--class_names=FILE"):
        network_classes(None, [], ["a"], 2)
    with pytest.raises(UserError, match="names 2 classes"):
        network_classes(listed, [], [], 3)
    listed.write_text("a b\nc\na b\n", encoding="utf-8")
    with pytest.raises(UserError, match="names 'a b' twice"):
        network_classes(listed, [], [], 3)


def test_images_whose_names_differ_in_the_ending_alone_are_all_written(tmp_path: Path) -> None:
    (tmp_path / "in" / "great white shark").mkdir(parents=True)
    names = ["x.jpg", "x.jpeg", "y.jpg", "z.png", "z.JPG"]
    for number, name in enumerate(names):
        Image.new("L", (40, 40), 50 * number).save(tmp_path / "in" / "great white shark" / name)
    plan = Plan(tmp_path / "in", tmp_path / "out", ("contrast",), (1,), "small", None)
    assert sum(write_tree(plan, list_images(plan), 1)) == 5
    written = tmp_path / "out" / "contrast" / "1" / "great white shark"
    assert sorted(path.name for path in written.iterdir()) == ["x.jpeg", "x.jpg", "y.JPEG", "z.JPEG", "z.png"]
    assert len({path.read_bytes() for path in written.iterdir()}) == 5
    assert sum(write_tree(plan, list_images(plan), 1)) == 0


def test_sequences_are_folders_or_pictures_with_frames(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(3)]
    (tmp_path / "a" / "film").mkdir(parents=True)
    for number, frame in enumerate(frames):
        frame.save(tmp_path / "a" / "film" / f"{number}.png")
    frames[0].save(tmp_path / "a" / "one.gif", save_all=True, append_images=frames[1:])
    paths = sequences(tmp_path)
    assert [path.name for path in paths] == ["film", "one.gif"]
    for path in paths:
        read = read_frames(path, 8)
        assert read.shape == (3, 8, 8, 3) and read[2, 0, 0, 0] == 80
    frames[0].save(tmp_path / "a" / "still.png")
    with pytest.raises(UserError, match="1 frame"):
        read_frames(tmp_path / "a" / "still.png", 8)
    with pytest.raises(UserError, match="no CLASS/SEQUENCE"):
        sequences(tmp_path / "a" / "film")


def test_bombs_and_damage_are_named_wherever_images_are_read(tmp_path: Path) -> None:
    """By their headers: no memory is taken for what they claim."""
    stream = io.BytesIO()
    Image.new("1", (8000, 8000)).save(stream, "GIF")
    frames = io.BytesIO()
    Image.new("L", (8, 8)).save(frames, "TIFF", save_all=True, append_images=[Image.new("1", (8000, 8000))])
    (tmp_path / "a").mkdir()
    plan = Plan(tmp_path, tmp_path / "out", corruptions=("fog",), severities=(1,))
    for name, data, problem in (
        ("bomb.png", bomb(), "30000 x 30000 pixels, max_pixels is 50000000"),
        ("cut.bmp", encoded("BMP")[:20], "damaged image"),
        ("other.png", stream.getvalue(), "unsupported image"),
    ):
        path = tmp_path / "a" / name
        path.write_bytes(data)
        with pytest.raises(UserError, match=problem):
            list(write_tree(plan, [f"a/{name}"], 1))
        with pytest.raises(UserError, match=problem):
            read_frames(path.parent, 8)
        path.unlink()
    for name, data in (("x.gif", stream.getvalue()), ("x.tiff", frames.getvalue()), ("x.png", bomb())):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"cannot read the sequence .*{name}: .* pixels"):
            read_frames(tmp_path / name, 8)
        (tmp_path / name).write_bytes(data[:20])
        with pytest.raises(UserError, match=rf"cannot read the sequence .*{name}: "):
            read_frames(tmp_path / name, 8)
    Image.new("L", (1, 20_000)).save(tmp_path / "a" / "stripe.png")
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(encoded())
    for name in ("stripe.png", os.fsdecode(b"\xff.png")):
        assert list(write_tree(plan, [f"a/{name}"], 1)) == [1]
        with Image.open(tmp_path / "out" / "fog" / "1" / "a" / name) as written:
            assert written.size == (224, 224)


def test_a_film_without_ffmpeg_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "x.mp4").write_bytes(b"film")
    with pytest.raises(UserError, match="ffmpeg"):
        read_frames(tmp_path / "x.mp4", 8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that has learned nothing but knows its classes, in odd order; nan.ckpt beside it."""
    folder = tmp_path_factory.mktemp("network")
    config = Config(net_name="resnet10", base_width=4, pooling="gap", stem="small", class_num=10, eval_image_size=28)
    ms.set_seed(3)
    network = build_model(config)
    names = sorted((path.name for path in (SAMPLE / "val").iterdir()), reverse=True)
    transform = ImageTransform(28, 28, (0.3,) * 3, (0.4,) * 3, crop_ratio=1.0)
    about = {"architecture": architecture(config), "class_names": names, "transform": transform.to_dict()}
    save_checkpoint(folder / "net.ckpt", network, about=about)
    network.fc.bias.set_data(ms.Tensor(np.full(10, np.nan, np.float32)))
    save_checkpoint(folder / "nan.ckpt", network, about=about)
    return folder / "net.ckpt"


def evaluate(checkpoint: Path, folder: Path, *rest: str) -> dict[str, Any]:
    """The figures of a set, as they are shown, and as they are written."""
    shown: list[dict[str, Any]] = []
    argv = [f"--data_path={folder}", f"--checkpoint_file_path={checkpoint}", "--batch_size=16", "--progress=plain"]
    config = parse_args([*argv, f"--result_path={folder}.json", *rest], Program("", config_optional=True))
    try:
        evaluate_robustness(config, World(), shown.append)
        assert folder.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    finally:
        assert len(shown) == 1
        assert json.loads(Path(f"{folder}.json").read_text(encoding="utf-8"), parse_constant=pytest.fail) == shown[0]
    return shown[0]


def test_corrupted_images(checkpoint: Path, clean_env: dict[str, str], tmp_path: Path) -> None:
    """On the command line, without a configuration: the checkpoint knows its network and its images."""
    plan = Plan(SAMPLE / "val", tmp_path / "c", ("fog", "contrast"), (1, 5), "small", None, per_class=3)
    list(write_tree(plan, list_images(plan), 1))
    command = [sys.executable, str(ROOT / "eval.py"), f"--checkpoint_file_path={checkpoint}", "--batch_size=16"]
    command += [f"--result_path={tmp_path / 'result.json'}", "--robustness=imagenet_c", f"--data_path={tmp_path / 'c'}"]
    done = subprocess.run(command, env=clean_env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("result: {'mce': None, 'mean_error': ")
    found = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert found["num_samples"] == 4 * 30 and found["mce"] is None and len(found["missing"]) == 15
    errors = [e for entry in found["corruptions"].values() for e in entry["errors"].values()]
    assert len(errors) == 4 and all(0.5 <= error <= 1 for error in errors)
    assert found["mean_error"] == pytest.approx(np.mean(errors))
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


def test_a_subset_of_the_classes(checkpoint: Path, graph_mode: None, tmp_path: Path) -> None:
    for name in ("bag", "coat"):
        (tmp_path / "a" / name).mkdir(parents=True)
        for path in sorted((SAMPLE / "val" / name).iterdir())[:10]:
            (tmp_path / "a" / name / path.name).symlink_to(path)
    found = evaluate(checkpoint, tmp_path / "a", "--robustness=imagenet_a")
    assert found["classes"] == 2 and found["num_samples"] == 20 and set(found["per_class"]) == {"bag", "coat"}
    assert found["top_1_accuracy"] >= found["top_1_accuracy_all_classes"]
    with pytest.raises(UserError, match=r"20 of 20 images give NaN or infinite logits.*first fc\.bias"):
        evaluate(checkpoint.with_name("nan.ckpt"), tmp_path / "a", "--robustness=imagenet_a")


def test_sequences_of_frames(checkpoint: Path, graph_mode: None, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name in ("gaussian_noise", "brightness"):
        for film in range(2):
            folder = tmp_path / "p" / name / "bag" / str(film)
            folder.mkdir(parents=True)
            still = Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8))
            for frame in range(3):
                still.save(folder / f"{frame}.png")
    found = evaluate(checkpoint, tmp_path / "p", "--robustness=imagenet_p")
    assert found["sequences"] == 4 and found["flip_rates"] == {"gaussian_noise": 0.0, "brightness": 0.0}
    with pytest.raises(UserError, match=r"frames of .*gaussian_noise/bag/0 give NaN"):
        evaluate(checkpoint.with_name("nan.ckpt"), tmp_path / "p", "--robustness=imagenet_p")

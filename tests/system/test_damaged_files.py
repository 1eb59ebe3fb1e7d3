"""Checkpoints and exported files that are none, or no longer: one clear line on standard error, a failing exit code.

The entry points run in this process; a few cases at the end are real commands.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn
from road_commands import ROOT, Run, make_folder

from covpool import cli
from covpool.checkpoints.format import save_checkpoint
from covpool.export import export_network
from covpool.models import create_model

KEYS = {"net_name": "resnet10", "pooling": "gcp", "reduction_dim": 8, "class_num": 10, "stem": "small", "base_width": 4}
OPTIONS = [f"--config_path={ROOT / 'config' / 'quickstart.yaml'}", *(f"--{k}={v}" for k, v in KEYS.items())]
ABOUT = {"architecture": {**KEYS, "in_channels": 3}, "epoch": 1, "step": 5, "mean": [0.5] * 3, "std": [0.5] * 3}
SIDE = 28

SCRIPTS = ("eval", "export")
REST = pytest.mark.only_with_all

Call = Callable[..., str]


def some(cases: Iterable[Any], count: int) -> list[Any]:
    """All cases, spread evenly ``count`` of them that always run; the rest with ``--all``."""
    everything = list(cases)
    always = {round(i * (len(everything) - 1) / (count - 1)) for i in range(count)}
    return [
        case if number in always else pytest.param(*([case] if not isinstance(case, tuple) else case), marks=REST)
        for number, case in enumerate(everything)
    ]


def network(**changes: object) -> nn.Cell:
    keys = {**KEYS, **changes}
    ms.set_seed(1)
    return create_model(num_classes=keys.pop("class_num"), name=keys.pop("net_name"), **keys)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training and one validation image a class."""
    return make_folder(tmp_path_factory.mktemp("data"), 1, 10)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole checkpoint of the network that the options name."""
    path = tmp_path_factory.mktemp("checkpoint") / "whole.ckpt"
    save_checkpoint(path, network(), None, ABOUT)
    return path.read_bytes()


@pytest.fixture(scope="module", params=["MINDIR", "ONNX"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole exported file."""
    transform = {"height": SIDE, "width": SIDE, "crop_ratio": 1.0, "interpolation": "bilinear", "channels": 3}
    about = {"class_names": [], "transform": {**transform, "mean": [0.5] * 3, "std": [0.5] * 3}}
    images = np.random.default_rng(0).standard_normal((6, 3, SIDE, SIDE)).astype(np.float32)
    ms.set_context(mode=ms.GRAPH_MODE)
    net = network()
    for parameter in net.trainable_params():  # no bias is zero, so that no flipped bit leaves everything as it was
        parameter.set_data(parameter + 0.01)
    return export_network(net, tmp_path_factory.mktemp("exported") / "net", request.param, images, about).path


@pytest.fixture
def fails(data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run a program that must fail; the one line that it says, without "error: "."""
    monkeypatch.chdir(tmp_path)

    def fails(script: str, *options: str) -> str:
        capfd.readouterr()
        if script == "predict":
            code = cli.run(["predict", "--images", str(data / "val" / "bag"), *options])
        else:
            argv = [*OPTIONS, f"--data_path={data}", *options]
            code = cli.run([script, *argv])
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line]
        assert code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), f"exit code {code}\n{err}"
        assert "result:" not in out and "%" not in out and "exported:" not in out
        assert "--debug" not in lines[0], "an error that nobody expected"
        return lines[0][len("error: ") :]

    return fails


def is_refused(path: Path, line: str) -> bool:
    """Whether a line names a file first and then says that its content is no good."""
    reasons = ("damaged", "the file is empty", "checksum", "not a readable")
    return line.startswith(str(path)) and any(reason in line[len(str(path)) :] for reason in reasons)


def torch_file() -> bytes:
    """The beginning of what ``torch.save`` writes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"conv1.weight": [0.5] * 100}))
    return stream.getvalue()


def numpy_file() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.zeros(50))
    return stream.getvalue()


FOREIGN = {
    "empty": b"",
    "text": b"this is no checkpoint\n" * 20,
    "one byte": b"\x0a",
    "zeros": bytes(5000),
    "noise": np.random.default_rng(0).bytes(5000),
    "PyTorch": torch_file(),
    "NumPy": numpy_file(),
    "picture": (ROOT / "data/fashion_mnist_sample/val/bag").joinpath("x").parent.glob("*.png").__next__().read_bytes(),
}


@pytest.mark.parametrize(("script", "content"), some(product(SCRIPTS, FOREIGN), 4))
def test_checkpoints_that_are_none(script: str, content: str, fails: Call, tmp_path: Path) -> None:
    path = tmp_path / "a b.ckpt"
    path.write_bytes(FOREIGN[content])
    line = fails(script, f"--checkpoint_file_path={path}", "--file_name=out")
    assert is_refused(path, line)
    assert [p.name for p in tmp_path.iterdir()] == ["a b.ckpt"]


@pytest.mark.parametrize(("script", "tenths"), some(product(SCRIPTS, range(1, 10)), 3))
def test_checkpoints_cut_short(script: str, tenths: int, fails: Call, checkpoint: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(checkpoint[: len(checkpoint) * tenths // 10])
    assert is_refused(path, fails(script, f"--checkpoint_file_path={path}", "--file_name=out"))
    assert [p.name for p in tmp_path.iterdir()] == ["cut.ckpt"]


@pytest.mark.parametrize("twentieth", some(range(20), 4))
def test_checkpoints_with_a_flipped_bit(twentieth: int, fails: Call, checkpoint: bytes, tmp_path: Path) -> None:
    place = (len(checkpoint) - 1) * twentieth // 19
    path = tmp_path / "flipped.ckpt"
    path.write_bytes(checkpoint[:place] + bytes([checkpoint[place] ^ 1 << twentieth % 8]) + checkpoint[place + 1 :])
    script = ("eval", "export")[twentieth % 2]
    assert is_refused(path, fails(script, f"--checkpoint_file_path={path}", "--file_name=out"))


@pytest.mark.parametrize("back", some(range(1, 25), 3))
def test_checkpoints_with_a_damaged_checksum(back: int, fails: Call, checkpoint: bytes, tmp_path: Path) -> None:
    """The checksum and its mark are the last bytes; without them nothing else would be noticed."""
    path = tmp_path / "flipped.ckpt"
    broken = bytearray(checkpoint)
    broken[-back] ^= 1 << back % 8
    path.write_bytes(broken)
    assert is_refused(path, fails("eval", f"--checkpoint_file_path={path}"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_places_without_a_checkpoint(script: str, fails: Call, checkpoint: bytes, tmp_path: Path) -> None:
    (tmp_path / "folder.ckpt").mkdir()
    (tmp_path / "link.ckpt").symlink_to("nowhere.ckpt")
    (tmp_path / "other.pth").write_bytes(checkpoint)
    for name in ("folder.ckpt", "link.ckpt", "missing.ckpt", "no/such/folder.ckpt"):
        assert fails(script, f"--checkpoint_file_path={name}", "--file_name=out") == f"{name}: no such file"
    assert "must end with .ckpt" in fails(script, "--checkpoint_file_path=other.pth", "--file_name=out")


OTHERS = {
    "net_name": ("resnet18", "net_name is 'resnet18' in the checkpoint and 'resnet10' in the configuration"),
    "pooling": ("gap", "pooling is 'gap' in the checkpoint and 'gcp' in the configuration"),
    "reduction_dim": (12, "reduction_dim is 12 in the checkpoint and 8 in the configuration"),
    "class_num": (7, "class_num is 7 in the checkpoint and 10 in the configuration"),
    "stem": ("imagenet", "stem is 'imagenet' in the checkpoint and 'small' in the configuration"),
    "base_width": (8, "base_width is 8 in the checkpoint and 4 in the configuration"),
}


@pytest.mark.parametrize(("script", "key"), some(product(SCRIPTS, OTHERS), 3))
def test_checkpoints_of_other_networks(script: str, key: str, fails: Call, tmp_path: Path) -> None:
    value, text = OTHERS[key]
    path = tmp_path / "other.ckpt"
    save_checkpoint(path, network(**{key: value}), None, {"architecture": {**ABOUT["architecture"], key: value}})
    line = fails(script, f"--checkpoint_file_path={path}", "--file_name=out")
    assert line == f"{path} does not fit the configuration: {text}"


@pytest.mark.parametrize("key", some(OTHERS, 2))
def test_parameters_of_other_networks(key: str, fails: Call, tmp_path: Path) -> None:
    """Converted checkpoints say nothing of their architecture."""
    path = tmp_path / "other.ckpt"
    save_checkpoint(path, network(**{key: OTHERS[key][0]}))
    line = fails("eval", f"--checkpoint_file_path={path}")
    assert line.startswith(f"{path} does not fit the network: ")


def test_parameters_of_something_else(fails: Call, tmp_path: Path) -> None:
    path = tmp_path / "dense.ckpt"
    save_checkpoint(path, nn.Dense(3, 4))
    assert "does not fit the network: " in fails("export", f"--checkpoint_file_path={path}", "--file_name=out")


@pytest.mark.parametrize("key", ["pre_trained", "resume_ckpt"])
def test_training_does_not_start_from_what_is_damaged(key: str, fails: Call, checkpoint: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.ckpt"
    options = ("--output_path=run", "--batch_size=5", "--epoch_size=1", f"--{key}={path}")
    for content in (b"", b"text", checkpoint[: len(checkpoint) // 2]):
        path.write_bytes(content)
        assert is_refused(path, fails("train", *options))
    path.unlink()
    assert fails("train", *options) == f"{path}: no such file"
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_network_alone_is_not_resumed_from(fails: Call, checkpoint: bytes, tmp_path: Path) -> None:
    path = tmp_path / "network.ckpt"
    path.write_bytes(checkpoint)
    line = fails("train", "--output_path=run", "--batch_size=5", "--epoch_size=1", f"--resume_ckpt={path}")
    assert line == f"{path} holds no optimiser state: it can be pre_trained, not resumed from"


def test_facts_that_cannot_be_read(fails: Call, tmp_path: Path) -> None:
    path = tmp_path / "facts.ckpt"
    entries = [{"name": p.name, "data": p} for p in network().get_parameters()]
    ms.save_checkpoint(entries, str(path), append_dict={"about.architecture": "{no json"}, crc_check=True)
    assert str(path) in fails("eval", f"--checkpoint_file_path={path}")


@pytest.mark.parametrize("content", some(FOREIGN, 3))
def test_exported_files_that_are_none(content: str, exported: Path, fails: Call, tmp_path: Path) -> None:
    path = tmp_path / f"a b{exported.suffix}"
    path.write_bytes(FOREIGN[content])
    assert is_refused(path, fails("predict", "--file", str(path)))


@pytest.mark.parametrize("tenths", some(range(1, 10), 2))
def test_exported_files_cut_short(tenths: int, exported: Path, fails: Call, tmp_path: Path) -> None:
    content = exported.read_bytes()
    path = tmp_path / f"cut{exported.suffix}"
    path.write_bytes(content[: len(content) * tenths // 10])
    assert is_refused(path, fails("predict", "--file", str(path)))


@pytest.mark.parametrize("twentieth", some(range(20), 4))
def test_exported_files_with_a_flipped_bit(twentieth: int, exported: Path, fails: Call, tmp_path: Path) -> None:
    """In the graph, or in a weight, where the file still is one, of another network."""
    content = exported.read_bytes()
    place = (len(content) - 1) * twentieth // 19
    path = tmp_path / f"flipped{exported.suffix}"
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << twentieth % 8]) + content[place + 1 :])
    assert is_refused(path, fails("predict", "--file", str(path)))


def test_places_without_an_exported_file(exported: Path, fails: Call, tmp_path: Path) -> None:
    ending = exported.suffix
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / f"link{ending}").symlink_to("nowhere")
    for name in ("folder", "link", "missing"):
        assert f"no exported file at {name}{ending}" in fails("predict", "--file", f"{name}{ending}")
    (tmp_path / "net.txt").write_bytes(exported.read_bytes())
    assert "its name must end in .mindir or .onnx" in fails("predict", "--file", "net.txt")


def test_an_exported_file_of_the_other_format(exported: Path, fails: Call, tmp_path: Path) -> None:
    path = tmp_path / {".mindir": "net.onnx", ".onnx": "net.mindir"}[exported.suffix]
    path.write_bytes(exported.read_bytes())
    assert is_refused(path, fails("predict", "--file", str(path)))


def test_the_whole_files_are_fine(
    data: Path, checkpoint: bytes, exported: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is damaged above is accepted when it is not."""
    path, result = tmp_path / "whole.ckpt", tmp_path / "result.json"
    path.write_bytes(checkpoint)
    options = [*OPTIONS, f"--data_path={data}", f"--checkpoint_file_path={path}", f"--result_path={result}"]
    assert cli.run(["eval", *options]) == 0 and "result:" in capfd.readouterr().out
    assert json.loads(result.read_text())["num_samples"] == 10
    assert cli.run(["predict", "--file", str(exported), "--images", str(data / "val" / "bag")]) == 0
    assert "%" in capfd.readouterr().out


def test_a_real_command_says_the_same(data: Path, checkpoint: bytes, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(checkpoint[: len(checkpoint) // 2])
    options = [*OPTIONS, f"--data_path={data}", f"--checkpoint_file_path={path}"]
    done = run(["python", "eval.py", *options], cwd=tmp_path, expect=1)
    assert is_refused(path, done.stderr[len("error: ") :]) and done.stderr.count("\n") == 1

"""What the trials work on: 30 images, a training of four epochs, exported files, and what these answer."""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fault_families.trial import ROOT, Ended, Trial

SAMPLE = ROOT / "data" / "fashion_mnist_sample"
EPOCHS = 4
_CONFIG = """\
base: base/small_images.yaml
dataset: image_folder
data_path: {data}
output_path: run
net_name: resnet10
base_width: 4
reduction_dim: 4
class_num: 2
batch_size: 4
epoch_size: {epochs}
lr_max: 0.05
keep_checkpoint_max: 100
num_workers: 1
log_interval: 1
progress: plain
"""


def make_material(output: Path, everything: bool = True) -> Path:
    """Make what the trials share, once for an output folder; without ``everything`` images and configuration alone."""
    material = output / "material"
    if (material / "known.json").is_file():
        return material
    trial = Trial(output / "making", random.Random(0), material)  # noqa: S311
    data, last = material / "data", material / "run" / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt"
    shutil.rmtree(material, ignore_errors=True)
    make_data(data)
    (material / "small.yaml").write_text(_CONFIG.format(data=data, epochs=EPOCHS))
    if not everything:
        return material
    required(trial, "train", config(material), f"--output_path={material / 'run'}")
    answer = required(trial, "eval", *evaluated(material, last), "--result_path=result.json")
    known: dict[str, Any] = {"eval": answer.out.splitlines()[-1], "result": result_of(trial.work / "result.json")}
    for form, name in (("ONNX", "net.onnx"), ("MINDIR", "net.mindir")):
        chosen = (f"--file_format={form}", f"--file_name={material / 'net'}", "--height=28", "--width=28")
        required(trial, "export", config(material), f"--checkpoint_file_path={last}", *chosen)
        said = required(trial, "predict", "--file", str(material / name), "--images", *images(material))
        known[name] = answers(said.out)
    plain = material / "plain"
    required(trial, "train", config(material), "--pooling=gcp", "--epoch_size=1", f"--output_path={plain}")
    source = plain / "checkpoints" / "epoch_0001.ckpt"
    required(
        trial, "convert", "--source", str(source), "--to=safetensors", "--output", str(material / "net.safetensors")
    )
    _other_frameworks(material)
    words = ("--source", str(material / "net.pth"), config(material), "--pooling=gcp", "--output=converted.ckpt")
    required(trial, "convert", *words)
    shutil.move(str(trial.work / "converted.ckpt"), material / "converted.ckpt")
    if trial.problems:
        raise SystemExit(f"error: without any fault: {trial.problems}")
    (material / "known.json").write_text(json.dumps(known))
    return material


def required(trial: Trial, *words: str, **options: Any) -> Ended:
    """Run what must succeed."""
    command = trial.spawn(words, **options)
    command.wait(300)
    ended = trial.judge(command, codes=(0,), writes=("run", "result.json", "converted.ckpt"))
    if ended.code != 0:
        raise SystemExit(f"error: {' '.join(words)}: {ended.err or trial.problems}")
    return ended


def make_data(data: Path, train: int = 10, val: int = 5) -> Path:
    """An image folder of two classes."""
    for name in ("bag", "coat"):
        for split, count in (("train", train), ("val", val)):
            (data / split / name).mkdir(parents=True)
            for file in sorted((SAMPLE / split / name).iterdir())[:count]:
                shutil.copyfile(file, data / split / name / file.name)
    return data


def config(material: Path) -> str:
    """The option that names the configuration."""
    return f"--config_path={material / 'small.yaml'}"


def evaluated(material: Path, checkpoint: Path) -> tuple[str, ...]:
    """Options of an evaluation that takes two seconds."""
    data = f"--data_path={material / 'data'}"
    return config(material), data, f"--checkpoint_file_path={checkpoint}", "--mode_name=PYNATIVE"


def images(material: Path) -> list[str]:
    """Images to predict."""
    return [str(sorted((material / "data" / "val" / name).iterdir())[0]) for name in ("bag", "coat")]


def answers(said: str) -> list[str]:
    """Lines of predictions: class and probability in percent."""
    return [re.sub(r"^.*: ", "", line) for line in said.splitlines() if re.search(r"\d%", line)]


def result_of(path: Path) -> dict[str, float]:
    """What an evaluation wrote, without times."""
    content = json.loads(path.read_text())
    return {key: content[key] for key in ("top_1_accuracy", "top_5_accuracy", "loss", "num_samples")}


def known(trial: Trial, key: str) -> Any:
    """What is known of the material: ``eval``, ``result``, ``net.onnx``, ``net.mindir``."""
    return json.loads((trial.material / "known.json").read_text())[key]


def copies(arrays: dict[str, Any]) -> dict[str, Any]:
    """As Paddle names and turns them."""
    content: dict[str, Any] = {}
    for name, value in arrays.items():
        if not name.endswith("num_batches_tracked"):
            name = name.replace("running_mean", "_mean").replace("running_var", "_variance")
            content[name] = value.T.copy() if value.ndim == 2 else value
    return content


def same_answers(found: Sequence[str], expected: Sequence[str]) -> bool:
    """Whether predictions agree, within what a rounded percentage may differ by."""
    if len(found) != len(expected):
        return False
    for ours, theirs in zip(found, expected):
        numbers = [[float(n) for n in re.findall(r"([\d.]+)%", text)] for text in (ours, theirs)]
        names = [re.sub(r"[\d.]+%", "", text) for text in (ours, theirs)]
        if names[0] != names[1] or any(abs(a - b) > 0.2 for a, b in zip(*numbers)):
            return False
    return True


def _other_frameworks(material: Path) -> None:
    import mindspore  # noqa: F401 - before torch: both bring an OpenMP runtime
    import torch
    from safetensors.numpy import load_file

    arrays = load_file(material / "net.safetensors")
    torch.save({name: torch.from_numpy(value) for name, value in arrays.items()}, material / "net.pth")
    (material / "net.pdparams").write_bytes(pickle.dumps(copies(arrays), protocol=4))

"""Foreign files in place of the project's own, and changed data and configurations between two trainings."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

from benchmarks.fault_families.inventory import WHOLE, epochs_of, inventory
from benchmarks.fault_families.material import (
    EPOCHS,
    SAMPLE,
    answers,
    config,
    evaluated,
    images,
    known,
    result_of,
    same_answers,
)
from benchmarks.fault_families.trial import Trial

_IRREGULAR = ("fifo", "folder", "link to itself", "link to /dev/zero", "link to /dev/full", "missing", "socket")


def irregular(path: Path, kind: str) -> None:
    """Put something there that is no regular file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        os.mknod(path, 0o140644)
    elif kind.startswith("link"):
        path.symlink_to(path.name if kind == "link to itself" else kind[8:])


def foreign_content(rng: random.Random) -> tuple[str, bytes]:
    """A file of something else."""
    archive, tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"\x80\x02}q\x00.")
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("epoch"))
    image = next((SAMPLE / "train" / "bag").iterdir()).read_bytes()
    kinds = {
        "empty": b"",
        "one byte": b"\0",
        "text": "Grüße\n".encode(),
        "JSON null": b"null",
        "JSON list": b"[]\n",
        "JSON object": b'{"checkpoints": 3, "best": [], "kind": "epoch"}\n',
        "JSON deep": b"[" * 100_000,
        "JSON numbers": b'{"kind": "epoch", "epoch": 1e999, "step": NaN}\n',
        "JSON huge number": b'{"kind": "epoch", "epoch": ' + b"9" * 5000 + b', "step": 1}\n',
        "ELF": Path("/bin/true").read_bytes()[:50_000],
        "PNG": image,
        "zip": archive.getvalue(),
        "tar": tar.getvalue(),
        "gzip": gzip.compress(b"x" * 1000),
        "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "pickle": b"cposix\nsystem\n(S'touch pwned'\ntR.",
        "git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "random": rng.randbytes(rng.choice((7, 100, 5000))),
        "zeros": bytes(rng.choice((1, 100, 10**6))),
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "protobuf": b"\x0a\x00" * 500,
        "line breaks": b"\n" * 5000,
    }
    name = rng.choice(list(kinds))
    return name, kinds[name]


_READ = (
    "checkpoint",
    "pre_trained",
    "resume",
    "export",
    "onnx",
    "mindir",
    "image_list",
    "source",
    "images",
    "class_names",
)
_KEPT: tuple[str, ...] = (
    "index.json",
    "metrics.jsonl",
    "best.ckpt",
    f"epoch_{EPOCHS:04d}.ckpt",
    "epoch_0002.ckpt",
    "config.yaml",
)
_KEPT += ("bad_images_train.json", "environment.json", "curves.png", "train.log", "checkpoints", "epoch_0009.ckpt")


def foreign_files(trial: Trial) -> None:
    """A foreign file is given to a command, or lies in the run folder that a training goes on with."""
    rng = trial.rng
    place = rng.choice(_READ * 2 + _KEPT)
    name = rng.choice(_IRREGULAR) if rng.random() < 0.3 else ""
    content = b""
    if not name:
        name, content = foreign_content(rng)
    trial.fault = f"{name} as {place}"
    (_in_the_run_folder if place in _KEPT else _given)(trial, place, name, content)
    trial.check(not list(trial.folder.rglob("pwned*")), "code execution", "the file was executed")


def _given(trial: Trial, place: str, name: str, content: bytes) -> None:
    material, ending = trial.material, {"onnx": ".onnx", "mindir": ".mindir", "image_list": ".txt", "images": ".png"}
    end = (
        ending.get(place, ".ckpt")
        if place != "source"
        else trial.rng.choice((".pth", ".safetensors", ".pdparams", ".ckpt"))
    )
    path = trial.work / f"file{end}"
    if name in _IRREGULAR:
        irregular(path, name)
    else:
        path.write_bytes(content)
    last = str(material / "run" / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt")
    commands = {
        "checkpoint": ("eval", *evaluated(material, path)),
        "pre_trained": ("train", config(material), "--pre_trained=file.ckpt"),
        "resume": ("train", config(material), "--resume_ckpt=file.ckpt"),
        "export": ("export", config(material), "--checkpoint_file_path=file.ckpt", "--file_name=new"),
        "onnx": ("predict", "--file", "file.onnx", "--images", *images(material)),
        "mindir": ("predict", "--file", "file.mindir", "--images", *images(material)),
        "image_list": ("train", config(material), "--image_list=file.txt", "--epoch_size=1", "--mode_name=PYNATIVE"),
        "source": ("convert", "--source", path.name, "--output=out.ckpt", config(material)),
        "images": ("predict", "--file", str(material / "net.onnx"), "--images", "file.png", *images(material)),
        "class_names": ("eval", *evaluated(material, Path(last)), f"--class_names={path}", "--robustness=imagenet_a"),
    }
    ended = (
        trial.run(*commands[place], codes=(1, 2), writes=("run", "out.ckpt"))
        if (place, name)
        != (
            "images",
            "PNG",
        )
        else trial.run(*commands[place], codes=(0,))
    )
    trial.check(ended.code != 0 or name == "PNG", "wrong", "a foreign file was taken")


def _in_the_run_folder(trial: Trial, place: str, name: str, content: bytes) -> None:
    run = trial.copy_run()
    path = run / "checkpoints" / place if place.endswith(".ckpt") or place == "index.json" else run / place
    whole = epochs_of(run)
    irregular(path, name if name in _IRREGULAR else "missing")
    if name not in _IRREGULAR:
        path.write_bytes(content)
    ended = trial.run(
        *("train", config(trial.material), "--resume_ckpt=auto", f"--epoch_size={EPOCHS + 1}"), spoils=True, timeout=180
    )
    if ended.code == 0:
        gone_on(trial, run, EPOCHS + 1, [] if place in ("metrics.jsonl", "checkpoints") else whole)


def gone_on(trial: Trial, run: Path, epochs: int, before: list[dict[str, object]]) -> None:
    """A training that went on to its end has all its epochs and checkpoints, and its best one is its best one."""
    found = epochs_of(run)
    numbers = [record["epoch"] for record in found]
    if before:
        trial.check(numbers == list(range(1, epochs + 1)), "lost", f"metrics.jsonl holds the epochs {numbers}")
        first = [record for record in before if record in found]
        trial.check(len(first) == len(before) or len(first) >= 1, "lost", "records of earlier epochs are gone")
    index = json.loads((run / "checkpoints" / "index.json").read_text())
    from benchmarks.fault_families.wire import network

    for entry in index["checkpoints"]:
        trial.check((run / "checkpoints" / entry["file"]).is_file(), "lost", f"{entry['file']} is in the index only")
    last = run / "checkpoints" / f"epoch_{epochs:04d}.ckpt"
    trial.check(last.is_file() and bool(network(last)), "lost", f"{last.name} is missing")
    rated = [entry for entry in index["checkpoints"] if entry["metric"] is not None]
    best = index["best"]
    if rated and best is not None:
        trial.check(best["metric"] >= max(e["metric"] for e in rated), "wrong", f"best {best}, but {rated}")
        whole = (run / "checkpoints" / "best.ckpt").read_bytes()
        # What the fault has put in the place of that checkpoint is none: the best one is compared with whole ones.
        there = inventory(run / "checkpoints")
        named = [e for e in rated if e["epoch"] == best["epoch"] and there.get(e["file"], "").startswith(WHOLE)]
        for entry in named[:1]:
            same = network(run / "checkpoints" / entry["file"]) == network(run / "checkpoints" / "best.ckpt")
            trial.check(same and bool(whole), "wrong", "best.ckpt is not the checkpoint that the index says")
    trial.check(bool(rated) is (best is not None), "lost", "there is no best checkpoint")


def evaluates_as_known(trial: Trial, checkpoint: Path, *words: str, **rules: object) -> bool:
    """Evaluate a checkpoint; whether it was accepted. What is accepted must answer as it always did."""
    rules = {"writes": ("result.json",), **rules}
    ended = trial.run("eval", *evaluated(trial.material, checkpoint), *words, "--result_path=result.json", **rules)  # type: ignore[arg-type]
    if ended.code == 0:
        found, expected = result_of(trial.work / "result.json"), known(trial, "result")
        close = all(abs(found[key] - expected[key]) < 1e-5 for key in expected)
        trial.check(close, "wrong", f"{found} instead of {expected}")
    return ended.code == 0


def predicts_as_known(trial: Trial, name: str, classes: bool = True, **rules: object) -> bool:
    """Predict with an exported file of the trial; whether it was accepted. Names of classes count with ``classes``."""
    ended = trial.run("predict", "--file", name, "--images", *images(trial.material), **rules)  # type: ignore[arg-type]
    if ended.code == 0:
        found, expected = answers(ended.out), known(trial, name)
        if not classes:
            found, expected = (
                [re.sub(r"[^ ,]+ (?=[\d.]+%)", "", line) for line in lines] for lines in (found, expected)
            )
        trial.check(same_answers(found, expected), "wrong", f"{found} instead of {expected}")
    return ended.code == 0

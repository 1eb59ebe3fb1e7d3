"""Faults between the parts of a training: other data, another configuration, signals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import yaml

from benchmarks.fault_families import wire
from benchmarks.fault_families.foreign import gone_on
from benchmarks.fault_families.inventory import epochs_of
from benchmarks.fault_families.material import EPOCHS, SAMPLE, config, evaluated, images, make_data
from benchmarks.fault_families.trial import Trial

# Another value of these is another network, or another meaning of its outputs: nothing to go on with.
_NETWORK = {"pooling": ("gcp", "gap", "fast_mpn"), "reduction_dim": ("5",), "base_width": ("8",), "class_num": ("3",)}
_NETWORK |= {"net_name": ("resnet18",), "stem": ("imagenet",), "in_channels": ("1",)}
_RECIPE = {
    "batch_size": ("3", "5", "20", "40"),
    "epoch_size": ("5", "7", "4", "3"),
    "lr_max": ("0.01", "0.2"),
    "seed": ("7",),
    "optimizer": ("sgd", "momentum"),
    "nesterov": ("true",),
    "weight_decay": ("0",),
    "use_label_smooth": ("false",),
    "lr_decay_mode": ("step", "poly", "lr_norm"),
    "run_eval": ("false",),
    "save_best_ckpt": ("false",),
    "keep_checkpoint_max": ("1", "2"),
    "save_checkpoint_steps": ("2",),
    "train_images": ("7", "15"),
    "mean": ("[0.1,0.1,0.1]",),
    "train_image_size": ("20",),
    "mode_name": ("PYNATIVE",),
    "amp_level": ("O2",),
    "freeze_bn": ("true",),
    "eval_image_size": ("20",),
}


def changed_configuration(trial: Trial) -> None:
    """A training goes on with other keys: another network is refused, another recipe is followed."""
    rng = trial.rng
    run = trial.copy_run()
    chosen = {key: rng.choice(_RECIPE[key]) for key in rng.sample(sorted(_RECIPE), rng.randint(1, 2))}
    if rng.random() < 0.3:
        key = rng.choice(sorted(_NETWORK))
        chosen[key] = rng.choice(_NETWORK[key])
    resumed = "auto" if rng.random() < 0.6 else f"run/checkpoints/epoch_{rng.randint(1, EPOCHS):04d}.ckpt"
    words = [f"--{key}={value}" for key, value in chosen.items()]
    trial.fault = f"resumed from {Path(resumed).name} with {' '.join(words)}"
    words = ["--epoch_size=6", *words, f"--resume_ckpt={resumed}"]
    before = epochs_of(run)
    rotates = "keep_checkpoint_max" in chosen and not chosen.keys() & _NETWORK
    kept = {p.name: p.read_bytes() for p in (run / "checkpoints").glob("*.ckpt")}
    command = trial.spawn(("train", config(trial.material), *words))
    if rotates:
        command.before = {name: what for name, what in command.before.items() if not name.endswith(".ckpt")}
    command.wait(240)
    ended = trial.judge(command, spoils=not chosen.keys() & _NETWORK)
    if chosen.keys() & _NETWORK:
        trial.check(ended.code != 0, "wrong", "went on with another network")
        unchanged = kept == {p.name: p.read_bytes() for p in (run / "checkpoints").glob("*.ckpt")}
        trial.check(unchanged, "lost", "refused, but the checkpoints changed")
    elif ended.code == 0:
        epochs = max(int(chosen.get("epoch_size", 6)), EPOCHS if resumed == "auto" else int(resumed[-9:-5]))
        first = before if resumed == "auto" else before[: int(resumed[-9:-5])]
        found = epochs_of(run)
        trial.check(
            found[: len(first)] == first, "lost", f"records of the first epochs: {found[: len(first)]}, were {first}"
        )
        trial.check(
            [e["epoch"] for e in found] == list(range(1, epochs + 1)), "lost", f"epochs {[e['epoch'] for e in found]}"
        )
        values = yaml.safe_load((run / "config.yaml").read_text())
        for key, value in chosen.items():
            read = yaml.safe_load(value)
            trial.check(values[key] in (read, [read], value), "wrong", f"{key}={value}: config.yaml has {values[key]}")
    else:
        trial.problem("code", f"another recipe is no reason to stop: {ended.err[-300:]}") if _must_go_on(
            chosen
        ) else None


def _must_go_on(chosen: dict[str, str]) -> bool:
    """Whether there is no reason to refuse these keys."""
    harmless = {"epoch_size", "lr_max", "seed", "weight_decay", "use_label_smooth", "run_eval", "save_best_ckpt"}
    return chosen.keys() <= harmless and chosen.get("epoch_size") != "3"


def changed_data(trial: Trial) -> None:
    """The images change between two trainings: other classes are refused, other images are trained on."""
    rng = trial.rng
    data = make_data(trial.work / "data")
    run = trial.copy_run()
    train, val = data / "train", data / "val"
    both = (train, val)
    kinds: tuple[str, ...] = (
        "renamed",
        "exchanged",
        "class more",
        "class less",
        "class in train only",
        "images less",
        "images more",
    )
    kinds += (
        "other images",
        "empty class",
        "no val",
        "no train",
        "one image",
        "other case",
        "damaged",
        "swapped splits",
    )
    trial.fault = kind = rng.choice(kinds)
    if kind in ("renamed", "other case"):
        new = {"renamed": rng.choice(("zbag", "aaa", "bags")), "other case": "Bag"}[kind]
        for split in both:
            (split / "bag").rename(split / new)
    elif kind == "exchanged":
        for split in both:
            (split / "bag").rename(split / "x")
            (split / "coat").rename(split / "bag")
            (split / "x").rename(split / "zbag")
    elif kind in ("class more", "class in train only"):
        for split in both if kind == "class more" else both[:1]:
            shutil.copytree(SAMPLE / "val" / "shirt", split / rng.choice(("shirt", "aaa")))
    elif kind == "class less":
        for split in both:
            shutil.rmtree(split / "coat")
    elif kind == "images less":
        for file in rng.sample(sorted(train.rglob("*.png")), rng.choice((1, 7, 15))):
            file.unlink()
    elif kind == "images more":
        for file in sorted((SAMPLE / "train" / "coat").iterdir())[10 : 10 + rng.choice((1, 4, 30))]:
            shutil.copyfile(file, train / "coat" / file.name)
    elif kind == "other images":
        for file in train.rglob("*.png"):
            shutil.copyfile(rng.choice(sorted((SAMPLE / "train" / "shirt").iterdir())), file)
    elif kind == "empty class":
        for file in (rng.choice(both) / "bag").iterdir():
            file.unlink()
    elif kind in ("no val", "no train"):
        shutil.rmtree(data / kind[3:])
    elif kind == "one image":
        for file in sorted(train.rglob("*.png"))[1:]:
            file.unlink()
    elif kind == "damaged":
        file = rng.choice(sorted(train.rglob("*.png")))
        file.write_bytes(file.read_bytes()[:40])
    else:
        train.rename(data / "x")
        val.rename(train)
        (data / "x").rename(val)
    before = epochs_of(run)
    words = ("train", config(trial.material), "--data_path=data", "--resume_ckpt=auto", f"--epoch_size={EPOCHS + 1}")
    ended = trial.run(*words, timeout=240, spoils=kind == "damaged")
    other = kind in ("renamed", "exchanged", "class more", "class less", "other case", "no train", "no val")
    trial.check(not other or ended.code != 0, "wrong", "went on with other classes")
    if ended.code == 0:
        gone_on(trial, run, EPOCHS + 1, before)
        trial.check(epochs_of(run)[: len(before)] == before, "lost", "records of earlier epochs")
    last = run / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt"
    if kind in ("renamed", "exchanged", "other case"):
        trial.run("eval", *evaluated(trial.material, last), "--data_path=data", codes=(1, 2))


def signals(trial: Trial) -> None:
    """A signal at a random time: saved and resumed, a training ends as if there had been none."""
    rng = trial.rng
    if rng.random() < 0.4:
        _signal_to_a_command(trial)
        return
    sent = [rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGKILL))]
    if sent[0] != signal.SIGKILL and rng.random() < 0.3:
        sent.append(rng.choice((sent[0], signal.SIGTERM, signal.SIGKILL)))
    pause, records = (rng.uniform(0, 4), 0) if rng.random() < 0.3 else (rng.uniform(0, 0.2), rng.randrange(1, 115))
    trial.fault = f"{' and '.join(s.name for s in sent)} {pause:.2f} s after {records} records of a training"
    words = ("train", config(trial.material), "--epoch_size=20", "--save_checkpoint_steps=2", "--output_path=run")
    command = trial.spawn(words)
    log = trial.work / "run" / "metrics.jsonl"
    while command.poll() is None and records > (log.read_bytes().count(b"\n") if log.is_file() else 0):
        time.sleep(0.01)
    _send(command.pid, sent, pause, rng.uniform(0, 0.5))
    command.wait(120)
    codes = {0, *(128 + number for number in sent)}
    unready = not records and pause < 1  # the command does not listen yet
    if len(sent) > 1 or signal.SIGKILL in sent or unready:
        codes |= {-number for number in sent}
    trial.judge(command, codes=sorted(codes), spoils=True)
    again = trial.run(*words, "--resume_ckpt=auto", codes=(0,), spoils=True)
    if again.code == 0:
        last = Path("checkpoints", "epoch_0020.ckpt")
        same = wire.network(trial.work / "run" / last) == wire.network(_uninterrupted(trial) / last)
        trial.check(same, "wrong", "the weights differ from those of an uninterrupted training")
        epochs = [e["epoch"] for e in epochs_of(trial.work / "run")]
        trial.check(epochs == list(range(1, 21)), "lost", f"epochs {epochs}")


def _send(pid: int, numbers: list[signal.Signals], pause: float, between: float) -> None:
    time.sleep(pause)
    for number in numbers:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        time.sleep(between)


def _uninterrupted(trial: Trial) -> Path:
    run = trial.material / "whole"
    if not run.is_dir():
        words = (config(trial.material), "--epoch_size=20", "--save_checkpoint_steps=2", "--output_path=whole")
        trial.run("train", *words, codes=(0,), writes=("whole", "run"))
        shutil.move(trial.work / "whole", run)
    return run


def _signal_to_a_command(trial: Trial) -> None:
    rng, material = trial.rng, trial.material
    last = str(material / "run" / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt")
    commands = {
        "eval": (*evaluated(material, Path(last)), "--result_path=result.json"),
        "export": (config(material), f"--checkpoint_file_path={last}", "--file_format=ONNX", "--file_name=new"),
        "predict": ("--file", str(material / "net.mindir"), "--images", *images(material)),
        "convert": (
            "--source",
            str(material / "plain" / "checkpoints" / "epoch_0001.ckpt"),
            "--to=safetensors",
            "--output=out.safetensors",
        ),
        "check-data": ("--data_path", str(SAMPLE), "--workers=2", "--json=found.json"),
        "pack": ("--data_path", str(material / "data"), "--output=packed"),
    }
    name = rng.choice(list(commands))
    number = rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    pause = rng.uniform(0, 2.5)
    trial.fault = f"{number.name} after {pause:.2f} s of {name}"
    command = trial.spawn((name, *commands[name]))
    _send(command.pid, [number], pause, 0)
    command.wait(60)
    written = ("result.json", "new.onnx", "out.safetensors", "found.json", "packed")
    allowed = (0, 128 + number, -number)
    ended = trial.judge(command, codes=allowed, writes=written, spoils=True)
    if ended.code != 0:
        half = [n for n in trial.inventory() if Path(n).parts[0].startswith(".")]
        trial.check(not half or ended.code in (-signal.SIGTERM, -signal.SIGHUP), "left", f"files {half}")
    for made in trial.work.glob("*.json"):
        json.loads(made.read_text())

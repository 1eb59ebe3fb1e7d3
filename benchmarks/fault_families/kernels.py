"""The library of compiled kernels, damaged or planted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Optional

from benchmarks.fault_families import wire
from benchmarks.fault_families.exports import native_code
from benchmarks.fault_families.foreign import irregular
from benchmarks.fault_families.inventory import epochs_of
from benchmarks.fault_families.material import config
from benchmarks.fault_families.trial import Trial


def damaged_kernels(trial: Trial) -> None:
    """The library of compiled kernels is damaged, planted or gone: a training computes as with a whole one."""
    rng = trial.rng
    cache, compiler = _kernels(trial)
    mine = trial.folder / "cache" / "mindspore-gcp"
    mine.parent.mkdir()
    shutil.copytree(cache, mine)
    library = next(mine.glob("*.so"))
    whole = library.read_bytes()
    content = bytearray(whole)
    kinds: tuple[str, ...] = (
        "flipped",
        "flipped",
        "flipped",
        "cut",
        "cut",
        "empty",
        "other's",
        "writable",
        "folder writable",
        "fifo",
        "folder",
    )
    kinds += (
        "link to itself",
        "link",
        "missing",
        "folder of another",
        "foreign",
        "no permission",
        "folder away",
        "colon",
    )
    trial.fault = rng.choice(kinds)
    env: dict[str, Optional[str]] = {"XDG_CACHE_HOME": str(mine.parent), "CXX": str(compiler)}
    planted = native_code(trial)
    if trial.fault == "flipped":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        library.write_bytes(content)
    elif trial.fault in ("cut", "empty"):
        library.write_bytes(content[: rng.randrange(len(content)) if trial.fault == "cut" else 0])
    elif trial.fault == "other's":
        library.write_bytes(planted.read_bytes())
        os.chown(library, 12345, 12345)
    elif trial.fault == "writable":
        library.write_bytes(planted.read_bytes())
        library.chmod(0o777)
    elif trial.fault == "folder writable":
        library.write_bytes(planted.read_bytes())
        mine.chmod(0o777)
    elif trial.fault in ("fifo", "folder", "link to itself", "missing"):
        irregular(library, trial.fault)
    elif trial.fault == "link":
        library.unlink()
        library.symlink_to(planted)
    elif trial.fault == "folder of another":
        os.chown(mine, 12345, 12345)
    elif trial.fault == "foreign":
        library.write_bytes(planted.read_bytes())
    elif trial.fault == "no permission":
        library.chmod(0)
    elif trial.fault == "folder away":
        shutil.rmtree(mine.parent)
        mine.parent.write_text("")
    elif trial.fault == "colon":
        env["XDG_CACHE_HOME"] = str(trial.folder / "a:b")
    words = (config(trial.material), "--epoch_size=2", "--cpu_kernels=compiled")
    ended = trial.run("train", *words, how={"env": env}, timeout=180, spoils=True)
    trial.check(not (trial.folder / "pwned").exists(), "code execution", "a planted library was loaded")
    if ended.code == 0:
        expected = wire.network(trial.material / "compiled" / "checkpoints" / "epoch_0002.ckpt")
        found = wire.network(trial.work / "run" / "checkpoints" / "epoch_0002.ckpt")
        trial.check(
            found == expected, "wrong", f"other weights; losses {[e['loss'] for e in epochs_of(trial.work / 'run')]}"
        )
    left = [p.name for p in mine.glob(".*")] if mine.is_dir() else []
    trial.check(not left, "left", f"{left}")


def _kernels(trial: Trial) -> tuple[Path, Path]:
    """A cache with compiled kernels, a compiler that gives the same ones at once, and a training with them."""
    cache, compiler = trial.material / "cache" / "mindspore-gcp", trial.material / "compiler"
    if not (trial.material / "compiled").is_dir():
        made = trial.material / "kernels.so"
        compiler.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\n[ -e {made} ] || g++ "$@" || exit 1\n'
            f'while [ "$1" != -o ]; do shift; done\n[ -e {made} ] && cp {made} "$2" || cp "$2" {made}\n'
        )
        compiler.chmod(0o755)
        env: dict[str, Optional[str]] = {"XDG_CACHE_HOME": str(cache.parent), "CXX": str(compiler)}
        words = (config(trial.material), "--epoch_size=2", "--cpu_kernels=compiled", "--output_path=compiled")
        trial.run("train", *words, how={"env": env}, codes=(0,), writes=("compiled",))
        shutil.move(trial.work / "compiled", trial.material / "compiled")
    return cache, compiler

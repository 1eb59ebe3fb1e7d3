"""Checkpoints whose structure lies."""

from __future__ import annotations

import random
from typing import Callable, Optional

from benchmarks.fault_families import wire
from benchmarks.fault_families.foreign import evaluates_as_known
from benchmarks.fault_families.material import EPOCHS, config
from benchmarks.fault_families.trial import Trial
from benchmarks.fault_families.wire import Entry, field, varint

_SIZES = (0, 1, 3, -1, -3, 2**20, 2**31, 2**40, 2**62, 2**63 - 1)
_TYPES = (b"Float16", b"Float64", b"Int32", b"Int8", b"Bool", b"UInt64", b"str", b"Int4", b"", b"\xff", b"Complex64")


def crafted_checkpoints(trial: Trial) -> None:
    """A checkpoint whose structure lies, with a valid checksum or none: it answers as known, or is refused."""
    rng = trial.rng
    source = trial.material / "run" / "checkpoints" / f"epoch_{EPOCHS:04d}.ckpt"
    entries = wire.read(source.read_bytes())
    places = [i for i, e in enumerate(entries) if not e.name.startswith(b"about.")]
    place = rng.choice(places) if rng.random() < 0.8 else rng.randrange(len(entries))
    name, content = _crafted(rng, entries, place)
    has_checksum = rng.random() < 0.6
    path = trial.work / "net.ckpt"
    path.write_bytes(wire.sealed(content) if has_checksum else content)
    trial.fault = f"{name} in {entries[place].name.decode()}, {'with' if has_checksum else 'without'} checksum"
    used = rng.choice(("eval",) * 4 + ("resume", "convert"))
    if used == "eval":
        if evaluates_as_known(trial, path, codes=(0, 1)) and name != "flipped":
            before, after = wire.network(source), _network_of(content)
            trial.check(before == after, "wrong", "accepted, but the parameters are others")
    elif used == "convert":
        trial.run(
            "convert", "--source=net.ckpt", "--to=safetensors", "--output=out.safetensors", writes=("out.safetensors",)
        )
    else:
        words = ("--resume_ckpt=net.ckpt", f"--epoch_size={EPOCHS + 1}", "--mode_name=PYNATIVE")
        trial.run("train", config(trial.material), *words, spoils=True)


def _network_of(content: bytes) -> Optional[dict[bytes, bytes]]:
    try:
        entries = wire.read(content)
    except (IndexError, ValueError, KeyError, TypeError):
        return None
    own = [e for e in entries if not e.name.startswith((b"optimizer.", b"about.", b"ranks."))]
    joined: dict[bytes, bytes] = {}
    for entry in own:  # MindSpore cuts large tensors into parts of one name
        joined[entry.name] = joined.get(entry.name, b"") + entry.content
    return joined


def _crafted(rng: random.Random, entries: list[Entry], place: int) -> tuple[str, bytes]:
    it = entries[place]
    dims, content = it.dims, it.content
    axis = rng.randrange(len(dims)) if dims else 0
    other = entries[rng.randrange(len(entries))]
    size = rng.choice(_SIZES)
    lies: dict[str, Callable[[], Entry]] = {
        "content too long": lambda: it.changed(content=content * rng.choice((2, 1000))),
        "content too short": lambda: it.changed(content=content[: rng.randrange(len(content))]),
        f"a dimension of {size}": lambda: it.changed(dims=(*dims[:axis], size, *dims[axis + 1 :])),
        "all dimensions negative": lambda: it.changed(dims=tuple(-d for d in dims)),
        "more dimensions": lambda: it.changed(dims=dims + (1,) * rng.choice((1, 5, 8, 3000))),
        "no dimensions": lambda: it.changed(dims=()),
        "a product that wraps": lambda: it.changed(dims=(2**62, 4, *dims)),
        "another type": lambda: it.changed(kind=rng.choice(_TYPES)),
        "another name": lambda: it.changed(
            name=rng.choice((b"", b"\xff\xfe", b"fc.weight2", b"about.epoch", b"x" * 10**5))
        ),
        "the name of another": lambda: it.changed(name=other.name),
        "content of another": lambda: it.changed(content=other.content),
        "a field more": lambda: it.changed(extra=field(rng.choice((1, 2, 3, 9)), rng.choice((5, b"", b"abc")))),
        "a group": lambda: it.changed(extra=varint(1 << 3 | 3)),
    }
    structure = {
        "twice": lambda: wire.written([*entries, it]),
        "left out": lambda: wire.written([*entries[:place], *entries[place + 1 :]]),
        "in two parts": lambda: wire.written([*entries[:place], *_halves(it), *entries[place + 1 :]]),
        "cut": lambda: (whole := wire.written(entries))[: rng.randrange(len(whole))],
        "description": lambda: wire.written([_other_description(rng, e) for e in entries]),
        "length beyond the end": lambda: wire.written(entries)[:-5] + b"\x0a\xff\xff\xff\x7f",
        "endless number": lambda: wire.written(entries) + b"\xff" * rng.choice((9, 10, 11, 40)),
        "nothing": lambda: b"",
        "flipped": lambda: _flipped(rng, entries),
    }
    name = rng.choice([*lies, *structure, "flipped", "flipped", "description", "description"])
    if name in structure:
        return name, structure[name]()
    return name, wire.written([*entries[:place], lies[name](), *entries[place + 1 :]])


def _halves(entry: Entry) -> tuple[Entry, Entry]:
    middle = len(entry.content) // 2
    return entry.changed(content=entry.content[:middle]), entry.changed(content=entry.content[middle:])


def _other_description(rng: random.Random, entry: Entry) -> Entry:
    """An ``about.`` text of another type or value; the others stay."""
    if not entry.name.startswith(b"about.") or rng.random() < 0.5:
        return entry
    values = ("null", "[]", "{}", '"x"', "-1", "1e999", "NaN", "true", "[[]]", '{"a": {"b": []}}', "", "{", "9" * 5000)
    return entry.changed(content=rng.choice(values).encode("utf-32-le"))


def _flipped(rng: random.Random, entries: list[Entry]) -> bytes:
    """Bits of the structure changed, not of the values of parameters."""
    whole = bytearray(wire.written(entries))
    values = set()
    for entry in entries:
        if not entry.name.startswith(b"about."):
            start = whole.find(entry.content) if len(entry.content) > 15 else -1
            values |= set(range(start, start + len(entry.content))) if start >= 0 else set()
    places = [i for i in range(len(whole)) if i not in values]
    for place in rng.choices(places, k=rng.randint(1, 3)):
        whole[place] ^= 1 << rng.randrange(8)
    return bytes(whole)

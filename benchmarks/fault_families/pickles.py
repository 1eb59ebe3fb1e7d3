"""Checkpoints of other frameworks: pickles that want to run code, archives, safetensors."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import zipfile
from typing import Any

from benchmarks.fault_families import wire
from benchmarks.fault_families.material import config
from benchmarks.fault_families.trial import Trial


def pickles(trial: Trial) -> None:
    """A checkpoint of another framework that was damaged or wants to run code: its own values, or refused."""
    import mindspore  # noqa: F401 - here, before torch, so that no copy of this process imports them again
    import torch  # noqa: F401

    rng = trial.rng
    ending = rng.choice((".pth", ".pth", ".pdparams", ".pdparams", ".safetensors", ".pth.tar"))
    path = trial.work / f"net{ending}"
    whole = (trial.material / f"net{'.pth' if ending == '.pth.tar' else ending}").read_bytes()
    fault = rng.choice(("flipped", "cut", "hostile", "hostile", "hostile", "random opcodes"))
    if ending == ".safetensors" and fault != "cut":
        fault = rng.choice(("flipped", "header"))
    trial.fault = f"{ending}: {fault}"
    if fault == "flipped":
        content = bytearray(whole)
        place = rng.randrange(min(len(content), rng.choice((300, 10**9))))
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    elif fault == "cut":
        path.write_bytes(whole[: rng.randrange(len(whole))])
    elif fault == "header":
        path.write_bytes(_other_header(rng, whole))
    else:
        kind, program = _hostile(rng) if fault == "hostile" else ("", _opcodes(rng))
        trial.fault += f" {kind}"
        path.write_bytes(program if ending == ".pdparams" or rng.random() < 0.3 else _archive(whole, program))
    ended = trial.run(
        "convert",
        "--source",
        path.name,
        config(trial.material),
        "--pooling=gcp",
        "--output=out.ckpt",
        writes=("out.ckpt",),
    )
    trial.check(not list(trial.folder.rglob("pwned*")), "code execution", "the file was executed")
    if ended.code == 0 and fault != "flipped":
        expected, found = wire.network(trial.material / "converted.ckpt"), wire.network(trial.work / "out.ckpt")
        trial.check(expected == found, "wrong", "accepted, but the values are others")


def _archive(whole: bytes, program: bytes) -> bytes:
    """A PyTorch archive with another program."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
        for part in old.namelist():
            new.writestr(part, program if part.endswith("data.pkl") else old.read(part))
    return made.getvalue()


def _hostile(rng: random.Random) -> tuple[str, bytes]:
    """A pickle that wants to call something, or to take all memory."""

    class Call:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.call = (function, arguments)

        def __reduce__(self) -> Any:
            return self.call

    def named(module: str, name: str, *arguments: Any) -> bytes:
        head = b"\x80\x04c" + f"{module}\n{name}\n".encode()
        return head + pickle.dumps(arguments, 4)[2:-1].replace(b"\x95", b"\x95", 1) + b"R."

    names: tuple[tuple[str, str], ...] = (
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "getoutput"),
        ("builtins", "eval"),
        ("builtins", "exec"),
    )
    names += (
        ("os", "mkdir"),
        ("numpy.testing._private.utils", "runstring"),
        ("timeit", "timeit"),
        ("runpy", "run_path"),
    )
    names += (("torch.serialization", "load"), ("torch.hub", "load"), ("covpool.cli", "run"), ("pickle", "loads"))
    names += (("collections", "OrderedDict.__init__.__globals__"), ("numpy", "load"), ("importlib", "import_module"))
    module, name = rng.choice(names)
    code = "__import__('os').mkdir('pwned')"
    argument = code if name in ("eval", "exec", "timeit") else "pwned" if name == "mkdir" else "touch pwned"
    state = b"\x80\x04ccollections\nOrderedDict\n(\x8c\x0c__defaults__)\x8c\x01xtb."
    build = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n}\x8c\x0c__defaults__\x8c\x01x\x85sb."
    huge = (
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40),
        b"\x80\x04\x8d" + struct.pack("<Q", 2**50),
        b"\x80\x05\x96" + struct.pack("<Q", 2**40),
    )
    kinds = {
        f"{module}.{name}": named(module, name, argument),
        "protocol 0": f"c{module}\n{name}\n(S'{argument}'\ntR.".encode(),
        "stack global": b"\x80\x04\x8c"
        + bytes([len(module)])
        + module.encode()
        + b"\x8c"
        + bytes([len(name)])
        + name.encode()
        + b"\x93\x8c\x0btouch pwned\x85R.",
        "reduce": pickle.dumps({"fc.weight": Call(os.mkdir, "pwned")}, rng.choice((0, 2, 4))),
        "inst": f"(S'touch pwned'\ni{module}\n{name}\n.".encode(),
        "state": rng.choice((state, build)),
        "deep": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "huge length": rng.choice(huge),
        "bomb of copies": b"\x80\x04]" + b"2(llll" * 20 + b".",
        "persistent": b"\x80\x04\x8c\x05pwnedQ.",
        "extension": b"\x80\x02\x82\x01.",
        "memo": b"\x80\x04r\xff\xff\xff\xff.",
        "huge number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01",
        "array": named("numpy.core.multiarray", "_reconstruct", 0, (2**40,), b"b"),
    }
    chosen = rng.choice([*kinds, f"{module}.{name}", "reduce"])
    return chosen, kinds[chosen]


def _opcodes(rng: random.Random) -> bytes:
    """A random program for the unpickler."""
    import pickletools

    codes = [code.code.encode("latin1") for code in pickletools.opcodes]
    parts = [
        rng.choice(codes) + rng.choice((b"", b"\x01", b"os\nsystem\n", b"\x05pwned", bytes(4)))
        for _ in range(rng.randint(3, 60))
    ]
    return b"\x80\x04" + b"".join(parts) + b"."


def _other_header(rng: random.Random, whole: bytes) -> bytes:
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    key = rng.choice(("dtype", "shape", "data_offsets"))
    header[name][key] = {
        "dtype": rng.choice(("F64", "I8", "BF16", "X", 3)),
        "shape": rng.choice(([-1], [2**62, 4], [], [0], [1] * 3000, "x")),
        "data_offsets": rng.choice(([0, 2**60], [-4, 4], [8, 4], [0], [0, 4])),
    }[key]
    text = json.dumps(header).encode()
    sizes = (len(text), len(text), 2**63, 0, len(text) + 5)
    return struct.pack("<Q", rng.choice(sizes)) + text + whole[8 + length :]

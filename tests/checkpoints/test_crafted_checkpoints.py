"""Checkpoint files whose structure lies, with and without a valid checksum: one clear line, never a crash."""

from __future__ import annotations

import binascii
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest

from benchmarks.fault_families.wire import field, varint
from covpool.checkpoints.format import Checkpoint, read_checkpoint
from covpool.errors import UserError

ONES = np.ones(6, np.float32).tobytes()


def entry(
    name: bytes = b"fc.weight",
    dims: tuple[int, ...] = (2, 3),
    kind: bytes = b"Float32",
    content: bytes = ONES,
    extra: bytes = b"",
) -> bytes:
    """One parameter of a checkpoint, as MindSpore writes it."""
    tensor = b"".join(field(1, d) for d in dims) + field(2, kind) + field(3, content) + extra
    return field(1, field(1, name) + field(2, tensor))


def sealed(content: bytes) -> bytes:
    return content + b"crc_num" + binascii.crc32(content).to_bytes(10, "big")


LIES: dict[str, bytes] = {
    "content too long": entry(content=ONES * 1000),
    "content too short": entry(content=ONES[:-1]),
    "no content": entry(content=b""),
    "dimensions too small": entry(dims=(1,)),
    "dimensions too large": entry(dims=(2**20, 2**20)),
    "a product beyond 64 bits": entry(dims=(2**40, 2**40)),
    "a product that wraps to the right size": entry(dims=(2**62, 4, 6)),
    "negative": entry(dims=(-2, -3)),
    "one negative": entry(dims=(2, 3, -1)),
    "3000 dimensions": entry(dims=(2, 3) + (1,) * 3000),
    "nine dimensions": entry(dims=(2, 3) + (1,) * 7),
    "zero and content": entry(dims=(0, 3)),
    "Bool with other bytes": entry(dims=(24,), kind=b"Bool"),
    "unknown type": entry(kind=b"Float128"),
    "quantised type": entry(kind=b"Int4"),
    "type of bytes": entry(kind=b"\xff\xfe"),
    "name of bytes": entry(name=b"\xff\xfe"),
    "a name twice": entry() + entry(b"fc.bias") + entry(),
    "slices too many": entry() * 2,
    "slices of two types": entry(content=ONES[:12]) + entry(kind=b"Int32", content=ONES[12:]),
    "slices of two shapes": entry(content=ONES[:12]) + entry(dims=(3, 2), content=ONES[12:]),
    "text of odd length": entry(b"about.epoch", (0,), b"str", b"123"),
    "text beyond Unicode": entry(b"about.epoch", (0,), b"str", b"\xff\xff\xff\xff"),
    "a number as description": entry(b"about.epoch"),
    "a text as parameter": entry() + entry(b"fc.bias", (0,), b"str", "1".encode("utf-32-le")),
    "no tensor": field(1, field(1, b"fc.weight")),
    "a map": field(1, field(1, b"fc.weight") + field(3, field(1, b""))),
    "no name": field(1, field(2, field(1, 6) + field(2, b"Float32") + field(3, ONES))),
    "no type": field(1, field(1, b"fc.weight") + field(2, field(1, 6) + field(3, ONES))),
    "tensor is a number": field(1, field(1, b"fc.weight") + field(2, 7)),
    "dimension is a text": field(1, field(1, b"a") + field(2, field(1, b"6") + field(2, b"Float32") + field(3, ONES))),
    "unknown field": entry(extra=field(9, 1)),
    "group": entry() + varint(1 << 3 | 3),
    "length beyond the end": entry()[:-30] + b"\xff\xff\xff\x7f" + bytes(20),
    "endless varint": b"\xff" * 40,
    "nothing": b"",
    "one byte": b"\x0a",
}


def outcome(path: Path, content: bytes) -> str:
    """The message of the error, or an empty text for a checkpoint that is consistent."""
    path.write_bytes(content)
    try:
        checkpoint = read_checkpoint(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return str(error)
    for value in [*checkpoint.network.values(), *checkpoint.optimizer.values()]:
        assert value.asnumpy().size == np.prod(value.shape, dtype=object)
    return ""


def description(**about: Any) -> bytes:
    texts = {f"about.{key}": json.dumps(value) for key, value in about.items()}
    entries = [entry(name.encode(), (0,), b"str", text.encode("utf-32-le")) for name, text in texts.items()]
    statistics = entry(b"bn.moving_mean", (6,)) + entry(b"bn.moving_variance", (6,))
    return sealed(entry() + statistics + b"".join(entries))


WRONG: dict[str, list[Any]] = {
    "epoch": ["one", None, 1.5, -1, True, [1], float("nan"), 10**400],
    "step": [{}, -3],
    "steps_per_epoch": [0, "12"],
    "metric": ["high", [0.5], True],
    "architecture": [["resnet18"], "resnet18", 3, None],
    "class_names": ["bag", [1, 2], {"a": 1}, 7, [["a"]]],
    "mean": [0.5, ["a"], [], [None], {}],
    "std": ["0.5", [[0.1]]],
    "transform": [[1], "centre"],
    "losses": [3, [1, 2], [[1]], [["a", 2]], "x", [[1, 2], [3]]],
    "conventions": [7, ["model_zoo"]],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_description_of_another_type_is_one_line(key, value, tmp_path):
    message = outcome(tmp_path / "net.ckpt", description(**{key: value}))
    assert f"damaged, its description says {key} = " in message and len(message) < 300


def test_a_description_of_the_right_type(tmp_path):
    about = {"epoch": 3, "step": 12, "metric": None, "class_names": ["a", "ü"], "mean": [0.5], "std": [1], "new": [{}]}
    (tmp_path / "net.ckpt").write_bytes(description(**about))
    assert read_checkpoint(tmp_path / "net.ckpt").about == about


@pytest.mark.parametrize("dims", [(12,), (2, 6), (3, 4), (1, 2, 6)])
def test_statistics_of_ranks_that_fit_no_network(dims, tmp_path):
    ranks = entry(b"ranks.statistics", dims, content=ONES * 2)
    content = description(losses=[[1.0, 2]], epoch=1, step=3, steps_per_epoch=2)[:-17]
    assert "running statistics" in outcome(tmp_path / "net.ckpt", sealed(content + ranks))
    good = entry(b"ranks.statistics", (1, 12), content=ONES * 2)
    assert outcome(tmp_path / "net.ckpt", sealed(content + good)) == ""


@pytest.mark.parametrize("seal", [sealed, bytes], ids=["checksum", "none"])
@pytest.mark.parametrize("lie", LIES)
def test_a_structure_that_lies_is_refused(tmp_path, lie, seal):
    assert "damaged" in outcome(tmp_path / "net.ckpt", seal(LIES[lie])) or seal(LIES[lie]) == b""


def honest() -> bytes:
    """What the lies are told about, and a checkpoint as it should be."""
    text = json.dumps([1, "é"]).encode("utf-32-le")
    return (
        entry()
        + entry(b"fc.bias", (0,), b"Int64", bytes(8))
        + entry(b"half", (3,), b"Float16", bytes(6))
        + entry(b"flag", (2,), b"Bool", b"\x00\x01")
        + entry(b"about.note", (0,), b"str", text)
    )


def test_an_honest_file_reads_as_in_mindspore(tmp_path):
    path = tmp_path / "net.ckpt"
    path.write_bytes(honest())
    expected: dict[str, Any] = ms.load_checkpoint(str(path))
    checkpoint = read_checkpoint(path)
    assert checkpoint.about == {"note": [1, "é"]}
    assert [*checkpoint.network, "about.note"] == [*expected]
    for name, value in checkpoint.network.items():
        assert (value.shape, value.dtype, value.name) == (expected[name].shape, expected[name].dtype, name)
        np.testing.assert_array_equal(value.asnumpy(), expected[name].asnumpy())


def test_slices_of_a_large_tensor_are_joined(tmp_path):
    path = tmp_path / "net.ckpt"
    path.write_bytes(sealed(entry(content=ONES[:8]) + entry(content=ONES[8:]) + entry(b"fc.bias", (6,))))
    assert read_checkpoint(path).network["fc.weight"].asnumpy().tobytes() == ONES


def flipped(seed: int) -> Iterator[bytes]:
    """Files with one to three bytes of their structure changed; content of tensors is left alone."""
    draw, whole = random.Random(seed), honest()
    places = [i for i in range(len(whole)) if whole[i : i + 1] != b"\x00" and whole[i - 3 : i + 3] != ONES[:6]]
    for _ in range(70):
        content = bytearray(whole)
        for place in draw.choices(places, k=draw.randint(1, 3)):
            content[place] ^= 1 << draw.randrange(8)
        yield bytes(content)


@pytest.mark.parametrize("seal", [sealed, bytes], ids=["checksum", "none"])
def test_flipped_structure(tmp_path, seal):
    messages = [outcome(tmp_path / "net.ckpt", seal(content)) for content in flipped(seed=1)]
    assert sum(bool(message) for message in messages) > 20


def test_bfloat16_becomes_float32(tmp_path):
    path = tmp_path / "net.ckpt"
    path.write_bytes(entry(dims=(3,), kind=b"BFloat16", content=b"\x80\x3f\xc0\xbf\x00\x00"))
    weight = read_checkpoint(path).network["fc.weight"]
    assert weight.dtype == ms.float32 and weight.asnumpy().tolist() == [1.0, -1.5, 0.0]


def test_a_large_file_is_checked_quickly(tmp_path):
    path = tmp_path / "net.ckpt"
    path.write_bytes(sealed(entry(dims=(32 * 2**20 // 4,), content=bytes(32 * 2**20))))
    began = time.process_time()
    checkpoint: Checkpoint = read_checkpoint(path)
    assert checkpoint.network["fc.weight"].size == 2**23
    assert time.process_time() - began < 5

"""Images that are odd, damaged or far too large."""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import zlib
from pathlib import Path

from PIL import Image

from benchmarks.fault_families.material import SAMPLE
from benchmarks.fault_families.trial import Trial


def images(trial: Trial) -> None:
    """An odd or damaged image among good ones: check-data lists what Pillow cannot read, and nothing that is plain."""
    rng = trial.rng
    folder = trial.work / "data"
    for split in ("train", "val"):
        for name in ("bag", "coat"):
            (folder / split / name).mkdir(parents=True)
            for file in sorted((SAMPLE / split / name).iterdir())[:2]:
                shutil.copyfile(file, folder / split / name / file.name)
    trial.fault, plain, content = _image(rng)
    ending = rng.choice((".png", ".jpg", ".jpeg", ".JPG", ".bmp"))
    path = folder / "train" / "bag" / f"odd{ending}"
    path.write_bytes(content)
    readable = _pillow_reads(path)
    if rng.random() < 0.7:
        ended = trial.run(
            "check-data",
            "--data_path=data",
            "--json=found.json",
            "--workers=1",
            codes=(0, 1),
            writes=("found.json",),
            listed=True,
            spoils=True,
        )
        listed = ended.code == 1
        if ended.code is not None and (trial.work / "found.json").is_file():
            problems = json.loads((trial.work / "found.json").read_text())["problems"]
            trial.check(
                [p["path"] for p in problems] == ([f"train/bag/{path.name}"] if listed else []), "wrong", f"{problems}"
            )
    else:
        words = ("--file", str(trial.material / "net.onnx"), "--images", str(path))
        ended = trial.run("predict", *words, codes=(0, 1))
        listed = ended.code == 1
        trial.check(listed == (path.name not in ended.out), "wrong", f"{ended.out} {ended.err}")
        trial.check(not listed or path.name in ended.err, "message", f"the image is not named: {ended.err}")
    trial.check(readable or listed, "wrong", "Pillow cannot read it, and it was taken")
    trial.check(not (plain and listed), "wrong", "a plain image was refused")


def _pillow_reads(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.convert("RGB").load()
    except Exception:  # whatever Pillow has to say
        return False
    return True


def _image(rng: random.Random) -> tuple[str, bool, bytes]:
    """What it is, whether it is a plain image that must be taken, its bytes."""
    size = rng.choice(((28, 28), (1, 1), (500, 3), (64, 48)))
    mode = rng.choice(("L", "RGB"))
    form = rng.choice(("PNG", "JPEG", "BMP"))
    base = Image.effect_noise(size, 60).convert(mode)
    whole = _encoded(base, form)
    content = bytearray(whole)
    kind = rng.choice(
        ("plain", "mode", "format", "cut", "cut", "flipped", "flipped", "flipped", "bomb", "header", "tail", "text")
    )
    if kind == "plain":
        return f"{form} {mode} {size}", True, whole
    if kind == "mode":
        other, form = rng.choice(
            (("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("I;16", "PNG"), ("LA", "PNG"), ("CMYK", "JPEG"))
        )
        return (
            f"{form} {other}",
            False,
            _encoded(base.convert("L").convert(other) if other == "I;16" else base.convert(other), form),
        )
    if kind == "format":
        form = rng.choice(
            ("GIF", "TIFF", "WEBP", "ICO", "PPM", "TGA", "PCX", "PDF", "EPS", "ICNS", "JPEG2000", "SGI", "DDS")
        )
        return form, False, _encoded(base.convert("RGB").resize((32, 32)), form)
    if kind == "cut":
        return f"{form} cut", False, whole[: rng.randrange(len(whole))]
    if kind == "flipped":
        for _ in range(rng.choice((1, 3))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return f"{form} flipped", False, bytes(content)
    if kind == "bomb":
        side = rng.choice((7200, 13000, 20000, 60000))
        return f"{side} x {side} pixels", False, _bomb(side)
    if kind == "header":
        field_of = rng.choice(((0, 0), (2**31 - 1, 1), (2**31, 2**31), (28, 0), (100_000, 3)))
        chunk = b"IHDR" + struct.pack(">IIBBBBB", *field_of, 8, 2, 0, 0, 0)
        made = _encoded(base, "PNG")
        return f"PNG header {field_of}", False, made[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + made[33:]
    if kind == "tail":
        return f"{form} and more after it", False, whole + rng.randbytes(100)
    return (
        "text",
        False,
        rng.choice((b"", b"\x89PNG", b"GIF89a", b"<svg/>", b"\xff\xd8\xff", b"BM", b"%PDF", b"\x00" * 100)),
    )


def _bomb(side: int) -> bytes:
    """A tiny PNG of many pixels, one bit each."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + (side + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _encoded(image: Image.Image, form: str) -> bytes:
    made = io.BytesIO()
    image.save(made, form)
    return made.getvalue()

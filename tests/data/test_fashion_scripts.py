from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from covpool import cli
from covpool.commands import fashion_mnist as commands
from covpool.data import open_source
from covpool.data.arrays import FASHION_MNIST_CLASSES as CLASS_NAMES


def idx(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def originals(tmp_path: Path) -> Path:
    """Files in the format of Fashion-MNIST: 30 training and 20 test images."""
    folder = tmp_path / "originals"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 30), ("t10k", 20)):
        for name, values in (
            (f"{prefix}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28))),
            (f"{prefix}-labels-idx1-ubyte", rng.permutation(np.arange(count) % 10)),
        ):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
    return folder


@pytest.fixture
def published(originals: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same files, with their checksums and counts taken for the published ones."""
    sums = {}
    for path in originals.iterdir():
        data = path.read_bytes()
        parts = (data, gzip.decompress(data))
        sums[path.name[:-3]] = tuple(hashlib.md5(part, usedforsecurity=False).hexdigest() for part in parts)
    monkeypatch.setattr(commands, "CHECKSUMS", sums)
    monkeypatch.setattr(commands, "COUNTS", {"train": 30, "val": 20})
    return originals


@pytest.fixture
def server(published: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(published))) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}/"
        web.shutdown()
        thread.join()


def prepare(*args: object) -> int:
    return cli.run(["fashion-mnist", *(str(arg) for arg in args)])


def test_image_folder_holds_every_image_under_its_class(published: Path, tmp_path: Path) -> None:
    assert prepare("--source", published, "--output", tmp_path / "out") == 0
    for split, count in (("train", 30), ("val", 20)):
        raw = open_source("fashion_mnist", published, split)
        source = open_source("image_folder", tmp_path / "out", split)
        assert source.num_samples == count
        for i in range(count):
            path = Path(source.describe(i))
            number = int(path.stem)
            assert path.parent.name == CLASS_NAMES[raw.labels[number]]
            np.testing.assert_array_equal(np.asarray(Image.open(path)), raw.read(number)[..., 0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["originals", "out"]


def test_raw_from_a_web_server(published: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert prepare("--source", server, "--output", tmp_path / "raw", "--raw") == 0
    assert "4 original files" in capsys.readouterr().out
    for path in published.iterdir():
        assert (tmp_path / "raw" / path.name).read_bytes() == path.read_bytes()
    (published / "t10k-labels-idx1-ubyte.gz").unlink()
    assert prepare("--source", server, "--output", tmp_path / "raw2", "--raw") == 1
    assert "cannot download" in capsys.readouterr().err
    assert not (tmp_path / "raw2").exists()


def test_a_server_that_sends_too_much(
    published: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(commands, "MAX_DOWNLOAD", 10_000)
    assert prepare("--source", server, "--output", tmp_path / "raw", "--raw") == 1
    assert (
        "-images-idx3-ubyte.gz has more than 10000 bytes: not one of the published files\n" in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["originals"]


def test_another_compression_of_the_same_content_is_accepted(published: Path, tmp_path: Path) -> None:
    for path in list(published.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert prepare("--source", published, "--output", tmp_path / "out", "--raw") == 0


def test_debian_package(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    files = "usr/share/datasets/fashion-mnist"
    for name, script in {
        "apt-get": '[ "$1 $2" = "download dataset-fashion-mnist" ] && : > dataset-fashion-mnist_1_all.deb',
        "dpkg-deb": f'[ "$1 $2 $3" = "-x dataset-fashion-mnist_1_all.deb ." ] && mkdir -p {files} && '
        f"cp {published}/* {files}/",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    assert prepare("--source", "debian", "--output", tmp_path / "out", "--raw") == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_debian_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert prepare("--source", "debian", "--output", tmp_path / "out") == 1
    assert "needs apt-get, which is not on this system" in capsys.readouterr().err
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    assert prepare("--source", "debian", "--output", tmp_path / "out") == 1
    assert "E: Unable to locate package" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_errors_leave_nothing_behind(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def fails(message: str, *args: object) -> None:
        before = sorted(tmp_path.rglob("*"))
        assert prepare(*args) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    out = tmp_path / "out"
    fails("not a folder", "--source", tmp_path / "nowhere", "--output", out)
    fails("no file train-images", "--source", tmp_path, "--output", out)
    fails("exists already", "--source", published, "--output", published)
    labels = published / "t10k-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.zeros(20))))
    fails("is not the published file", "--source", published, "--output", out)
    labels.write_bytes(labels.read_bytes()[:-5])
    fails("cannot read", "--source", published, "--output", out)
    labels.write_bytes(gzip.compress(idx(np.full(20, 11))))
    fails("label 11 is outside", "--source", published, "--output", out, "--any_content")


def test_published_checksums_guard_the_counts(originals: Path, tmp_path: Path) -> None:
    assert prepare("--source", originals, "--output", tmp_path / "out") == 1
    assert prepare("--source", originals, "--output", tmp_path / "out", "--any_content") == 0


def test_sample_is_balanced_and_repeatable(originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("one", "two"):
        arguments = ["--source", originals, "--output", tmp_path / name, "--train", 2, "--val", 1, "--seed", 4]
        assert cli.run(["fashion-mnist-sample", *(str(a) for a in arguments)]) == 0
    files = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(files) == 10 * 2 + 10 * 1 + 1
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert "--train 2 --val 1 --seed 4" in (tmp_path / "one" / "README.md").read_text()
    too_many = ["--source", str(originals), "--output", str(tmp_path / "three"), "--train", "4", "--val", "1"]
    assert cli.run(["fashion-mnist-sample", *too_many]) == 1
    assert "class t-shirt_top has 3 images, 4 were asked for" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_the_sample_in_the_repository(root: Path) -> None:
    folder = root / "data" / "fashion_mnist_sample"
    seen: set[tuple[str, bytes]] = set()
    for split, per_class in (("train", 200), ("val", 50)):
        source = open_source("image_folder", folder, split)
        assert sorted(CLASS_NAMES) == list(source.class_names)
        assert np.bincount(source.labels).tolist() == [per_class] * 10
        for i in range(source.num_samples):
            with Image.open(io.BytesIO(source.read(i).tobytes())) as image:
                assert (image.mode, image.size) == ("L", (28, 28))
                seen.add((split, image.tobytes()))
    assert len(seen) > 2490  # the original has a few duplicates
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2 * 1024**2
    assert "Copyright (c) 2017 Zalando SE" in (folder / "README.md").read_text(encoding="utf-8")

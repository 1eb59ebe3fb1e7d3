from __future__ import annotations

import gzip
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from covpool.data import array_source, open_source
from covpool.data.arrays import read_idx
from covpool.errors import UserError


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    data = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    for prefix, count, suffix in (("train", 20, ".gz"), ("t10k", 10, "")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", images[:count])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
    return tmp_path


def test_fashion_mnist_reads_both_splits(fashion: Path) -> None:
    train, val = (open_source("fashion_mnist", fashion, split) for split in ("train", "val"))
    expected = np.random.default_rng(0).integers(0, 256, (20, 28, 28))
    assert train.num_samples == 20 and val.num_samples == 10
    assert train.class_names[3] == val.class_names[3] == "dress"
    assert train.labels.tolist() == [*range(10), *range(10)]
    assert train.image_shape == (28, 28, 1)
    np.testing.assert_array_equal(train.read(7)[..., 0], expected[7])
    assert train.subset([7, 8]).labels.tolist() == [7, 8]
    np.testing.assert_array_equal(train.subset([7, 8]).read(1)[..., 0], expected[8])


def test_fashion_mnist_errors(fashion: Path) -> None:
    labels = fashion / "train-labels-idx1-ubyte.gz"
    write_idx(labels, np.arange(20))
    with pytest.raises(UserError, match="labels go from 0 to 19, allowed are 0 to 9"):
        open_source("fashion_mnist", fashion, "train")
    write_idx(labels, np.zeros(19))
    with pytest.raises(UserError, match="20 images but 19 labels"):
        open_source("fashion_mnist", fashion, "train")
    write_idx(labels, np.zeros((20, 1)))
    with pytest.raises(UserError, match="dimensions"):
        open_source("fashion_mnist", fashion, "train")
    labels.unlink()
    with pytest.raises(UserError, match=r"no file train-labels-idx1-ubyte\(\.gz\)"):
        open_source("fashion_mnist", fashion, "train")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_idx_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    write_idx(path, np.zeros((3, 4)))
    assert read_idx(path).shape == (3, 4)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="file"):
            read_idx(path)
    path.write_bytes(gzip.compress(b"\0\0\x0d\x01\0\0\0\0") if suffix else b"\0\0\x0d\x01\0\0\0\0")
    with pytest.raises(UserError, match="not an idx file of unsigned bytes"):
        read_idx(path)


def test_idx_files_that_would_fill_the_memory(tmp_path: Path) -> None:
    """2 GiB of zeros in 2 MB; a header that claims 16 EiB; 255 dimensions: none is believed."""
    path = tmp_path / "bomb.gz"
    zeros = gzip.compress(bytes(1 << 20), 9) * 2048
    for header, words in (
        (struct.pack(">4B2I", 0, 0, 8, 2, 3, 4), "damaged: more than 12 values, its header says 3 x 4"),
        (struct.pack(">4B4I", 0, 0, 8, 4, *[65536] * 4), "claims 18446744073709551616 values"),
        (struct.pack(">4B255I", 0, 0, 8, 255, *[1] * 255), "not an idx file"),
    ):
        path.write_bytes(gzip.compress(header) + zeros)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(UserError, match=words):
            read_idx(path)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


@pytest.mark.parametrize("nested", ["", "cifar-10-batches-bin"])
def test_cifar10_reads_the_binary_version(tmp_path: Path, nested: str) -> None:
    folder = tmp_path / nested
    folder.mkdir(exist_ok=True)
    records = np.random.default_rng(1).integers(0, 256, (6, 4, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        (folder / name).write_bytes(records[i].tobytes())
    train, val = (open_source("cifar10", tmp_path, split) for split in ("train", "val"))
    assert train.num_samples == 20 and val.num_samples == 4
    assert train.class_names[6] == "frog"
    assert train.labels.tolist() == records[:5, :, 0].ravel().tolist()
    red, green, blue = records[1, 2, 1:].reshape(3, 32, 32)
    np.testing.assert_array_equal(train.read(6), np.stack([red, green, blue], axis=2))
    (folder / "test_batch.bin").write_bytes(records[5].tobytes()[:-1])
    with pytest.raises(UserError, match=r"test_batch\.bin is damaged"):
        open_source("cifar10", tmp_path, "val")
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"no file .*data_batch_3\.bin"):
        open_source("cifar10", tmp_path, "train")


def test_array_source_rejects_other_images() -> None:
    for images in (np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 2), np.uint8)):
        with pytest.raises(UserError, match="images must be uint8"):
            array_source("x", "train", ["a"], images, np.zeros(2), (0.5,), (0.5,))

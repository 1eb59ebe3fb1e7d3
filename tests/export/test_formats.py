"""Exported files: any batch size, every pooling and backbone, what travels, damage, and the check of the file."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.errors import UserError
from covpool.export import FORMATS, export_network, open_exported
from covpool.export import mindir as mindir_module
from covpool.export import run as run_module
from covpool.pooling import list_poolings, pooling_info
from covpool.pooling.cholesky import Cholesky
from covpool.pooling.matrix_functions import SpectralPooling
from covpool.runtime.signals import Interrupted, StopRequest
from tests.export.conftest import Tiny, lively, small, tiny, transform

ABOUT = {"class_names": ["Bär", "b", "c d", "日"], "transform": transform(24, 32)}
# Eigen-decompositions are no operators of ONNX.
IN_ONNX = [name for name in list_poolings() if not issubclass(pooling_info(name).cell, (Cholesky, SpectralPooling))]
BOTH = pytest.mark.parametrize("file_format", FORMATS)

# Networks run in PyNative mode, which compiles nothing; exported files always are compiled graphs.
pytestmark = pytest.mark.usefixtures("pynative_mode")


def differences(network: nn.Cell, path: Path, images: np.ndarray, sizes: tuple[int, ...]) -> list[float]:
    """Largest relative difference between file and network at each batch size."""
    expected = network(ms.Tensor(images)).asnumpy()
    exported = open_exported(path)
    found = []
    for size in sizes:
        logits = exported(images[:size])
        assert logits.shape == (size, network.num_classes) and logits.dtype == np.float32
        found.append(np.abs(logits - expected[:size]).max() / np.abs(expected).max())
    return found


@pytest.mark.parametrize(
    ("file_format", "pooling"),
    [("ONNX", name) for name in IN_ONNX] + [("MINDIR", "dropcov")],  # tests/models/test_sweep.py has MindIR of all
)
def test_every_pooling_at_any_batch_size(file_format, pooling, images, tmp_path):
    network = tiny(pooling)
    exported = export_network(network, tmp_path / "net", file_format, images[:6], ABOUT)
    assert exported.path == tmp_path / f"net{FORMATS[file_format].ending}"
    assert exported.difference < 1e-5 and exported.folding_difference < 1e-6
    assert max(differences(network, exported.path, images, (1, 3, 16))) < 1e-5


@pytest.mark.parametrize("pooling", sorted(set(list_poolings()) - set(IN_ONNX)))
def test_matrix_decompositions_are_refused_as_onnx(pooling, images, tmp_path):
    expected = r"ONNX has no counterpart for .*(SelfAdjointEig|Cholesky).*--file_format=MINDIR"
    with pytest.raises(UserError, match=expected):
        export_network(tiny(pooling), tmp_path / "net", "ONNX", images[:6], ABOUT)
    assert not list(tmp_path.iterdir())


@BOTH
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet50", {"pooling": "dropcov"}),
        ("resnet10", {"pooling": "gap"}),
        ("resnet10", {"stem": "small"}),
    ],
)
def test_every_backbone(name, arguments, file_format, large_images, tmp_path):
    network = small(name, **arguments)
    exported = export_network(network, tmp_path / "net", file_format, large_images, ABOUT)
    assert exported.difference < 1e-5
    assert max(differences(network, exported.path, large_images, (1, 3))) < 1e-5


@BOTH
def test_one_channel_and_pooling_arguments(file_format, images, tmp_path):
    network = small("resnet10", "fast_mpn", in_channels=1, stem="small", pooling_args={"iterations": 1})
    grey = np.ascontiguousarray(images[:6, :1])
    assert export_network(network, tmp_path / "net", file_format, grey, ABOUT).difference < 1e-5


@BOTH
def test_graph_mode(file_format, images, tmp_path, graph_mode):
    network = tiny("dropcov")
    path = export_network(network, tmp_path / "net", file_format, images[:6], ABOUT).path
    assert max(differences(network, path, images, (3,))) < 1e-5


@BOTH
def test_a_network_in_training_and_its_parameters_stay(file_format, images, tmp_path):
    network = tiny("dropcov").set_train()
    before = {p.name: p.asnumpy().copy() for p in network.get_parameters()}
    export_network(network, tmp_path / "net", file_format, images[:6], ABOUT)
    assert {p.name for p in network.get_parameters()} == before.keys()
    for parameter in network.get_parameters():
        np.testing.assert_array_equal(parameter.asnumpy(), before[parameter.name])
    assert network.training


@BOTH
def test_facts_travel(file_format, images, tmp_path):
    path = export_network(tiny(), tmp_path / "net", file_format, images[:6], ABOUT).path
    assert open_exported(path).about == ABOUT


@BOTH
def test_nothing_else_is_written(file_format, images, tmp_path, monkeypatch):
    folder = tmp_path / "working"
    folder.mkdir()
    monkeypatch.chdir(folder)
    network = tiny()
    path = export_network(network, Path("new/net"), file_format, images[:1], ABOUT).path
    assert max(differences(network, path, images, (2,))) < 1e-5
    assert [p.relative_to(folder) for p in folder.rglob("*")] == [Path("new"), path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@BOTH
@pytest.mark.parametrize("content", [b"", b"an ordinary text\n" * 40, "half"])
def test_damaged_files(content, file_format, images, tmp_path):
    path = tmp_path / f"net{FORMATS[file_format].ending}"
    if content == "half":
        export_network(tiny(), path, file_format, images[:1], ABOUT)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.chmod(0o600) if path.exists() else None
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"net{FORMATS[file_format].ending} is damaged or not an? .* of export\.py"):
        open_exported(path)


def test_missing_and_foreign_files(tmp_path):
    for ending in (".mindir", ".onnx"):
        with pytest.raises(UserError, match=f"no exported file at .*net{ending}"):
            open_exported(tmp_path / f"net{ending}")
    with pytest.raises(UserError, match=r"net\.ckpt is no exported file: its name must end in \.mindir or \.onnx"):
        open_exported(tmp_path / "net.ckpt")


def test_a_device_that_onnx_runtime_does_not_serve(images, tmp_path):
    path = export_network(tiny(), tmp_path / "net", "ONNX", images[:1], ABOUT).path
    with pytest.raises(UserError, match=r"has no CANNExecutionProvider for Ascend; it has .*CPUExecutionProvider"):
        open_exported(path, "Ascend")


@BOTH
def test_a_file_of_another_network_is_found_out(file_format, images, tmp_path, monkeypatch):
    path = export_network(tiny(), tmp_path / "net", file_format, images[:6], ABOUT).path
    good, chosen = path.read_bytes(), FORMATS[file_format]

    def write_another(network: nn.Cell, path: Path, *rest: Any) -> None:
        network.fc.bias.set_data(network.fc.bias + 1e-2)
        chosen.write(network, path, *rest)

    broken = type(chosen)(chosen.ending, write_another, chosen.load)
    monkeypatch.setitem(FORMATS, file_format, broken)
    with pytest.raises(UserError, match=r"differs from the network by .* of the largest logit, over 0\.0001"):
        export_network(tiny(), path, file_format, images[:6], ABOUT)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == good, "the earlier file must stay"


def test_a_signal_ends_an_export_before_the_file_is_there(images, tmp_path):
    stop = StopRequest()
    stop.received = signal.SIGINT
    with pytest.raises(Interrupted, match="stopped by SIGINT before the file was written") as ended:
        export_network(tiny("gcp"), tmp_path / "net", "MINDIR", images, ABOUT, stop)
    assert ended.value.exit_code == 130 and not list(tmp_path.iterdir())


def test_a_wrong_folding_is_found_out(images, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "fold_batch_norm", lambda network: tiny(seed=1))
    with pytest.raises(UserError, match="folding the batch normalisations changes the features"):
        export_network(tiny(), tmp_path / "net", "MINDIR", images[:6], ABOUT)
    assert not list(tmp_path.iterdir())


class FrozenBatch(Tiny):
    """Takes the number of images as a constant of the graph."""

    def forward_head(self, x: ms.Tensor, pre_logits: bool = False) -> ms.Tensor:
        x = self.relu(x.reshape(x.shape[0] * 6, 12 * 16))
        return self.fc(self.pooling(x.reshape(-1, 6, 12, 16)))


def test_a_frozen_batch_is_found_out(images, tmp_path):
    with pytest.raises(UserError, match="the exported file does not run with 1 and 5 images"):
        export_network(lively(FrozenBatch("gcp")), tmp_path / "net", "ONNX", images[:6], ABOUT)
    assert not list(tmp_path.iterdir())


@BOTH
def test_logits_that_are_not_finite(file_format, images, tmp_path):
    network = tiny()
    network.fc.bias.set_data(ms.Tensor(np.full(4, np.nan, np.float32)))
    with pytest.raises(UserError, match="the network's logits are not finite"):
        export_network(network, tmp_path / "net", file_format, images[:6], ABOUT)


@BOTH
def test_a_network_of_zeros_is_exported(file_format, images, tmp_path):
    network = tiny()
    for parameter in network.fc.get_parameters():
        parameter.set_data(parameter * 0)
    assert export_network(network, tmp_path / "net", file_format, images[:6], ABOUT).difference == 0


@BOTH
def test_too_large_for_one_file(file_format, images, tmp_path, monkeypatch):
    monkeypatch.setattr(mindir_module, "LARGEST", 1000)
    with pytest.raises(UserError, match=r"the network holds .* GiB; an exported file takes"):
        export_network(tiny(), tmp_path / "net", file_format, images[:1], ABOUT)
    assert not list(tmp_path.iterdir())


@BOTH
def test_a_place_that_cannot_be_written(file_format, images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/net"):
        export_network(tiny(), tmp_path / "file" / "net", file_format, images[:1], ABOUT)


@pytest.mark.parametrize("pooling", ["mpn", "apn"])
def test_any_batch_with_the_solver_of_a_gpu(pooling: str, tmp_path: Path) -> None:
    """Its results have no known rank where the batch is not known."""
    network = tiny(pooling, solver="svd")
    images = np.random.default_rng(0).standard_normal((5, 3, 24, 32)).astype(np.float32)
    exported = export_network(network, tmp_path / "net", "MINDIR", images, ABOUT)
    assert max(differences(network, exported.path, images, (1, 4))) < 1e-4

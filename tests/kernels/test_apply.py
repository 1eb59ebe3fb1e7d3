"""A network with compiled kernels: same parameters, same training; and what is said when that cannot be."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.errors import UserError
from covpool.kernels import apply_cpu_kernels, compile_kernels
from covpool.kernels.library import set_threads, threads_of_process
from covpool.models import create_model
from covpool.training.optimizers import build_optimizer


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """The user's cache folder is one where the kernels lie compiled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(library.parent / "cache"))
    kept = library.parent / "cache" / "mindspore-gcp"
    kept.mkdir(parents=True, exist_ok=True)
    (kept / library.name).unlink(missing_ok=True)
    (kept / library.name).symlink_to(library)


def train(choice: str) -> tuple[list[float], nn.Cell]:
    ms.set_seed(0)
    network = create_model("resnet10", pooling="gcp", reduction_dim=32, num_classes=4, stem="small", base_width=32)
    apply_cpu_kernels(network, choice)
    optimizer = build_optimizer(list(network.trainable_params()), np.full(3, 0.05, np.float32))
    step = nn.TrainOneStepCell(nn.WithLossCell(network, nn.CrossEntropyLoss()), optimizer)
    step.set_train()
    rng = np.random.default_rng(0)
    x, y = ms.Tensor(rng.standard_normal((4, 3, 16, 16)).astype(np.float32)), ms.Tensor(np.arange(4, dtype=np.int32))
    return [float(step(x, y).asnumpy()) for _ in range(3)], network


def test_trains_alike(cache: None, graph_mode: None) -> None:
    (own, network), (compiled, other) = train("mindspore"), train("compiled")
    np.testing.assert_allclose(compiled, own, rtol=2e-3)
    assert [p.name for p in network.get_parameters()] == [p.name for p in other.get_parameters()]
    assert [p.name for p in network.trainable_params()] == [p.name for p in other.trainable_params()]
    for a, b in zip(network.get_parameters(), other.get_parameters()):
        np.testing.assert_allclose(b.asnumpy(), a.asnumpy(), rtol=0.02, atol=0.02, err_msg=a.name)


def test_what_is_replaced(cache: None) -> None:
    network = create_model("resnet18", pooling="dropcov", reduction_dim=32, num_classes=4, base_width=32)
    before = [p.name for p in network.get_parameters()]
    assert apply_cpu_kernels(network, "mindspore") == 0
    assert apply_cpu_kernels(network, "compiled") == 1 + 14 + 21 + 2  # the first, 3x3 of stride 1, norms, pooling
    assert [p.name for p in network.get_parameters()] == before
    assert apply_cpu_kernels(network, "compiled") == 0  # nothing is left to replace


def test_unknown_choice_and_threads(library: Path) -> None:
    with pytest.raises(ValueError, match="mindspore, compiled, not 'fast'"):
        apply_cpu_kernels(nn.SequentialCell(), "fast")
    with pytest.raises(ValueError, match="from 1 to 256, not 0"):
        set_threads(library, 0)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of_process(2) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for cores, processes, expected in ((8, 1, 8), (8, 3, 2), (8, 16, 1), (2, 4, 2)):  # the last: bound by the launcher
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert threads_of_process(processes) == expected


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and 'no-such-compiler' does not run"):
        compile_kernels(tmp_path)


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "compiler"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho out of luck >&2\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(UserError, match="could not compile the kernels: out of luck"):
        compile_kernels(tmp_path / "kept")
    assert not list((tmp_path / "kept").iterdir())


def test_compiled_once(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = library.stat().st_mtime_ns
    assert compile_kernels(library.parent) == library
    assert library.stat().st_mtime_ns == stamp


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep compiled kernels in"):
        compile_kernels(tmp_path / "file" / "folder")

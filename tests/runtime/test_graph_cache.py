"""Kept graphs: never another graph than the one that would be compiled, and never a damaged one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from covpool.build import build_model
from covpool.config import Config
from covpool.runtime import graph_cache
from covpool.runtime.distributed import World
from covpool.runtime.graph_cache import graph_digest
from covpool.training.recipe import recipe_optimizer, recipe_rates
from covpool.training.step import build_step

# Prints (1, 1, 1) times FACTOR, plus 1 in a second graph of the same process.
PROGRAM = """
import sys
import mindspore as ms
from mindspore import nn
from covpool.runtime import graph_cache
from covpool.runtime.graph_cache import kept_graphs

graph_cache._DESCRIBED += ("program",)

class Scale(nn.Cell):
    def __init__(self, factor, shift):
        super().__init__()
        self.factor, self.shift = factor, shift

    def construct(self, x):
        return x * self.factor + self.shift

ms.set_context(mode=ms.GRAPH_MODE)
pair = nn.CellList([Scale(float(sys.argv[1]), shift) for shift in (0.0, 1.0)])
with kept_graphs(pair, 2, "example") as compiling:
    for cell in pair:
        with compiling():
            print(float(cell(ms.ops.ones(3)).sum().asnumpy()))
print(float(Scale(10.0, 0.0)(ms.ops.ones(3)).sum().asnumpy()))
"""


@pytest.fixture
def compute(tmp_path: Path) -> Callable[..., Any]:
    """Run the program in a process of its own."""
    (tmp_path / "program.py").write_text(PROGRAM)

    def run(factor: int, **variables: str) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if name != "MS_COMPILER_CACHE_ENABLE"}
        environment = {**inherited, "XDG_CACHE_HOME": str(tmp_path / "cache"), "GLOG_v": "3", **variables}
        command = [sys.executable, "-c", "import program", str(factor)]  # no script that MindSpore could read
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True)

    return run


def answer(process: subprocess.Popen[str]) -> tuple[list[float], str]:
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return [float(word) for word in out.split()], error


def graphs(tmp_path: Path) -> dict[str, int]:
    """The kept folders, with the times at which their files were written."""
    found = (tmp_path / "cache" / "mindspore-gcp" / "graphs").iterdir()
    return {path.name: max(file.stat().st_mtime_ns for file in path.rglob("*.mindir")) for path in found}


def test_two_factors_are_two_graphs(compute: Callable[..., Any], tmp_path: Path) -> None:
    """MindSpore's own cache answers 6 where 9 is asked for."""
    assert answer(compute(2))[0] == [6.0, 9.0, 30.0]
    first = graphs(tmp_path)
    assert len(first) == 1
    both = compute(3), compute(3)  # at the same time
    assert [answer(process)[0] for process in both] == [[9.0, 12.0, 30.0]] * 2
    assert answer(compute(2))[0] == [6.0, 9.0, 30.0]
    kept = graphs(tmp_path)
    assert len(kept) == 2 and first.items() <= kept.items(), "the first graph was used, not compiled again"
    damaged = next(tmp_path.rglob("compile_cache_1.mindir"))
    damaged.write_bytes(damaged.read_bytes()[:100])
    results = [answer(compute(factor)) for factor in (2, 3)]
    assert [values for values, _ in results] == [[6.0, 9.0, 30.0], [9.0, 12.0, 30.0]]
    assert "is damaged: compiling the graph anew" in results[0][1] + results[1][1]
    assert damaged.stat().st_size > 100


def test_without_a_folder_it_computes(compute: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert answer(compute(2, XDG_CACHE_HOME=str(tmp_path / "file")))[0] == [6.0, 9.0, 30.0]


def digest(**changes: Any) -> str:
    ms.set_seed(1)
    few = {"net_name": "resnet10", "base_width": 8, "stem": "small", "reduction_dim": 8, "class_num": 4}
    config, world = Config(**{**few, "pooling": "dropcov", **changes}), World()
    network = build_model(config, world)
    optimizer = recipe_optimizer(config, network, recipe_rates(config, 3, 8))
    return graph_digest(build_step(config, network, optimizer, world).train_network)


def test_the_digest_is_of_all_that_shapes_a_step() -> None:
    before = digest()
    assert digest() == before
    changes: list[dict[str, Any]] = [
        {"label_smooth_factor": 0.2},
        {"pooling": "fast_mpn"},
        {"pooling": "fast_mpn", "pooling_args": {"iterations": 3}},
        {"seed": 2},  # of the channels that are dropped
        {"lr_max": 0.2},
        {"momentum": 0.8},
        {"weight_decay": 1e-3},
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "eps": 1e-5},
        {"clip_grad": 1.0},
        {"clip_grad": 2.0},
        {"clip_grad": 2.0, "clip_mode": "value"},
        {"drop_path_rate": 0.1},
        {"freeze": ("layer1",)},
        {"freeze_bn": True},
        {"mixup": 0.2},
        {"accumulate_steps": 2},
        {"recompute": True},
        {"head_lr_factor": 2.0},
    ]
    digests = [before, *(digest(**change) for change in changes)]
    assert len(set(digests)) == len(digests), [c for c, d in zip(changes, digests[1:]) if digests.count(d) > 1]


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own classes and functions count as this project's."""
    monkeypatch.setattr(graph_cache, "_DESCRIBED", (*graph_cache._DESCRIBED, __name__.partition(".")[0]))


class Holder(nn.Cell):
    """A cell that holds something."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        ([1, 2], [2, 1]),
        (ms.Tensor([1.0]), ms.Tensor([2.0])),
        (np.zeros(2), np.zeros(3)),
        (ms.float16, ms.float32),
        ({"a": 1}, {"b": 1}),
        (ms.ops.ReduceSum(), ms.ops.ReduceSum(keep_dims=True)),
        (lambda x: x + 1, lambda x: x + 2),
    ],
    ids=["int", "float", "order", "tensor", "array", "type", "key", "primitive", "function"],
)
def test_what_a_cell_holds_is_told_apart(one: Any, other: Any, described: None) -> None:
    assert graph_digest(Holder(one)) == graph_digest(Holder(one)) != graph_digest(Holder(other))


def empty_closure() -> Any:
    def outer() -> Any:
        def inner(x: Any) -> Any:
            return later(x)

        if inner is None:
            later = inner
        return inner

    return outer()


def a_list_in_itself() -> list[Any]:
    items: list[Any] = []
    items.append(items)
    return items


def with_a_hook() -> nn.Cell:
    cell = nn.ReLU()
    cell.register_forward_hook(lambda *_: None)
    return cell


@pytest.mark.parametrize(
    ("held", "reason"),
    [
        (object(), "nobody can tell what a object holds"),
        (empty_closure(), "ell is empty"),
        (a_list_in_itself(), "recursion"),
        (with_a_hook(), "has a _lazy_forward_hook"),
    ],
    ids=["object", "closure", "list", "hook"],
)
def test_what_cannot_be_described(held: Any, reason: str, described: None) -> None:
    with pytest.raises(graph_cache._Unknown, match=reason):
        graph_digest(Holder(held))


def test_code_of_other_projects_is_not_kept(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """What it reads, such as globals and the environment, nobody knows."""
    monkeypatch.delenv("MS_COMPILER_CACHE_ENABLE")
    monkeypatch.setattr(graph_cache, "_used", [])
    caplog.set_level("INFO")
    ms.set_context(mode=ms.GRAPH_MODE)
    with graph_cache.kept_graphs(Holder(object()), 1) as compiling, compiling():
        assert "MS_COMPILER_CACHE_ENABLE" not in os.environ
    assert "Holder is code of another project" in caplog.text

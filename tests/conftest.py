"""Shared by all tests: the repository root on the path, MindSpore's log kept to errors, the device, both modes.

``pytest --device_target=GPU tests/pooling ...`` computes on a GPU. Convolutions then keep to float32: MindSpore would
let them use TF32, whose ten bits are far from the tolerances of these tests.

``pytest --all`` adds what is left out otherwise for its time: the marked ``only_with_all``.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from covpool.errors import UserError
from covpool.runtime.environment import prepare_environment

ROOT = Path(__file__).resolve().parent.parent
LONG = ("models", "pooling", "training", "research", "export")  # folders of which the slowest files come first
# Files whose tests share nothing that is dear to make: their tests may go to different workers.
SPLIT = ("test_lost_ranks", "test_ranks", "test_checkpoint_faults", "test_damaged_images", "test_sweep", "test_stops")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the tests compute on, and how many of them."""
    parser.addoption("--device_target", choices=("CPU", "GPU", "Ascend"), default="CPU")
    parser.addoption("--all", action="store_true", help="tests of a quarter of an hour, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only ``--all`` asks for; spread the rest over the workers of ``pytest -n 3 --dist loadgroup``.

    A file stays with one worker. Long files come first, so that no worker is left with one, and those of tests/system,
    which wait for other processes half of their time, take turns with those that compute.
    """
    files = list(dict.fromkeys(item.path for item in items))
    system = [path for path in files if path.parent.name == "system"]
    others = sorted(
        (path for path in files if path not in system),
        key=lambda path: LONG.index(path.parent.name) if path.parent.name in LONG else len(LONG),
    )
    turns = {path: (turn, kind) for kind, paths in enumerate((system, others)) for turn, path in enumerate(paths)}
    items.sort(key=lambda item: turns[item.path])
    for item in items:
        if item.path.stem not in SPLIT:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}-{item.path.stem}"))
    if not config.getoption("--all"):
        left_out = [item for item in items if item.get_closest_marker("only_with_all")]
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if item not in left_out]


def pytest_configure(config: pytest.Config) -> None:
    """Set what MindSpore reads when it is imported, which happens once tests are collected."""
    device = config.getoption("--device_target")
    try:
        prepare_environment(device)
    except UserError as error:
        raise pytest.UsageError(str(error)) from error
    os.environ["MS_COMPILER_CACHE_ENABLE"] = "0"  # graphs of tests, which belong to their sources, are not kept
    if device != "CPU":
        from covpool.runtime.distributed import exact_convolutions, set_context

        set_context("GRAPH", device)
        exact_convolutions()


@pytest.fixture(autouse=True, scope="module")
def free_graphs() -> Iterator[None]:
    """Give back what MindSpore keeps of compiled graphs, 10 to 20 MB for each training, once it is much."""
    yield
    mindspore = sys.modules.get("mindspore")
    if mindspore is None or psutil.Process().memory_info().rss < 1 << 30:
        return
    gc.collect()
    for _ in range(1000):  # MindSpore goes through a table of graphs, and cells that die of it leave the table
        try:
            mindspore.ms_memory_recycle()
            break
        except RuntimeError as error:
            if "changed size during iteration" not in str(error):
                raise


@pytest.fixture
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(params=["GRAPH", "PYNATIVE"])
def mode(request: pytest.FixtureRequest) -> str:
    """Run the test in both execution modes of MindSpore."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE if request.param == "GRAPH" else ms.PYNATIVE_MODE)
    return request.param


@pytest.fixture
def graph_mode() -> None:
    """Run the test in graph mode."""
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture
def clean_env() -> dict[str, str]:
    """The environment for child processes: this one, without what a parent launcher may have left."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "MS_"))}

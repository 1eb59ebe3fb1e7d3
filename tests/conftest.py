"""Shared by all tests: the repository root on the path, MindSpore's log kept to errors, the device, both modes.

``pytest --device_target=GPU tests/pooling ...`` computes on a GPU. Convolutions then keep to float32: MindSpore would
let them use TF32, whose ten bits are far from the tolerances of these tests.

``pytest --all`` adds what is left out otherwise for its time: the marked ``only_with_all``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from covpool.errors import UserError
from covpool.runtime.environment import prepare_environment

ROOT = Path(__file__).resolve().parent.parent
LONG = ("system", "benchmarks", "models", "pooling", "research", "training")  # folders, the slowest first


def pytest_addoption(parser: pytest.Parser) -> None:
    """What the tests compute on, and how many of them."""
    parser.addoption("--device_target", choices=("CPU", "GPU", "Ascend"), default="CPU")
    parser.addoption("--all", action="store_true", help="tests of a quarter of an hour, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only ``--all`` asks for; files of long tests come first, so that no worker is left with one."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if f"tests/{name}" in item.path.as_posix()), 9))
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
    if device != "CPU":
        from covpool.runtime.distributed import exact_convolutions, set_context

        set_context("GRAPH", device)
        exact_convolutions()


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

"""Compiled graphs that are kept on this machine, so that the next start of the same training need not compile them.

MindSpore 2.8 finds a kept graph by nothing but the files of source: after a graph that computes 1 x 2, one that should
compute 1 x 3 returns 2. So each graph gets a folder of its own here, named by a digest of all that shapes it. A graph
that holds anything that cannot be described, or that code of other projects takes part in, is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import shutil
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable

import mindspore as ms
import numpy as np
from mindspore import nn, ops
from mindspore.common import api

import covpool
from covpool.errors import UserError
from covpool.runtime.files import own_folder, read_bytes, remove_leftovers, user_cache, workspace, write_json

logger = logging.getLogger(__name__)

_ENABLE, _PATH = "MS_COMPILER_CACHE_ENABLE", "MS_COMPILER_CACHE_PATH"
_SUMS = "sums.json"  # digests of a folder's files
_MOST = 100  # graphs that are kept, about a megabyte each
# Packages whose sources the digest has, or whose versions: what else a cell holds may compute something else tomorrow.
_DESCRIBED = ("builtins", "collections", "covpool", "functools", "mindcv", "mindspore", "numpy")
_SETTINGS = re.compile("MS_(DEV|ENABLE|JIT|DISABLE)_.*")  # variables that change what MindSpore makes of a graph
# What every cell has, and what of it shapes a graph; the rest are counters and times; a hook is refused.
_OF_CELLS = frozenset(vars(nn.Cell())) | {"_cell_init_args", "_cell_tag", "instance_key"}
_SHAPING = (
    *("training", "mixed_precision_type", "_amp_level", "requires_grad", "_has_config_recompute", "has_bprop"),
    "_jit_config_dict",
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)

_used: list[Path] = []  # by this process: MindSpore remembers the first folder


class _Unknown(Exception):
    """Something that has no description that another process would give, too."""


@contextmanager
def kept_graphs(cell: nn.Cell, count: int, *what: Any) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Take the graphs of a process from this machine's folder, or put them there when the block ends well.

    Gives a function whose context allows this while a graph is compiled. The process must do so ``count`` times, in an
    order that follows from the description: MindSpore numbers the graphs, and knows one folder in a process. So nothing
    is kept of a second block in a process, and nothing in PyNative mode, or where the user has set MindSpore's own
    variables. One line says so where something cannot be described or no folder can be written.

    Args:
        cell: All that is compiled, such as the cell of a training step, in graph mode on CPU.
        count: Graphs that the block compiles.
        what: All that shapes the graphs and is not in the cell: shapes of its inputs, rank, settings; plain values.
    """
    folder = None if ms.get_context("mode") != ms.GRAPH_MODE or _used or _ENABLE in os.environ else _folder(cell, what)
    if folder is None:
        yield nullcontext
        return
    _used.append(folder)
    with ExitStack() as stack:
        try:
            new = stack.enter_context(workspace(folder)) / "new"
            if whole := _is_whole(folder):
                shutil.copytree(folder, new)  # MindSpore writes into what it does not like
                with suppress(OSError):
                    os.utime(folder)
            else:
                new.mkdir(mode=0o700)
        except OSError as error:
            logger.info("compiled graphs are not kept: %s", error)
            yield nullcontext
            return
        yield partial(_variables, new)
        if not whole:
            _publish(new, folder, count)


def _folder(cell: nn.Cell, what: tuple[Any, ...]) -> Path | None:
    try:
        graphs = own_folder(own_folder(user_cache()) / "graphs")
        remove_leftovers(graphs)
        return graphs / graph_digest(cell, *what)
    except (_Unknown, OSError, UserError) as error:
        logger.info("compiled graphs are not kept: %s", error)
        return None


def graph_digest(cell: nn.Cell, *what: Any) -> str:
    """A name for all that shapes the graph of a cell; the same in every process that builds the same graph."""
    settings = {name: value for name, value in os.environ.items() if _SETTINGS.fullmatch(name)}
    mindcv = getattr(sys.modules.get("mindcv"), "__version__", None)
    versions = (ms.__version__, mindcv, platform.python_version(), platform.machine(), ms.get_context("device_target"))
    digest = hashlib.sha256()
    try:
        _Describer(digest).add((versions, settings, _package(), what, cell))
    except (AttributeError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise _Unknown(f"something in the network cannot be described: {error}") from error
    return digest.hexdigest()[:32]


class _Describer:
    """Feeds a digest with values, cells, operators and functions; each object once."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._seen: dict[int, tuple[int, Any]] = {}  # by id, which no other object gets as long as this one is here

    def add(self, value: Any) -> None:
        if isinstance(value, _PLAIN):
            self._put(f"{type(value).__name__} {value!r}")
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
            self._put(f"{type(value).__name__} {len(items)}")
            for item in items:
                self.add(item)
            if getattr(value, "__dict__", None):  # of a class of its own
                self.add(vars(value))
        elif isinstance(value, Mapping):
            self._put(f"mapping {len(value)}")
            for key, item in value.items():
                self.add(key)
                self.add(item)
        elif isinstance(value, np.ndarray):
            self._put(f"array {value.dtype} {value.shape}")
            self._digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, ms.Parameter):
            self._put(f"parameter {value.name} {value.dtype} {value.shape} {value.requires_grad}")
        elif isinstance(value, ms.Tensor):
            self._put(f"tensor {value.dtype}")
            self.add(value.asnumpy())
        elif isinstance(value, (ms.Type, Path)):
            self._put(f"{type(value).__name__} {value}")
        elif isinstance(value, types.ModuleType):
            self._put(f"module {value.__name__}")
        elif hasattr(type(value), "__members__"):  # an enumeration, also one of C++
            self._put(f"{type(value).__name__} {value}")
        elif isinstance(value, type):
            self._put(f"class {value.__module__}.{value.__qualname__}")
        elif id(value) in self._seen:
            self._put(f"again {self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = len(self._seen), value
            self._add_object(value)

    def _add_object(self, value: Any) -> None:
        kind = value if isinstance(value, types.FunctionType) else type(value)
        if not isinstance(value, types.CodeType) and (kind.__module__ or "").partition(".")[0] not in _DESCRIBED:
            raise _Unknown(f"{kind.__module__}.{kind.__qualname__} is code of another project")
        self._put(f"object of {type(value).__module__}.{type(value).__qualname__}")
        if isinstance(value, nn.Cell):
            if hooks := [name for name, item in vars(value).items() if name.endswith("_hook") and item]:
                raise _Unknown(f"a {type(value).__qualname__} has a {hooks[0]}")
            own = {name: item for name, item in vars(value).items() if name not in _OF_CELLS}
            self.add({name: getattr(value, name) for name in _SHAPING})
            self.add({**value._cells, **value._params, **value._buffers, **own})
            self.add(dict(value.get_flags()))
        elif isinstance(value, types.FunctionType):
            self._put(f"{value.__module__}.{value.__qualname__}")
            self.add((value.__code__, value.__defaults__, value.__kwdefaults__))
            self.add([cell.cell_contents for cell in value.__closure__ or ()])  # ValueError where one is empty
        elif isinstance(value, types.CodeType):
            self.add((value.co_code, value.co_names, value.co_consts))
        elif isinstance(value, types.MethodType):
            self.add((value.__func__, value.__self__))
        elif isinstance(value, types.BuiltinFunctionType):
            self._put(value.__qualname__)
            self.add(getattr(value, "__self__", None))
        elif isinstance(value, partial):
            self.add((value.func, value.args, value.keywords))
        elif isinstance(value, ops.Primitive):
            self.add((value.name, {k: v for k, v in value.attrs.items() if k != "func_id"}, vars(value)))
        elif hasattr(value, "__dict__"):
            self.add(vars(value))
        else:
            raise _Unknown(f"nobody can tell what a {type(value).__qualname__} holds")

    def _put(self, text: str) -> None:
        self._digest.update(text.encode("utf-8", "surrogatepass") + b"\0")


@lru_cache(maxsize=1)
def _package() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(covpool.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _variables(folder: Path) -> Iterator[None]:
    """Let MindSpore look for the graph in a folder.

    It reads the sources of the command's script, too, and ends with an error where there is none, as for ``python -c``.
    The digest has all sources: any script does.
    """
    script = api.entry_script_path
    os.environ[_ENABLE], os.environ[_PATH], api.entry_script_path = "1", str(folder), covpool.__file__
    try:
        yield
    finally:
        del os.environ[_ENABLE], os.environ[_PATH]
        api.entry_script_path = script


def _files(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _SUMS)
    return {str(path.relative_to(folder)): hashlib.sha256(read_bytes(path)).hexdigest() for path in found}


def _is_whole(folder: Path) -> bool:
    """Whether a folder is there and as it was made; a damaged one is removed."""
    if not folder.is_dir():
        return False
    try:
        if json.loads(read_bytes(folder / _SUMS)) == _files(folder):
            return True
    except (OSError, ValueError) as error:
        logger.debug("%s: %s", folder, error)
    logger.warning("%s is damaged: compiling the graph anew", folder)
    shutil.rmtree(folder, ignore_errors=True)
    return False


def _publish(new: Path, folder: Path, count: int) -> None:
    """Give a folder its name, if it holds its graphs and no other process was first; the oldest others go."""
    try:
        files = _files(new)
        if sum(name.endswith(".mindir") for name in files) != count:
            return
        write_json(new / _SUMS, files)
        new.rename(folder)
        remove_leftovers(folder.parent)
        graphs = [path for path in folder.parent.iterdir() if not path.name.startswith(".")]
        for old in sorted(graphs, key=lambda path: path.stat().st_mtime)[:-_MOST]:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        logger.debug("the compiled graph is not kept: %s", error)

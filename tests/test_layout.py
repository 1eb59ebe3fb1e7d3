"""The import graph of the package: rooms depend on rooms below them, and nothing goes round in circles."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "covpool"
# From top to bottom; a module imports from its own line or from a lower one.
ORDER = (
    ("__main__", "reference"),
    ("cli",),
    ("commands",),
    ("research",),
    ("export",),
    ("training",),
    ("evaluation",),
    ("build",),
    ("kernels",),
    ("models",),
    ("checkpoints",),
    ("pooling",),
    ("data",),
    ("config",),
    ("plots", "metrics"),
    ("runtime",),
    ("errors", "registry"),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def imports() -> dict[str, set[str]]:
    """Module: modules of the package that it imports, anywhere in its text but for type checkers alone."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items() if name != "__init__"}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("covpool"):
                continue
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                graph[name].add(inner if inner in modules else base)
        graph[name] -= {name, ""}
    return graph


def test_every_arrow_points_down() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, targets in sorted(imports().items())
        for target in sorted(targets)
        if LEVEL[module.split(".")[0]] > LEVEL[target.split(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles() -> None:
    graph, done = imports(), set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_mathematics_reads_no_configuration() -> None:
    for room in ("pooling", "models", "data"):
        for module, targets in imports().items():
            if module.split(".")[0] == room:
                assert not [t for t in targets if t.split(".")[0] == "config"], module


def test_files_and_modules_are_of_a_readable_size() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert max(lengths.values()) <= 320, max(lengths, key=lambda path: lengths[path])

"""Imports run one way: core <- quant, rtl, host; quant <- compiler; rtl <- flow; all <- sim."""

from __future__ import annotations

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

# What a room may import, besides itself. A room that is not here may import nothing.
ALLOWED = {
    "core": set(),
    "quant": {"core"},
    "rtl": {"core"},
    "host": {"core"},
    "compiler": {"core", "quant"},
    "flow": {"core", "rtl"},
    "sim": {"core", "quant", "rtl", "host", "compiler", "flow"},
    "tokenfabric": {"core", "quant", "rtl", "host", "compiler", "flow", "sim"},
}
ROOMS = tuple(ALLOWED)

# Packages that a room may need at all; others only inside a function or a try.
PACKAGES = {
    "core": {"numpy"},
    "quant": {"numpy"},
    "rtl": {"numpy", "amaranth"},
    "host": {"numpy"},
    "compiler": {"numpy"},
    "flow": {"numpy", "amaranth"},
    "sim": {"numpy"},
    "tokenfabric": {"numpy"},
}


def _files() -> list[tuple[str, Path]]:
    folders = [(room, ROOT / room) for room in ROOMS]
    folders.append(("tokenfabric", ROOT / "tokenfabric" / "commands"))
    return [(room, path) for room, folder in folders for path in sorted(folder.glob("*.py"))]


def _room(module: str) -> str:
    """Of a module called tokenfabric.*"""
    part = module.split(".")[1] if "." in module else ""
    return part if part in ROOMS else "tokenfabric"


def _imports(tree: ast.AST, path: Path) -> set[str]:
    """All modules that are imported anywhere in ``tree``; names after ``from`` count as modules."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = _files()
IDS = [str(path.relative_to(ROOT)) for _, path in FILES]


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_imports_run_one_way(room, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in _imports(tree, path):
        first = name.split(".")[0]
        assert first == "tokenfabric" or first not in ROOMS, f"{name} would be a global module"
        if first == "tokenfabric":
            assert _room(name) in ALLOWED[room] | {room}, f"{path.name} imports {name}"


def test_modules_of_a_room_do_not_import_each_other_in_a_circle():
    """Statements at the top of modules; a package's own ``__init__`` is not looked through."""
    graph = {}
    for _, path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts if parts[0] == "tokenfabric" else ("tokenfabric", *parts))
        body = ast.parse(path.read_text(encoding="utf-8")).body
        imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
        graph[name] = {i for n in imports for i in _imports(n, path)}
    order = TopologicalSorter({k: {i for i in v if i in graph} for k, v in graph.items()})
    order.prepare()  # CycleError names the modules


@pytest.mark.parametrize(("room", "path"), FILES, ids=IDS)
def test_the_base_install_needs_numpy_only(room, path):
    """What is imported when a module is: numpy, and amaranth for the hardware itself."""
    if path.name in ("pysim.py", "pysim_softmax.py", "pynq_device.py"):
        return  # hardware in Amaranth's own simulator; what PYNQ binds to our IP
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    outside = {
        name.split(".")[0]
        for statement in statements
        for name in _imports(statement, path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "tokenfabric"}
    }
    assert outside <= PACKAGES[room]


def test_the_simulated_device_cannot_borrow_its_answers():
    tree = ast.parse((ROOT / "sim" / "verilator.py").read_text(encoding="utf-8"))
    for name in _imports(tree, ROOT / "sim" / "verilator.py"):
        assert not name.startswith(("tokenfabric.core.ops", "tokenfabric.sim.golden")), name
        assert not name.startswith("tokenfabric.quant"), name


def test_the_check_sees_imports_inside_functions():
    tree = ast.parse("def f():\n    from tokenfabric.host import session\n    import numpy as np")
    assert _imports(tree, Path("x")) == {"tokenfabric.host.session", "numpy"}
    assert _room("tokenfabric.host.session") == "host" and _room("tokenfabric.core.ops") == "core"

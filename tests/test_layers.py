"""Imports run one way: tokenfabric <- quant <- rtl | host <- sim <- commands."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ALLOWED = {
    "core": {"core"},
    "quant": {"core", "quant"},
    "rtl": {"core", "rtl"},
    "host": {"core", "quant", "host"},
    "sim": {"core", "quant", "rtl", "host", "sim"},
    "commands": {"core", "quant", "rtl", "host", "sim", "commands"},
}
LAYERS = ("quant", "rtl", "host", "sim", "commands")
TOP = ("cli", "__main__", "notebook")  # of tokenfabric/: part of the commands

# Packages that a layer may need at all; others only inside a function or a try.
PACKAGES = {
    "core": {"numpy"},
    "quant": {"numpy"},
    "rtl": {"numpy", "amaranth"},
    "host": {"numpy"},
    "sim": {"numpy"},
    "commands": set(),
}


def _files() -> list[tuple[str, Path]]:
    found = []
    for folder in ("tokenfabric", "tokenfabric/commands", "quant", "rtl", "host", "sim"):
        for path in sorted((ROOT / folder).glob("*.py")):
            layer = folder.rpartition("/")[2]
            if folder == "tokenfabric":
                layer = "commands" if path.stem in TOP else "core"
            found.append((layer, path))
    return found


def _layer(module: str) -> str:
    """Of a module called tokenfabric.*"""
    part = module.split(".")[1] if "." in module else ""
    return "commands" if part in TOP else part if part in LAYERS else "core"


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


@pytest.mark.parametrize(("layer", "path"), FILES, ids=IDS)
def test_imports_run_one_way(layer, path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in _imports(tree, path):
        assert name.split(".")[0] not in LAYERS, f"{name} would be a global module"
        if name.split(".")[0] == "tokenfabric":
            assert _layer(name) in ALLOWED[layer], f"{path.name} imports {name}"


@pytest.mark.parametrize(("layer", "path"), FILES, ids=IDS)
def test_the_base_install_needs_numpy_only(layer, path):
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
    assert outside <= PACKAGES[layer]


def test_the_simulated_device_cannot_borrow_its_answers():
    tree = ast.parse((ROOT / "sim" / "verilator.py").read_text(encoding="utf-8"))
    for name in _imports(tree, ROOT / "sim" / "verilator.py"):
        assert not name.startswith(("tokenfabric.ops", "tokenfabric.sim.golden")), name
        assert not name.startswith("tokenfabric.quant"), name


def test_the_check_sees_imports_inside_functions():
    tree = ast.parse("def f():\n    from tokenfabric.host import session\n    import numpy as np")
    assert _imports(tree, Path("x")) == {"tokenfabric.host.session", "numpy"}
    assert _layer("tokenfabric.host.session") == "host" and _layer("tokenfabric.ops") == "core"

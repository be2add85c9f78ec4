"""Which files of the project a module is made of: the contents of a cache's key."""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path

__all__ = ["sources"]


@lru_cache(maxsize=64)
def sources(*modules: str) -> tuple[Path, ...]:
    """The files of ``modules`` and of every module of the project that they import, sorted.

    Imports are read from the text, those inside functions included; nothing is executed but the
    ``__init__`` of packages. So a cache whose key holds these files cannot miss one of them.
    """
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or not (path := _file(name)):
            continue
        found[name] = path
        waiting += _imports(path)
    return tuple(sorted(found.values()))


def _file(name: str) -> Path | None:
    """The file of a module of the project; None for other packages and names inside a module."""
    if name.partition(".")[0] != "tokenfabric":
        return None
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:  # a class or function of a module
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _imports(path: Path) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names

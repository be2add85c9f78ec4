"""The shape of the code, counted: how long its functions, units and files are.

    python benchmarks/metrics.py          a table (make metrics)
    python benchmarks/metrics.py --all    and what is over a limit, by name

Lines are counted from ``def`` to the last line. A unit's chain is its ``elaborate`` with all
helpers that build the same module: its methods, and functions of its file, that are called from
there and are given the module. Source is what is installed, and the shipped model's trainer; tests
are tests with their rigs.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "quant", "compiler", "rtl", "flow", "host", "sim", "tokenfabric", "models")
CODE = (".py", ".cpp", ".h", ".tcl", ".v")
FUNCTION_LIMIT, FILE_LIMIT, ELABORATE_LIMIT, CHAIN_LIMIT = 80, 500, 70, 120

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Counted:
    """Something with a number of lines, and where it is."""

    lines: int
    where: str


def tracked(*folders: str) -> list[Path]:
    """Files under version control in these folders."""
    command = ["git", "ls-files", "--", *folders]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).suffix in CODE]


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def span(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def functions(path: Path) -> list[Counted]:
    """Every function of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        Counted(span(node), f"{path.relative_to(ROOT)}: {node.name}")
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]


def chain(start: Function, methods: dict[str, Function], module: dict[str, Function]) -> int:
    """Lines of a function and of all helpers that build the same module."""
    seen: set[str] = set()
    waiting, lines = [start], 0
    while waiting:
        node = waiting.pop()
        if node.name in seen:
            continue
        seen.add(node.name)
        lines += span(node)
        for call in (n for n in ast.walk(node) if isinstance(n, ast.Call)):
            f = call.func
            of_self = (
                isinstance(f, ast.Attribute)
                and isinstance(f.value, ast.Name)
                and f.value.id == "self"
            )
            if of_self and f.attr in methods:  # type: ignore[attr-defined]
                waiting.append(methods[f.attr])  # type: ignore[attr-defined]
            elif isinstance(f, ast.Name) and f.id in module:
                if any(isinstance(a, ast.Name) and a.id == "m" for a in call.args):
                    waiting.append(module[f.id])
    return lines


def units(path: Path) -> list[tuple[Counted, Counted]]:
    """(elaborate, chain) of every unit of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = {n.name: n for n in tree.body if isinstance(n, Function)}
    found = []
    for node in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        methods = {n.name: n for n in node.body if isinstance(n, Function)}
        if "elaborate" in methods:
            where = f"{path.relative_to(ROOT)}: {node.name}"
            start = methods["elaborate"]
            lines = chain(start, methods, module)
            found.append((Counted(span(start), where), Counted(lines, where)))
    return found


def share(values: list[int], part: float) -> int:
    """The value below which so many of them are."""
    return sorted(values)[int(len(values) * part)]


def spelled_out() -> list[str]:
    """Files that write down the shape of a layer's matrices: pairs of a model's sizes."""
    pair = re.compile(r"\(\s*\w*\.?(q_dim|kv_dim|hidden|dim)\s*,\s*\w*\.?(q_dim|kv_dim|hidden|dim)")
    row = re.compile(r'outputs\s*=\s*"(q_dim|kv_dim|hidden|dim)"')
    found = []
    for path in tracked("core", "quant", "compiler", "host", "sim", "tokenfabric"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py" and (len(pair.findall(text)) >= 3 or row.search(text)):
            found.append(str(path.relative_to(ROOT)))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="what is over a limit, by name")
    args = parser.parse_args()
    source = tracked(*ROOMS)
    python = [path for path in source if path.suffix == ".py"]
    elaborates, chains = zip(*(u for path in python for u in units(path)))
    lines = [u.lines for u in elaborates]
    long_functions = [f for p in python for f in functions(p) if f.lines > FUNCTION_LIMIT]
    files = [Counted(length(p), str(p.relative_to(ROOT))) for p in source]
    long_files = [f for f in files if f.lines > FILE_LIMIT]
    tests = sum(length(path) for path in tracked("tests"))
    total = sum(f.lines for f in files)
    shapes = spelled_out()
    middle, high = share(lines, 0.5), share(lines, 0.9)
    print(f"elaborate: median / p90 / max      {middle} / {high} / {max(lines)}  of {len(lines)}")
    print(f"longest chain of one module        {max(c.lines for c in chains)}")
    print(f"functions above {FUNCTION_LIMIT} lines           {len(long_functions)}")
    print(f"source files above {FILE_LIMIT} lines       {len(long_files)}")
    print(f"files that spell out a matrix      {len(shapes)}  ({', '.join(shapes)})")
    print(f"test : source lines                {tests / total:.2f}  ({tests:,} : {total:,})")
    if args.all:
        over = [e for e in elaborates if e.lines > ELABORATE_LIMIT]
        over += [c for c in chains if c.lines > CHAIN_LIMIT]
        for found in (*over, *long_functions, *long_files):
            print(f"{found.lines:>6}  {found.where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

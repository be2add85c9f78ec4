"""Options, outputs and tables that several commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError, require

MAX_COUNT = 1 << 20


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer from ``low`` to ``high``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not an integer from {low} to {high}; give one in this range"
            )
        return value

    return parse


def real(low: float, high: float, *, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a number from (or, if so, ``above``) ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low < value if above else low <= value) or not value <= high:
            start = "above" if above else "from"
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number {start} {low:g} to {high:g}; give one in this range"
            )
        return value

    return parse


def add_preset(parser: argparse.ArgumentParser, default: str | None = "pynq-z2") -> None:
    parser.add_argument(
        "--preset",
        metavar="P",
        default=default,
        help="the accelerator: a name or a .json file (default: pynq-z2)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help='write the result as JSON; "-": to stdout')


def check_output(path: str | None) -> None:
    """Refuse a file that cannot be written before any work is done for it."""
    if path is None or path == "-":
        return
    target = Path(path)
    if target.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file to write")
    if not target.parent.is_dir():
        raise UserError(f"{path}: there is no folder {target.parent}; make it or choose another")
    _check_writable(path, target.parent)


def check_output_folder(path: str | None) -> None:
    """Refuse a folder for files that neither is one nor can be made, before any work is done."""
    if path is None:
        return
    there = Path(path).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(f"{path}: {there} is a file; choose another folder")
    _check_writable(path, there)


def _check_writable(path: str, folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: nothing can be written to {folder}; choose another folder")


def check_picture(option: str, path: str | None, kinds: Sequence[str]) -> None:
    """Refuse a picture that cannot be drawn, by its name or for want of matplotlib, as above."""
    check_output(path)
    if path is None:
        return
    if Path(path).suffix.lower() not in kinds:
        raise UserError(f"{option} {path}: the name must end in {' or '.join(kinds)}")
    require("matplotlib")
    from tokenfabric.flow.toolchain import cache_directory

    # Its fonts' cache: it writes into HOME, or makes one anew each time, with a warning.
    os.environ.setdefault("MPLCONFIGDIR", str(cache_directory() / "matplotlib"))


def write_json(path: str | None, result: dict[str, Any]) -> None:
    """``result`` to a file, whole or not at all, or to stdout."""
    if path is None:
        return
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    from tokenfabric.core.files import write_file

    write_file(path, [text.encode()])


def print_table(rows: Iterable[tuple[str, str, str]], json_path: str | None = None) -> None:
    """Rows of (name, value, remark), aligned; to stderr where stdout is for JSON."""
    rows = list(rows)
    names = max(len(name) for name, _, _ in rows)
    values = max(len(value) for _, value, _ in rows)
    stream = sys.stderr if json_path == "-" else sys.stdout
    for name, value, remark in rows:
        print(f"{name:<{names}}  {value:>{values}}  {remark}".rstrip(), file=stream)


def number(value: float | None, digits: int = 0) -> str:
    """With thousands separators; "-" for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """A share with one decimal; "-" for None."""
    return "-" if value is None else f"{100 * value:.1f} %"

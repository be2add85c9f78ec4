"""Files in, files out: every failure is one UserError that names the file."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def show(value: object, limit: int = 60) -> str:
    """``repr(value)`` on one line and at most ``limit`` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def file_size(path: Path) -> int:
    """Size in bytes of a regular file that holds something.

    UserError if it is missing, not a regular file, empty, or a pointer of Git LFS, which stands for
    the file that is meant.
    """
    try:
        if not path.exists():
            if path.is_symlink():
                raise UserError(f"{path}: a link to a file that is not there; download it again")
            raise UserError(f"{path}: no such file; check the path")
        if not path.is_file():
            raise UserError(f"{path}: not a regular file; give a file, not a folder or a device")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(256)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({_why(error)}); check the path") from None
    if size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes); download or export it again")
    if start.startswith(_LFS_POINTER):
        found = re.search(rb"^size (\d+)\s*$", start, re.MULTILINE)
        what = f"a file of {int(found[1]):,} bytes" if found else "a file"
        raise UserError(
            f"{path}: is a Git LFS pointer to {what}, not the file itself; get it with "
            f"'git lfs install' and 'git lfs pull' in its repository, or download {path.name}"
        )
    return size


def read_bytes(path: Path) -> bytes:
    """The whole of a regular, non-empty file, or UserError."""
    file_size(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_why(error)}); check its permissions") from None


def map_file(path: Path) -> memoryview:
    """A regular, non-empty file as memory: read when looked at, never in memory twice."""
    file_size(path)
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_why(error)}); check its permissions") from None


def write_file(path: str | Path, parts: Iterable[bytes]) -> None:
    """Write ``parts`` to ``path``, whole or not at all: a file beside it is renamed at the end.

    UserError if that cannot be done; nothing is left behind, and an older file stays as it was.
    """
    path = Path(path)
    made = None
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise UserError(f"{path}: exists and is not a regular file; give another name")
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        with beside.open("xb") as file:
            made = beside
            for part in parts:
                file.write(part)
        beside.replace(target)
        made = None
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        why = _why(error)
        raise UserError(f"{path}: cannot be written ({why}); choose another folder") from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)


def check_folder(path: str | Path) -> Path:
    """The whole path of a folder to be made. UserError if it is there, unless empty."""
    try:
        target = Path(path).resolve()
        taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
        missing = not target.parent.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise UserError(f"{path}: cannot be used ({_why(error)}); choose another folder") from None
    if taken:
        raise UserError(f"{path}: exists and is not an empty folder; give another name")
    if missing:
        raise UserError(f"{path}: there is no folder {target.parent}; make it or choose another")
    return target


def write_folder(path: str | Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` (relative path -> content) as a new folder, whole or not at all.

    UserError if that cannot be done, and for what :func:`check_folder` refuses.
    """
    made = None
    try:
        target = check_folder(path)
        beside = target.with_name(f".{target.name}.{os.getpid()}.part")
        beside.mkdir()
        made = beside
        for name, data in files.items():
            file = beside / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        if target.exists():
            target.rmdir()
        beside.rename(target)
        made = None
    except OSError as error:
        why = _why(error)
        raise UserError(f"{path}: cannot be written ({why}); choose another folder") from None
    finally:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)


def parse_json_object(source: str | Path, data: bytes) -> dict[str, Any]:
    """``data``, UTF-8 with or without a byte order mark, as a JSON object.

    UserError naming ``source`` if it is anything else. A key that appears twice in one object is
    refused: readers disagree on which of them counts.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f"{source}: the JSON key {show(twice)} appears twice; write it once")
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        why = _why(error)
        raise UserError(f"{source}: not valid JSON ({why}); download or export it again") from None
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise UserError(
            f"{source}: the JSON holds a {kind}, an object {{...}} is needed; download it again"
        )
    return value


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object, or UserError."""
    return parse_json_object(path, read_bytes(path))


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:120]

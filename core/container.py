"""The frame of our files: magic and version, header length, checksum, JSON header, payload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import map_file, parse_json_object, show, write_file

__all__ = ["ALIGN", "read_container", "write_container"]

ALIGN = 64  # the payload begins at a multiple of it
_PREFIX = 8 + 8 + 32  # magic and version, length of the header, checksum of all that follows


def write_container(
    path: str | Path, magic: bytes, header: dict[str, Any], parts: Sequence[bytes]
) -> None:
    """Write a file, whole or not at all. magic: seven letters and a version byte."""
    text = json.dumps(header).encode()
    text += b" " * (-(_PREFIX + len(text)) % ALIGN)
    digest = blake2b(digest_size=32)
    for part in (text, *parts):
        digest.update(part)
    write_file(path, [magic, len(text).to_bytes(8, "little"), digest.digest(), text, *parts])


def read_container(
    path: str | Path, magic: bytes, kind: str, writer: str
) -> tuple[dict[str, Any], memoryview]:
    """Header and payload of a file. kind: "a model file"; writer: what makes one.

    UserError, one line, for anything else: wrong magic or version, truncated, damaged.
    """
    data = map_file(Path(path))
    again = f"run '{writer}' again"
    if data[: len(magic) - 1] != magic[:-1]:
        raise UserError(
            f"{path}: begins with {show(bytes(data[:8]))}, {kind} begins with {show(magic)}; "
            f"give a file that '{writer}' wrote"
        )
    if data[: len(magic)] != magic:
        version = data[len(magic) - 1] if len(data) >= len(magic) else "none"
        raise UserError(
            f"{path}: is {kind} of version {version}, this program reads version {magic[-1]}; "
            f"{again}"
        )
    length = int.from_bytes(data[8:16], "little")
    if len(data) < _PREFIX or length > len(data) - _PREFIX:
        raise UserError(
            f"{path}: the header has {length} bytes, the file {len(data)} in all; "
            f"it is truncated: {again}"
        )
    if blake2b(data[_PREFIX:], digest_size=32).digest() != data[16:_PREFIX]:
        raise UserError(f"{path}: the checksum is wrong, the file is damaged; {again}")
    header = parse_json_object(f"{path} (header)", bytes(data[_PREFIX : _PREFIX + length]))
    return header, data[_PREFIX + length :]

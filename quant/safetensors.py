"""Reads safetensors files with numpy only: one file, or the shards that an index names.

The format is that of github.com/huggingface/safetensors. Nothing is ever unpickled, and nothing is
allocated before the sizes in a header have been compared with the size of the file.
"""

from __future__ import annotations

import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import file_size, parse_json_object, read_json_object, show

__all__ = ["INDEX", "Float", "SafeTensors", "Shards", "check_finite"]

Float = npt.NDArray[np.float32]
INDEX = "model.safetensors.index.json"


def check_finite(path: Path, name: str, values: Float) -> None:
    """UserError, with the file's and the tensor's name, for NaN and infinity."""
    if not np.isfinite(values).all():
        where = np.unravel_index(np.argmin(np.isfinite(values)), values.shape)
        index = ", ".join(str(i) for i in where)
        raise UserError(
            f"{path}: tensor {name}[{index}] is {values[where]}, weights must be finite; "
            "the checkpoint is corrupt or its training diverged"
        )


_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


class SafeTensors:
    """One safetensors file, mapped: an 8-byte header length, a JSON header, then the tensors.

    The whole header is checked first: every byte of the data belongs to exactly one tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = file_size(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise UserError(
                    f"{path}: the header says it has {length} bytes, the file has {size} in all; "
                    "it is truncated or not safetensors: download it again"
                )
            header = parse_json_object(f"{path} (header)", file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._start = 8 + length
        header.pop("__metadata__", None)
        self.entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
        spans = []
        for name, entry in header.items():
            dtype, dims, (begin, end) = self._entry(name, entry)
            self.entries[name] = dtype, dims, begin
            spans.append((begin, end, name))
        position, data = 0, size - self._start
        for begin, end, name in sorted(spans):
            if begin != position or not begin <= end <= data:
                raise UserError(
                    f"{path}: tensor {show(name)} has data_offsets [{begin}, {end}], it must begin "
                    f"at {position} and end within {data} bytes; truncated or corrupt: "
                    "download it again"
                )
            position = end
        if position != data:
            raise UserError(
                f"{path}: {data - position} bytes follow the last tensor; "
                "the file is corrupt: download it again"
            )

    def _entry(self, name: str, entry: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
        def integers(value: Any) -> bool:
            return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)

        fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
        dims: Any = fields.get("shape")
        span: Any = fields.get("data_offsets")
        dtype = fields.get("dtype")
        if isinstance(dtype, str) and integers(dims) and integers(span) and len(span) == 2:
            begin, end = span
            known = _DTYPES.get(dtype)
            if known is None or end - begin == math.prod(dims) * known.itemsize:
                return dtype, tuple(dims), (begin, end)
        raise UserError(
            f"{self.path}: the header entry of tensor {show(name)} is {show(entry, 120)}, whose "
            "dtype, shape and data_offsets disagree; the file is corrupt: download it again"
        )

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    def read(self, name: str, dims: tuple[int, ...]) -> Float:
        """The tensor as float32, or UserError if it is missing, misshapen, or not finite."""
        if name not in self.entries:
            raise UserError(
                f"{self.path}: tensor {name!r} is missing; "
                "use a complete checkpoint with its own config.json"
            )
        dtype, found, begin = self.entries[name]
        if found != dims:
            raise UserError(
                f"{self.path}: tensor {name!r} has shape {show(list(found))}, "
                f"config.json needs {list(dims)}; use the checkpoint's own config.json"
            )
        if dtype not in _DTYPES:
            raise UserError(
                f"{self.path}: tensor {name!r} has dtype {show(dtype)}, only "
                f"{', '.join(_DTYPES)} are read; convert it to one of them"
            )
        offset = self._start + begin
        raw = np.frombuffer(self._map, _DTYPES[dtype], math.prod(dims), offset).reshape(dims)
        if dtype == "BF16":  # the upper half of a float32
            values = (raw.astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.astype(np.float32)
        check_finite(self.path, name, values)
        return values


class Shards:
    """The safetensors files that an index names; each tensor is read from the one it says."""

    def __init__(self, index: Path) -> None:
        self.path = index
        found: Any = read_json_object(index).get("weight_map")
        good = isinstance(found, dict) and found
        if not good or not all(isinstance(n, str) and Path(n).name == n for n in found.values()):
            raise UserError(
                f"{index}: weight_map does not name a file of this folder for each tensor; "
                "download it again"
            )
        where = {tensor: index.parent / name for tensor, name in found.items()}
        files = dict.fromkeys(where.values())
        for file in files:
            if not file.exists():
                raise UserError(
                    f"{file}: no such file, but {index.name} names it; download all "
                    f"{len(files)} files of the model"
                )
        shards = {file: SafeTensors(file) for file in files}
        for name, file in where.items():
            if name not in shards[file].entries:
                raise UserError(
                    f"{file}: tensor {show(name)}, which {index.name} says is in it, is missing; "
                    "download both files again"
                )
        # What the index does not name would be read by others, too: it must not be overlooked.
        self._shards = {
            name: shards[where.get(name, file)]
            for file, shard in shards.items()
            for name in shard.entries
        }
        self.names = list(self._shards)

    def read(self, name: str, dims: tuple[int, ...]) -> Float:
        """As :meth:`SafeTensors.read`."""
        if name not in self._shards:
            raise UserError(
                f"{self.path}: tensor {name!r} is missing; "
                "use a complete checkpoint with its own config.json"
            )
        return self._shards[name].read(name, dims)

"""Float checkpoints: llama2.c's legacy ``.bin`` and Hugging Face folders, read with numpy only.

RoPE convention. In memory the rows of ``wq`` and ``wk`` are INTERLEAVED: rows (2i, 2i+1) of a head
are one pair that rotates together by position * theta ** (-2i / head_dim). That is llama2.c's order
(and the original Llama's). Hugging Face checkpoints are half-split (pair (i, i + head_dim/2)); they
are permuted here, once. Interleaved is what the hardware wants: one vector of lanes then holds both
members of every pair, so the rotation unit needs one read. A score q.k does not change, because q
and k are permuted alike; v and wo are not touched.

Sources: run.c and export.py (legacy_export) of github.com/karpathy/llama2.c; the safetensors format
at github.com/huggingface/safetensors. Nothing is ever unpickled, and nothing is allocated before
the sizes in a header have been compared with the size of the file.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import file_size, parse_json_object, show
from tokenfabric.core.shape import ModelShape, shape_from_config

Float = npt.NDArray[np.float32]


Layer = dict[str, Float]
"""The tensors of one layer by name, with the shapes that the architecture's row gives them."""


@dataclass
class Checkpoint:
    """A float model. embedding, classifier [vocab, dim] (one object when tied); final_norm [dim].

    Every array is float32, C-contiguous, finite and owned by the checkpoint.
    """

    shape: ModelShape
    embedding: Float
    layers: list[Layer]
    final_norm: Float
    classifier: Float

    def tensors(self) -> Iterator[tuple[str, Float]]:
        """Every array by name, a tied one once."""
        yield "embedding", self.embedding
        for number, layer in enumerate(self.layers):
            yield from ((f"layer{number}.{name}", array) for name, array in layer.items())
        yield "final_norm", self.final_norm
        if not self.shape.tied:
            yield "classifier", self.classifier


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a llama2.c ``.bin`` file or a Hugging Face folder (config.json + model.safetensors).

    UserError, one line, for everything else: missing or truncated files, sizes that disagree with
    the file, other architectures, tensors that are missing, misshapen or hold NaN or infinity.
    """
    path = Path(path)
    try:
        return _load_hf(path) if path.is_dir() else _load_llama2c(path)
    except (OSError, ValueError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
        raise UserError(f"{path}: cannot be read ({why}); check the path") from None


def interleave_rope(weight: Float, heads: int) -> Float:
    """Rows of a rotated matrix [heads*head_dim, dim], or of its bias, from half-split to
    interleaved order: in each head row i goes to 2i and row i + head_dim/2 to 2i + 1.
    """
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def _check_finite(path: Path, name: str, values: Float) -> None:
    if not np.isfinite(values).all():
        where = np.unravel_index(np.argmin(np.isfinite(values)), values.shape)
        index = ", ".join(str(i) for i in where)
        raise UserError(
            f"{path}: tensor {name}[{index}] is {values[where]}, weights must be finite; "
            "the checkpoint is corrupt or its training diverged"
        )


# llama2.c

_HEADER_BYTES = 7 * 4


def _load_llama2c(path: Path) -> Checkpoint:
    size = file_size(path)
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        _refuse_other_formats(path, header)
        shape = _llama2c_shape(path, header)

        # freq_cis_real and freq_cis_imag, which current llama2.c still writes and no longer reads
        rope_table = shape.context * (shape.head_dim // 2) * 2
        need = _HEADER_BYTES + 4 * (shape.parameters + rope_table)
        if size != need:
            wrong = f"{need - size} missing" if size < need else f"{size - need} too many"
            raise UserError(
                f"{path}: the file has {size} bytes, its header {_brief(shape)} needs {need} "
                f"({wrong}); download or export it again (legacy float32 .bin)"
            )

        def tensor(name: str, dims: tuple[int, ...]) -> Float:
            values = np.fromfile(file, "<f4", math.prod(dims)).astype(np.float32, copy=False)
            values = values.reshape(dims)
            _check_finite(path, name, values)
            return values

        embedding = tensor("embedding", (shape.vocab, shape.dim))
        stacks = {
            name: [tensor(f"layer{i}.{name}", dims) for i in range(shape.layers)]
            for name, _, dims in shape.architecture.tensors(shape)
        }
        final_norm = tensor("final_norm", (shape.dim,))
        file.seek(4 * rope_table, 1)
        classifier = embedding
        if not shape.tied:
            classifier = tensor("classifier", (shape.vocab, shape.dim))
    layers = [{name: stack[i] for name, stack in stacks.items()} for i in range(shape.layers)]
    return Checkpoint(shape, embedding, layers, final_norm, classifier)


def _llama2c_shape(path: Path, header: bytes) -> ModelShape:
    if len(header) < _HEADER_BYTES:
        raise UserError(
            f"{path}: {len(header)} bytes is shorter than the {_HEADER_BYTES}-byte header of a "
            "llama2.c .bin; download or export it again"
        )
    dim, hidden, layers, heads, kv_heads, vocab, context = np.frombuffer(header, "<i4").tolist()
    if heads < 1 or dim % heads:
        raise UserError(
            f"{path}: dim={dim} is not a multiple of heads={heads}; "
            "the header is corrupt or this is not a llama2.c .bin"
        )
    try:
        return ModelShape(
            dim=dim,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim // heads,
            vocab=abs(vocab),
            context=context,
            tied=vocab > 0,
        )
    except UserError as error:
        raise UserError(f"{path}: not a usable llama2.c .bin: {error}") from None


def _refuse_other_formats(path: Path, head: bytes) -> None:
    """Name the formats people confuse with a .bin, instead of reporting their bytes as sizes."""
    # A .bin of dim 640 begins 80 02 00 00, like a pickle; but 00 is no opcode of pickle.
    pickled = head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and head[2:3] != b"\0"
    hint = None
    if pickled or head[:4] == b"PK\x03\x04" or path.suffix in (".pt", ".pth", ".ckpt", ".pkl"):
        hint = (
            "a pickled PyTorch file can run any code and is never opened; "
            "convert it to safetensors or to a llama2.c .bin"
        )
    elif head[:4] == b"GGUF":
        hint = "GGUF is not read; give the Hugging Face folder it was made from"
    elif head[:4] == b"24ka":
        hint = "llama2.c's version 1 and 2 exports are not read; export with --version 0"
    elif path.suffix in (".safetensors", ".json") or head[:1] == b"{" or head[8:10] == b'{"':
        hint = "give the folder that holds config.json and model.safetensors"
    if hint:
        raise UserError(f"{path}: not a llama2.c .bin: {hint}")


def _brief(s: ModelShape) -> str:
    return (
        f"(dim {s.dim}, hidden {s.hidden}, layers {s.layers}, heads {s.heads}, "
        f"kv_heads {s.kv_heads}, vocab {s.vocab}, context {s.context})"
    )


# Hugging Face


def _load_hf(folder: Path) -> Checkpoint:
    shape = shape_from_config(folder / "config.json")
    path = folder / "model.safetensors"
    if not path.exists():
        if (folder / "model.safetensors.index.json").exists():
            raise UserError(
                f"{folder}: sharded safetensors (model.safetensors.index.json) are not read; "
                "save it as one model.safetensors (save_pretrained with a large max_shard_size)"
            )
        if any(folder.glob("pytorch_model*.bin")):
            raise UserError(
                f"{folder}: only a pickled pytorch_model.bin, which can run any code and is never "
                "opened; convert it to model.safetensors"
            )
        raise UserError(f"{path}: no such file; give a folder with config.json and it")
    tensors = _SafeTensors(path)

    # An unknown tensor (a bias, a norm per head, an adapter) would change what the model computes.
    arch = shape.architecture
    rows = list(arch.tensors(shape))
    used = {arch.embedding, arch.classifier, arch.final_norm}
    used |= {arch.layer_prefix.format(i) + hf for i in range(shape.layers) for _, hf, _ in rows}
    for name in tensors.entries:
        if name not in used and not name.endswith("rotary_emb.inv_freq"):
            raise UserError(
                f"{path}: tensor {show(name)} is not part of a {shape.layers}-layer {arch.name}; "
                f"use a plain {arch.hf_class} checkpoint"
            )

    def layer(i: int) -> Layer:
        prefix = arch.layer_prefix.format(i)
        found = {name: tensors.read(prefix + hf, dims) for name, hf, dims in rows}
        for matrix in arch.matrices:
            for name in filter(None, (matrix.name, matrix.bias)):
                if matrix.rotated:
                    found[name] = interleave_rope(found[name], getattr(shape, matrix.rotated))
        return found

    layers = [layer(i) for i in range(shape.layers)]
    embedding = tensors.read(arch.embedding, (shape.vocab, shape.dim))
    final_norm = tensors.read(arch.final_norm, (shape.dim,))
    if not shape.tied:
        classifier = tensors.read(arch.classifier, embedding.shape)
    else:
        classifier = embedding
        if arch.classifier in tensors.entries:
            if not np.array_equal(tensors.read(arch.classifier, embedding.shape), embedding):
                raise UserError(
                    f"{path}: {arch.classifier} differs from {arch.embedding} but config.json has "
                    "tie_word_embeddings=true; correct one of them"
                )
    return Checkpoint(shape, embedding, layers, final_norm, classifier)


_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}


class _SafeTensors:
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
        _check_finite(self.path, name, values)
        return values

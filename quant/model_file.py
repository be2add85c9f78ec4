"""The model file (.tfm): a quantized model with its tokenizer.

The frame is that of core/container.py. The header holds recipe, shape, every scalar and a table of
the arrays that follow: little endian, in the order of ``_table``, each at a multiple of 64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.core import ops
from tokenfabric.core.arch import LLAMA
from tokenfabric.core.container import ALIGN, read_container, write_container
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import show
from tokenfabric.core.fixed import round_up
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.qmodel import Array, Linear, Norm, QLayer, QModel

__all__ = ["MAGIC", "read_model", "write_model"]

MAGIC = b"TKFMODL\x01"
_WRITER = "tokenfabric quantize"
_SCALARS = {  # name: smallest and largest value
    "in_shift": (0, 31),
    "out_shift": (0, 63),
    "eps": (0, (1 << 32) - 1),
    "shift": (0, 63),
    "score_shift": (0, 63),
    "score_align": (0, ops.EXP_FRAC),
    "glu_align": (0, ops.SIGMOID_FRAC),
    "glu_shift": (0, 63),
    "tokenizer_bytes": (0, 1 << 30),
} | {f"{name}frac": (-64, 64) for name in ("", "q_", "k_", "up_", "h_", "res_", "logits_")}
# Fields of the shape that a file holds only where they say something else: older files lack them.
_UNWRITTEN: dict[str, Any] = {"arch": LLAMA.name, "rope_scale": ()}
_NORM_SCALARS = ("in_shift", "eps", "out_shift", "frac")
_LAYER_SCALARS = tuple(
    "score_shift score_align glu_align glu_shift q_frac k_frac up_frac h_frac".split()
)


def _table(s: ModelShape, tokenizer_bytes: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every array of a model file, in the order of the file."""

    def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield name + ".weight", "int8", (rows, columns)
        yield name + ".mult", "uint16", (rows,)

    yield from linear("embedding", s.vocab, s.dim)
    for i in range(s.layers):
        at = f"layer{i}."
        for norm in s.architecture.norms:
            yield f"{at}{norm.name}.gain", "int16", (s.dim,)
        yield at + "k_mean", "int16", (s.kv_heads, s.head_dim)
        yield at + "k_scale", "float32", (s.kv_heads, s.head_dim // 2)
        yield at + "v_scale", "float32", (s.kv_heads,)
        for matrix in s.architecture.matrices:
            yield from linear(at + matrix.name, *matrix.dims(s))
    yield "final_norm.gain", "int16", (s.dim,)
    if not s.tied:
        yield from linear("classifier", s.vocab, s.dim)
    yield "tokenizer", "uint8", (tokenizer_bytes,)


def _arrays(model: QModel) -> dict[str, Array]:
    """Every array of a model under its name in the file."""

    def linear(name: str, found: Linear) -> dict[str, Array]:
        return {name + ".weight": found.weight, name + ".mult": found.mult}

    arrays = linear("embedding", model.embedding)
    for i, layer in enumerate(model.layers):
        at = f"layer{i}."
        arrays |= {f"{at}{name}.gain": norm.gain for name, norm in layer.norms.items()}
        arrays |= {at + name: getattr(layer, name) for name in ("k_mean", "k_scale", "v_scale")}
        for name, found in layer.linears.items():
            arrays |= linear(at + name, found)
    arrays["final_norm.gain"] = model.final_norm.gain
    arrays |= linear("classifier", model.classifier)
    arrays["tokenizer"] = np.frombuffer(model.tokenizer, np.uint8)
    return arrays


def _scalars(model: QModel) -> dict[str, Any]:
    """Everything in the header that is neither shape nor table: integers by section."""
    arch = model.shape.architecture

    def norm(n: Norm) -> dict[str, int]:
        return {name: int(getattr(n, name)) for name in _NORM_SCALARS}

    layers = [
        {gain.name: norm(w.norms[gain.name]) for gain in arch.norms}
        | {matrix.name: {"shift": int(w.linears[matrix.name].shift)} for matrix in arch.matrices}
        | {name: int(getattr(w, name)) for name in _LAYER_SCALARS}
        for w in model.layers
    ]
    return {
        "res_frac": int(model.res_frac),
        "logits_frac": int(model.logits_frac),
        "embedding": {"shift": int(model.embedding.shift)},
        "final_norm": norm(model.final_norm),
        "classifier": {"shift": int(model.classifier.shift)},
        "tokenizer_bytes": len(model.tokenizer),
        "layers": layers,
    }


def write_model(path: str | Path, model: QModel) -> None:
    """Write a model file, whole or not at all. UserError if it cannot be written."""
    arrays = _arrays(model)
    parts, entries, offset = [], [], 0
    for name, dtype, dims in _table(model.shape, len(model.tokenizer)):
        array = arrays[name]
        assert array.dtype == dtype and array.shape == dims, (name, array.dtype, array.shape)
        entries.append({"name": name, "dtype": dtype, "shape": dims, "offset": offset})
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        parts += [data, bytes(round_up(len(data), ALIGN) - len(data))]
        offset += round_up(len(data), ALIGN)
    shape = asdict(model.shape)
    for name, usual in _UNWRITTEN.items():
        if shape[name] == usual:
            del shape[name]
    header: dict[str, Any] = {"recipe": model.recipe, "shape": shape}
    header |= {"model": _scalars(model), "tensors": entries}
    write_container(path, MAGIC, header, parts)


def read_model(path: str | Path) -> QModel:
    """Read a model file. UserError, one line, for anything that is not a sound one."""
    header, payload = read_container(path, MAGIC, "a model file", _WRITER)
    try:
        return _from_header(header, payload)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


WRONG = f"the file was not written by '{_WRITER}': quantize the checkpoint again"


def _section(where: str, found: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """``found``, an object with exactly these keys."""
    if not isinstance(found, dict) or set(found) != set(names):
        keys = sorted(found) if isinstance(found, dict) else found
        raise UserError(f"{where} holds {show(keys)}, it must hold {', '.join(names)}; {WRONG}")
    return found


def _integers(where: str, found: Any, names: tuple[str, ...]) -> dict[str, int]:
    """Those of its values, each an integer within its limits."""
    for name in names:
        low, high = _SCALARS[name]
        if type(found[name]) is not int or not low <= found[name] <= high:
            raise UserError(
                f"{where}.{name} = {show(found[name])} is no integer from {low} to {high}; {WRONG}"
            )
    return {name: found[name] for name in names}


def _shape(found: Any) -> ModelShape:
    """Of the header."""
    if isinstance(found, dict):
        found = {**_UNWRITTEN, **found}
    fields = _section("shape", found, tuple(ModelShape.__dataclass_fields__))
    if isinstance(fields["rope_scale"], list):  # JSON knows no tuples
        fields["rope_scale"] = tuple(fields["rope_scale"])
    shape = ModelShape(**fields)
    shape.check_hardware()
    return shape


def _from_header(header: dict[str, Any], data: memoryview) -> QModel:
    """The model, every field of the header compared with what its shape demands."""
    _section("the header", header, ("recipe", "shape", "model", "tensors"))
    recipe = header["recipe"]
    if not isinstance(recipe, str) or not recipe.isprintable() or len(recipe) > 60:
        raise UserError(f"recipe = {show(recipe)} is no name; {WRONG}")
    shape = _shape(header["shape"])
    top = ("res_frac", "logits_frac", "tokenizer_bytes")
    sections = ("embedding", "final_norm", "classifier", "layers")
    scalars = _section("model", header["model"], top + sections)
    numbers = _integers("model", scalars, top)
    rows = scalars["layers"]
    if not isinstance(rows, list) or len(rows) != shape.layers:
        count = len(rows) if isinstance(rows, list) else show(rows)
        raise UserError(f"layers: {count} are described, shape.layers = {shape.layers}; {WRONG}")
    parts = _Parts(shape, _read_arrays(shape, numbers, header["tensors"], data))
    return QModel(
        shape=shape,
        recipe=recipe,
        res_frac=numbers["res_frac"],
        logits_frac=numbers["logits_frac"],
        embedding=parts.linear("embedding", scalars["embedding"]),
        layers=[parts.layer(i, row) for i, row in enumerate(rows)],
        final_norm=parts.norm("final_norm", scalars["final_norm"]),
        classifier=parts.linear(
            "classifier", scalars["classifier"], "embedding" if shape.tied else "classifier"
        ),
        tokenizer=parts.arrays["tokenizer"].tobytes(),
    )


def _read_arrays(
    shape: ModelShape, numbers: dict[str, int], entries: Any, data: memoryview
) -> dict[str, Array]:
    """The arrays by name; the file's table must be the one that the shape demands."""
    arrays: dict[str, Array] = {}
    offset = 0
    if not isinstance(entries, list):
        raise UserError(f"tensors is {show(entries)}, it must be a list; {WRONG}")
    table = list(_table(shape, numbers["tokenizer_bytes"]))
    if len(entries) != len(table):
        raise UserError(f"{len(entries)} tensors, this shape has {len(table)}; {WRONG}")
    for entry, (name, dtype, dims) in zip(entries, table, strict=True):
        want = {"name": name, "dtype": dtype, "shape": list(dims), "offset": offset}
        size = math.prod(dims) * np.dtype(dtype).itemsize
        if entry != want:
            raise UserError(f"tensor {show(entry, 120)} must be {show(want, 120)}; {WRONG}")
        if offset + size > len(data):
            raise UserError(
                f"tensor {name} ends at byte {offset + size} of {len(data)} after the header; "
                "it is truncated: quantize the checkpoint again"
            )
        raw = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), math.prod(dims), offset)
        arrays[name] = raw.astype(dtype, copy=False).reshape(dims)
        offset += round_up(size, ALIGN)
    if offset != len(data):
        raise UserError(f"{len(data) - offset} bytes follow the last tensor; {WRONG}")
    return arrays


class _Parts:
    """Puts scalars and arrays together again."""

    def __init__(self, shape: ModelShape, arrays: dict[str, Array]):
        self.arch, self.arrays = shape.architecture, arrays

    def linear(self, where: str, found: Any, source: str | None = None) -> Linear:
        shift = _integers(where, _section(where, found, ("shift",)), ("shift",))["shift"]
        source = source or where
        return Linear(self.arrays[source + ".weight"], self.arrays[source + ".mult"], shift)

    def norm(self, where: str, found: Any) -> Norm:
        values = _integers(where, _section(where, found, _NORM_SCALARS), _NORM_SCALARS)
        return Norm(self.arrays[where + ".gain"], **values)

    def layer(self, number: int, found: Any) -> QLayer:
        at = f"layer{number}"
        linears = [matrix.name for matrix in self.arch.matrices]
        norms = [gain.name for gain in self.arch.norms]
        found = _section(at, found, (*linears, *_LAYER_SCALARS, *norms))
        fields: dict[str, Any] = dict(_integers(at, found, _LAYER_SCALARS))
        fields |= {name: self.arrays[f"{at}.{name}"] for name in ("k_mean", "k_scale", "v_scale")}
        for name in ("k_scale", "v_scale"):
            if not (np.isfinite(fields[name]).all() and (fields[name] > 0).all()):
                raise UserError(f"{at}.{name} holds values that are not positive; {WRONG}")
        return QLayer(
            norms={name: self.norm(f"{at}.{name}", found[name]) for name in norms},
            linears={name: self.linear(f"{at}.{name}", found[name]) for name in linears},
            **fields,
        )

"""The quantized model: its fields, its file (.tfm) and its integer forward pass. Needs numpy only.

Integers from token id to logits. An integer ``i`` of a tensor with ``frac`` f stands for
``i / 2**f``; what is not a power of two sits in the 16-bit multipliers of the matrices or was
folded into the weights when they were quantized:

- q carries the factor ``log2(e) / (127 * sqrt(head_dim))``, so that a score is
  ``q . k8 * amax >> score_shift`` and the softmax takes it to base 2;
- each pair of k that RoPE rotates is divided by its ``k_scale``, and the pair of q multiplied;
- v is ``v8 * v_scale``; v_scale is folded into wv's multipliers and into the columns of wo;
- the gains of the norms contain ``sqrt(dim)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core import ops
from tokenfabric.core.container import ALIGN, read_container, write_container
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import show
from tokenfabric.core.fixed import int_limits, round_up, saturate
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.tensors import TensorClass

Array = npt.NDArray[Any]
Trace = Callable[[str, Array], None]


def q_factor(head_dim: int) -> float:
    """What q is multiplied by beyond the float model's: see :mod:`tokenfabric.quant.qmodel`."""
    return math.log2(math.e) / (127 * math.sqrt(head_dim))


@dataclass
class Linear:
    """A matrix with a multiplier per output channel: ``requantize(x @ weight.T, mult, shift)``.

    weight int8 [out, in]; mult uint16 [out]; shift 0..63.
    """

    weight: Array
    mult: Array
    shift: int

    def __call__(self, x: Array) -> Array:
        """Requantized, not saturated: int64 [..., out] of int16 x [..., in]."""
        return ops.requantize(ops.matmul(x, self.weight), self.mult, self.shift)


@dataclass
class Norm:
    """Arguments of :func:`tokenfabric.core.ops.rmsnorm`: gain int16 [dim], the rest integers.

    frac: fraction bits of the result.
    """

    gain: Array
    in_shift: int
    eps: int
    out_shift: int
    frac: int


@dataclass
class QLayer:
    """One layer.

    wq, wk, wv, wo, w1 (gate), w2 (down), w3 (up): Linear, shapes as in the float checkpoint.
    k_mean: int16 [kv_heads, head_dim], subtracted from k after RoPE.
    k_scale float32 [kv_heads, head_dim // 2], v_scale float32 [kv_heads]: what k (per pair) and v
    were divided by; only for dequantizing.
    score_shift: of the scores' requantize; score_align: ``align`` of softmax (0..10), the scores
    have ``10 - score_align`` fraction bits. glu_align (0..12), glu_shift: of swiglu; gate has
    ``12 - glu_align`` fraction bits. q_frac, k_frac (before and after RoPE), up_frac, h_frac:
    binary points of the other activations; att has 8 in units of v8.
    """

    attn_norm: Norm
    wq: Linear
    wk: Linear
    wv: Linear
    wo: Linear
    ffn_norm: Norm
    w1: Linear
    w2: Linear
    w3: Linear
    k_mean: Array
    k_scale: Array
    v_scale: Array
    score_shift: int
    score_align: int
    glu_align: int
    glu_shift: int
    q_frac: int
    k_frac: int
    up_frac: int
    h_frac: int

    @property
    def linears(self):
        return {n: getattr(self, n) for n in ("wq", "wk", "wv", "wo", "w1", "w2", "w3")}

    @property
    def norms(self):
        return {n: getattr(self, n) for n in ("attn_norm", "ffn_norm")}

    @property
    def gate_frac(self) -> int:
        return ops.SIGMOID_FRAC - self.glu_align

    @property
    def score_frac(self) -> int:
        return ops.EXP_FRAC - self.score_align


@dataclass
class QModel:
    """A quantized model.

    shape; recipe: name of how it was quantized; tokenizer: the tokenizer's bytes (may be empty).
    embedding: Linear [vocab, dim]; its shift is embed_shift, its multipliers one per token.
    classifier: Linear [vocab, dim]. If shape.tied, weight and mult are the same objects as the
    embedding's and only the shifts differ. res_frac: residual stream; logits_frac: logits.
    """

    shape: ModelShape
    recipe: str
    res_frac: int
    logits_frac: int
    embedding: Linear
    layers: list[QLayer]
    final_norm: Norm
    classifier: Linear
    tokenizer: bytes = field(default=b"", repr=False)

    def forward(
        self,
        tokens: npt.ArrayLike,
        *,
        trace: Trace | None = None,
        saturations: dict[str, int] | None = None,
    ) -> Array:
        """Logits int64 [T, vocab] of one sequence at positions 0..T-1, causal.

        ``trace(name, integers)`` is called with the tensors that the float model's forward traces,
        under the same names (:meth:`scales` turns them into floats), and with "layer{i}.k8"
        [T, kv_heads, head_dim] and "layer{i}.k_amax" [T, kv_heads], the K cache. Masked scores are
        -32768. ``saturations``: counts are added to it, by lower-case name of TensorClass.
        UserError for no tokens, more than the context, or a token outside the vocabulary.
        """
        return _forward(self, self._checked(tokens), trace, saturations)

    def _checked(self, tokens: npt.ArrayLike) -> Array:
        found, s = np.asarray(tokens).reshape(-1), self.shape
        if not 1 <= found.size <= s.context:
            raise UserError(
                f"{found.size} tokens do not fit the model's context of {s.context}; "
                f"use from 1 to {s.context}"
            )
        integers = np.issubdtype(found.dtype, np.integer)
        if not integers or found.min() < 0 or found.max() >= s.vocab:
            raise UserError(
                f"token ids must be integers from 0 to {s.vocab - 1} (the vocabulary); "
                "use the tokenizer of this model"
            )
        return found

    def scales(self) -> dict[str, Any]:
        """Traced name -> what one unit of its integers stands for; broadcasts over the tensor.

        Scores differ from the float model's by a constant per row, the subtracted K mean.
        """
        s = self.shape
        found: dict[str, Any] = {"embedding": 2.0**-self.res_frac}
        for i, layer in enumerate(self.layers):
            group = s.heads // s.kv_heads
            k_scale = np.repeat(layer.k_scale, 2, axis=1)
            found |= {
                f"layer{i}.{name}": scale
                for name, scale in {
                    "attn_norm": 2.0**-layer.attn_norm.frac,
                    "q": 2.0**-layer.q_frac
                    / (q_factor(s.head_dim) * np.repeat(k_scale, group, axis=0)),
                    "k": 2.0**-layer.k_frac * k_scale,
                    "v": layer.v_scale[:, None],
                    "scores": 2.0**-layer.score_frac * math.log(2),
                    "att": np.repeat(layer.v_scale, group * s.head_dim) * 2.0**-ops.ATT_FRAC,
                    "residual_attn": 2.0**-self.res_frac,
                    "ffn_norm": 2.0**-layer.ffn_norm.frac,
                    "gate": 2.0**-layer.gate_frac,
                    "up": 2.0**-layer.up_frac,
                    "h": 2.0**-layer.h_frac,
                    "residual": 2.0**-self.res_frac,
                }.items()
            }
        found["final_norm"] = 2.0**-self.final_norm.frac
        found["logits"] = 2.0**-self.logits_frac
        return found

    @classmethod
    def random(cls, shape: ModelShape, seed: int = 0) -> QModel:
        """A model of this shape with random weights whose activations stay in range."""
        return _random(shape, seed)

    def write(self, path: str | Path) -> None:
        """Write the model file, whole or not at all. UserError if it cannot be written."""
        _write(path, self)

    @classmethod
    def read(cls, path: str | Path) -> QModel:
        """Read a model file. UserError, one line, for anything that is not a sound one."""
        return _read(path)


# --- forward -----------------------------------------------------------------------------------


def _forward(
    model: QModel, tokens: Array, trace: Trace | None, saturations: dict[str, int] | None
) -> Array:
    s, count = model.shape, len(tokens)
    table = ops.rope_table(np.arange(count), s.head_dim, s.rope_theta)[:, None]
    causal = np.tri(count, dtype=bool)

    def note(name: str, x: Array) -> Array:
        if trace is not None:
            trace(name, x)
        return x

    def narrow(wide: Array, bits: int, kind: TensorClass) -> Array:
        if saturations is not None:
            name = kind.name.lower()
            saturations[name] = saturations.get(name, 0) + ops.count_saturated(wide, bits)
        return saturate(wide, bits)

    def norm(x: Array, n: Norm) -> Array:
        wide = ops.rmsnorm_wide(x, n.in_shift, n.eps, n.gain, n.out_shift)
        return narrow(wide, ops.ACT_BITS, TensorClass.NORM)

    def add(x: Array, wide: Array, kind: TensorClass) -> Array:
        # ops.residual_add, with both of its saturations counted
        return narrow(x + narrow(wide, ops.RES_BITS, kind), ops.RES_BITS, TensorClass.RES)

    row = model.embedding
    wide = ops.requantize(row.weight[tokens], row.mult[tokens, None], row.shift)
    x = note("embedding", narrow(wide, ops.RES_BITS, TensorClass.RES))
    for i, w in enumerate(model.layers):
        at = f"layer{i}."
        xb = note(at + "attn_norm", norm(x, w.attn_norm))
        q = narrow(w.wq(xb), ops.ACT_BITS, TensorClass.Q).reshape(count, s.heads, s.head_dim)
        k = narrow(w.wk(xb), ops.ACT_BITS, TensorClass.K).reshape(count, s.kv_heads, s.head_dim)
        v = narrow(w.wv(xb), ops.WEIGHT_BITS, TensorClass.V).reshape(k.shape)
        q = note(at + "q", narrow(ops.rope_wide(q, table), ops.ACT_BITS, TensorClass.ROPE_Q))
        k = note(at + "k", narrow(ops.rope_wide(k, table), ops.ACT_BITS, TensorClass.ROPE_K))
        note(at + "v", v)
        k8, amax = ops.quantize_k(k, w.k_mean)
        note(at + "k8", k8)
        note(at + "k_amax", amax)

        scores, att = [], []
        for head in range(s.heads):
            kv = head // (s.heads // s.kv_heads)
            wide = ops.requantize(ops.matmul(q[:, head], k8[:, kv]), amax[:, kv], w.score_shift)
            wide = np.where(causal, wide, int_limits(ops.ACT_BITS)[0])
            scores.append(narrow(wide, ops.ACT_BITS, TensorClass.SCORES))
            p, total = ops.softmax(scores[-1], causal, w.score_align)
            mult, shift = ops.attention_scale(total)
            wide = ops.requantize(ops.matmul(p, v[:, kv].T), mult[:, None], shift[:, None])
            att.append(narrow(wide, ops.ACT_BITS, TensorClass.ATT))
        if trace is not None:
            trace(at + "scores", np.stack(scores))
        x = add(x, w.wo(note(at + "att", np.concatenate(att, axis=1))), TensorClass.WO)
        note(at + "residual_attn", x)

        xb = note(at + "ffn_norm", norm(x, w.ffn_norm))
        gate = note(at + "gate", narrow(w.w1(xb), ops.ACT_BITS, TensorClass.GATE_UP))
        up = note(at + "up", narrow(w.w3(xb), ops.ACT_BITS, TensorClass.GATE_UP))
        wide = ops.swiglu_wide(gate, up, w.glu_align, w.glu_shift)
        h = note(at + "h", narrow(wide, ops.ACT_BITS, TensorClass.SWIGLU))
        x = note(at + "residual", add(x, w.w2(h), TensorClass.W2))

    xb = note("final_norm", norm(x, model.final_norm))
    return note("logits", narrow(model.classifier(xb), 32, TensorClass.LOGITS))


# --- random models -----------------------------------------------------------------------------


def scaled_multipliers(real: npt.ArrayLike) -> tuple[Array, int]:
    """``(mult, shift)``: uint16 multipliers with ``mult / 2**shift`` nearest to ``real`` [out].

    The largest is in [2**15, 2**16), or smaller if only a shift beyond 63 would bring it there.
    Not negative and below 2**16, or there is no such multiplier (AssertionError).
    """
    real = np.asarray(real, np.float64)
    largest = float(real.max(initial=0))
    assert real.min(initial=0) >= 0 and largest < 65535.5, f"no multiplier for {largest}"
    shift = 63 if largest == 0 else int(np.clip(15 - math.floor(math.log2(largest)), 0, 63))
    if shift > 0 and round(largest * 2.0**shift) > 65535:  # just below a power of two
        shift -= 1
    return np.minimum(np.round(real * 2.0**shift), 65535).astype(np.uint16), shift


def _random(shape: ModelShape, seed: int) -> QModel:
    """Matrices of unit gain, so that every activation but the residual stream is of order one."""
    rng, s = np.random.default_rng(seed), shape
    frac, res_frac, logits_frac = 11, 18, 16
    step = math.sqrt((255**2 - 1) / 12)  # standard deviation of the int8 weights

    def linear(rows: int, columns: int, scale: float, weight: Array | None = None) -> Linear:
        if weight is None:
            weight = rng.integers(-127, 128, (rows, columns), np.int8)
        spread = rng.uniform(0.5, 1.0, rows)
        return Linear(weight, *scaled_multipliers(spread * scale / (step * math.sqrt(columns))))

    def norm(depth: int) -> Norm:
        # after `depth` additions the residual stream is about sqrt(depth + 1) of order one
        in_shift = res_frac - 12 + math.ceil(math.log2(math.sqrt(depth + 1)))
        eps = round(s.dim * s.norm_eps * 4.0 ** (res_frac - in_shift))
        gain_frac = 14 - math.ceil(math.log2(math.sqrt(s.dim)))
        gain = np.round(rng.uniform(0.5, 1.5, s.dim) * math.sqrt(s.dim) * 2.0**gain_frac)
        return Norm(gain.astype(np.int16), in_shift, eps, ops.NORM_T_FRAC + gain_frac - frac, frac)

    def layer(i: int) -> QLayer:
        q_frac = frac + math.floor(math.log2(127 * math.sqrt(s.head_dim)))
        return QLayer(
            attn_norm=norm(2 * i),
            wq=linear(s.q_dim, s.dim, q_factor(s.head_dim) * 2.0 ** (q_frac - frac)),
            wk=linear(s.kv_dim, s.dim, 1),
            wv=linear(s.kv_dim, s.dim, 127 / 6 * 2.0**-frac),
            wo=linear(s.dim, s.q_dim, 6 / 127 * 2.0 ** (res_frac - ops.ATT_FRAC)),
            ffn_norm=norm(2 * i + 1),
            w1=linear(s.hidden, s.dim, 1),
            w2=linear(s.dim, s.hidden, 2.0 ** (res_frac - frac)),
            w3=linear(s.hidden, s.dim, 1),
            k_mean=rng.integers(-(1 << frac), 1 << frac, (s.kv_heads, s.head_dim), np.int16),
            k_scale=np.ones((s.kv_heads, s.head_dim // 2), np.float32),
            v_scale=np.full(s.kv_heads, 6 / 127, np.float32),
            score_shift=q_frac + frac - 8,
            score_align=2,
            glu_align=ops.SIGMOID_FRAC - frac,
            glu_shift=frac + ops.GLU_T_FRAC_GAIN,
            q_frac=q_frac,
            k_frac=frac,
            up_frac=frac,
            h_frac=frac,
        )

    layers = [layer(i) for i in range(s.layers)]
    embedding = linear(s.vocab, s.dim, math.sqrt(s.dim) * 2.0**res_frac)
    # logits are embedding rows of order one, times 1 / sqrt(dim)
    tied_shift = embedding.shift + res_frac + frac - logits_frac
    tied_shift += math.ceil(math.log2(math.sqrt(s.dim)))
    classifier = Linear(embedding.weight, embedding.mult, tied_shift)
    if not s.tied:
        classifier = linear(s.vocab, s.dim, 2.0 ** (logits_frac - frac))
    return QModel(
        shape=s,
        recipe="random",
        res_frac=res_frac,
        logits_frac=logits_frac,
        embedding=embedding,
        layers=layers,
        final_norm=norm(2 * s.layers),
        classifier=classifier,
    )


# --- the model file ----------------------------------------------------------------------------
#
# The frame is that of core/container.py. The header holds recipe, shape, every scalar and a table
# of the arrays that follow: little endian, in the order of _table, each at a multiple of 64.

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
_NORM_SCALARS = ("in_shift", "eps", "out_shift", "frac")
_LAYER_SCALARS = tuple(
    "score_shift score_align glu_align glu_shift q_frac k_frac up_frac h_frac".split()
)
_LINEARS = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")


def _table(s: ModelShape, tokenizer_bytes: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of every array of a model file, in the order of the file."""

    def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        yield name + ".weight", "int8", (rows, columns)
        yield name + ".mult", "uint16", (rows,)

    yield from linear("embedding", s.vocab, s.dim)
    for i in range(s.layers):
        at = f"layer{i}."
        yield at + "attn_norm.gain", "int16", (s.dim,)
        yield at + "ffn_norm.gain", "int16", (s.dim,)
        yield at + "k_mean", "int16", (s.kv_heads, s.head_dim)
        yield at + "k_scale", "float32", (s.kv_heads, s.head_dim // 2)
        yield at + "v_scale", "float32", (s.kv_heads,)
        for name in _LINEARS:
            yield from linear(at + name, *linear_shape(s, name))
    yield "final_norm.gain", "int16", (s.dim,)
    if not s.tied:
        yield from linear("classifier", s.vocab, s.dim)
    yield "tokenizer", "uint8", (tokenizer_bytes,)


def linear_shape(s: ModelShape, name: str) -> tuple[int, int]:
    """(outputs, inputs) of a matrix of a layer."""
    return {
        "wq": (s.q_dim, s.dim),
        "wk": (s.kv_dim, s.dim),
        "wv": (s.kv_dim, s.dim),
        "wo": (s.dim, s.q_dim),
        "w1": (s.hidden, s.dim),
        "w2": (s.dim, s.hidden),
        "w3": (s.hidden, s.dim),
    }[name]


def _lookup(model: QModel, name: str) -> Any:
    """The field called e.g. "layer3.wq.mult"."""
    if name == "tokenizer":
        return np.frombuffer(model.tokenizer, np.uint8)
    found: Any = model
    for part in name.split("."):
        found = found.layers[int(part[5:])] if part.startswith("layer") else getattr(found, part)
    return found


def _scalars(model: QModel) -> dict[str, Any]:
    """Everything in the header that is neither shape nor table: integers by section."""

    def norm(n: Norm) -> dict[str, int]:
        return {name: int(getattr(n, name)) for name in _NORM_SCALARS}

    layers = [
        {"attn_norm": norm(w.attn_norm), "ffn_norm": norm(w.ffn_norm)}
        | {name: {"shift": int(getattr(w, name).shift)} for name in _LINEARS}
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


def _write(path: str | Path, model: QModel) -> None:
    parts, entries, offset = [], [], 0
    for name, dtype, dims in _table(model.shape, len(model.tokenizer)):
        array = _lookup(model, name)
        assert array.dtype == dtype and array.shape == dims, (name, array.dtype, array.shape)
        entries.append({"name": name, "dtype": dtype, "shape": dims, "offset": offset})
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        parts += [data, bytes(round_up(len(data), ALIGN) - len(data))]
        offset += round_up(len(data), ALIGN)
    header: dict[str, Any] = {"recipe": model.recipe, "shape": asdict(model.shape)}
    header |= {"model": _scalars(model), "tensors": entries}
    write_container(path, MAGIC, header, parts)


def _read(path: str | Path) -> QModel:
    header, payload = read_container(path, MAGIC, "a model file", _WRITER)
    try:
        return _from_header(header, payload)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _from_header(header: dict[str, Any], data: memoryview) -> QModel:
    """The model, every field of the header compared with what its shape demands."""
    wrong = f"the file was not written by '{_WRITER}': quantize the checkpoint again"

    def section(where: str, found: Any, names: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(found, dict) or set(found) != set(names):
            keys = sorted(found) if isinstance(found, dict) else found
            raise UserError(f"{where} holds {show(keys)}, it must hold {', '.join(names)}; {wrong}")
        return found

    def integers(where: str, found: Any, names: tuple[str, ...]) -> dict[str, int]:
        for name in names:
            low, high = _SCALARS[name]
            if type(found[name]) is not int or not low <= found[name] <= high:
                raise UserError(
                    f"{where}.{name} = {show(found[name])} is no integer from {low} to {high}; "
                    + wrong
                )
        return {name: found[name] for name in names}

    section("the header", header, ("recipe", "shape", "model", "tensors"))
    recipe = header["recipe"]
    if not isinstance(recipe, str) or not recipe.isprintable() or len(recipe) > 60:
        raise UserError(f"recipe = {show(recipe)} is no name; {wrong}")
    shape_names = tuple(ModelShape.__dataclass_fields__)
    shape = ModelShape(**section("shape", header["shape"], shape_names))
    top = ("res_frac", "logits_frac", "tokenizer_bytes")
    sections = ("embedding", "final_norm", "classifier", "layers")
    scalars = section("model", header["model"], top + sections)
    numbers = integers("model", scalars, top)
    rows = scalars["layers"]
    if not isinstance(rows, list) or len(rows) != shape.layers:
        count = len(rows) if isinstance(rows, list) else show(rows)
        raise UserError(f"layers: {count} are described, shape.layers = {shape.layers}; {wrong}")

    arrays: dict[str, Array] = {}
    offset, entries = 0, header["tensors"]
    if not isinstance(entries, list):
        raise UserError(f"tensors is {show(entries)}, it must be a list; {wrong}")
    table = list(_table(shape, numbers["tokenizer_bytes"]))
    if len(entries) != len(table):
        raise UserError(f"{len(entries)} tensors, this shape has {len(table)}; {wrong}")
    for entry, (name, dtype, dims) in zip(entries, table, strict=True):
        want = {"name": name, "dtype": dtype, "shape": list(dims), "offset": offset}
        size = math.prod(dims) * np.dtype(dtype).itemsize
        if entry != want:
            raise UserError(f"tensor {show(entry, 120)} must be {show(want, 120)}; {wrong}")
        if offset + size > len(data):
            raise UserError(
                f"tensor {name} ends at byte {offset + size} of {len(data)} after the header; "
                "it is truncated: quantize the checkpoint again"
            )
        raw = np.frombuffer(data, np.dtype(dtype).newbyteorder("<"), math.prod(dims), offset)
        arrays[name] = raw.astype(dtype, copy=False).reshape(dims)
        offset += round_up(size, ALIGN)
    if offset != len(data):
        raise UserError(f"{len(data) - offset} bytes follow the last tensor; {wrong}")

    def linear(where: str, found: Any, source: str | None = None) -> Linear:
        shift = integers(where, section(where, found, ("shift",)), ("shift",))["shift"]
        source = source or where
        return Linear(arrays[source + ".weight"], arrays[source + ".mult"], shift)

    def norm(where: str, found: Any) -> Norm:
        values = integers(where, section(where, found, _NORM_SCALARS), _NORM_SCALARS)
        return Norm(arrays[where + ".gain"], **values)

    def layer(i: int) -> QLayer:
        at, names = f"layer{i}", (*_LINEARS, *_LAYER_SCALARS, "attn_norm", "ffn_norm")
        found = section(at, rows[i], names)
        fields: dict[str, Any] = {name: linear(f"{at}.{name}", found[name]) for name in _LINEARS}
        fields |= {name: norm(f"{at}.{name}", found[name]) for name in ("attn_norm", "ffn_norm")}
        fields |= {name: arrays[f"{at}.{name}"] for name in ("k_mean", "k_scale", "v_scale")}
        for name in ("k_scale", "v_scale"):
            if not (np.isfinite(fields[name]).all() and (fields[name] > 0).all()):
                raise UserError(f"{at}.{name} holds values that are not positive; {wrong}")
        fields |= integers(at, found, _LAYER_SCALARS)
        return QLayer(**fields)

    return QModel(
        shape=shape,
        recipe=recipe,
        res_frac=numbers["res_frac"],
        logits_frac=numbers["logits_frac"],
        embedding=linear("embedding", scalars["embedding"]),
        layers=[layer(i) for i in range(shape.layers)],
        final_norm=norm("final_norm", scalars["final_norm"]),
        classifier=linear(
            "classifier", scalars["classifier"], "embedding" if shape.tied else "classifier"
        ),
        tokenizer=arrays["tokenizer"].tobytes(),
    )

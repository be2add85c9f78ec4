"""The quantized model: its fields and its integer forward pass. Needs numpy only.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core import exact, ops
from tokenfabric.core.arch import Attention, FeedForward, Matrix
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import int_limits, saturate
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.tensors import TensorClass
from tokenfabric.core.weights import FORMATS, WeightFormat

Array = npt.NDArray[Any]
Trace = Callable[[str, Array], None]


def q_factor(head_dim: int) -> float:
    """What q is multiplied by beyond the float model's: see :mod:`tokenfabric.quant.qmodel`."""
    return exact.LOG2_E / (127 * math.sqrt(head_dim))


def scaled_multipliers(real: npt.ArrayLike) -> tuple[Array, int]:
    """``(mult, shift)``: uint16 multipliers with ``mult / 2**shift`` nearest to ``real`` [out].

    The largest is in [2**15, 2**16), or smaller if only a shift beyond 63 would bring it there.
    Not negative and below 2**16, or there is no such multiplier (AssertionError).
    """
    real = np.asarray(real, np.float64)
    largest = float(real.max(initial=0))
    assert real.min(initial=0) >= 0 and largest < 65535.5, f"no multiplier for {largest}"
    shift = 63 if largest == 0 else int(np.clip(15 - exact.floor_log2(largest), 0, 63))
    if shift > 0 and round(largest * 2.0**shift) > 65535:  # just below a power of two
        shift -= 1
    return np.minimum(np.round(real * 2.0**shift), 65535).astype(np.uint16), shift


@dataclass
class Linear:
    """A matrix with a multiplier per output channel: ``requantize(x @ weight.T, mult, shift)``.

    weight int8 [out, in]; mult uint16 [out]; shift 0..63.
    """

    weight: Array
    mult: Array
    shift: int

    @property
    def format(self) -> WeightFormat:
        """How it lies in the weight stream."""
        return FORMATS["int8"]

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

    norms, linears: by the names of the architecture's row, shapes as in the float checkpoint.
    k_mean: int16 [kv_heads, head_dim], subtracted from k after RoPE.
    k_scale float32 [kv_heads, head_dim // 2], v_scale float32 [kv_heads]: what k (per pair) and v
    were divided by; only for dequantizing.
    score_shift: of the scores' requantize; score_align: ``align`` of softmax (0..10), the scores
    have ``10 - score_align`` fraction bits. glu_align (0..12), glu_shift: of swiglu; gate has
    ``12 - glu_align`` fraction bits. q_frac, k_frac (before and after RoPE), up_frac, h_frac:
    binary points of the other activations; att has 8 in units of v8.
    """

    norms: dict[str, Norm]
    linears: dict[str, Linear]
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
        s.check_tokens(found, "model")
        return found

    def scales(self) -> dict[str, Any]:
        """Traced name -> what one unit of its integers stands for; broadcasts over the tensor.

        Scores differ from the float model's by a constant per row, the subtracted K mean.
        """
        found: dict[str, Any] = {"embedding": 2.0**-self.res_frac}
        for i, layer in enumerate(self.layers):
            scales = {name: 2.0**-norm.frac for name, norm in layer.norms.items()}
            scales |= self._inner_scales(layer)
            for sublayer in self.shape.architecture.sublayers:
                scales[sublayer.result] = 2.0**-self.res_frac
            found |= {f"layer{i}.{name}": scale for name, scale in scales.items()}
        found["final_norm"] = 2.0**-self.final_norm.frac
        found["logits"] = 2.0**-self.logits_frac
        return found

    def _inner_scales(self, layer: QLayer) -> dict[str, Any]:
        """Of what is computed inside a layer's sublayers."""
        s = self.shape
        group = s.heads // s.kv_heads
        k_scale = np.repeat(layer.k_scale, 2, axis=1)
        q_unit = q_factor(s.head_dim) * np.repeat(k_scale, group, axis=0)
        return {
            "q": 2.0**-layer.q_frac / q_unit,
            "k": 2.0**-layer.k_frac * k_scale,
            "v": layer.v_scale[:, None],
            "scores": 2.0**-layer.score_frac * math.log(2),
            "att": np.repeat(layer.v_scale, group * s.head_dim) * 2.0**-ops.ATT_FRAC,
            "gate": 2.0**-layer.gate_frac,
            "up": 2.0**-layer.up_frac,
            "h": 2.0**-layer.h_frac,
        }

    @classmethod
    def random(cls, shape: ModelShape, seed: int = 0) -> QModel:
        """A model of this shape with random weights whose activations stay in range."""
        from tokenfabric.quant.random_model import random_model

        return random_model(shape, seed)

    def write(self, path: str | Path) -> None:
        """Write the model file, whole or not at all. UserError if it cannot be written."""
        from tokenfabric.quant.model_file import write_model

        write_model(path, self)

    @classmethod
    def read(cls, path: str | Path) -> QModel:
        """Read a model file. UserError, one line, for anything that is not a sound one."""
        from tokenfabric.quant.model_file import read_model

        return read_model(path)


# --- forward -----------------------------------------------------------------------------------


def _forward(
    model: QModel, tokens: Array, trace: Trace | None, saturations: dict[str, int] | None
) -> Array:
    run = _Run(model, len(tokens), trace, saturations)
    row = model.embedding
    wide = ops.requantize(row.weight[tokens], row.mult[tokens, None], row.shift)
    x = run.note("embedding", run.narrow(wide, ops.RES_BITS, TensorClass.RES))
    for i, layer in enumerate(model.layers):
        at = f"layer{i}."
        for sublayer in model.shape.architecture.sublayers:
            name = sublayer.norm.name
            xb = run.note(at + name, run.norm(x, layer.norms[name]))
            if isinstance(sublayer, Attention):
                wide, last = run.attention(sublayer, layer, at, xb), sublayer.o
            else:
                wide, last = run.feed_forward(sublayer, layer, at, xb), sublayer.down
            x = run.note(at + sublayer.result, run.add(x, wide, last.counted))
    xb = run.note("final_norm", run.norm(x, model.final_norm))
    return run.note("logits", run.narrow(model.classifier(xb), 32, TensorClass.LOGITS))


class _Run:
    """One forward pass: what its sublayers share. Results of matrices are wide until narrowed."""

    def __init__(
        self, model: QModel, count: int, trace: Trace | None, saturations: dict[str, int] | None
    ) -> None:
        s = model.shape
        self.shape, self.count, self.trace, self.saturations = s, count, trace, saturations
        table = ops.rope_table(np.arange(count), s.head_dim, s.rope_theta, s.rope_scale)
        self.table = table[:, None]
        self.causal = np.tri(count, dtype=bool)

    def note(self, name: str, x: Array) -> Array:
        """Tell who traces; x."""
        if self.trace is not None:
            self.trace(name, x)
        return x

    def narrow(self, wide: Array, bits: int, kind: TensorClass) -> Array:
        """Saturated to ``bits``, and counted."""
        if self.saturations is not None:
            name = kind.name.lower()
            found = ops.count_saturated(wide, bits)
            self.saturations[name] = self.saturations.get(name, 0) + found
        return saturate(wide, bits)

    def norm(self, x: Array, n: Norm) -> Array:
        wide = ops.rmsnorm_wide(x, n.in_shift, n.eps, n.gain, n.out_shift)
        return self.narrow(wide, ops.ACT_BITS, TensorClass.NORM)

    def add(self, x: Array, wide: Array, kind: TensorClass) -> Array:
        """ops.residual_add, with both of its saturations counted."""
        sum_ = x + self.narrow(wide, ops.RES_BITS, kind)
        return self.narrow(sum_, ops.RES_BITS, TensorClass.RES)

    def project(self, matrix: Matrix, layer: QLayer, x: Array, bits: int) -> Array:
        return self.narrow(layer.linears[matrix.name](x), bits, matrix.counted)

    def attention(self, a: Attention, layer: QLayer, at: str, xb: Array) -> Array:
        """What the attention adds to the residual stream, wide."""
        s, heads = self.shape, (self.count, -1, self.shape.head_dim)
        q = self.project(a.q, layer, xb, ops.ACT_BITS).reshape(heads)
        k = self.project(a.k, layer, xb, ops.ACT_BITS).reshape(heads)
        v = self.project(a.v, layer, xb, ops.WEIGHT_BITS).reshape(heads)
        q = self.narrow(ops.rope_wide(q, self.table), ops.ACT_BITS, TensorClass.ROPE_Q)
        k = self.narrow(ops.rope_wide(k, self.table), ops.ACT_BITS, TensorClass.ROPE_K)
        k8, amax = ops.quantize_k(k, layer.k_mean)
        for name, x in (("q", q), ("k", k), ("v", v), ("k8", k8), ("k_amax", amax)):
            self.note(at + name, x)

        scores, att = [], []
        for head in range(s.heads):
            kv = head // (s.heads // s.kv_heads)
            wide = ops.requantize(ops.matmul(q[:, head], k8[:, kv]), amax[:, kv], layer.score_shift)
            wide = np.where(self.causal, wide, int_limits(ops.ACT_BITS)[0])
            scores.append(self.narrow(wide, ops.ACT_BITS, TensorClass.SCORES))
            p, total = ops.softmax(scores[-1], self.causal, layer.score_align)
            mult, shift = ops.attention_scale(total)
            wide = ops.requantize(ops.matmul(p, v[:, kv].T), mult[:, None], shift[:, None])
            att.append(self.narrow(wide, ops.ACT_BITS, TensorClass.ATT))
        self.note(at + "scores", np.stack(scores))
        joined = self.note(at + "att", np.concatenate(att, axis=1))
        return layer.linears[a.o.name](joined)

    def feed_forward(self, f: FeedForward, layer: QLayer, at: str, xb: Array) -> Array:
        """What the feed-forward network adds to the residual stream, wide."""
        gate = self.note(at + "gate", self.project(f.gate, layer, xb, ops.ACT_BITS))
        up = self.note(at + "up", self.project(f.up, layer, xb, ops.ACT_BITS))
        wide = ops.swiglu_wide(gate, up, layer.glu_align, layer.glu_shift)
        h = self.note(at + "h", self.narrow(wide, ops.ACT_BITS, TensorClass.SWIGLU))
        return layer.linears[f.down.name](h)

"""The float reference: a decoder's forward pass in numpy, read top to bottom.

It walks the sublayers of the architecture's row (core/arch.py). Names follow llama2.c's run.c. One
function, ``_forward``, serves a whole sequence (``forward``),
one token at a time (``FloatSession``) and a batch of sequences in lockstep (``sample_texts``): what
differs is how many rows enter and what the KV cache already holds.

Its results are the same, bit for bit, on every machine and for every way to cut a text into calls,
because they decide integers: sampled texts, binary points, weights. They are float64, but operands
of products are rounded to 21 to 24 bits and so about as precise as float32; see core/exact.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core import exact, ops
from tokenfabric.core.arch import Attention, FeedForward, Matrix
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.checkpoint import Checkpoint, Layer

Array = npt.NDArray[Any]
Trace = Callable[[str, Array], None]
QUERIES = 32  # of an attention head at once: later keys are of no use to them
IN_CACHE = 1 << 16  # numbers that the attention works on at once
CACHE_NUMBERS = 1 << 26  # in the K and V of the texts that are sampled in lockstep


def forward(
    checkpoint: Checkpoint | FloatModel,
    tokens: npt.ArrayLike,
    *,
    trace: Trace | None = None,
    scores: bool = True,
) -> Array:
    """Logits [T, vocab] of one sequence, tokens [T] at positions 0..T-1, causal, in float64.

    ``trace(name, array)`` is called with every intermediate tensor, in the order of computation:
    "embedding" [T, dim], then for every layer i, prefixed "layer{i}.":

    - attn_norm [T, dim]: RMSNorm of the residual stream, input of wq, wk and wv
    - q [T, heads, head_dim] and k [T, kv_heads, head_dim] after RoPE (pairs interleaved),
      v [T, kv_heads, head_dim]
    - scores [heads, T, T]: q.k / sqrt(head_dim) before the softmax, -inf where masked; not if
      ``scores`` is false, because they are many
    - att [T, heads * head_dim]: the weighted values, input of wo
    - residual_attn [T, dim]: the residual stream after attention
    - ffn_norm [T, dim]: input of w1 and w3; gate = w1 @ x and up = w3 @ x [T, hidden]
    - h [T, hidden]: silu(gate) * up, input of w2
    - residual [T, dim]: the residual stream after the layer

    and last "final_norm" [T, dim], input of the classifier, and "logits" [T, vocab].

    UserError for no tokens, more than the context, or a token outside the vocabulary.
    """
    rows = np.asarray(tokens).reshape(1, -1)
    model = checkpoint if isinstance(checkpoint, FloatModel) else FloatModel(checkpoint)
    cache = _Cache(model.shape, 1, rows.shape[1])
    # The batch of one is our own business: strip it from what the caller sees.
    inner = None if trace is None else lambda name, x: trace(name, x[0])
    return model.forward(rows, cache, inner, scores)[0]


class FloatSession:
    """Decoding with a KV cache: tokens at positions 0, 1, 2...

    ``length``: the most tokens this session can take, by default the context.
    """

    def __init__(self, checkpoint: Checkpoint, length: int | None = None) -> None:
        self._model = FloatModel(checkpoint)
        self._cache = _Cache(checkpoint.shape, 1, length or checkpoint.shape.context)

    @property
    def position(self) -> int:
        """Tokens taken so far, which is the position of the next one."""
        return self._cache.used

    def step(self, token: int) -> Array:
        """Logits [vocab] after ``token``. UserError when full or for an impossible token."""
        return self._model.forward(np.array([[token]]), self._cache)[0, 0]


def sample_texts(
    checkpoint: Checkpoint,
    bos: int | None,
    eos: Iterable[int],
    count: int,
    length: int,
    seed: int,
    temperature: float = 1.0,
    progress: Callable[[str, int, int], None] | None = None,
) -> npt.NDArray[np.int64]:
    """Calibration texts sampled from the model: ids [count, length], the same for the same seed.

    Every row starts with ``bos``. After a token of ``eos`` comes ``bos`` (unless it was ``bos``)
    and the row goes on, as in the streams of joined texts that such models are trained on. Without
    a BOS (None) a row is what the model says after the end of another text, which is left out.
    ``temperature`` 0 is greedy. UserError if ``length`` is more than the context, which must have
    room for that end, too.
    """
    eos = list(eos)
    if bos is None:
        start = eos[0] if eos else 0
        rows = sample_texts(checkpoint, start, [], count, length + 1, seed, temperature, progress)
        return rows[:, 1:]
    rng = np.random.default_rng(seed)
    stop = np.array([token for token in eos if token != bos], np.int64)
    tokens = np.full((count, length), bos, np.int64)
    model, s = FloatModel(checkpoint), checkpoint.shape
    step = max(1, CACHE_NUMBERS // (2 * s.layers * s.kv_heads * s.head_dim * length))
    whole = count * (length - 1)
    for at in range(0, count, step):
        texts = tokens[at : at + step]
        cache = _Cache(s, len(texts), length)
        for i in range(1, length):
            logits = model.forward(texts[:, i - 1 : i], cache)[:, 0]
            if temperature > 0:
                ends = np.cumsum(exact.likelihoods(logits, temperature), axis=-1)
                chosen = exact.pick(ends, exact.uniforms(rng, len(texts)))
            else:
                chosen = logits.argmax(axis=-1)
            if progress is not None:
                progress("sampling texts", at * (length - 1) + i * len(texts), whole)
            texts[:, i] = np.where(np.isin(texts[:, i - 1], stop), bos, chosen)
    return tokens


class _Cache:
    """K (after RoPE) and V of every layer [batch, kv_heads, length, head_dim], ``used`` of them.

    Rounded as operands of the products that they enter. The bits follow from the context, not from
    how much of it there is: the same for every way to cut a text into calls.
    """

    def __init__(self, shape: ModelShape, batch: int, length: int) -> None:
        if not 1 <= length <= shape.context:
            raise UserError(
                f"{length} tokens do not fit the model's context of {shape.context}; "
                f"use from 1 to {shape.context}"
            )
        self.length, self.used = length, 0
        dims = (shape.layers, batch, shape.kv_heads, length, shape.head_dim)
        self.k, self.v = np.zeros(dims), np.zeros(dims)
        self.k_bits = exact.operand_bits(shape.head_dim)
        self.v_bits = exact.operand_bits(shape.context)


def _rmsnorm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(exact.sum_of(x * x) / x.shape[-1] + eps) * weight


def _silu(x: Array) -> Array:
    e = exact.exp(-np.abs(x))  # never overflows
    return x * np.where(x >= 0, 1, e) / (1 + e)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": _silu}
"""By the name that an architecture's row gives them."""


def _rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (2i, 2i+1) of x [batch, T, heads, head_dim]; cos and sin [T, head_dim/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


class FloatModel:
    """A checkpoint with its matrices rounded as operands: what several forward passes share.

    It keeps a float32 copy of every matrix; a change of the checkpoint does not reach it.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.shape = checkpoint, checkpoint.shape
        names = [matrix.name for matrix in self.shape.architecture.matrices]
        self._matrices = [
            {name: _rounded(layer[name]) for name in names} for layer in checkpoint.layers
        ]
        self._classifier = _rounded(checkpoint.classifier)
        self.v_limits = [self._v_limits(layer) for layer in checkpoint.layers]

    def forward(
        self, tokens: Array, cache: _Cache, trace: Trace | None = None, scores: bool = True
    ) -> Array:
        """Logits [batch, T, vocab] of tokens [batch, T] that follow the cache, which grows by T."""
        s = self.shape
        batch, count = tokens.shape
        end = cache.used + count
        if end > cache.length:
            raise UserError(
                f"token {end} does not fit a session of {cache.length}; use fewer tokens"
            )
        s.check_tokens(tokens, "checkpoint")
        run = _Run(self, cache, batch, end, trace, scores)
        x = run.note("embedding", self.checkpoint.embedding[tokens].astype(np.float64))
        for i, weights in enumerate(self.checkpoint.layers):
            for sublayer in s.architecture.sublayers:
                at = f"layer{i}."
                norm = weights[sublayer.norm.name]
                xb = run.note(at + sublayer.norm.name, _rmsnorm(x, norm, s.norm_eps))
                if isinstance(sublayer, Attention):
                    y = run.attention(sublayer, i, xb)
                else:
                    y = run.feed_forward(sublayer, i, xb)
                x = run.note(at + sublayer.result, x + y)
        cache.used = end

        x = run.note("final_norm", _rmsnorm(x, self.checkpoint.final_norm, s.norm_eps))
        return run.note("logits", _multiply(x, self._classifier))

    def _v_limits(self, weights: Layer) -> Array:
        """Powers of two [kv_heads, 1] that no v exceeds: what comes from a norm has a length."""
        s = self.shape
        (a,) = (x for x in s.architecture.sublayers if isinstance(x, Attention))
        rows = weights[a.v.name].astype(np.float64) * weights[a.norm.name]
        limit = np.sqrt(exact.sum_of(rows * rows) * s.dim) * 1.001
        if a.v.bias:
            limit += np.abs(weights[a.v.bias][:, None])
        return exact.power_above(limit.reshape(s.kv_heads, -1))

    def project(self, matrix: Matrix, layer: int, x: Array) -> Array:
        """W @ x, and the bias where there is one."""
        y = _multiply(x, self._matrices[layer][matrix.name])
        return y + self.checkpoint.layers[layer][matrix.bias] if matrix.bias else y


def _rounded(weight: Array) -> Array:
    """A matrix [out, in] as an operand, in float32, which holds it exactly."""
    bits = exact.operand_bits(weight.shape[1])
    return exact.on_grid(weight.astype(np.float64), bits).astype(np.float32)


def _multiply(x: Array, rounded: Array) -> Array:
    """x [..., in] @ W.T; as one product of two matrices, which BLAS is fast at."""
    x = exact.on_grid(x, exact.operand_bits(x.shape[-1]))
    y = x.reshape(-1, x.shape[-1]) @ rounded.astype(np.float64).T
    return y.reshape(*x.shape[:-1], -1)


class _Run:
    """One forward pass: what its sublayers share."""

    def __init__(
        self, model: FloatModel, cache: _Cache, batch: int, end: int, trace: Trace | None,
        scores: bool,
    ) -> None:  # fmt: skip
        s = model.shape
        self.shape, self.model, self.cache, self.trace = s, model, cache, trace
        self.batch, self.start, self.end = batch, cache.used, end
        self.keep_scores = scores and trace is not None
        positions = np.arange(self.start, end)
        self.cos, self.sin = ops.rope_factors(positions, s.head_dim, s.rope_theta, s.rope_scale)

    def note(self, name: str, x: Array) -> Array:
        """Tell who traces; x."""
        if self.trace is not None:
            self.trace(name, x)
        return x

    def attention(self, a: Attention, layer: int, xb: Array) -> Array:
        """What the attention adds to the residual stream; K and V go to the cache."""
        s, at, batch, count = self.shape, f"layer{layer}.", self.batch, self.end - self.start
        q, k, v = (
            self.model.project(matrix, layer, xb).reshape(batch, count, -1, s.head_dim)
            for matrix in (a.q, a.k, a.v)
        )
        q = self.note(at + "q", _rope(q, self.cos, self.sin))
        k = self.note(at + "k", _rope(k, self.cos, self.sin))
        self.note(at + "v", v)
        cache, new = self.cache, np.s_[layer, :, :, self.start : self.end]
        cache.k[new] = exact.on_grid(k, cache.k_bits).swapaxes(1, 2)
        v = exact.on_unit(v, self.model.v_limits[layer], cache.v_bits)
        cache.v[new] = v.swapaxes(1, 2)

        q = exact.on_grid(q / math.sqrt(s.head_dim), cache.k_bits)
        # of each kv head the rows of all query heads of its group, token by token
        q = q.reshape(batch, count, s.kv_heads, -1).swapaxes(1, 2)
        q = q.reshape(batch * s.kv_heads, -1, s.head_dim)
        scores = np.full((*q.shape[:2], self.end), -np.inf) if self.keep_scores else None
        att = self.attend(layer, q, scores).reshape(batch, s.kv_heads, count, -1).swapaxes(1, 2)
        if scores is not None:
            scores = scores.reshape(batch, s.kv_heads, count, -1, self.end).swapaxes(2, 3)
            self.note(at + "scores", scores.reshape(batch, s.heads, count, self.end))
        att = self.note(at + "att", att.reshape(batch, count, s.q_dim))
        return self.model.project(a.o, layer, att)

    def attend(self, layer: int, q: Array, scores: Array | None) -> Array:
        """V weighted by the softmax: q and the result [n, T * group, head_dim].

        n: every kv head of every text. Scores that take part are written into ``scores`` [n, T *
        group, length]. In parts that stay in the processor's cache.
        """
        (n, rows, head_dim), found, bits = q.shape, np.empty_like(q), self.cache.v_bits
        k, v = (x[layer].reshape(n, -1, head_dim) for x in (self.cache.k, self.cache.v))
        group = rows // (self.end - self.start)
        step = max(1, QUERIES // group) * group
        for first in range(0, rows, step):
            these = slice(first, min(first + step, rows))
            last = self.start + np.arange(these.start, these.stop) // group  # that each row sees
            end = int(last[-1]) + 1
            masked = np.arange(end) > last[:, None]
            heads = max(1, IN_CACHE // (end * len(last)))
            for at in range(0, n, heads):
                part = slice(at, at + heads)
                some = q[part, these] @ k[part, :end].swapaxes(1, 2)
                if len(last) > group:
                    np.copyto(some, -np.inf, where=masked)
                if scores is not None:
                    scores[part, these, :end] = some
                some -= some.max(axis=-1, keepdims=True)
                weights = exact.on_unit(exact.exp(some), 1.0, bits)
                mixed = weights @ v[part, :end]
                found[part, these] = mixed / weights.sum(axis=-1, keepdims=True)
        return found

    def feed_forward(self, f: FeedForward, layer: int, xb: Array) -> Array:
        """What the feed-forward network adds to the residual stream."""
        at, project = f"layer{layer}.", self.model.project
        gate = self.note(at + "gate", project(f.gate, layer, xb))
        up = self.note(at + "up", project(f.up, layer, xb))
        h = self.note(at + "h", ACTIVATIONS[f.activation](gate) * up)
        return project(f.down, layer, h)

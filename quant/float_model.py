"""The float reference: a decoder's forward pass in numpy, read top to bottom.

It walks the sublayers of the architecture's row (core/arch.py). Names follow llama2.c's run.c. One
function, ``_forward``, serves a whole sequence (``forward``),
one token at a time (``FloatSession``) and a batch of sequences in lockstep (``sample_texts``): what
differs is how many rows enter and what the KV cache already holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core import ops
from tokenfabric.core.arch import Attention, FeedForward, Matrix
from tokenfabric.core.errors import UserError
from tokenfabric.quant.checkpoint import Checkpoint, Layer

Array = npt.NDArray[Any]
Trace = Callable[[str, Array], None]


def forward(
    checkpoint: Checkpoint,
    tokens: npt.ArrayLike,
    *,
    trace: Trace | None = None,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """Logits [T, vocab] of one sequence, tokens [T] at positions 0..T-1, causal, in ``dtype``.

    ``trace(name, array)`` is called with every intermediate tensor, in the order of computation:
    "embedding" [T, dim], then for every layer i, prefixed "layer{i}.":

    - attn_norm [T, dim]: RMSNorm of the residual stream, input of wq, wk and wv
    - q [T, heads, head_dim] and k [T, kv_heads, head_dim] after RoPE (pairs interleaved),
      v [T, kv_heads, head_dim]
    - scores [heads, T, T]: q.k / sqrt(head_dim) before the softmax, -inf where masked
    - att [T, heads * head_dim]: the weighted values, input of wo
    - residual_attn [T, dim]: the residual stream after attention
    - ffn_norm [T, dim]: input of w1 and w3; gate = w1 @ x and up = w3 @ x [T, hidden]
    - h [T, hidden]: silu(gate) * up, input of w2
    - residual [T, dim]: the residual stream after the layer

    and last "final_norm" [T, dim], input of the classifier, and "logits" [T, vocab].

    UserError for no tokens, more than the context, or a token outside the vocabulary.
    """
    rows = np.asarray(tokens).reshape(1, -1)
    cache = _Cache(checkpoint, 1, rows.shape[1], dtype)
    # The batch of one is our own business: strip it from what the caller sees.
    inner = None if trace is None else lambda name, x: trace(name, x[0])
    return _forward(checkpoint, rows, cache, inner)[0]


class FloatSession:
    """Decoding with a KV cache: tokens at positions 0, 1, 2...

    ``length``: the most tokens this session can take, by default the context.
    """

    def __init__(
        self, checkpoint: Checkpoint, length: int | None = None, dtype: npt.DTypeLike = np.float32
    ) -> None:
        self.checkpoint = checkpoint
        self._cache = _Cache(checkpoint, 1, length or checkpoint.shape.context, dtype)

    @property
    def position(self) -> int:
        """Tokens taken so far, which is the position of the next one."""
        return self._cache.used

    def step(self, token: int) -> Array:
        """Logits [vocab] after ``token``. UserError when full or for an impossible token."""
        return _forward(self.checkpoint, np.array([[token]]), self._cache, None)[0, 0]


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
        rows = sample_texts(checkpoint, start, [], count, length + 1, seed, temperature)
        return rows[:, 1:]
    rng = np.random.default_rng(seed)
    stop = np.array([token for token in eos if token != bos], np.int64)
    tokens = np.full((count, length), bos, np.int64)
    cache = _Cache(checkpoint, count, length, np.float32)
    for i in range(1, length):
        logits = _forward(checkpoint, tokens[:, i - 1 : i], cache, None)[:, 0]
        if temperature > 0:  # Gumbel-max: the argmax is distributed as the softmax
            logits = logits / temperature + rng.gumbel(size=logits.shape)
        if progress is not None:
            progress("sampling texts", i, length - 1)
        ended = np.isin(tokens[:, i - 1], stop)
        tokens[:, i] = np.where(ended, bos, logits.argmax(axis=-1))
    return tokens


class _Cache:
    """K (after RoPE) and V of every layer [batch, kv_heads, length, head_dim], ``used`` of them."""

    def __init__(
        self, checkpoint: Checkpoint, batch: int, length: int, dtype: npt.DTypeLike
    ) -> None:
        s = checkpoint.shape
        if not 1 <= length <= s.context:
            raise UserError(
                f"{length} tokens do not fit the model's context of {s.context}; "
                f"use from 1 to {s.context}"
            )
        self.length, self.used = length, 0
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        dims = (s.layers, batch, s.kv_heads, length, s.head_dim)
        self.k, self.v = np.zeros(dims, dtype), np.zeros(dims, dtype)


def _rmsnorm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + x.dtype.type(eps)) * weight


def _silu(x: Array) -> Array:
    e = np.exp(-np.abs(x))  # never overflows
    return x * np.where(x >= 0, 1, e) / (1 + e)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": _silu}
"""By the name that an architecture's row gives them."""


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def _rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate the pairs (2i, 2i+1) of x [batch, T, heads, head_dim]; cos and sin [T, head_dim/2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def _forward(checkpoint: Checkpoint, tokens: Array, cache: _Cache, trace: Trace | None) -> Array:
    """Logits [batch, T, vocab] of tokens [batch, T] that follow the cache, which grows by T."""
    s, dtype = checkpoint.shape, cache.dtype
    batch, count = tokens.shape
    start, end = cache.used, cache.used + count
    if end > cache.length:
        raise UserError(f"token {end} does not fit a session of {cache.length}; use fewer tokens")
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.min() < 0 or tokens.max() >= s.vocab:
        raise UserError(
            f"token ids must be integers from 0 to {s.vocab - 1} (the vocabulary); "
            "use the tokenizer of this checkpoint"
        )

    run = _Run(checkpoint, cache, batch, start, end, trace)
    x = run.note("embedding", checkpoint.embedding[tokens].astype(dtype))
    for i, weights in enumerate(checkpoint.layers):
        for sublayer in s.architecture.sublayers:
            at = f"layer{i}."
            norm = weights[sublayer.norm.name]
            xb = run.note(at + sublayer.norm.name, _rmsnorm(x, norm, s.norm_eps))
            if isinstance(sublayer, Attention):
                y = run.attention(sublayer, weights, i, xb)
            else:
                y = run.feed_forward(sublayer, weights, at, xb)
            x = run.note(at + sublayer.result, x + y)
    cache.used = end

    x = run.note("final_norm", _rmsnorm(x, checkpoint.final_norm, s.norm_eps))
    return run.note("logits", x @ checkpoint.classifier.astype(dtype, copy=False).T)


class _Run:
    """One forward pass: what its sublayers share."""

    def __init__(
        self, checkpoint: Checkpoint, cache: _Cache, batch: int, start: int, end: int,
        trace: Trace | None,
    ) -> None:  # fmt: skip
        s, dtype = checkpoint.shape, cache.dtype
        self.shape, self.cache, self.trace, self.dtype = s, cache, trace, dtype
        self.batch, self.start, self.end = batch, start, end
        position = np.arange(start, end)
        frequencies = ops.rope_frequencies(s.head_dim, s.rope_theta, s.rope_scale)
        angle = position[:, None] * frequencies
        self.cos, self.sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
        self.masked = np.arange(end) > position[:, None]

    def note(self, name: str, x: Array) -> Array:
        """Tell who traces; x."""
        if self.trace is not None:
            self.trace(name, x)
        return x

    def project(self, matrix: Matrix, weights: Layer, x: Array) -> Array:
        """W @ x, and the bias where there is one."""
        y = x @ weights[matrix.name].astype(self.dtype, copy=False).T
        return y + weights[matrix.bias].astype(self.dtype, copy=False) if matrix.bias else y

    def attention(self, a: Attention, weights: Layer, layer: int, xb: Array) -> Array:
        """What the attention adds to the residual stream; K and V go to the cache."""
        s, dtype, at = self.shape, self.dtype, f"layer{layer}."
        batch, start, end = self.batch, self.start, self.end
        count = end - start
        q = self.project(a.q, weights, xb).reshape(batch, count, s.heads, s.head_dim)
        k = self.project(a.k, weights, xb).reshape(batch, count, s.kv_heads, s.head_dim)
        v = self.project(a.v, weights, xb).reshape(batch, count, s.kv_heads, s.head_dim)
        q = self.note(at + "q", _rope(q, self.cos, self.sin))
        k = self.note(at + "k", _rope(k, self.cos, self.sin))
        self.note(at + "v", v)

        keys, values = self.cache.k[layer, :, :, :end], self.cache.v[layer, :, :, :end]
        keys[:, :, start:] = k.swapaxes(1, 2)
        values[:, :, start:] = v.swapaxes(1, 2)
        # query heads of one group share a kv head: [batch, kv_heads, group, T, head_dim]
        grouped = q.swapaxes(1, 2).reshape(batch, s.kv_heads, -1, count, s.head_dim)
        scores = grouped @ keys[:, :, None].swapaxes(-1, -2) * dtype.type(s.head_dim**-0.5)
        scores = np.where(self.masked, dtype.type(-np.inf), scores)
        self.note(at + "scores", scores.reshape(batch, s.heads, count, end))
        att = _softmax(scores) @ values[:, :, None]
        att = att.reshape(batch, s.heads, count, s.head_dim).swapaxes(1, 2)
        att = self.note(at + "att", att.reshape(batch, count, s.q_dim))
        return self.project(a.o, weights, att)

    def feed_forward(self, f: FeedForward, weights: Layer, at: str, xb: Array) -> Array:
        """What the feed-forward network adds to the residual stream."""
        gate = self.note(at + "gate", self.project(f.gate, weights, xb))
        up = self.note(at + "up", self.project(f.up, weights, xb))
        h = self.note(at + "h", ACTIVATIONS[f.activation](gate) * up)
        return self.project(f.down, weights, h)

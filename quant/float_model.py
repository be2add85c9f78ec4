"""The float reference: one Llama forward pass in numpy, read top to bottom.

Names follow llama2.c's run.c. One function, ``_forward``, serves a whole sequence (``forward``),
one token at a time (``FloatSession``) and a batch of sequences in lockstep (``sample_texts``): what
differs is how many rows enter and what the KV cache already holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core.errors import UserError
from tokenfabric.quant.checkpoint import Checkpoint

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
    bos: int,
    eos: Iterable[int],
    count: int,
    length: int,
    seed: int,
    temperature: float = 1.0,
) -> npt.NDArray[np.int64]:
    """Calibration texts sampled from the model: ids [count, length], the same for the same seed.

    Every row starts with ``bos``. After a token of ``eos`` comes ``bos`` (unless it was ``bos``)
    and the row goes on, as in the streams of joined texts that such models are trained on.
    ``temperature`` 0 is greedy. UserError if ``length`` is more than the context.
    """
    rng = np.random.default_rng(seed)
    stop = np.array([token for token in eos if token != bos], np.int64)
    tokens = np.full((count, length), bos, np.int64)
    cache = _Cache(checkpoint, count, length, np.float32)
    for i in range(1, length):
        logits = _forward(checkpoint, tokens[:, i - 1 : i], cache, None)[:, 0]
        if temperature > 0:  # Gumbel-max: the argmax is distributed as the softmax
            logits = logits / temperature + rng.gumbel(size=logits.shape)
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

    def note(name: str, x: Array) -> Array:
        if trace is not None:
            trace(name, x)
        return x

    def matmul(x: Array, weight: Array) -> Array:
        return x @ weight.astype(dtype, copy=False).T

    position = np.arange(start, end)
    frequency = s.rope_theta ** (-np.arange(0, s.head_dim, 2) / s.head_dim)
    angle = position[:, None] * frequency
    cos, sin = np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)
    masked = np.arange(end) > position[:, None]

    x = note("embedding", checkpoint.embedding[tokens].astype(dtype))
    for i, w in enumerate(checkpoint.layers):
        at = f"layer{i}."
        xb = note(at + "attn_norm", _rmsnorm(x, w.attn_norm, s.norm_eps))
        q = matmul(xb, w.wq).reshape(batch, count, s.heads, s.head_dim)
        k = matmul(xb, w.wk).reshape(batch, count, s.kv_heads, s.head_dim)
        v = matmul(xb, w.wv).reshape(batch, count, s.kv_heads, s.head_dim)
        q = note(at + "q", _rope(q, cos, sin))
        k = note(at + "k", _rope(k, cos, sin))
        note(at + "v", v)

        keys, values = cache.k[i, :, :, :end], cache.v[i, :, :, :end]
        keys[:, :, start:] = k.swapaxes(1, 2)
        values[:, :, start:] = v.swapaxes(1, 2)
        # query heads of one group share a kv head: [batch, kv_heads, group, T, head_dim]
        grouped = q.swapaxes(1, 2).reshape(batch, s.kv_heads, -1, count, s.head_dim)
        scores = grouped @ keys[:, :, None].swapaxes(-1, -2) * dtype.type(s.head_dim**-0.5)
        scores = np.where(masked, dtype.type(-np.inf), scores)
        note(at + "scores", scores.reshape(batch, s.heads, count, end))
        att = _softmax(scores) @ values[:, :, None]
        att = att.reshape(batch, s.heads, count, s.head_dim).swapaxes(1, 2)
        att = note(at + "att", att.reshape(batch, count, s.q_dim))
        x = note(at + "residual_attn", x + matmul(att, w.wo))

        xb = note(at + "ffn_norm", _rmsnorm(x, w.ffn_norm, s.norm_eps))
        gate = note(at + "gate", matmul(xb, w.w1))
        up = note(at + "up", matmul(xb, w.w3))
        h = note(at + "h", _silu(gate) * up)
        x = note(at + "residual", x + matmul(h, w.w2))
    cache.used = end

    x = note("final_norm", _rmsnorm(x, checkpoint.final_norm, s.norm_eps))
    return note("logits", matmul(x, checkpoint.classifier))

"""The integer reference of every operation, and the tables that are ROMs in the hardware.

One function per operation. The quantizer, the golden device, the unit tests and the ROM contents
in the RTL all call these; hardware that differs from them is wrong. Everything is exact integer
arithmetic on int64 arrays; a "frac" is the number of fraction bits of a fixed-point value, so an
integer ``i`` with frac ``f`` stands for ``i / 2**f``.

Every function that can saturate is deterministic: it clamps. Callers that count saturations
compare with :func:`count_saturated`.
"""

from __future__ import annotations

import numpy as np
from tokenfabric.core import exact
from tokenfabric.core.fixed import rshift_round, saturate

OPS_VERSION = 1

ACT_BITS = 16
WEIGHT_BITS = 8
MULT_BITS = 16
RES_BITS = 32

# --- tables ------------------------------------------------------------------------------------

EXP_FRAC = 10  # fraction bits of the softmax argument (base 2)
EXP_SEG_BITS = 6
EXP_REM_BITS = EXP_FRAC - EXP_SEG_BITS
EXP_P_SHIFT = 9  # from the exponentials kept for the sum to the 15-bit weights
EXP_ONE = 32767 << EXP_P_SHIFT  # 2**-0: chosen so that the largest weight is exactly 32767

RECIP_SEG_BITS = 8
RECIP_REM_BITS = 9
RECIP_ROUND_BITS = 4  # fraction bits of the table beyond the 16 of the result

RSQRT_SEG_BITS = 6
RSQRT_REM_BITS = 9

SIGMOID_FRAC = 12  # fraction bits of the sigmoid argument
SIGMOID_SEG_BITS = 6
SIGMOID_REM_BITS = 9  # 64 segments of 2**9 / 2**12 = 1/8 cover [0, 8)

NORM_BITS = 18  # a residual value as the norm sees it
NORM_T_FRAC = 20  # fraction bits of x / ||x||
NORM_T_BITS = 22
ROPE_FRAC = 14
ATT_FRAC = 8  # attention output: V is int8 in [-127, 127], so 8 more bits fill an int16
GLU_T_FRAC_GAIN = 4  # fraction bits that silu(gate) keeps beyond those of gate
GLU_T_BITS = 25


def _segments(function, edges, one: int) -> tuple[np.ndarray, np.ndarray]:
    """Values at the left edges and the (non-negative) drop or rise to the right edges."""
    values = np.round(function(edges) * one).astype(np.int64)
    return values[:-1], np.abs(np.diff(values))


def exp_table() -> tuple[np.ndarray, np.ndarray]:
    """``2**-f`` for f in [0, 1): 64 bases (24 bits) and the drops to the next base (18 bits)."""
    edges = np.arange((1 << EXP_SEG_BITS) + 1) / (1 << EXP_SEG_BITS)
    return _segments(lambda f: exact.exp(-f * float(exact.LN2)), edges, EXP_ONE)


def recip_table(numerator: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """``numerator / m`` for m in [1, 2), 20 fraction bits: 256 bases (21 bits) and drops (12 bits).

    The bases hold the half that rounds the interpolated value to 16 fraction bits.
    """
    edges = 1 + np.arange((1 << RECIP_SEG_BITS) + 1) / (1 << RECIP_SEG_BITS)
    base, drop = _segments(lambda m: numerator / m, edges, 1 << (16 + RECIP_ROUND_BITS))
    return base + (1 << (RECIP_ROUND_BITS - 1)), drop


def rsqrt_table() -> tuple[np.ndarray, np.ndarray]:
    """``1/sqrt(m)``, 16 fraction bits: 64 segments for m in [1, 2), then 64 for m in [2, 4)."""
    edges = 1 + np.arange((1 << RSQRT_SEG_BITS) + 1) / (1 << RSQRT_SEG_BITS)
    low = _segments(lambda m: 1 / np.sqrt(m), edges, 1 << 16)
    high = _segments(lambda m: 1 / np.sqrt(m), 2 * edges, 1 << 16)
    return np.concatenate([low[0], high[0]]), np.concatenate([low[1], high[1]])


def sigmoid_table() -> tuple[np.ndarray, np.ndarray]:
    """``sigmoid(z)`` for z in [0, 8): 64 bases with 16 fraction bits and the rises."""
    edges = np.arange((1 << SIGMOID_SEG_BITS) + 1) / 8
    base, rise = _segments(lambda z: 1 / (1 + exact.exp(-z)), edges, 1 << 16)
    return base, rise


_EXP = exp_table()
_RECIP = recip_table()
_RECIP127 = recip_table(127 / 128)
_RSQRT = rsqrt_table()
_SIGMOID = sigmoid_table()


def bit_length(x):
    """Bits of each non-negative integer: 0 -> 0, 1 -> 1, 255 -> 8. Exact up to 2**62."""
    x = np.asarray(x, np.int64)
    length = np.zeros(x.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        more = (x >> length) >> step > 0
        length = length + np.where(more, step, 0)
    return length + (x > 0)


def _normalized(x, frac_bits: int):
    """The ``frac_bits`` bits below the leading one, truncated, and the leading one's position."""
    e = bit_length(x) - 1
    x = np.asarray(x, np.int64)
    below = np.where(
        e >= frac_bits,
        x >> np.maximum(e - frac_bits, 0),
        x << np.maximum(frac_bits - e, 0),
    )
    return below & ((1 << frac_bits) - 1), e


def _recip(x, table):
    frac, e = _normalized(x, RECIP_SEG_BITS + RECIP_REM_BITS)
    seg, rem = frac >> RECIP_REM_BITS, frac & ((1 << RECIP_REM_BITS) - 1)
    fine = table[0][seg] - ((table[1][seg] * rem) >> RECIP_REM_BITS)
    return fine >> RECIP_ROUND_BITS, e


def recip(x):
    """``1 / x`` for x >= 1 as ``(r, e)``: 1/x is about ``r * 2**-16 * 2**-e``, r in [2**15, 2**16].

    e is the position of x's leading one. Relative error below 2.3e-5.
    """
    return _recip(x, _RECIP)


def recip127(x):
    """``(127/128) / x`` in the form of :func:`recip`."""
    return _recip(x, _RECIP127)


def rsqrt(x):
    """``1/sqrt(x)`` for x >= 1 as ``(r, e)``: about ``r * 2**-16 * 2**-e``, with e = floor(log4 x).

    Relative error below 6e-5.
    """
    frac, lead = _normalized(x, RSQRT_SEG_BITS + RSQRT_REM_BITS)
    seg = (frac >> RSQRT_REM_BITS) + ((lead & 1) << RSQRT_SEG_BITS)
    rem = frac & ((1 << RSQRT_REM_BITS) - 1)
    return _RSQRT[0][seg] - ((_RSQRT[1][seg] * rem) >> RSQRT_REM_BITS), lead >> 1


# --- operations --------------------------------------------------------------------------------


def count_saturated(wide, bits: int) -> int:
    """How many elements of ``wide`` do not fit a signed integer of ``bits`` bits."""
    return int(np.count_nonzero(saturate(wide, bits) != wide))


def matmul(x, w):
    """Exact ``x @ w.T``: x int16 [..., k], w int8 [n, k], result int64 [..., n].

    Float64 BLAS computes the integer products where every partial sum is provably below 2**53:
    2**15 * 2**7 * k stays below it for every k up to 2**31. Decoders never come near.
    """
    x = np.asarray(x)
    w = np.asarray(w)
    assert x.shape[-1] < 1 << 31
    return (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.int64)


def requantize(acc, mult, shift):
    """``acc * mult / 2**shift``, rounded; not saturated (the destination says how many bits).

    acc is an accumulator (at most 36 bits), mult an unsigned 16-bit multiplier per output channel
    (broadcast over the last axis, or shaped for a multiplier per row), shift 0..63.
    """
    return rshift_round(np.asarray(acc, np.int64) * np.asarray(mult, np.int64), shift)


def embed(w, mult, shift):
    """One embedding row, int8 [..., dim], into the residual stream: int32 [..., dim]."""
    return saturate(requantize(w, mult, shift), RES_BITS)


def residual_add(res, delta):
    """The residual stream (int32) plus a requantized projection, each step saturated to int32."""
    return saturate(np.asarray(res, np.int64) + saturate(delta, RES_BITS), RES_BITS)


def rmsnorm_wide(x, in_shift, eps, gain, out_shift):
    """:func:`rmsnorm` before its final saturation to int16."""
    xs = saturate(rshift_round(x, in_shift), NORM_BITS)
    square = np.sum(xs * xs, axis=-1, keepdims=True)
    r, e = rsqrt(np.maximum(square + eps, 1))
    t = saturate(rshift_round((xs * r) << 4, e), NORM_T_BITS)
    return rshift_round(t * np.asarray(gain, np.int64), out_shift)


def rmsnorm(x, in_shift, eps, gain, out_shift):
    """Root mean square norm of the residual stream x, int32 [..., dim], to int16 [..., dim].

    xs = x / 2**in_shift, saturated to 18 bits; t = xs / sqrt(sum(xs**2) + eps) with 20 fraction
    bits; result t * gain / 2**out_shift. eps stands for dim * norm_eps in units of xs**2 (32 bits)
    and gain (int16 [dim]) contains sqrt(dim). Zhang & Sennrich, "Root Mean Square Layer
    Normalization", 2019.
    """
    return saturate(rmsnorm_wide(x, in_shift, eps, gain, out_shift), ACT_BITS)


def rope_wide(x, table):
    """:func:`rope` before its saturation to int16."""
    x = np.asarray(x, np.int64)
    table = np.asarray(table, np.int64)
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = table[..., 0::2], table[..., 1::2]
    out = np.empty(np.broadcast_shapes(x.shape, table.shape), np.int64)
    out[..., 0::2] = rshift_round(even * cos - odd * sin, ROPE_FRAC)
    out[..., 1::2] = rshift_round(odd * cos + even * sin, ROPE_FRAC)
    return out


def rope(x, table):
    """Rotary position embedding: int16 [..., head_dim], pairs (2i, 2i+1) rotate together.

    table, int16 [..., head_dim], holds cos at 2i and sin at 2i+1 with 14 fraction bits
    (:func:`rope_table`). Su et al., "RoFormer", 2021.
    """
    return saturate(rope_wide(x, table), ACT_BITS)


def rope_frequencies(head_dim: int, theta: float, scale=()):
    """Radians by which each pair turns from one position to the next, float64 [head_dim // 2].

    scale: what each is multiplied by (``ModelShape.rope_scale``); () for none.
    """
    frequencies = np.array([exact.power(theta, -i / head_dim) for i in range(0, head_dim, 2)])
    return frequencies * np.asarray(scale, np.float64) if len(scale) else frequencies


def rope_factors(positions, head_dim: int, theta: float, scale=()):
    """cos and sin of ``position * frequency``: two of [len(positions), head_dim // 2]."""
    angles = np.asarray(positions, np.float64)[:, None] * rope_frequencies(head_dim, theta, scale)
    return exact.cos_sin(angles)


def rope_table(positions, head_dim: int, theta: float, scale=()):
    """The host-made table of :func:`rope`: int16 [len(positions), head_dim]."""
    cos, sin = rope_factors(positions, head_dim, theta, scale)
    out = np.empty((len(cos), head_dim), np.int64)
    out[:, 0::2] = np.round(cos * (1 << ROPE_FRAC))
    out[:, 1::2] = np.round(sin * (1 << ROPE_FRAC))
    return out


def quantize_k(k, mean):
    """K after RoPE, int16 [..., head_dim], to the cache: ``(int8 [..., head_dim], amax [...])``.

    The calibrated constant ``mean`` (int16 [head_dim]) is subtracted first: softmax does not see
    it. amax (1..32767) is the scale of the row: k is about ``k8 * amax / 127``.
    """
    centred = saturate(np.asarray(k, np.int64) - mean, ACT_BITS)
    amax = np.clip(np.max(np.abs(centred), axis=-1), 1, 32767)
    r, e = recip127(amax)
    k8 = rshift_round(centred * r[..., None], (9 + e)[..., None])
    return np.clip(k8, -127, 127), amax


def softmax_exp(scores, maximum, align):
    """``2**(score - maximum)`` scaled by EXP_ONE (24 bits, rounded); scores: frac 10 - align."""
    d = (np.asarray(maximum, np.int64) - np.asarray(scores, np.int64)) << align
    seg = (d >> EXP_REM_BITS) & ((1 << EXP_SEG_BITS) - 1)
    rem = d & ((1 << EXP_REM_BITS) - 1)
    e = _EXP[0][seg] - ((_EXP[1][seg] * rem) >> EXP_REM_BITS)
    return rshift_round(e, np.minimum(d >> EXP_FRAC, 31))


def softmax(scores, mask, align):
    """Base-2 softmax without the division: ``(p, total)``.

    scores int16 [..., t] with ``10 - align`` fraction bits, mask bool [..., t] (True takes part; at
    least one per row). p is uint15 [..., t], exactly 0 where masked; total [...] is the sum of the
    24-bit exponentials. The weights are ``p * 2**9 / total``; :func:`attention_scale` turns total
    into the multiplier that finishes the division after the product with V.
    """
    scores = np.asarray(scores, np.int64)
    maximum = np.max(np.where(mask, scores, -(1 << 15)), axis=-1, keepdims=True)
    e = np.where(mask, softmax_exp(np.minimum(scores, maximum), maximum, align), 0)
    return (e + (1 << (EXP_P_SHIFT - 1))) >> EXP_P_SHIFT, np.sum(e, axis=-1)


def attention_scale(total):
    """``(mult, shift)`` with which :func:`requantize` turns ``p @ v8`` into int16 with frac 8."""
    r, e = recip(total)
    return np.minimum(r, 65535), 16 + e - EXP_P_SHIFT - ATT_FRAC


def sigmoid(x, align):
    """``sigmoid(x)`` with 16 fraction bits; x int16 with ``12 - align`` fraction bits."""
    x = np.asarray(x, np.int64)
    z = np.minimum(np.abs(x) << align, (1 << (SIGMOID_SEG_BITS + SIGMOID_REM_BITS)) - 1)
    seg, rem = z >> SIGMOID_REM_BITS, z & ((1 << SIGMOID_REM_BITS) - 1)
    s = _SIGMOID[0][seg] + ((_SIGMOID[1][seg] * rem) >> SIGMOID_REM_BITS)
    return np.where(x < 0, (1 << 16) - s, s)


def swiglu_wide(gate, up, align, shift):
    """:func:`swiglu` before its saturation to int16."""
    gate = np.asarray(gate, np.int64)
    t = rshift_round(gate * sigmoid(gate, align), 16 - GLU_T_FRAC_GAIN)
    return rshift_round(t * np.asarray(up, np.int64), shift)


def swiglu(gate, up, align, shift):
    """``silu(gate) * up``: int16 in, int16 out.

    gate has ``12 - align`` fraction bits; the result has frac(gate) + 4 + frac(up) - shift.
    Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    return saturate(swiglu_wide(gate, up, align, shift), ACT_BITS)


def argmax(logits, vocab: int) -> np.ndarray:
    """The token with the largest logit among the first ``vocab``; the lowest id wins a tie."""
    return np.argmax(np.asarray(logits)[..., :vocab], axis=-1)

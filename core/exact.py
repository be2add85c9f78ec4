"""Floats that come out the same, bit for bit, on every machine: what may decide an integer.

IEEE 754 fixes +, -, *, / and sqrt, so numpy's elementwise operations on float64 agree everywhere.
Three things do not: the order in which a sum is taken (by BLAS and by ``np.sum``: it depends on the
number of threads, the processor's vectors, the version), fused multiply-adds inside of it, and the
last bits of exp, log, sin, cos and pow (the C library's and numpy's own). Hence:

- sums and matrix products are of operands rounded to so few bits that every partial sum is exact
  in float64: then neither the order nor a fused operation can matter (:func:`on_grid`);
- exp, cos and sin are built from the operations above, constants from Python's decimal module,
  which is specified to the last digit.

Everything is float64. NaN and infinity pass through as NaN or infinity. The results of BLAS may
differ in the sign of a zero, which no decision sees.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "LN2",
    "LOG2_E",
    "OPERAND_BITS",
    "ceil_log2",
    "cos_sin",
    "exp",
    "fine_product",
    "floor_log2",
    "likelihoods",
    "moment",
    "on_grid",
    "on_unit",
    "operand_bits",
    "pick",
    "power",
    "power_above",
    "product",
    "sum_of",
    "summand_bits",
    "uniforms",
]

Array = npt.NDArray[Any]

MANTISSA = 53
OPERAND_BITS = 24  # at most, so that float32 holds an operand of a product
_DIGITS = Context(prec=50)
LN2 = _DIGITS.ln(Decimal(2))
LOG2_E = float(_DIGITS.divide(Decimal(1), LN2))


# --- sums --------------------------------------------------------------------------------------


def on_grid(x: Array, bits: int, axis: Any = -1) -> Array:
    """``x`` rounded to multiples of ``2**(e - bits)``; ``2**e`` exceeds all magnitudes along axis.

    They are integers below ``2**bits``, times one unit: sums of up to ``2**(53 - bits)`` of them
    along the axis are exact, and so are sums of n products of two such operands where the bits of
    both and log2(n) add up to 53. bits: at most 50.
    """
    return on_unit(x, power_above(x, axis), bits)


def on_unit(x: Array, limit: Any, bits: int) -> Array:
    """``x`` rounded to multiples of ``limit / 2**bits``; limit: powers of two, magnitudes or more.

    As :func:`on_grid` where something else says how large numbers get; they may reach the limit.
    """
    # Added and subtracted again, it leaves no bits below the unit.
    shifter = limit * math.ldexp(1.5, MANTISSA - 1 - bits)
    rounded: Array = x + shifter
    rounded -= shifter
    return rounded


def power_above(x: Array, axis: Any = -1) -> Array:
    """The least power of two that exceeds all magnitudes along the axis; 1 for zeros."""
    top = np.maximum(x.max(axis, keepdims=True), -x.min(axis, keepdims=True))
    found: Array = np.ldexp(1.0, np.frexp(top)[1])
    return found


def summand_bits(count: int) -> int:
    """Of the terms of a sum of ``count``."""
    return min(MANTISSA - 3, MANTISSA - max(count - 1, 0).bit_length())


def operand_bits(count: int) -> int:
    """Of both operands of a product that sums ``count`` terms."""
    return min(OPERAND_BITS, (MANTISSA - max(count - 1, 0).bit_length()) // 2)


def sum_of(x: Array, axis: Any = -1) -> Array:
    """Sums along an axis or several, which stay with length 1: elements rounded, the sum exact.

    The error is below ``2**-50`` of the largest magnitude times the square of the count.
    """
    axes = axis if isinstance(axis, tuple) else (axis,)
    bits = summand_bits(math.prod(x.shape[a] for a in axes))
    found: Array = on_grid(x, bits, axis).sum(axis=axis, keepdims=True)
    return found


def product(a: Array, b: Array) -> Array:
    """``a @ b.T`` over the last axis of both, with operands of :func:`operand_bits` bits."""
    bits = operand_bits(a.shape[-1])
    found: Array = on_grid(a, bits) @ on_grid(b, bits).swapaxes(-1, -2)
    return found


def fine_product(a: Array, b: Array) -> Array:
    """``a.T @ b`` over the first axis of both, with operands of twice as many bits."""
    bits = operand_bits(len(a))
    (a, a_low), (b, b_low) = _halves(a, bits), _halves(b, bits)
    found: Array = a.T @ b + (a_low.T @ b + a.T @ b_low)
    return found


def _halves(x: Array, bits: int) -> tuple[Array, Array]:
    high = on_grid(x, bits, 0)
    return high, on_grid(x - high, bits, 0)


def moment(x: Array) -> Array:
    """``x.T @ x`` [in, in] of x [T, in], with operands of :func:`operand_bits` bits."""
    rounded = on_grid(x, operand_bits(len(x)), 0)
    found: Array = rounded.T @ rounded
    return found


# --- functions ---------------------------------------------------------------------------------


def floor_log2(x: float) -> int:
    """The largest n with ``2**n <= x``; x positive and finite."""
    return math.frexp(x)[1] - 1


def ceil_log2(x: float) -> int:
    """The smallest n with ``x <= 2**n``; x positive and finite."""
    mantissa, exponent = math.frexp(x)
    return exponent - (mantissa == 0.5)


@lru_cache(maxsize=1024)
def power(base: float, exponent: float) -> float:
    """``base ** exponent``, rounded correctly but for ties; base positive."""
    return float(_DIGITS.exp(_DIGITS.multiply(_DIGITS.ln(Decimal(base)), Decimal(exponent))))


_CHUNK = 1 << 14  # elements that are worked on in the cache
_SEGMENT_BITS = 11
_SEGMENTS = 1 << _SEGMENT_BITS
_STEP = _DIGITS.divide(LN2, Decimal(_SEGMENTS))
_PER_STEP = float(_DIGITS.divide(Decimal(1), _STEP))
_RINT = 1.5 * 2**52  # added, it leaves an integer in the low bits
_EXPONENT = MANTISSA - 1 - _SEGMENT_BITS  # n, shifted by it, has its whole powers in the exponent
_POWERS = np.array([float(_DIGITS.exp(_STEP * i)) for i in range(_SEGMENTS)]).view(np.int64)
_POWERS -= np.arange(_SEGMENTS) << _EXPONENT
EXP_LIMIT = 700.0


def exp(x: Array) -> Array:
    """``e ** x``, with a relative error below 2e-12; x beyond +-700 counts as +-700."""
    flat = np.ascontiguousarray(x, np.float64).reshape(-1)
    out = np.empty_like(flat)
    for at in range(0, flat.size, _CHUNK):
        _exp(flat[at : at + _CHUNK], out[at : at + _CHUNK])
    return out.reshape(np.shape(x))


def _exp(x: Array, out: Array) -> None:
    """2**(n / 2048) from a table, times the series of what remains, at most ln(2) / 4096."""
    x = np.maximum(x, -EXP_LIMIT)
    np.minimum(x, EXP_LIMIT, out=x)
    n = x * _PER_STEP
    n += _RINT
    bits = n.view(np.int64)
    power = _POWERS.take(bits & (_SEGMENTS - 1), mode="clip")
    power += bits << _EXPONENT
    n -= _RINT
    n *= float(_STEP)
    x -= n
    np.multiply(x, 0.5, out=n)
    n += 1
    x *= n
    np.multiply(power.view(np.float64), x, out=out)
    out += power.view(np.float64)


# pi / 2 in three parts, the first two of 33 bits: counts of up to 2**20 times them are exact.
_QUARTERS = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_QUARTER = _QUARTERS[0] + _QUARTERS[1]
_TERMS = 9  # of the series up to pi / 4


def cos_sin(angle: Array) -> tuple[Array, Array]:
    """Cosine and sine; |angle| below ``2**20``, error below 3e-16."""
    angle = np.asarray(angle, np.float64)
    turns = np.rint(angle / _QUARTER)
    for part in _QUARTERS:
        angle = angle - turns * part
    square = angle * angle
    cos, sin = np.ones_like(angle), np.ones_like(angle)
    for k in range(_TERMS, 0, -1):  # Horner, from the smallest term
        cos = 1 - square / (2 * k * (2 * k - 1)) * cos
        sin = 1 - square / (2 * k * (2 * k + 1)) * sin
    sin *= angle
    quarter = turns.astype(np.int64) & 3
    swapped, negated = quarter & 1 == 1, quarter >> 1 == 1
    cos, sin = np.where(swapped, -sin, cos), np.where(swapped, cos, sin)
    return np.where(negated, -cos, cos), np.where(negated, -sin, sin)


# --- chance ------------------------------------------------------------------------------------


def likelihoods(logits: Array, temperature: float = 1.0) -> Array:
    """``e ** (logits / temperature)`` [..., n] as integers in float64: their sums are exact.

    The largest logit gets 2**40, or as much as leaves the sum below 2**53; those that would get
    less than 1/2 get 0.
    """
    bits = min(40, MANTISSA - 1 - max(logits.shape[-1] - 1, 0).bit_length())
    below = logits - logits.max(axis=-1, keepdims=True)
    with np.errstate(over="ignore"):  # next to no temperature: all but the largest are -inf
        below /= temperature
    found: Array = np.rint(exp(below) * math.ldexp(1, bits))
    return found


def uniforms(rng: np.random.Generator, count: int) -> Array:
    """float64 [count] from [0, 1), multiples of 2**-52, of a stream that numpy keeps stable."""
    raw = np.asarray(rng.bit_generator.random_raw(count))
    return (raw >> np.uint64(12)).astype(np.float64) * 2.0**-52


def pick(ends: Array, u: Array) -> Array:
    """Which part of [0, total) ``u`` times the total falls into, as int64 [...].

    ends [..., n]: where the parts end, ascending integers, the last one the total; u [...]: of
    :func:`uniforms`, with which the product stays below the total.
    """
    found: Array = (ends <= u[..., None] * ends[..., -1:]).sum(axis=-1)
    return found

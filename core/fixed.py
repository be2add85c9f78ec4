"""Rounding, saturation and padding: defined here and nowhere else.

All functions take and return int64 arrays (or Python ints) holding exact integers.
"""

from __future__ import annotations

import numpy as np

__all__ = ["ceil_div", "int_limits", "round_up", "rshift_round", "saturate", "to_signed"]


def rshift_round(x, n):
    """``x / 2**n`` rounded to nearest, ties toward plus infinity: add half, then floor.

    ``n`` may be an array. ``n = 0`` returns ``x``; negative ``n`` is not allowed.
    """
    x = np.asarray(x, np.int64)
    n = np.asarray(n, np.int64)
    half = np.where(n > 0, np.left_shift(np.int64(1), np.maximum(n - 1, 0)), 0)
    return np.right_shift(x + half, n)


def int_limits(bits: int) -> tuple[int, int]:
    """Smallest and largest value of a signed two's complement integer of ``bits`` bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def saturate(x, bits: int):
    """``x`` clamped to a signed integer of ``bits`` bits."""
    low, high = int_limits(bits)
    return np.clip(np.asarray(x, np.int64), low, high)


def to_signed(x, bits: int):
    """The low ``bits`` bits of ``x`` read as two's complement."""
    x = np.asarray(x, np.int64) & ((1 << bits) - 1)
    return np.where(x >> (bits - 1), x - (1 << bits), x)


def ceil_div(a: int, b: int) -> int:
    """``a / b`` rounded up, for non-negative integers."""
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    """The smallest multiple of ``b`` that is at least ``a``."""
    return ceil_div(a, b) * b

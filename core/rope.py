"""Scaled RoPE: what ``rope_scaling`` of a config.json does, as one factor per rotated pair.

The kinds differ only in how they slow the pairs down for texts longer than those of the training;
no kind needs anything of the hardware but another table. Formulas: linear, Chen et al., "Extending
Context Window via Positional Interpolation", 2023; llama3, the Llama 3.1 release; yarn, Peng et
al., "YaRN", 2023. Dynamic scaling changes nothing up to the trained length, which is how far it is
supported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import show

__all__ = ["Scaling", "rope_scaling"]

Ramp = Callable[[int], float]
"""Of a pair: how much of its own frequency it keeps (1: all of it; 0: it is divided by factor)."""


class Scaling(NamedTuple):
    """pairs: what the frequency of each is multiplied by, () for nothing. magnitude: what q and k
    each are multiplied by. context: positions for which that holds."""

    pairs: tuple[float, ...]
    magnitude: float
    context: int


def rope_scaling(rope: Mapping[str, Any], head_dim: int, theta: float, context: int) -> Scaling:
    """The meaning of ``rope_scaling`` or ``rope_parameters`` of a model of ``context`` positions.

    UserError, without the file's name, for kinds that are not known and values that make no sense.
    """
    kind = rope.get("rope_type", rope.get("type"))
    if kind in (None, "none", "default"):
        return Scaling((), 1.0, context)
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise UserError(
            f"type {show(kind)} is not supported, only default, linear, dynamic, llama3 and yarn; "
            "use a checkpoint with one of these"
        )
    trained = _number(rope, "original_max_position_embeddings", context)
    if kind == "dynamic":
        return Scaling((), 1.0, min(context, int(trained)))
    factor = _number(rope, "factor", context / trained if kind == "yarn" else None)
    if factor == 1:
        return Scaling((), 1.0, context)
    magnitude = 1.0
    keep: Ramp
    if kind == "linear":
        keep = _nothing
    elif kind == "llama3":
        keep = _llama3(rope, head_dim, theta, trained)
    else:
        keep = _yarn(rope, head_dim, theta, trained)
        magnitude = _yarn_magnitude(rope, factor)
    # To 24 bits, as transformers computes them: what libraries make of the last of 53 is gone.
    kept = np.array([keep(pair) for pair in range(head_dim // 2)])
    pairs = (kept + (1 - kept) / factor).astype(np.float32)
    return Scaling(tuple(pairs.tolist()), magnitude, context)


def _number(rope: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value: Any = default if rope.get(key) is None else rope[key]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < 1e9:
        raise UserError(f"{key}={show(value)} must be a number above 0 and below 1e9; correct it")
    return float(value)


def _nothing(pair: int) -> float:
    return 0.0


def _llama3(rope: Mapping[str, Any], head_dim: int, theta: float, trained: float) -> Ramp:
    """Pairs that turn often within the trained length are kept, those that hardly do are not."""
    low, high = _number(rope, "low_freq_factor"), _number(rope, "high_freq_factor")
    if low >= high:
        raise UserError(
            f"low_freq_factor={low:g} is not below high_freq_factor={high:g}; correct them"
        )

    def keep(pair: int) -> float:
        turns = trained * theta ** (-2 * pair / head_dim) / (2 * math.pi)
        return min(max((turns - low) / (high - low), 0.0), 1.0)

    return keep


def _yarn(rope: Mapping[str, Any], head_dim: int, theta: float, trained: float) -> Ramp:
    """A ramp over the pairs, between those that turn beta_fast and beta_slow times."""

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(trained / (times * 2 * math.pi)) / (2 * math.log(theta))

    low = pair_that_turns(_number(rope, "beta_fast", 32))
    high = pair_that_turns(_number(rope, "beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low if high != low else 0.001

    def keep(pair: int) -> float:
        return 1 - min(max((pair - low) / width, 0.0), 1.0)

    return keep


def _yarn_magnitude(rope: Mapping[str, Any], factor: float) -> float:
    """The ``attention_factor``: what cos and sin are multiplied by."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1

    otherwise = scale(1.0)
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        otherwise = scale(_number(rope, "mscale")) / scale(_number(rope, "mscale_all_dim"))
    return _number(rope, "attention_factor", otherwise)

"""What the quantizer has to know about a model's activations: ranges, means, second moments.

Calibration texts are sampled from the float model itself, so no data set is needed, or are given.
All of it is the same on every machine, as the model files are that come of it: see core/exact.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core import exact
from tokenfabric.core.errors import UserError
from tokenfabric.quant.checkpoint import Checkpoint
from tokenfabric.quant.float_model import FloatModel, forward, sample_texts

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]  # what, done, of how many

TEXTS = 64  # sampled texts and their length
TEXT_TOKENS = 256
ACTIVATION_LIMIT = 2.0**40  # no sound model comes near; float32 still holds its products
KEPT_TEXTS = 16  # whose q and k are kept, for what cannot be computed on the fly


@dataclass
class LayerStats:
    """Of one layer, in the float model's units. A pair is two channels that RoPE rotates.

    k_mean [kv_heads, head_dim]: mean of k after RoPE. q_max [kv_heads, pairs] (over the query heads
    of the group) and k_max [kv_heads, pairs]: largest length of a pair, which no rotation exceeds.
    v_max [kv_heads]: largest magnitude. score_max: largest magnitude of a score that takes part, in
    natural units, with k_mean subtracted. pair_scale [kv_heads, pairs]: see :func:`pair_scales`.
    moments: traced name of a matrix's input -> mean of x x^T [in, in].
    """

    k_mean: Array
    q_max: Array
    k_max: Array
    v_max: Array
    score_max: float
    pair_scale: Array
    moments: dict[str, Array]


@dataclass
class Stats:
    """Activations of the float model on ``tokens`` calibration tokens.

    largest: traced name -> largest magnitude. moments: of "final_norm", as in LayerStats.
    """

    tokens: int
    largest: dict[str, float]
    layers: list[LayerStats]
    moments: dict[str, Array]


def calibration_tokens(
    checkpoint: Checkpoint, bos: int, eos: Iterable[int], seed: int = 0
) -> list[npt.NDArray[np.int64]]:
    """The default calibration texts: sampled from the model, the same for the same seed."""
    length = min(TEXT_TOKENS, checkpoint.shape.context)
    return list(sample_texts(checkpoint, bos, eos, TEXTS, length, seed))


def calibrate(
    checkpoint: Checkpoint,
    sequences: Sequence[npt.NDArray[np.int64]],
    progress: Progress | None = None,
) -> Stats:
    """Run the float model over the sequences. UserError if an activation is NaN or absurd."""
    s = checkpoint.shape
    inputs = {matrix.reads for matrix in s.architecture.matrices}
    largest: dict[str, float] = {}
    peaks: dict[str, Array] = {}  # largest pairs of q and k, largest v
    sums: dict[str, Any] = {}  # of k, and of x x^T
    kept: dict[str, list[Array]] = {}

    def peak(name: str, x: Array) -> None:
        found = x.max(axis=0)
        peaks[name] = np.maximum(peaks[name], found) if name in peaks else found

    def trace(name: str, x: Array) -> None:
        kind = name.rpartition(".")[2]
        reached = float(np.abs(x).max())
        if not reached < ACTIVATION_LIMIT:  # NaN, too
            raise UserError(
                f"the float model's {name} reaches {reached:.3g} on the calibration text, "
                f"the limit is {ACTIVATION_LIMIT:.3g}; the checkpoint is corrupt or diverged"
            )
        largest[name] = max(largest.get(name, 0.0), reached)
        if kind in ("q", "k"):
            even, odd = x[..., 0::2], x[..., 1::2]
            peak(name, np.sqrt(even * even + odd * odd))
            if n < KEPT_TEXTS:
                kept.setdefault(name, []).append(x)
        if kind == "v":
            peak(name, np.abs(x).max(axis=-1))
        if kind == "k":
            sums[name] = sums.get(name, 0) + exact.sum_of(x, 0)[0]
        if kind in inputs or kind == "final_norm":
            sums[name] = sums.get(name, 0) + exact.moment(x)

    model, tokens = FloatModel(checkpoint), sum(len(sequence) for sequence in sequences)
    for n, sequence in enumerate(sequences):
        with np.errstate(over="ignore", invalid="ignore"):  # trace refuses what comes of it
            forward(model, sequence, trace=trace, scores=False)
        if progress is not None:
            progress("calibrating", n + 1, len(sequences))

    layers = []
    for i in range(s.layers):
        at = f"layer{i}."
        q, k = kept.pop(at + "q"), kept.pop(at + "k")
        mean = sums[at + "k"] / tokens
        layers.append(
            LayerStats(
                k_mean=mean,
                q_max=peaks[at + "q"].reshape(s.kv_heads, -1, s.head_dim // 2).max(axis=1),
                k_max=peaks[at + "k"],
                v_max=peaks[at + "v"],
                score_max=max(_largest_score(a, b - mean) for a, b in zip(q, k, strict=True)),
                pair_scale=pair_scales(np.concatenate(q), np.concatenate(k) - mean),
                moments={name: sums[at + name] / tokens for name in inputs},
            )
        )
    return Stats(tokens, largest, layers, {"final_norm": sums["final_norm"] / tokens})


def _largest_score(q: Array, k: Array) -> float:
    """Largest causal |q.k| / sqrt(head_dim); q [T, heads, head_dim], k [T, kv_heads, head_dim]."""
    count, kv_heads, head_dim = k.shape
    grouped = q.swapaxes(0, 1).reshape(kv_heads, -1, count, head_dim)
    scores = exact.product(grouped, k.swapaxes(0, 1)[:, None]) / math.sqrt(head_dim)
    return float(np.abs(np.where(np.tri(count, dtype=bool), scores, 0)).max())


def pair_scales(q: Array, k: Array, steps: int = 50) -> Array:
    """Factors [kv_heads, pairs] for the pairs of k, their inverses for q: scores stay the same.

    RoPE rotates pairs, so a factor per pair passes through it and costs nothing: it is folded into
    wk and wq. K is cached in int8 with one scale per position and head, its largest magnitude
    amax; the error it makes in a score has a variance proportional to ``mean(amax**2) *
    sum(mean(q**2))``. Where that is least, each pair has the same share of mean(amax**2), by being
    the largest, as of the second factor: a fixed point, iterated. The factors of a head have the
    geometric mean 1. q [N, heads, head_dim]; k [N, kv_heads, head_dim], its mean subtracted.
    """
    count, kv_heads, head_dim = k.shape
    size = np.abs(k).reshape(count, kv_heads, head_dim // 2, 2).max(axis=-1)
    power = exact.sum_of(q * q, 0) / count
    power = exact.sum_of(power.reshape(kv_heads, -1, head_dim // 2, 2), (1, 3))[:, 0, :, 0]
    log = np.zeros(power.shape)
    best, least = log, np.full((kv_heads, 1), np.inf)
    for step in range(steps):
        scaled, weight = size * exact.exp(log), power * exact.exp(-2 * log)
        amax = scaled.max(axis=-1, keepdims=True)
        total = exact.sum_of(weight)
        error = exact.sum_of(amax * amax, 0)[0] / count * total
        best, least = np.where(error < least, log, best), np.minimum(error, least)
        share = exact.sum_of(np.where(scaled == amax, amax * amax, 0), 0)[0]
        share /= np.maximum(exact.sum_of(share), 1e-300)
        weight /= np.maximum(total, 1e-300)
        log = log + (1 - step / steps) * (weight - share)
    return exact.exp(best - exact.sum_of(best) / (head_dim // 2))

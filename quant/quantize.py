"""From a float checkpoint to the integers of a QModel: binary points, folded constants, weights.

Weights become int8 with a multiplier per output channel. The recipe ``w8`` rounds them with GPTQ:
the error of every weight is passed on to those not rounded yet, so that what the matrix computes
from the calibration activations changes least. ``w8-rtn`` rounds to nearest. Activations get a
power-of-two binary point from the largest calibrated magnitude, with HEADROOM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenfabric.core import exact, ops
from tokenfabric.core.arch import Attention, FeedForward
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import show
from tokenfabric.core.fixed import saturate
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.calibrate import (
    Array,
    LayerStats,
    Progress,
    Stats,
    calibrate,
    calibration_tokens,
)
from tokenfabric.quant.checkpoint import Checkpoint, Layer
from tokenfabric.quant.evaluate import Encoder, read_sequences
from tokenfabric.quant.qmodel import Linear, Norm, QLayer, QModel, q_factor, scaled_multipliers

RECIPES = {
    "w8": "8-bit weights per output channel, rounded with GPTQ",
    "w8-rtn": "8-bit weights per output channel, rounded to nearest",
}
HEADROOM = 1  # bits above the largest calibrated activation
LOGITS_FRAC = 16
FRAC_LIMIT = 30  # of any tensor; keeps shifts in their range even for a model of zeros
WEIGHT_MAX = 127
MULT_MAX = (1 << ops.MULT_BITS) - 1
GPTQ_DAMP = 0.01
GPTQ_BLOCK = 64


def check_recipe(name: str) -> None:
    """UserError for one that is not in RECIPES."""
    if name not in RECIPES:
        raise UserError(f"no recipe is called {show(name)}; use one of {', '.join(RECIPES)}")


class Words(Encoder, Protocol):
    """What is needed of a tokenizer."""

    def to_bytes(self) -> bytes: ...


def quantize_checkpoint(
    checkpoint: Checkpoint,
    tokenizer: Words,
    recipe: str = "w8",
    calibration: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> QModel:
    """Quantize a checkpoint.

    calibration: a file with one text a line; by default texts are sampled from the model, with
    ``seed``. UserError for an architecture that the accelerator cannot compute, an unknown recipe,
    a tokenizer that does not belong to the checkpoint, a bad calibration file, or a checkpoint that
    computes nonsense.
    """
    shape = checkpoint.shape
    shape.check_hardware()
    check_recipe(recipe)
    if tokenizer.vocab > shape.vocab:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab} tokens, the checkpoint {shape.vocab}; "
            "give the checkpoint's own tokenizer"
        )
    if calibration is not None:
        sequences = read_sequences(calibration, tokenizer, shape.vocab, shape.context)
    else:
        sequences = calibration_tokens(checkpoint, tokenizer.bos, tokenizer.eos, seed, progress)
    stats = calibrate(checkpoint, sequences, progress)
    model = quantize(checkpoint, stats, recipe, progress)
    model.tokenizer = tokenizer.to_bytes()
    return model


def quantize(
    checkpoint: Checkpoint, stats: Stats, recipe: str = "w8", progress: Progress | None = None
) -> QModel:
    """The quantized model, still without a tokenizer."""
    s, largest, with_gptq = checkpoint.shape, stats.largest, recipe == "w8"
    res_max = max(v for name, v in largest.items() if "residual" in name or name == "embedding")
    res_frac = min(
        binary_point(res_max, ops.RES_BITS - 1),  # the sum of two must not saturate either
        _embedding_limit(checkpoint.embedding),
    )
    layers = []
    for i, layer in enumerate(checkpoint.layers):
        if progress is not None:
            progress("quantizing", i, s.layers + 1)
        moments = stats.layers[i].moments if with_gptq else {}
        layers.append(_quantize_layer(s, i, layer, stats, moments, res_frac))

    if progress is not None:
        progress("quantizing", s.layers, s.layers + 1)
    in_max = largest[f"layer{s.layers - 1}.{s.architecture.sublayers[-1].result}"]
    final = quantize_norm(s, checkpoint.final_norm, in_max, res_frac, largest["final_norm"])
    logits_frac = min(LOGITS_FRAC, binary_point(largest["logits"], 32))
    moment = stats.moments.get("final_norm") if with_gptq else None
    # A tied matrix has two uses and is rounded for the classifier, which matters more: KL 0.00062
    # (0.00070 if it is rounded for the embedding, 0.00062 with a copy for each; stories260K).
    (embedding,) = quantize_linears([checkpoint.embedding], moment if s.tied else None, [res_frac])
    if s.tied:
        shift = embedding.shift + res_frac - (logits_frac - final.frac)
        classifier = Linear(embedding.weight, embedding.mult, int(np.clip(shift, 0, 63)))
        logits_frac += shift - classifier.shift
    else:
        (classifier,) = quantize_linears(
            [checkpoint.classifier], moment, [logits_frac - final.frac]
        )
    if progress is not None:
        progress("quantizing", s.layers + 1, s.layers + 1)
    return QModel(
        shape=s,
        recipe=recipe,
        res_frac=res_frac,
        logits_frac=logits_frac,
        embedding=embedding,
        layers=layers,
        final_norm=final,
        classifier=classifier,
    )


def _quantize_layer(
    s: ModelShape,
    number: int,
    layer: Layer,
    stats: Stats,
    moments: Mapping[str, Array],
    res_frac: int,
) -> QLayer:
    """One layer; a matrix whose input has no entry in ``moments`` is rounded to nearest."""
    at, sublayers = f"layer{number}.", s.architecture.sublayers
    before = f"layer{number - 1}.{sublayers[-1].result}" if number else "embedding"
    norms: dict[str, Norm] = {}
    linears: dict[str, Linear] = {}
    values: dict[str, Any] = {}
    for sublayer in sublayers:
        name = sublayer.norm.name
        norm = quantize_norm(
            s, layer[name], stats.largest[before], res_frac, stats.largest[at + name]
        )
        norms[name], before = norm, at + sublayer.result
        fracs = {"in": norm.frac, "res": res_frac}
        if isinstance(sublayer, Attention):
            its = stats.layers[number]
            found, more = _quantize_attention(s, sublayer, layer, its, moments, fracs)
        else:
            largest = {name: stats.largest[at + name] for name in ("gate", "up", "h")}
            found, more = _quantize_feed_forward(sublayer, layer, largest, moments, fracs)
        linears |= found
        values |= more
    return QLayer(norms=norms, linears=linears, **values)


Quantized = tuple[dict[str, Linear], dict[str, Any]]
"""Linears by name, and the other fields of QLayer that a sublayer decides."""


def _quantize_attention(
    s: ModelShape,
    a: Attention,
    layer: Layer,
    its: LayerStats,
    moments: Mapping[str, Array],
    fracs: Mapping[str, int],
) -> Quantized:
    """fracs: fraction bits of the sublayer's input ("in") and of the residual stream ("res")."""
    group = s.heads // s.kv_heads
    # The divisors are rounded to the float32 of the model file: dequantizing undoes what was done.
    k_scale = (1 / its.pair_scale).astype(np.float32)
    v_scale = (np.where(its.v_max > 0, its.v_max, 1) / WEIGHT_MAX).astype(np.float32)
    k_divisor = np.repeat(k_scale.astype(np.float64), 2, axis=1)
    q_gain = np.repeat(k_divisor, group, axis=0) * q_factor(s.head_dim)
    v_divisor = np.repeat(v_scale.astype(np.float64), s.head_dim)
    o_gain = np.repeat(v_divisor.reshape(s.kv_heads, -1), group, axis=0).reshape(-1)

    q_max = float((its.q_max * k_scale).max()) * q_factor(s.head_dim)
    q_frac = binary_point(q_max, ops.ACT_BITS)
    k_frac = binary_point(float((its.k_max / k_scale).max()), ops.ACT_BITS)
    score_frac = binary_point(its.score_max * exact.LOG2_E, ops.ACT_BITS)
    score_frac = int(np.clip(score_frac, 0, min(ops.EXP_FRAC, q_frac + k_frac)))
    k_mean = saturate(np.round(its.k_mean / k_divisor * 2.0**k_frac), ops.ACT_BITS)

    q, k, v = quantize_linears(
        [
            layer[a.q.name] * q_gain.reshape(-1, 1),
            layer[a.k.name] / k_divisor.reshape(-1, 1),
            layer[a.v.name] / v_divisor[:, None],
        ],
        moments.get(a.q.reads),
        [q_frac - fracs["in"], k_frac - fracs["in"], -fracs["in"]],
    )
    moment = moments.get(a.o.reads)
    if moment is not None:
        moment = moment / np.outer(o_gain, o_gain)
    (o,) = quantize_linears([layer[a.o.name] * o_gain], moment, [fracs["res"] - ops.ATT_FRAC])
    return {a.q.name: q, a.k.name: k, a.v.name: v, a.o.name: o}, {
        "k_mean": k_mean.astype(np.int16),
        "k_scale": k_scale,
        "v_scale": v_scale,
        "score_shift": q_frac + k_frac - score_frac,
        "score_align": ops.EXP_FRAC - score_frac,
        "q_frac": q_frac,
        "k_frac": k_frac,
    }


def _quantize_feed_forward(
    f: FeedForward,
    layer: Layer,
    largest: Mapping[str, float],
    moments: Mapping[str, Array],
    fracs: Mapping[str, int],
) -> Quantized:
    """largest: magnitudes of "gate", "up" and "h"; fracs as of the attention."""
    point = {name: binary_point(value, ops.ACT_BITS) for name, value in largest.items()}
    gate_frac = int(np.clip(point["gate"], 0, ops.SIGMOID_FRAC))
    up_frac = point["up"]
    glu_frac = gate_frac + ops.GLU_T_FRAC_GAIN + up_frac
    h_frac = min(point["h"], glu_frac)
    gate, up = quantize_linears(
        [layer[f.gate.name], layer[f.up.name]],
        moments.get(f.gate.reads),
        [gate_frac - fracs["in"], up_frac - fracs["in"]],
    )
    (down,) = quantize_linears(
        [layer[f.down.name]], moments.get(f.down.reads), [fracs["res"] - h_frac]
    )
    return {f.gate.name: gate, f.up.name: up, f.down.name: down}, {
        "glu_align": ops.SIGMOID_FRAC - gate_frac,
        "glu_shift": glu_frac - h_frac,
        "up_frac": up_frac,
        "h_frac": h_frac,
    }


# --- binary points -----------------------------------------------------------------------------


def binary_point(largest: float, bits: int) -> int:
    """Most fraction bits with which ``largest`` and HEADROOM fit a signed integer of ``bits``."""
    if largest <= 0:
        return FRAC_LIMIT
    return min(FRAC_LIMIT, bits - 1 - HEADROOM - exact.ceil_log2(largest))


def _embedding_limit(embedding: Array) -> int:
    """Most fraction bits of the residual stream that the multipliers of the embedding allow."""
    amax = float(np.abs(embedding).max())
    return FRAC_LIMIT if amax == 0 else exact.floor_log2(MULT_MAX * WEIGHT_MAX / amax)


def quantize_norm(s: ModelShape, gain: Array, in_max: float, res_frac: int, out_max: float) -> Norm:
    """The integers of a norm whose input and output reach in_max and out_max."""
    # eps, in units of the squared input, is an unsigned 32-bit integer
    eps_limit = exact.floor_log2(2**32 / (s.dim * s.norm_eps)) // 2
    in_frac = min(res_frac, binary_point(in_max, ops.NORM_BITS), eps_limit)
    eps = min(round(s.dim * s.norm_eps * 4.0**in_frac), 2**32 - 1)
    full = gain.astype(np.float64) * math.sqrt(s.dim)
    gain_max = max(float(np.abs(full).max()), 2.0**-FRAC_LIMIT)
    gain_frac = min(FRAC_LIMIT, exact.floor_log2(32767 / gain_max))
    frac = min(binary_point(out_max, ops.ACT_BITS), ops.NORM_T_FRAC + gain_frac)
    return Norm(
        gain=np.round(full * 2.0**gain_frac).astype(np.int16),
        in_shift=res_frac - in_frac,
        eps=eps,
        out_shift=ops.NORM_T_FRAC + gain_frac - frac,
        frac=frac,
    )


# --- weights -----------------------------------------------------------------------------------


def quantize_linears(
    weights: Sequence[Array], moment: Array | None, gains: Sequence[int]
) -> list[Linear]:
    """Matrices [out, in] that read the same input, as Linears.

    moment: mean of x x^T of that input, for GPTQ; None, or no input but zeros: round to nearest.
    gains: per matrix, fraction bits of its output minus those of its input.
    UserError if a multiplier would need more than 16 bits.
    """
    scales: list[tuple[Array, Array, int]] = []
    for weight, gain in zip(weights, gains, strict=True):
        amax = np.abs(weight).max(axis=1).astype(np.float64)
        real = amax / WEIGHT_MAX * 2.0**gain
        if real.max() > MULT_MAX:
            raise UserError(
                f"weights of {amax.max():.3g} are too large for what they compute: a multiplier of "
                f"{real.max():.3g} exceeds {MULT_MAX}; the checkpoint is corrupt"
            )
        mult, shift = scaled_multipliers(real)
        unit = 2.0 ** -(shift + gain)
        # The multiplier of a channel far smaller than the largest is coarse: one up, where its
        # weights would not fit. Codes are chosen for the scale that the integers stand for.
        mult += amax > (WEIGHT_MAX + 0.5) * unit * mult
        scales.append((np.where(mult > 0, unit * mult, 1.0), mult, shift))
    weight = np.concatenate(weights).astype(np.float64)
    scale = np.concatenate([scale for scale, _, _ in scales])[:, None]
    if moment is not None and np.diag(moment).any():
        codes = round_gptq(weight / scale, moment)
    else:
        codes = _round(weight / scale)
    ends = np.cumsum([len(weight) for weight in weights])
    return [
        Linear(np.ascontiguousarray(codes[end - len(mult) : end], np.int8), mult, shift)
        for end, (_, mult, shift) in zip(ends, scales, strict=True)
    ]


def _round(x: Array) -> Array:
    return np.clip(np.round(x), -WEIGHT_MAX, WEIGHT_MAX)


def round_gptq(weight: Array, moment: Array) -> Array:
    """Integers [out, in] near ``weight`` such that ``codes @ x`` is near ``weight @ x``.

    moment: mean of x x^T, [in, in], positive semidefinite, not zero. Rows are independent, so
    their scales do not matter. Inputs are taken from the largest to the smallest; each absorbs the
    errors of those before it as well as it can, which :func:`_feedback` tells. Frantar et al.,
    "GPTQ", 2022, damped as there; in the form of Chee et al., "QuIP", 2023 (LDLQ), which gives the
    same integers and inverts nothing.
    """
    moment = moment.astype(np.float64)
    size = len(moment)
    diagonal = np.diag_indices(size)
    moment[diagonal] += GPTQ_DAMP * float(exact.sum_of(moment[diagonal])[0]) / size
    order = np.argsort(-np.diag(moment), kind="stable")
    feedback = _feedback(moment[np.ix_(order, order)])
    wanted = weight[:, order].T.copy()  # [in, out]
    codes, errors = np.empty_like(wanted), np.empty_like(wanted)
    for begin in range(0, size, GPTQ_BLOCK):
        end = min(begin + GPTQ_BLOCK, size)
        left = wanted[begin:end].copy()
        if begin:  # what the blocks before have left, at once
            left += exact.product(feedback[begin:end, :begin], errors[:begin].T)
        for j in range(begin, end):
            codes[j] = _round(left[j - begin])
            errors[j] = wanted[j] - codes[j]
            left[j - begin + 1 :] += feedback[j + 1 : end, j, None] * errors[j]
    found = np.empty_like(weight)
    found[:, order] = codes.T
    return found


def _feedback(moment: Array) -> Array:
    """F [in, in], of which the part below the diagonal counts.

    Input j best takes the sum over i < j of ``F[j, i] * error[i]``. With U = F^T and ones on its
    diagonal, moment = U D U^T: the Cholesky factor of the inputs in reverse order, scaled.
    """
    size = len(moment)
    upper = np.ascontiguousarray(moment[::-1, ::-1])  # becomes R with R^T R, row by row
    for begin in range(0, size, GPTQ_BLOCK):
        end = min(begin + GPTQ_BLOCK, size)
        panel = upper[begin:end, begin:]
        if begin:
            done = upper[:begin, begin:]
            panel -= exact.fine_product(done[:, : end - begin], done)
        for j in range(end - begin):
            panel[j, j:] /= math.sqrt(panel[j, j])
            panel[j + 1 :, j + 1 :] -= panel[j, j + 1 : end - begin, None] * panel[j, j + 1 :]
    upper /= upper.diagonal()[:, None].copy()
    return np.ascontiguousarray(upper[::-1, ::-1])

"""Random models: for tests and for measurements of time, which do not depend on the weights."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from tokenfabric.core import exact, ops
from tokenfabric.core.arch import Attention
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.qmodel import (
    Linear,
    Norm,
    QLayer,
    QModel,
    q_factor,
    scaled_multipliers,
)

__all__ = ["random_model"]

FRAC, RES_FRAC, LOGITS_FRAC = 11, 18, 16
V_MAX = 6  # that v is scaled for


def random_model(shape: ModelShape, seed: int = 0) -> QModel:
    """Matrices of unit gain, so that every activation but the residual stream is of order one.

    UserError for an architecture that the accelerator cannot compute.
    """
    shape.check_hardware()
    return _Maker(shape, seed).model()


class _Maker:
    """Draws in the order of the architecture's row."""

    def __init__(self, shape: ModelShape, seed: int):
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.step = math.sqrt((255**2 - 1) / 12)  # standard deviation of the int8 weights
        self.q_frac = FRAC + exact.floor_log2(127 * math.sqrt(shape.head_dim))

    def linear(self, rows: int, columns: int, scale: float) -> Linear:
        weight = self.rng.integers(-127, 128, (rows, columns), np.int8)
        spread = self.rng.uniform(0.5, 1.0, rows)
        real = spread * scale / (self.step * math.sqrt(columns))
        return Linear(weight, *scaled_multipliers(real))

    def norm(self, depth: int) -> Norm:
        """Behind ``depth`` additions the residual stream is about sqrt(depth + 1) of order one."""
        s = self.shape
        in_shift = RES_FRAC - 12 + exact.ceil_log2(math.sqrt(depth + 1))
        eps = round(s.dim * s.norm_eps * 4.0 ** (RES_FRAC - in_shift))
        gain_frac = 14 - exact.ceil_log2(math.sqrt(s.dim))
        gain = np.round(self.rng.uniform(0.5, 1.5, s.dim) * math.sqrt(s.dim) * 2.0**gain_frac)
        out_shift = ops.NORM_T_FRAC + gain_frac - FRAC
        return Norm(gain.astype(np.int16), in_shift, eps, out_shift, FRAC)

    def layer(self, number: int) -> QLayer:
        s, norms, linears = self.shape, {}, {}
        sublayers = s.architecture.sublayers
        for at, sublayer in enumerate(sublayers):
            norms[sublayer.norm.name] = self.norm(number * len(sublayers) + at)
            if isinstance(sublayer, Attention):
                scales = {
                    sublayer.q: q_factor(s.head_dim) * 2.0 ** (self.q_frac - FRAC),
                    sublayer.v: 127 / V_MAX * 2.0**-FRAC,
                    sublayer.o: V_MAX / 127 * 2.0 ** (RES_FRAC - ops.ATT_FRAC),
                }
            else:
                scales = {sublayer.down: 2.0 ** (RES_FRAC - FRAC)}
            for matrix in sublayer.matrices:
                linears[matrix.name] = self.linear(*matrix.dims(s), scales.get(matrix, 1))
        means: npt.NDArray[np.int16] = self.rng.integers(
            -(1 << FRAC), 1 << FRAC, (s.kv_heads, s.head_dim), np.int16
        )
        return QLayer(
            norms=norms,
            linears=linears,
            k_mean=means,
            k_scale=np.ones((s.kv_heads, s.head_dim // 2), np.float32),
            v_scale=np.full(s.kv_heads, V_MAX / 127, np.float32),
            score_shift=self.q_frac + FRAC - 8,
            score_align=2,
            glu_align=ops.SIGMOID_FRAC - FRAC,
            glu_shift=FRAC + ops.GLU_T_FRAC_GAIN,
            q_frac=self.q_frac,
            k_frac=FRAC,
            up_frac=FRAC,
            h_frac=FRAC,
        )

    def model(self) -> QModel:
        s = self.shape
        layers = [self.layer(i) for i in range(s.layers)]
        embedding = self.linear(s.vocab, s.dim, math.sqrt(s.dim) * 2.0**RES_FRAC)
        # logits are embedding rows of order one, times 1 / sqrt(dim)
        tied_shift = embedding.shift + RES_FRAC + FRAC - LOGITS_FRAC
        tied_shift += exact.ceil_log2(math.sqrt(s.dim))
        classifier = Linear(embedding.weight, embedding.mult, tied_shift)
        if not s.tied:
            classifier = self.linear(s.vocab, s.dim, 2.0 ** (LOGITS_FRAC - FRAC))
        return QModel(
            shape=s,
            recipe="random",
            res_frac=RES_FRAC,
            logits_frac=LOGITS_FRAC,
            embedding=embedding,
            layers=layers,
            final_norm=self.norm(len(s.architecture.sublayers) * s.layers),
            classifier=classifier,
        )

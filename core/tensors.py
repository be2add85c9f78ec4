"""Classes of tensors: the saturation counters of the hardware and of the integer reference."""

from __future__ import annotations

from enum import IntEnum

from tokenfabric.core.registers import SATURATION_COUNTERS

__all__ = ["SATURATION_CLASSES", "TensorClass"]


class TensorClass(IntEnum):
    """What an instruction's ``sat`` field says its results are. Numbers are part of the ABI."""

    RES = 0
    NORM = 1
    Q = 2
    K = 3
    V = 4
    ROPE_Q = 5
    ROPE_K = 6
    SCORES = 7
    ATT = 8
    WO = 9
    GATE_UP = 10
    SWIGLU = 11
    W2 = 12
    LOGITS = 13


SATURATION_CLASSES: dict[TensorClass, str] = {
    TensorClass.RES: "residual stream: embedding and sums (32 bits)",
    TensorClass.NORM: "outputs of the norms (16 bits)",
    TensorClass.Q: "q before RoPE (16 bits)",
    TensorClass.K: "k before RoPE (16 bits)",
    TensorClass.V: "v (8 bits)",
    TensorClass.ROPE_Q: "q after RoPE (16 bits)",
    TensorClass.ROPE_K: "k after RoPE, before its mean is subtracted (16 bits)",
    TensorClass.SCORES: "attention scores that take part (16 bits)",
    TensorClass.ATT: "attention output (16 bits)",
    TensorClass.WO: "what wo adds to the residual stream (32 bits)",
    TensorClass.GATE_UP: "gate and up (16 bits)",
    TensorClass.SWIGLU: "silu(gate) * up (16 bits)",
    TensorClass.W2: "what w2 adds to the residual stream (32 bits)",
    TensorClass.LOGITS: "logits (32 bits)",
}

assert list(SATURATION_CLASSES) == list(TensorClass) and len(TensorClass) <= SATURATION_COUNTERS

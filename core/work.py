"""What a step must do at least, whatever does it: bytes to read, products to sum."""

from __future__ import annotations

from dataclasses import dataclass

from tokenfabric.core.arch import Attention
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.kv import useful_bytes_per_position
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.weights import INT8

__all__ = ["Work", "decode_rates", "seconds_of", "work_of"]


VECTOR_BYTES = 2  # of a gain of a norm, of a mean of K


@dataclass(frozen=True)
class Work:
    """What a step must do at least, on any accelerator. Bytes are those of the model file: matrices
    with their multipliers, norms, K means; of the classifier with the norm before it."""

    layer_bytes: int
    classifier_bytes: int
    kv_bytes_per_position: int
    layer_macs: int  # per row
    attention_macs_per_position: int


def work_of(s: ModelShape) -> Work:
    """Of a model with int8 weights."""
    arch = s.architecture
    means = sum(s.kv_dim for sublayer in arch.sublayers if isinstance(sublayer, Attention))
    vectors = VECTOR_BYTES * (len(arch.norms) * s.dim + means)
    layer = vectors + sum(INT8.stored_bytes(*matrix.dims(s)) for matrix in arch.matrices)
    return Work(
        layer_bytes=s.layers * layer,
        classifier_bytes=INT8.stored_bytes(s.vocab, s.dim) + VECTOR_BYTES * s.dim,
        kv_bytes_per_position=useful_bytes_per_position(s),
        layer_macs=s.layers * arch.matrix_weights(s),
        attention_macs_per_position=s.layers * s.heads * s.head_dim * 2,
    )


def seconds_of(cfg: FabricConfig, cycles: float) -> float:
    """Time of so many cycles at the config's clock."""
    return cycles / (cfg.clock_mhz * 1e6)


def decode_rates(
    cfg: FabricConfig, work: Work, cycles: float, positions: float
) -> dict[str, float]:
    """Of a decode step of so many cycles that looks at so many positions of the KV cache."""
    weights = work.layer_bytes + work.classifier_bytes
    useful = weights + work.kv_bytes_per_position * positions
    seconds = seconds_of(cfg, cycles)
    return {
        "useful_bytes_per_step": useful,
        "bandwidth_fraction": useful / (seconds * cfg.dram.peak_bytes_per_s),
        "tokens_per_second": 1 / seconds,
    }

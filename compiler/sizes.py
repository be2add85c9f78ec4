"""Where a step's tensors stand in the activation memories, in chunks."""

from __future__ import annotations

from dataclasses import dataclass

from tokenfabric.core.arch import Attention, FeedForward
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import ceil_div, round_up
from tokenfabric.core.shape import ModelShape

__all__ = ["Sizes", "memory_needs", "sizes_of"]

SHORT_HIDDEN = 24  # chunks of a hidden layer that are not worth cutting in two


@dataclass(frozen=True)
class Sizes:
    """Chunks of a row, and where tensors stand in the activation memories.

    dim: of the residual stream. head: of a head. pitch: from head to head of q in IN (whole
    row-blocks). hidden: of the hidden layer. pieces: of it, so that SWIGLU of one hides behind
    MATMUL of the next. rows: of a step. x_stride: from row to row of what norms and attention write
    to IN. h, h_stride: first chunk of q and of the hidden layer in IN, from row to row. out_stride:
    from row to row of OUT.
    """

    dim: int
    head: int
    pitch: int
    hidden: int
    pieces: int
    rows: int
    x_stride: int
    h: int
    h_stride: int
    out_stride: int


def memory_needs(cfg: FabricConfig, s: ModelShape) -> dict[str, int]:
    """Chunks that a model needs of the activation memories for each row of a step, and of PARAM."""
    dim, head = ceil_div(s.dim, cfg.cols), ceil_div(s.head_dim, cfg.cols)
    x_stride = round_up(max(dim, s.heads * head), cfg.k_chunks)
    fill = BURST_BEATS * cfg.scale_channels // cfg.cols  # chunks in a superblock
    sublayers = s.architecture.sublayers
    means = sum(s.kv_heads * head for sublayer in sublayers if isinstance(sublayer, Attention))
    return {
        "in_chunks": x_stride + _h_stride(cfg, s),
        "out_chunks": (2 * s.kv_heads + s.heads) * head,
        "res_chunks": dim,
        "param_chunks": len(sublayers) * dim + means + fill,
    }


def _h_stride(cfg: FabricConfig, s: ModelShape) -> int:
    """Chunks of q or of the hidden layer, whichever is longer: they take turns."""
    pitch = round_up(ceil_div(s.head_dim, cfg.cols), cfg.k_chunks)
    return max(s.heads * pitch, round_up(ceil_div(_hidden(s), cfg.cols), cfg.k_chunks))


def _hidden(s: ModelShape) -> int:
    """The widest hidden layer of a feed-forward network."""
    sublayers = s.architecture.sublayers
    return max(x.gate.dims(s)[0] for x in sublayers if isinstance(x, FeedForward))


def sizes_of(cfg: FabricConfig, s: ModelShape) -> Sizes:
    """Of a model on an accelerator, with as many rows as fit. UserError if not one does."""
    s.check_hardware()
    dim, hidden = ceil_div(s.dim, cfg.cols), ceil_div(_hidden(s), cfg.cols)
    head = ceil_div(s.head_dim, cfg.cols)
    pitch = round_up(head, cfg.k_chunks)
    if head * cfg.cols > cfg.max_head_dim:
        raise UserError(
            f"head_dim {s.head_dim} does not fit {cfg.name}: at most {cfg.max_head_dim}; "
            "choose another preset"
        )
    needs, h_stride = memory_needs(cfg, s), _h_stride(cfg, s)
    x_stride = needs["in_chunks"] - h_stride
    limits = {
        "input activations": cfg.in_chunks // needs["in_chunks"],
        "output activations": cfg.out_chunks // needs["out_chunks"],
        "residual stream": cfg.res_chunks // needs["res_chunks"],
        "parameters": cfg.param_chunks // needs["param_chunks"],
        "accumulators": cfg.acc_words // head,
        "longest sum": cfg.max_k // max(_hidden(s), s.dim, s.heads * head * cfg.cols),
    }
    tightest = min(limits, key=lambda name: limits[name])
    if limits[tightest] < 1:
        raise UserError(
            f"a model of dim {s.dim}, hidden {s.hidden}, {s.heads} heads of {s.head_dim} does not "
            f"fit {cfg.name}: its {tightest} memory holds less than one row; choose a larger preset"
        )
    rows = min(cfg.max_rows, *(limits[n] for n in limits if n not in ("parameters", "longest sum")))
    out_stride = cfg.out_chunks // rows & ~1
    pieces = 1 if hidden <= SHORT_HIDDEN and 2 * hidden <= out_stride else 2
    while pieces > 1 and 4 * ceil_div(hidden, pieces) > out_stride:
        pieces += 1
    return Sizes(
        dim, head, pitch, hidden, pieces, rows, x_stride, rows * x_stride, h_stride, out_stride
    )

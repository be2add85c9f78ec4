"""Where a step's tensors stand in the activation memories, in chunks."""

from __future__ import annotations

from dataclasses import dataclass

from tokenfabric.core.arch import Attention, FeedForward
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import ceil_div, round_up
from tokenfabric.core.isa import FIELDS
from tokenfabric.core.shape import ModelShape

__all__ = ["Sizes", "memory_needs", "sizes_of"]

BITS = dict(FIELDS)  # of the fields of an instruction
_OTHER = "a larger preset ('tokenfabric explore' finds one) or a smaller model"
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
    # SWIGLU and the MATMUL before it take turns in two pieces of two chunks at least; rows begin on
    # pairs of chunks.
    out = max(4, round_up((2 * s.kv_heads + s.heads) * head, 2))
    means = sum(s.kv_heads * head for sublayer in sublayers if isinstance(sublayer, Attention))
    return {
        "in_chunks": x_stride + _h_stride(cfg, s),
        "out_chunks": out,
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
    """Of a model on an accelerator, with as many rows as fit.

    UserError if not one does, or if a size of the model is beyond what instructions can say: it
    names the size, its value, the limit and what to do.
    """
    s.check_hardware()
    _check_fields(cfg, s)
    needs, h_stride = memory_needs(cfg, s), _h_stride(cfg, s)
    _check_room(cfg, s, needs)
    dim, hidden = ceil_div(s.dim, cfg.cols), ceil_div(_hidden(s), cfg.cols)
    head = ceil_div(s.head_dim, cfg.cols)
    pitch = round_up(head, cfg.k_chunks)
    x_stride = needs["in_chunks"] - h_stride
    of_rows = [getattr(cfg, name) // needs[name] for name in needs if name != "param_chunks"]
    rows = min(cfg.max_rows, cfg.acc_words // head, *of_rows)
    out_stride = min(cfg.out_chunks // rows, (1 << BITS["dst_stride"]) - 1) & ~1
    pieces = 1 if hidden <= SHORT_HIDDEN and 2 * hidden <= out_stride else 2
    while pieces > 1 and 4 * ceil_div(hidden, pieces) > out_stride:
        pieces += 1
    return Sizes(
        dim, head, pitch, hidden, pieces, rows, x_stride, rows * x_stride, h_stride, out_stride
    )


def _check_fields(cfg: FabricConfig, s: ModelShape) -> None:
    """UserError for what a field of an instruction, or a sum of the array, cannot hold."""
    q_dim = s.heads * round_up(s.head_dim, cfg.cols)
    of_heads = f"heads x head_dim = {s.heads} x {s.head_dim}"
    group = s.heads // s.kv_heads
    sums = f"a sum has at most {cfg.max_k} products"
    for what, value, most, why in (
        (f"head_dim = {s.head_dim}", s.head_dim, cfg.max_head_dim, f"at most {cfg.max_head_dim}"),
        (f"heads = {s.heads}", s.heads, _most("heads"), f"at most {_most('heads')}"),
        (f"heads / kv_heads = {group}", group, _most("group"), f"at most {_most('group')}"),
        (f"dim = {s.dim}", s.dim, cfg.max_k, sums),
        (f"hidden = {_hidden(s)}", _hidden(s), cfg.max_k, sums),
        (of_heads, q_dim, cfg.max_k, f"{sums}, and heads are padded to {cfg.cols}"),
        (f"vocab = {s.vocab}", s.vocab, _most("n") * cfg.cols, f"at most {_most('n') * cfg.cols}"),
    ):
        if value > most:
            raise UserError(f"{what} does not fit {cfg.name}: {why}; choose {_OTHER}")


def _most(field: str) -> int:
    """The largest value of a field of an instruction."""
    return (1 << BITS[field]) - 1


def _check_room(cfg: FabricConfig, s: ModelShape, needs: dict[str, int]) -> None:
    """UserError for a memory that does not hold one row."""
    heads = f"heads = {s.heads}, head_dim = {s.head_dim}"
    for name, what in (
        ("in_chunks", f"dim = {s.dim}, hidden = {_hidden(s)}, {heads}"),
        ("out_chunks", f"{heads}, kv_heads = {s.kv_heads}"),
        ("res_chunks", f"dim = {s.dim}"),
        ("param_chunks", f"dim = {s.dim}, kv_heads = {s.kv_heads}, head_dim = {s.head_dim}"),
    ):
        if needs[name] > getattr(cfg, name):
            raise UserError(
                f"{what}: takes {needs[name]} chunks for one row, {cfg.name} has {name} = "
                f"{getattr(cfg, name)}; choose {_OTHER}"
            )

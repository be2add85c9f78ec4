"""Vector unit: what the first pass over a row or head finds out for the second."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.lanes import P1_BITS, clamp
from tokenfabric.rtl.memory import Ram, write_port
from tokenfabric.rtl.normalize import Recip127, Rsqrt
from tokenfabric.rtl.pipeline import delay
from tokenfabric.rtl.vectorissue import ITEMS, issued_layout, tag_layout

__all__ = ["R_BITS", "Centre", "ItemFactors", "SquareSum", "factor_layout"]

R_BITS = 17  # of a reciprocal: up to 2**16
AMAX_BITS = 15
ACT = signed(ops.ACT_BITS)


def factor_layout() -> data.StructLayout:
    """What the first pass over an item finds out for the second."""
    return data.StructLayout({"r": R_BITS, "shift": 5, "amax": AMAX_BITS})


def tree(m: Module, values: list, join, name: str):
    """``join`` over all values (a power of two of them), one level per cycle."""
    while len(values) > 1:
        joined = [join(a, b) for a, b in zip(values[::2], values[1::2])]
        values = [
            Signal(value.shape(), name=f"{name}{len(joined)}_{i}", reset_less=True)
            for i, value in enumerate(joined)
        ]
        m.d.sync += [register.eq(value) for register, value in zip(values, joined)]
    return values[0]


def levels(cols: int) -> int:
    """Cycles that a :func:`tree` over ``cols`` values takes."""
    return (cols - 1).bit_length()


class SquareSum(wiring.Component):
    """``eps`` plus the products from ``first`` to ``last``, all columns of every chunk.

    One chunk per cycle. ``sum_valid`` comes log2(cols) + 1 cycles after the chunk with ``last``.
    ``ops`` replaces a sum of 0 by 1: not needed, all that its root will divide is 0 too.

    Members
    -------
    valid, first, last : in, 1 bit each: a chunk, the first or last one of a sum
    product : in, C signed products, squares of values of NORM_BITS
    eps : in, 32 bits, constant during a sum
    sum_valid : out, 1 bit, pulse; sum : out, BITS, right with the pulse
    """

    BITS = 49  # 2**13 squares of up to 2**34, and eps

    def __init__(self, cols: int):
        self.cols = cols
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "product": In(data.ArrayLayout(signed(P1_BITS), cols)),
                "eps": In(32),
                "sum_valid": Out(1),
                "sum": Out(self.BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        squares = [self.product[i][: 2 * ops.NORM_BITS - 1] for i in range(self.cols)]
        chunk = tree(m, squares, lambda a, b: a + b, "sum")
        depth = levels(self.cols)
        valid = delay(m, self.valid, depth, "valid", reset_less=False)
        first, last = delay(m, self.first, depth, "first"), delay(m, self.last, depth, "last")
        with m.If(valid):
            m.d.sync += self.sum.eq(Mux(first, self.eps, self.sum) + chunk)
        m.d.sync += self.sum_valid.eq(valid & last)
        return m


class Centre(wiring.Component):
    """K after RoPE, minus its mean: to the memory of heads, and the largest magnitude of the head.

    One chunk per cycle. A chunk is written 2 cycles after it came; ``amax_valid`` comes
    log2(cols) + 5 cycles after the last chunk of a head. The memory holds ITEMS heads, one per
    ``slot``.

    Members
    -------
    valid : in, 1 bit; tag : in, ``tag_layout``: the chunk
    y, mean : in, C signed 16-bit values: of K, and what is subtracted
    w : out, write port of the memory of heads, in chunks
    amax_valid : out, 1 bit, pulse; amax : out, 15 bits: at least 1, right with the pulse
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        tag, chunk = tag_layout(cfg), data.ArrayLayout(ACT, cfg.cols)
        heads_bits = (ITEMS * cfg.max_head_chunks - 1).bit_length()
        super().__init__(
            {
                "valid": In(1),
                "tag": In(tag),
                "y": In(chunk),
                "mean": In(chunk),
                "w": Out(write_port(heads_bits, chunk.size)),
                "amax_valid": Out(1),
                "amax": Out(AMAX_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cols, depth = self.cfg.cols, levels(self.cfg.cols)
        s3_sizes = []
        for i in range(cols):
            s1_diff = Signal(signed(ops.ACT_BITS + 1), name=f"s1_diff{i}", reset_less=True)
            s2_k = Signal(ACT, name=f"s2_k{i}", reset_less=True)
            s3_size = Signal(AMAX_BITS, name=f"s3_size{i}", reset_less=True)
            size = Mux(s2_k[-1], -s2_k, s2_k)[: ops.ACT_BITS]
            m.d.sync += [
                s1_diff.eq(self.y[i] - self.mean[i]),
                s2_k.eq(clamp(s1_diff, ops.ACT_BITS)[0]),
                s3_size.eq(size[:-1] | size[-1].replicate(AMAX_BITS)),  # 32768 -> 32767
            ]
            m.d.comb += self.w.data.word_select(i, ops.ACT_BITS).eq(s2_k)
            s3_sizes.append(s3_size)
        s2_valid = delay(m, self.valid, 2, "valid", reset_less=False)
        s2_tag = delay(m, self.tag, 2, "tag")
        m.d.comb += [self.w.en.eq(s2_valid), self.w.addr.eq(Cat(s2_tag.chunk, s2_tag.slot))]

        largest = tree(m, s3_sizes, lambda a, b: Mux(a > b, a, b), "max")
        valid = delay(m, s2_valid, 1 + depth, "s2_valid", reset_less=False)
        first = delay(m, s2_tag.first, 1 + depth, "s2_first")
        last = delay(m, s2_tag.last, 1 + depth, "s2_last")
        running, complete = Signal(AMAX_BITS, reset_less=True), Signal()
        with m.If(valid):
            m.d.sync += running.eq(Mux(~first & (running > largest), running, largest))
        m.d.sync += [
            complete.eq(valid & last),
            self.amax_valid.eq(complete),
            self.amax.eq(Cat(running[0] | (running == 0), running[1:])),
        ]
        return m


class ItemFactors(wiring.Component):
    """One factor per item (row of NORM, head of APPEND), found by its first pass.

    NORM: the reciprocal root of the sum of squares. APPEND: K minus its mean, kept whole, its
    largest magnitude, and the reciprocal of that. Items come in order, and their factors become
    known in the same order: after the last chunk of an item ``known`` comes Rsqrt.LATENCY + 1 +
    log2(cols) cycles later for NORM, Recip127.LATENCY + 5 + log2(cols) for APPEND. Takes one chunk
    per cycle. ITEMS factors and heads are kept, and looked up combinationally by ``slot``: the
    number of the item since the reset, modulo ITEMS.

    Members
    -------
    norm, append : in, 1 bit each: which instruction runs
    eps : in, 32 bits, of NORM
    squares : in, ``issued_layout``; product : in, C signed products: a chunk's squares
    rotated : in, ``issued_layout``; y, mean : in, C signed 16-bit values: a chunk of K after RoPE
    known : out, 1 bit, pulse: the next item's factor is there from the next cycle on
    slot, chunk : in, whose factor, and which chunk of the head; combinational:
    factor : out, ``factor_layout``; head : out, C signed 16-bit values
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        chunk, tag = data.ArrayLayout(ACT, cfg.cols), tag_layout(cfg)
        super().__init__(
            {
                "norm": In(1),
                "append": In(1),
                "eps": In(32),
                "squares": In(issued_layout(cfg)),
                "product": In(data.ArrayLayout(signed(P1_BITS), cfg.cols)),
                "rotated": In(issued_layout(cfg)),
                "y": In(chunk),
                "mean": In(chunk),
                "known": Out(1),
                "slot": In(tag["slot"].shape),
                "chunk": In(tag["chunk"].shape),
                "factor": Out(factor_layout()),
                "head": Out(chunk),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.squares = squares = SquareSum(cfg.cols)
        m.submodules.centre = centre = Centre(cfg)
        m.submodules.rsqrt = rsqrt = Rsqrt(SquareSum.BITS)
        m.submodules.recip = recip = Recip127(AMAX_BITS)
        m.submodules.factors = factors = Ram(ITEMS, factor_layout().size, comb=True)
        heads = Ram(ITEMS * cfg.max_head_chunks, cfg.cols * ops.ACT_BITS, comb=True)
        m.submodules.heads = heads
        wiring.connect(m, centre.w, heads.w)
        found, next_slot = Signal(factor_layout()), Signal(range(ITEMS))
        m.d.comb += [
            squares.valid.eq(self.squares.valid & self.norm & ~self.squares.tag.second),
            squares.first.eq(self.squares.tag.first),
            squares.last.eq(self.squares.tag.last),
            squares.product.eq(self.product),
            squares.eps.eq(self.eps),
            rsqrt.x_valid.eq(squares.sum_valid),
            rsqrt.x.eq(squares.sum),
            centre.valid.eq(self.rotated.valid & self.append & ~self.rotated.tag.second),
            centre.tag.eq(self.rotated.tag),
            centre.y.eq(self.y),
            centre.mean.eq(self.mean),
            recip.x_valid.eq(centre.amax_valid),
            recip.x.eq(centre.amax),
            found.r.eq(Mux(self.norm, rsqrt.r, recip.r)),
            found.shift.eq(Mux(self.norm, rsqrt.e, recip.e + 9)),
            found.amax.eq(delay(m, centre.amax, Recip127.LATENCY, "amax")),
            self.known.eq(rsqrt.r_valid | recip.r_valid),
            factors.w.en.eq(self.known),
            factors.w.addr.eq(next_slot),
            factors.w.data.eq(found),
            factors.r.addr.eq(self.slot),
            self.factor.as_value().eq(factors.r.data),
            heads.r.addr.eq(Cat(self.chunk, self.slot)),
            self.head.as_value().eq(heads.r.data),
        ]
        with m.If(self.known):
            m.d.sync += next_slot.eq(next_slot + 1)
        return m

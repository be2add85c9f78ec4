"""Vector unit: what the lanes multiply, chosen from what the memories gave."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import ops
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.chunkwalk import Part
from tokenfabric.rtl.factors import R_BITS, factor_layout
from tokenfabric.rtl.lanes import A_BITS, B_BITS, C_BITS, ShiftRound, Sigmoid, clamp
from tokenfabric.rtl.pipeline import delay, register
from tokenfabric.rtl.vectorissue import DATA, OPERANDS, tag_layout

__all__ = ["Operands"]

ACT = signed(ops.ACT_BITS)


class Operands(wiring.Component):
    """From what the memories gave to what the lanes multiply, LATENCY cycles later, one per cycle.

    NORM: the residual values, shifted and saturated (first pass: by themselves; second: by r).
    SWIGLU: gate, its sigmoid, and up. ROPE and first pass of APPEND: x, cos, and the other one of
    the pair with -+sin. Second pass of APPEND: K times r, or amax or V times 1.

    Members
    -------
    norm, swiglu, append : in, 1 bit each: which instruction runs; none of them is ROPE
    in_shift, align, out_shift : in, 6 bits each, of the instruction
    tag : in, ``tag_layout``: the chunk
    res : in, C signed 32-bit values; out : in, 2C signed 16-bit values (SWIGLU: gate and up)
    param, rope, head : in, C signed 16-bit values: gains, cos and sin in turn, K minus its mean
    factor : in, ``factor_layout``: of the chunk's item
    a, b, a2, c, shift1, shift2 : out, as :class:`Lanes` has them
    """

    LATENCY = OPERANDS - DATA

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        cols = cfg.cols
        super().__init__(
            {
                "norm": In(1),
                "swiglu": In(1),
                "append": In(1),
                "in_shift": In(6),
                "align": In(6),
                "out_shift": In(6),
                "tag": In(tag_layout(cfg)),
                "res": In(data.ArrayLayout(signed(ops.RES_BITS), cols)),
                "out": In(data.ArrayLayout(ACT, 2 * cols)),
                "param": In(data.ArrayLayout(ACT, cols)),
                "rope": In(data.ArrayLayout(ACT, cols)),
                "head": In(data.ArrayLayout(ACT, cols)),
                "factor": In(factor_layout()),
                "a": Out(data.ArrayLayout(signed(A_BITS), cols)),
                "b": Out(data.ArrayLayout(signed(B_BITS), cols)),
                "a2": Out(data.ArrayLayout(ACT, cols)),
                "c": Out(data.ArrayLayout(signed(C_BITS), cols)),
                "shift1": Out(5),
                "shift2": Out(6),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rest, second = self.LATENCY - 1, self.tag.second
        s3_x, s3_c = self._choose(m)
        scaled = second & (self.norm | (self.append & (self.tag.part == Part.K)))
        r, shift1 = Signal(R_BITS), Signal(5)
        m.d.comb += [
            r.eq(Mux(scaled, self.factor.r, 1)),
            shift1.eq(Mux(scaled, self.factor.shift, Mux(self.swiglu, 12, 0))),
        ]
        s10_r = delay(m, r, rest, "r")
        s10_second = delay(m, second, rest, "second")
        s10_cached = s10_second & self.append
        s10_a = [self._multiplicand(m, i, s3_x[i]) for i in range(self.cfg.cols)]
        s10_c = [delay(m, c, 7, f"c{i}") for i, c in enumerate(s3_c)]
        m.d.sync += [
            self.shift1.eq(delay(m, shift1, rest, "shift1")),
            self.shift2.eq(
                Mux(self.norm | self.swiglu, self.out_shift, Mux(s10_cached, 0, ops.ROPE_FRAC))
            ),
        ]
        a, b, a2, c = (register(m, port) for port in (self.a, self.b, self.a2, self.c))
        for i in range(self.cfg.cols):
            m.submodules[f"sigmoid{i}"] = sigmoid = Sigmoid()
            m.d.comb += [sigmoid.x.eq(s3_x[i]), sigmoid.align.eq(self.align)]
            cos, sin = s10_c[i & ~1], s10_c[i | 1]
            m.d.sync += [a[i].eq(s10_a[i]), a2[i].eq(s10_a[i ^ 1])]
            with m.If(self.norm):
                m.d.sync += [
                    b[i].eq(Mux(s10_second, s10_r << 4, s10_a[i])),
                    c[i].eq(s10_c[i]),
                ]
            with m.Elif(self.swiglu):
                m.d.sync += [b[i].eq(sigmoid.s), c[i].eq(s10_c[i])]
            with m.Elif(s10_cached):
                m.d.sync += [b[i].eq(s10_r), c[i].eq(0)]
            with m.Else():
                m.d.sync += [b[i].eq(cos), c[i].eq(sin if i & 1 else -sin)]
        return m

    def _choose(self, m: Module):
        """Stage 3: the 16-bit operands."""
        tag, cols = self.tag, self.cfg.cols
        cached = tag.second & self.append
        s3_x, s3_c = (
            [Signal(ACT, name=f"s3_{name}{i}", reset_less=True) for i in range(cols)]
            for name in ("x", "c")
        )
        for i in range(cols):
            with m.If(cached & (tag.part == Part.K)):
                m.d.sync += s3_x[i].eq(self.head[i])
            with m.Elif(cached & (tag.part == Part.SCALE)):
                m.d.sync += s3_x[i].eq(self.factor.amax)
            with m.Else():
                m.d.sync += s3_x[i].eq(Mux(tag.high, self.out[cols + i], self.out[i]))
            c = Mux(self.norm, self.param[i], self.rope[i])
            m.d.sync += s3_c[i].eq(Mux(self.swiglu, self.out[cols + i], c))
        return s3_x, s3_c

    def _multiplicand(self, m: Module, i: int, s3_x):
        """Stage 10 of a lane: the residual value as the norm sees it, or x."""
        m.submodules[f"in_shift{i}"] = in_shift = ShiftRound(ops.RES_BITS)
        s3_res, s7_res = (
            Signal(signed(ops.RES_BITS), name=f"s{s}_res{i}", reset_less=True) for s in (3, 7)
        )
        s8_a = Signal(signed(A_BITS), name=f"s8_a{i}", reset_less=True)
        s7_x = delay(m, s3_x, 4, f"x{i}")
        m.d.comb += [in_shift.x.eq(s3_res), in_shift.n.eq(self.in_shift)]
        m.d.sync += [
            s3_res.eq(self.res[i]),
            s7_res.eq(in_shift.y),
            s8_a.eq(Mux(self.norm, clamp(s7_res, ops.NORM_BITS)[0], s7_x)),
        ]
        return delay(m, s8_a, 2, f"a{i}")

"""Accumulators: sums of tiles over the row-blocks of a product, in block RAM."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import ACC_BITS, FabricConfig
from tokenfabric.rtl.memory import Ram
from tokenfabric.rtl.systolic import psum_shape

__all__ = ["Accumulators", "sums_layout"]


def sums_layout(cfg: FabricConfig) -> data.ArrayLayout:
    """One accumulator word: the sums of C columns."""
    return data.ArrayLayout(signed(ACC_BITS), cfg.cols)


class Accumulators(wiring.Component):
    """Adds each ``psum`` to the accumulator ``addr``, or hands the sum out instead of storing it.

    ``valid`` and what belongs to it come one cycle before their ``psum``: that is when the RAM is
    read. ``first`` starts a new sum from psum alone; ``last`` puts the sum out (``out_valid``,
    LATENCY cycles after valid) and leaves the accumulator as it was. One addition per cycle; the
    same ``addr`` again after ``REVISIT`` cycles at the earliest.

    Members
    -------
    valid, first, last : in, 1 bit each; addr : in, 0 .. acc_words - 1
    psum : in, C signed partial sums, one cycle later
    out_valid : out, 1 bit; sums : out, ``sums_layout``
    """

    LATENCY = 2
    REVISIT = 3

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "valid": In(1),
                "addr": In(range(cfg.acc_words)),
                "first": In(1),
                "last": In(1),
                "psum": In(data.ArrayLayout(psum_shape(cfg), cfg.cols)),
                "out_valid": Out(1),
                "sums": Out(sums_layout(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.ram = ram = Ram(cfg.acc_words, cfg.cols * ACC_BITS)
        m.d.comb += [ram.r.en.eq(self.valid & ~self.first), ram.r.addr.eq(self.addr)]

        s1_valid, s1_first, s1_last = Signal(), Signal(reset_less=True), Signal(reset_less=True)
        s1_addr = Signal.like(self.addr, reset_less=True)
        m.d.sync += s1_valid.eq(self.valid)
        with m.If(self.valid):
            m.d.sync += [s1_first.eq(self.first), s1_last.eq(self.last), s1_addr.eq(self.addr)]

        s2_store = Signal()
        s2_addr = Signal.like(self.addr, reset_less=True)
        s2_sums = Signal(cfg.cols * ACC_BITS, reset_less=True)
        stored = [ram.r.data.word_select(c, ACC_BITS).as_signed() for c in range(cfg.cols)]
        totals = [Mux(s1_first, 0, old) + new for old, new in zip(stored, self.psum, strict=True)]
        m.d.sync += [s2_store.eq(s1_valid & ~s1_last), self.out_valid.eq(s1_valid & s1_last)]
        with m.If(s1_valid):
            m.d.sync += [s2_addr.eq(s1_addr), s2_sums.eq(Cat(t[:ACC_BITS] for t in totals))]
        m.d.comb += [
            ram.w.en.eq(s2_store),
            ram.w.addr.eq(s2_addr),
            ram.w.data.eq(s2_sums),
            self.sums.as_value().eq(s2_sums),
        ]
        return m

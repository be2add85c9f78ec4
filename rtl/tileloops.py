"""Matrix product: the order of the tiles."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.layouts import MatmulKind, matmul_command

__all__ = ["COUNT_BITS", "TileLoops", "address_bits", "group_bits"]

COUNT_BITS = 16


def address_bits(chunks: int) -> int:
    """Address width of a memory of ``chunks`` units."""
    return max(1, (chunks - 1).bit_length())


def group_bits(cfg: FabricConfig) -> int:
    """Of a column-block's number within its group: those whose multipliers come in one word."""
    return (cfg.scale_channels // cfg.cols - 1).bit_length()


class TileLoops(wiring.Component):
    """The two loops over the tiles of a command: K and STREAM n outer, k inner; V the other way.

    LOAD has one loop, the outer. ``step`` takes effect in the next cycle and may come in each.

    Members
    -------
    start : in, 1 bit: begin anew; cmd : in, ``matmul_command``, stays until the end
    step : in, 1 bit: go to the next tile; only while ``running``
    running : out, 1 bit: falls after the last tile
    inner, outer : out, 16 bits each: the tile's place in the two loops
    first_inner, last_inner, last_outer : out, 1 bit each: it stands at an end of a loop
    """

    def __init__(self, cfg: FabricConfig):
        super().__init__(
            {
                "start": In(1),
                "step": In(1),
                "cmd": In(matmul_command(cfg)),
                "running": Out(1),
                "inner": Out(COUNT_BITS),
                "outer": Out(COUNT_BITS),
                "first_inner": Out(1),
                "last_inner": Out(1),
                "last_outer": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cmd = self.cmd
        is_v = cmd.kind == MatmulKind.V
        is_load = cmd.kind == MatmulKind.LOAD
        inners, outers = Signal(COUNT_BITS), Signal(COUNT_BITS)
        before_inner, before_outer = Signal(COUNT_BITS), Signal(COUNT_BITS)  # the last but one
        one_inner = Signal()
        m.d.comb += [
            inners.eq(Mux(is_load, 1, Mux(is_v, cmd.n, cmd.k))),
            outers.eq(Mux(is_v, cmd.k, cmd.n)),
        ]
        with m.If(self.start):
            m.d.sync += [
                self.running.eq(1),
                self.inner.eq(0),
                self.outer.eq(0),
                before_inner.eq(inners - 2),
                before_outer.eq(outers - 2),
                one_inner.eq(inners == 1),
                self.first_inner.eq(1),
                self.last_inner.eq(inners == 1),
                self.last_outer.eq(outers == 1),
            ]
        with m.Elif(self.step):
            m.d.sync += [
                self.inner.eq(self.inner + 1),
                self.first_inner.eq(self.last_inner),
                self.last_inner.eq(self.inner == before_inner),
            ]
            with m.If(self.last_inner):
                m.d.sync += [
                    self.inner.eq(0),
                    self.last_inner.eq(one_inner),
                    self.outer.eq(self.outer + 1),
                    self.last_outer.eq(self.outer == before_outer),
                ]
                with m.If(self.last_outer):
                    m.d.sync += self.running.eq(0)
        return m

"""Streams that take turns at one sink."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Arbiter"]


class Arbiter(wiring.Component):
    """Many streams into one: of those that have something, the first in the list goes.

    Combinational: no latency, one payload per cycle. Who has begun to wait keeps the sink, so that
    no payload changes before it is taken.

    Parameters
    ----------
    shape : of the payloads; with ``runs`` it has the field ``last``
    sources : number of streams
    runs : whole runs stay together: who has begun one keeps the sink until its ``last`` is taken

    Members
    -------
    i : streams of ``shape``, in, the first before the others
    o : stream of ``shape``, out
    """

    def __init__(self, shape, sources: int, *, runs: bool):
        self.runs = runs
        super().__init__(
            {
                "i": In(stream.Signature(shape)).array(sources),
                "o": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        held = Signal(range(len(self.i) + 1))  # by which source, from 1 on; 0: by none
        taken = Const(0, 1)  # one before has something
        for number, source in enumerate(self.i, 1):
            ends = source.payload.last if self.runs else 1
            with m.If(source.valid & ((held == number) | ((held == 0) & ~taken))):
                m.d.comb += [
                    self.o.valid.eq(1),
                    self.o.payload.eq(source.payload),
                    source.ready.eq(self.o.ready),
                ]
                m.d.sync += held.eq(Mux(self.o.ready & ends, 0, number))
            taken = taken | source.valid
        return m

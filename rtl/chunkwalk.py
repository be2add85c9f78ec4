"""Walks through the chunks of a vector instruction: rows, heads of a row, chunks of a head."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.layouts import CHUNK_BITS, count_shape, index_shape

__all__ = ["ChunkWalk", "Part"]


class Part(enum.Enum, shape=unsigned(2)):
    """The bursts of a head that is appended to the KV cache."""

    K = 0
    SCALE = 1
    V = 2


class ChunkWalk(wiring.Component):
    """Position in three nested loops, with the addresses that belong to it.

    Rows ascend; the number of the ``visit``-th is ``target``, looked up outside. A row costs one
    cycle of ``seek``, and one for each row passed over (so the strides need no multiplier); between
    the chunks of a row no cycle is lost. With ``append`` a head is its chunks (K), one more
    (SCALE), and its chunks again (V); ``src_at`` counts in the V part only.

    Members
    -------
    start : in, begin with everything below it, which must then stay
    look : in, ``target`` is the row of this walk's ``visit``
    step : in, go to the next chunk (only while ``valid``)
    valid, done, seek : out, at a chunk / behind the last / looking for a row
    first, last : out, first and last chunk of a part
    head_last, row_last : out, last chunk of a head, of a row
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        chunk = CHUNK_BITS
        super().__init__(
            {
                "start": In(1),
                "append": In(1),
                "pair": In(1),
                "src": In(chunk),
                "src_stride": In(12),
                "dst": In(chunk),
                "dst_stride": In(12),
                "head_step": In(8),
                "param": In(12),
                "chunks": In(16),
                "heads": In(8),
                "rows": In(count_shape(cfg)),
                "target": In(index_shape(cfg)),
                "look": In(1),
                "step": In(1),
                "valid": Out(1),
                "done": Out(1),
                "seek": Out(1),
                "visit": Out(index_shape(cfg)),
                "row": Out(index_shape(cfg)),
                "part": Out(Part),
                "src_at": Out(chunk),
                "dst_at": Out(chunk),
                "param_at": Out(12),
                "chunk": Out(range(max(2, cfg.max_head_chunks))),
                "first": Out(1),
                "last": Out(1),
                "head_last": Out(1),
                "row_last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        row_src, row_dst = Signal(CHUNK_BITS), Signal(CHUNK_BITS)
        next_row = [
            self.row.eq(self.row + 1),
            row_src.eq(row_src + self.src_stride),
            row_dst.eq(row_dst + self.dst_stride),
        ]
        finish = self.visit + 1 == self.rows
        with m.If(self.start):
            m.d.sync += [
                self.row.eq(0),
                self.visit.eq(0),
                row_src.eq(self.src),
                row_dst.eq(self.dst),
                self.valid.eq(0),
                self.seek.eq(self.rows != 0),
                self.done.eq(self.rows == 0),
            ]
        with m.Elif(self.seek & self.look & (self.row == self.target)):
            m.d.sync += [self.seek.eq(0), self.valid.eq(1)]
        with m.Elif(self.seek & self.look):
            m.d.sync += next_row
        # There is no step while it seeks: last, because this condition is late.
        with m.If(self.step & self.row_last):
            m.d.sync += [
                *next_row,
                self.visit.eq(self.visit + 1),
                self.valid.eq(0),
                self.seek.eq(~finish),
                self.done.eq(finish),
            ]
        self._heads(m, row_src, row_dst)
        return m

    def _heads(self, m: Module, row_src, row_dst):
        """The loops inside a row; while there is no row, they stand at its beginning."""
        head_dst, heads_left, left = Signal(CHUNK_BITS), Signal(8), Signal(16)
        one = Signal()  # a part has one chunk; known when the first row has been found
        m.d.sync += one.eq(self.chunks == 1)
        part_last = ~self.append | (self.part == Part.V)
        m.d.comb += [
            self.head_last.eq(self.last & part_last),
            self.row_last.eq(self.head_last & (heads_left == 0)),
        ]
        with m.If(~self.valid):
            m.d.sync += [
                self.src_at.eq(row_src),
                self.dst_at.eq(row_dst),
                head_dst.eq(row_dst + self.head_step),
                self.param_at.eq(self.param),
                heads_left.eq(self.heads - 1),
                left.eq(self.chunks - 1),
                self.last.eq(one),
                self.part.eq(Part.K),
                self.chunk.eq(0),
                self.first.eq(1),
            ]
        with m.Elif(self.step):
            move = Mux(self.pair, 2, part_last)
            m.d.sync += [
                self.src_at.eq(self.src_at + move),
                self.dst_at.eq(Mux(self.head_last, head_dst, self.dst_at + 1)),
                self.param_at.eq(self.param_at + 1),
                self.first.eq(self.last),
                self.chunk.eq(Mux(self.last, 0, self.chunk + 1)),
                left.eq(Mux(self.last, self.chunks - 1, left - 1)),
                self.last.eq(Mux(self.last, one, left == 1)),
            ]
            with m.If(self.last & self.append & (self.part == Part.K)):
                m.d.sync += [self.part.eq(Part.SCALE), left.eq(0), self.last.eq(1)]
            with m.Elif(self.last & self.append):
                m.d.sync += self.part.eq(Mux(part_last, Part.K, Part.V))
            with m.If(self.head_last):
                m.d.sync += [
                    heads_left.eq(heads_left - 1),
                    head_dst.eq(head_dst + self.head_step),
                ]

"""Matrix product: complete sums on their way out of the accumulators."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import MULT_BITS
from tokenfabric.rtl.accumulate import sums_layout
from tokenfabric.rtl.layouts import (
    CHUNK_BITS,
    MatmulDest,
    MatmulKind,
    embed_chunk,
    index_shape,
    matmul_command,
    matmul_result,
    row_scale,
)
from tokenfabric.rtl.requantize import Requantize
from tokenfabric.rtl.tileloops import COUNT_BITS, group_bits

__all__ = ["Drain", "SumPlace"]


class SumPlace(wiring.Component):
    """Counts complete sums: of which row and which column-block the next ones are.

    ``step`` takes effect in the next cycle; two column-blocks are at least four cycles apart.

    Members
    -------
    start : in, 1 bit: begin anew; cmd : in, ``matmul_command``, stays until the end
    step : in, 1 bit: the sums of this place are here
    index : out, the row; block : out, 16 bits, the column-block
    last_use : out, 1 bit: no sums after these need the same word of multipliers
    last : out, 1 bit: these are the command's last sums
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(1),
                "cmd": In(matmul_command(cfg)),
                "step": In(1),
                "index": Out(index_shape(cfg)),
                "block": Out(COUNT_BITS),
                "last_use": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        group = self.block[: group_bits(self.cfg)]
        end_row, end_block = Signal.like(self.index), Signal.like(self.block)
        last_row, last_block = self.index == end_row, Signal()
        group_ends = (self.cmd.kind != MatmulKind.STREAM) | group.all() if len(group) else 1
        m.d.sync += [
            end_row.eq(self.cmd.m - 1),
            end_block.eq(self.cmd.n - 1),
            last_block.eq(self.block == end_block),  # late by a cycle
        ]
        m.d.comb += [
            self.last_use.eq(last_row & (group_ends | last_block)),
            self.last.eq(last_row & last_block),
        ]
        with m.If(self.start):
            m.d.sync += [self.index.eq(0), self.block.eq(0)]
        with m.Elif(self.step):
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(last_row):
                m.d.sync += [self.index.eq(0), self.block.eq(self.block + 1)]
        return m


class Drain(wiring.Component):
    """Complete sums, in order of column-blocks and of rows in them, through Requantize.

    Their multiplier is that of the channel, from the word at the head of ``multipliers``, or for V
    that of the row. Between commands, chunks of embedding rows take the same way.

    Members
    -------
    start : in, 1 bit; cmd : in, ``matmul_command``: a command; cmd stays until the end
    valid : in, 1 bit; sums : in, ``sums_layout``: those of the next row, one chunk per cycle
    multipliers : in, stream of words; a word must be there when its sums are
    index : out, a row of the command; dst, limit, scale : in, 16 bits, 16 bits, ``row_scale``: its
        entries of the tables; combinational
    embed_valid : in, 1 bit; embed : in, ``embed_chunk``: while no command runs
    result_valid : out, 1 bit; result : out, ``matmul_result``, LATENCY cycles after the sums;
        always taken
    """

    LATENCY = Requantize.LATENCY

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(1),
                "cmd": In(matmul_command(cfg)),
                "valid": In(1),
                "sums": In(sums_layout(cfg)),
                "multipliers": In(stream.Signature(unsigned(8 * cfg.word_bytes))),
                "index": Out(index_shape(cfg)),
                "dst": In(CHUNK_BITS),
                "limit": In(16),
                "scale": In(row_scale(cfg)),
                "embed_valid": In(1),
                "embed": In(embed_chunk(cfg)),
                "result_valid": Out(1),
                "result": Out(matmul_result(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, cmd = self.cfg, self.cmd
        tag = data.StructLayout(
            {k: v.shape for k, v in matmul_result(cfg) if k not in ("y", "saturated")}
        )
        m.submodules.requantize = requantize = Requantize(cfg, tag)
        m.submodules.place = place = SumPlace(cfg)
        is_v, is_stream = cmd.kind == MatmulKind.V, cmd.kind == MatmulKind.STREAM
        part = place.block[: group_bits(cfg)] & is_stream.replicate(group_bits(cfg))
        chunk = self.multipliers.payload.word_select(part, cfg.cols * MULT_BITS)
        of_row = self.scale.mult.replicate(cfg.cols)
        is_odd = is_stream & place.block[0]
        shift = Mux(is_v, self.scale.shift, Mux(is_odd, cmd.shift_odd, cmd.shift))
        m.d.comb += [
            place.start.eq(self.start),
            place.cmd.eq(cmd),
            place.step.eq(self.valid),
            self.index.eq(place.index),
            self.multipliers.ready.eq(self.valid & place.last_use & ~is_v),
            requantize.valid.eq(self.valid),
            requantize.acc.eq(self.sums),
            requantize.mult.eq(Mux(is_v, of_row, chunk)),
            requantize.shift.eq(shift),
            requantize.bits.eq(cmd.bits),
            requantize.tag.dst.eq(self.dst + place.block),
            requantize.tag.index.eq(place.index),
            requantize.tag.block.eq(place.block),
            requantize.tag.limit.eq(self.limit),
            requantize.tag.dest.eq(cmd.dest),
            requantize.tag.sat.eq(cmd.sat),
            requantize.tag.last.eq(place.last),
            self.result_valid.eq(requantize.out_valid),
            self.result.y.eq(requantize.y),
            self.result.saturated.eq(requantize.saturated),
            *(self.result[key].eq(requantize.out_tag[key]) for key, _ in tag),
        ]
        with m.If(self.embed_valid):
            self._embed(m, requantize)
        return m

    def _embed(self, m: Module, requantize: Requantize):
        m.d.comb += [
            requantize.valid.eq(1),
            *(requantize.acc[c].eq(self.embed.lanes[c]) for c in range(self.cfg.cols)),
            requantize.mult.eq(self.embed.mult.replicate(self.cfg.cols)),
            requantize.shift.eq(self.embed.shift),
            requantize.bits.eq(2),
            requantize.tag.eq(0),
            requantize.tag.dst.eq(self.embed.dst),
            requantize.tag.dest.eq(MatmulDest.EMBED),
            requantize.tag.sat.eq(self.embed.sat),
        ]

"""Embedding look-up: a token's row, gathered out of the classifier's tiles."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    CHUNK_BITS,
    BeatTag,
    count_shape,
    embed_chunk,
    fetch_beat,
    fetch_command,
    index_shape,
    instruction_layout,
    row_record,
)
from tokenfabric.rtl.requantize import Requantize

__all__ = ["Embed", "stream_to_memory"]


def stream_to_memory(cfg: FabricConfig, at):
    """Offset in memory of the beat that holds byte ``at`` of the weight stream.

    The stream counts words of one beat per port; memory holds bursts of 16 beats per port.
    """
    c = (cfg.port_bytes - 1).bit_length()
    p = (cfg.ports - 1).bit_length()
    w = (BURST_BEATS - 1).bit_length()
    port, word = at[c : c + p], at[c + p : c + p + w]
    return Cat(Signal(c), word, port, at[c + p + w :])


class Embed(wiring.Component):
    """Runs EMBED: one beat for the multiplier, then one beat per chunk, for each row of the step.

    A row takes about 20 cycles for the address, two or three per chunk for the requests, and the
    latency of the memory. Chunks go through Requantize: MatmulEngine must be idle.

    Members: ``cmd`` (In), ``busy``; ``rows``, ``row_index``, ``row``; ``embedding``,
    ``embedding_group`` (descriptor); ``fetch`` (Out), ``beats`` (In); ``chunk_valid``, ``chunk``.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "busy": Out(1),
                "rows": In(count_shape(cfg)),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "embedding": In(ADDRESS_BITS),
                "embedding_group": In(ADDRESS_BITS),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "beats": In(stream.Signature(fetch_beat(cfg))),
                "chunk_valid": Out(1),
                "chunk": Out(embed_chunk(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        log2 = lambda n: (n - 1).bit_length()  # noqa: E731
        cmd, row = Signal(instruction_layout()), Signal(count_shape(cfg))
        group_bits = log2(cfg.scale_channels)
        within = Signal(group_bits)
        groups, addend = Signal(32 - group_bits), Signal(ADDRESS_BITS)
        multiplied = Signal()  # groups == 0
        at, asked, dst = Signal(ADDRESS_BITS), Signal(12), Signal(CHUNK_BITS)
        unasked = Signal(12)  # chunks after this one
        blocks = (cmd.k + (cfg.k_chunks - 1)) >> log2(cfg.k_chunks)
        column, block = within[: log2(cfg.cols)], within[log2(cfg.cols) :]
        chunk_in_block = asked[: log2(cfg.k_chunks)]
        request = self.fetch.payload
        m.d.comb += [
            self.row_index.eq(row),
            request.tag.eq(BeatTag.EMBED),
            request.beats.eq(1),
            request.offset.eq(self.embedding + stream_to_memory(cfg, at)),
        ]
        self._returned(m, cmd, within, dst)
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [cmd.eq(self.cmd.payload), row.eq(0), dst.eq(self.cmd.payload.dst)]
                with m.If(self.cmd.valid):
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.sync += [
                    Cat(within, groups).eq(self.row.token),
                    multiplied.eq(self.row.token >> group_bits == 0),
                    addend.eq(self.embedding_group),
                    at.eq(0),
                ]
                m.next = "GROUP"
            with m.State("GROUP"):  # at = groups * embedding_group, one bit per cycle
                m.d.sync += [groups.eq(groups >> 1), addend.eq(addend << 1)]
                m.d.sync += multiplied.eq(groups >> 1 == 0)
                with m.If(groups[0]):
                    m.d.sync += at.eq(at + addend)
                with m.If(multiplied):
                    m.d.sync += at.eq(at + (within << 1))
                    m.next = "SCALE"
            with m.State("SCALE"):
                m.d.comb += self.fetch.valid.eq(1)
                m.d.sync += [asked.eq(0), unasked.eq(cmd.k - 1)]
                with m.If(self.fetch.ready):
                    # From the multiplier to the token's column of the first tile.
                    column_blocks = sum(
                        (Mux(block[i], blocks, 0) << i for i in range(len(block))), start=0
                    )
                    tile = column_blocks << log2(cfg.macs) if len(block) else 0
                    column_at = (column << log2(cfg.rows)) + cfg.word_bytes
                    m.d.sync += at.eq(at - (within << 1) + tile + column_at)
                    m.next = "CHUNKS"
            with m.State("CHUNKS"):
                m.d.comb += self.fetch.valid.eq(1)
                with m.If(self.fetch.ready):
                    m.d.sync += [asked.eq(asked + 1), unasked.eq(unasked - 1)]
                    to_next_tile = cfg.macs - (cfg.rows - cfg.cols)
                    last_of_block = chunk_in_block == cfg.k_chunks - 1
                    m.d.sync += at.eq(at + Mux(last_of_block, to_next_tile, cfg.cols))
                    with m.If(unasked == 0):
                        m.next = "ANSWERS"
            with m.State("ANSWERS"):
                with m.If(self.chunk_valid & self.row_done):
                    m.d.sync += [row.eq(row + 1), dst.eq(dst + cmd.dst_stride)]
                    m.next = "ROW"
                    with m.If(row + 1 == self.rows):
                        m.next = "LAST"
            with m.State("LAST"):  # the last chunk is on its way through Requantize
                left = Signal(range(Requantize.LATENCY + 2))
                m.d.sync += left.eq(left + 1)
                with m.If(left == Requantize.LATENCY + 1):
                    m.d.sync += left.eq(0)
                    m.next = "IDLE"
        return m

    def _returned(self, m, cmd, within, dst):
        """The first beat holds the multiplier, each other one a chunk."""
        cfg = self.cfg
        answers = Signal(12)
        mult = Signal(16)
        lanes = cfg.port_bytes // 2
        self.row_done = Signal()
        beat = self.beats.payload
        lane = within[: (lanes - 1).bit_length()]
        m.d.comb += [
            self.beats.ready.eq(1),
            self.chunk_valid.eq(self.beats.valid & (answers != 0)),
            self.row_done.eq(answers == cmd.k),
            self.chunk.lanes.eq(beat.data),
            self.chunk.mult.eq(mult),
            self.chunk.shift.eq(cmd.shift),
            self.chunk.dst.eq(dst + answers - 1),
            self.chunk.sat.eq(cmd.sat),
        ]
        with m.If(self.beats.valid):
            m.d.sync += answers.eq(Mux(self.row_done, 0, answers + 1))
            with m.If(answers == 0):
                m.d.sync += mult.eq(beat.data.word_select(lane, 16))

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


def log2(number: int) -> int:
    """Of a power of two."""
    return (number - 1).bit_length()


def stream_to_memory(cfg: FabricConfig, at):
    """Offset in memory of the beat that holds byte ``at`` of the weight stream.

    The stream counts words of one beat per port; memory holds bursts of 16 beats per port.
    """
    c = (cfg.port_bytes - 1).bit_length()
    p = (cfg.ports - 1).bit_length()
    w = (BURST_BEATS - 1).bit_length()
    port, word = at[c : c + p], at[c + p : c + p + w]
    return Cat(Signal(c), word, port, at[c + p + w :])


class EmbedRequests(wiring.Component):
    """Asks for the beats of one token's row: the one with its multiplier, then one per chunk.

    Members: ``start`` (In: for one cycle, with ``token``, while nothing is asked for), ``k`` (In:
    chunks of a row); ``embedding``, ``embedding_group`` (In: of the descriptor); ``fetch`` (Out);
    ``within`` (Out: number of the token in its group, from the cycle after ``start``); ``done``
    (Out: the last request is being taken).

    As many cycles as bits in the number of the group for the address, then a request per cycle.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.group_bits = log2(cfg.scale_channels)
        super().__init__(
            {
                "start": In(1),
                "token": In(32),
                "k": In(12),
                "embedding": In(ADDRESS_BITS),
                "embedding_group": In(ADDRESS_BITS),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "within": Out(self.group_bits),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, within, request = self.cfg, self.within, self.fetch.payload
        groups, addend = Signal(32 - self.group_bits), Signal(ADDRESS_BITS)
        multiplied = Signal()  # groups == 0
        at, asked = Signal(ADDRESS_BITS), Signal(12)
        unasked = Signal(12)  # chunks after this one
        m.d.comb += [
            request.tag.eq(BeatTag.EMBED),
            request.beats.eq(1),
            request.offset.eq(self.embedding + stream_to_memory(cfg, at)),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    Cat(within, groups).eq(self.token),
                    multiplied.eq(self.token >> self.group_bits == 0),
                    addend.eq(self.embedding_group),
                    at.eq(0),
                ]
                with m.If(self.start):
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
                m.d.sync += [asked.eq(0), unasked.eq(self.k - 1)]
                with m.If(self.fetch.ready):
                    m.d.sync += at.eq(at - (within << 1) + self._column())
                    m.next = "CHUNKS"
            with m.State("CHUNKS"):
                m.d.comb += self.fetch.valid.eq(1)
                with m.If(self.fetch.ready):
                    m.d.sync += [asked.eq(asked + 1), unasked.eq(unasked - 1)]
                    to_next_tile = cfg.macs - (cfg.rows - cfg.cols)
                    last_of_block = asked[: log2(cfg.k_chunks)] == cfg.k_chunks - 1
                    m.d.sync += at.eq(at + Mux(last_of_block, to_next_tile, cfg.cols))
                    with m.If(unasked == 0):
                        m.d.comb += self.done.eq(1)
                        m.next = "IDLE"
        return m

    def _column(self):
        """Bytes from a group's word of multipliers to the token's column of the first tile."""
        cfg, bits = self.cfg, log2(self.cfg.cols)
        column, block = self.within[:bits], self.within[bits:]
        blocks = (self.k + (cfg.k_chunks - 1)) >> log2(cfg.k_chunks)
        tiles = sum((Mux(block[i], blocks, 0) << i for i in range(len(block))), start=0)
        tile = tiles << log2(cfg.macs) if len(block) else 0
        return tile + (column << log2(cfg.rows)) + cfg.word_bytes


class EmbedAnswers(wiring.Component):
    """Makes chunks for Requantize of the beats of a row: the first holds the multiplier.

    Members: ``beats`` (In, always ready); ``within`` (In: which multiplier of the beat), ``k``,
    ``shift``, ``sat`` (In: of the instruction), ``dst`` (In: of the row); ``valid``, ``chunk``
    (Out: in the cycle of its beat); ``row_done`` (Out: with ``valid``: the row's last).
    """

    def __init__(self, cfg: FabricConfig):
        self.lanes = cfg.port_bytes // 2
        fields = instruction_layout().members
        super().__init__(
            {
                "beats": In(stream.Signature(fetch_beat(cfg))),
                "within": In(log2(cfg.scale_channels)),
                **{name: In(fields[name]) for name in ("k", "shift", "sat")},
                "dst": In(CHUNK_BITS),
                "valid": Out(1),
                "chunk": Out(embed_chunk(cfg)),
                "row_done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        answers, mult = Signal(12), Signal(16)
        beat, chunk = self.beats.payload, self.chunk
        m.d.comb += [
            self.beats.ready.eq(1),
            self.valid.eq(self.beats.valid & (answers != 0)),
            self.row_done.eq(answers == self.k),
            chunk.lanes.eq(beat.data),
            chunk.mult.eq(mult),
            chunk.shift.eq(self.shift),
            chunk.dst.eq(self.dst + answers - 1),
            chunk.sat.eq(self.sat),
        ]
        lane = self.within[: (self.lanes - 1).bit_length()]
        with m.If(self.beats.valid):
            m.d.sync += answers.eq(Mux(self.row_done, 0, answers + 1))
            with m.If(answers == 0):
                m.d.sync += mult.eq(beat.data.word_select(lane, 16))
        return m


class Embed(wiring.Component):
    """Runs EMBED: one beat for the multiplier, then one beat per chunk, for each row of the step.

    A row takes about 20 cycles for the address, two or three per chunk for the requests, and the
    latency of the memory. Chunks go through Requantize: MatmulEngine must be idle.

    Members: ``cmd`` (In: stream of instructions), ``busy`` (Out); ``rows`` (In: of the step),
    ``row_index`` (Out), ``row`` (In: that row's record); ``embedding``, ``embedding_group`` (In: of
    the descriptor); ``fetch`` (Out: stream of commands), ``beats`` (In: their answers);
    ``chunk_valid``, ``chunk`` (Out: to Requantize).
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
        m.submodules.requests = requests = EmbedRequests(self.cfg)
        m.submodules.answers = answers = EmbedAnswers(self.cfg)
        cmd, row = Signal(instruction_layout()), Signal(count_shape(self.cfg))
        dst = Signal(CHUNK_BITS)
        wiring.connect(m, requests.fetch, wiring.flipped(self.fetch))
        wiring.connect(m, wiring.flipped(self.beats), answers.beats)
        m.d.comb += [
            self.row_index.eq(row),
            requests.token.eq(self.row.token),
            requests.k.eq(cmd.k),
            requests.embedding.eq(self.embedding),
            requests.embedding_group.eq(self.embedding_group),
            answers.within.eq(requests.within),
            answers.dst.eq(dst),
            *[getattr(answers, name).eq(cmd[name]) for name in ("k", "shift", "sat")],
            self.chunk_valid.eq(answers.valid),
            self.chunk.eq(answers.chunk),
        ]
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                m.d.sync += [cmd.eq(self.cmd.payload), row.eq(0), dst.eq(self.cmd.payload.dst)]
                with m.If(self.cmd.valid):
                    m.next = "ROW"
            with m.State("ROW"):
                m.d.comb += requests.start.eq(1)
                m.next = "REQUESTS"
            with m.State("REQUESTS"):
                with m.If(requests.done):
                    m.next = "ANSWERS"
            with m.State("ANSWERS"):
                with m.If(answers.valid & answers.row_done):
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

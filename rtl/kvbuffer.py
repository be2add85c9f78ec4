"""K and V on their way to the array: written position by position, read as tiles.

Where a chunk lies in the banks: see ``rtl/kvfill.py``.
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.kvfill import (
    Filler,
    bank_entries,
    block_positions,
    kv_block,
    log2,
    reverse,
    reverse_int,
)
from tokenfabric.rtl.layouts import kv_beat, kv_command
from tokenfabric.rtl.memory import Fifo, Ram, output_registers
from tokenfabric.rtl.pipeline import register

__all__ = ["Allocator", "Drainer", "KvBuffer", "WordWalk"]

COMMANDS = 4  # waiting to be written
BLOCKS = 32  # written and not yet read


class Allocator(wiring.Component):
    """Cuts streams into blocks and finds each a place in the ring when there is room.

    A block always gets room for all its positions, in one piece. One block in 2 cycles.

    Members
    -------
    i : stream of kv_command, in
    o : stream of kv_block, out, in order
    free, free_cost : in, 1 bit strobe: a block has been read; with its ``cost``
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(kv_command(cfg))),
                "o": Out(stream.Signature(kv_block(cfg))),
                "free": In(1),
                "free_cost": In(kv_block(cfg)["cost"].shape),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i, o, positions = self.i, self.o, block_positions(self.cfg)
        entries = bank_entries(self.cfg)
        left = Signal(16)  # positions
        base = Signal(range(entries + 1))
        used = Signal(range(entries + 1))
        taken = Signal.like(used)
        size = Signal(8 + log2(positions // self.cfg.ports))
        more = Signal()
        m.d.comb += [
            size.eq(o.payload.head_chunks << log2(positions // self.cfg.ports)),
            more.eq(left > positions),
            o.payload.last.eq(Mux(more, positions - 1, left - 1)),
            o.payload.base.eq(base),
        ]
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += i.ready.eq(1)
                m.d.sync += [
                    left.eq(i.payload.positions),
                    o.payload.is_v.eq(i.payload.is_v),
                    o.payload.head_chunks.eq(i.payload.head_chunks),
                ]
                with m.If(i.valid):
                    m.next = "PLACE"
            with m.State("PLACE"):
                m.d.sync += o.payload.cost.eq(size)
                with m.If(base + size > entries):
                    m.d.sync += [base.eq(0), o.payload.cost.eq(entries - base + size)]
                m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += o.valid.eq(used + o.payload.cost <= entries)
                with m.If(o.valid & o.ready):
                    m.d.comb += taken.eq(o.payload.cost)
                    m.d.sync += [base.eq(base + size), left.eq(left - positions)]
                    with m.If(more):
                        m.next = "PLACE"
                    with m.Else():
                        m.next = "TAKE"
        m.d.sync += used.eq(used + taken - Mux(self.free, self.free_cost, 0))
        return m


def word_tag(cfg: FabricConfig) -> data.StructLayout:
    """``mask``: of the word's banks; ``end``: of the block's last word; ``cost``: of the block."""
    cost = kv_block(cfg)["cost"].shape
    return data.StructLayout({"is_v": 1, "mask": log2(cfg.ports), "end": 1, "cost": cost})


class WordWalk(wiring.Component):
    """Where the next word of a block begins, in the order in which the array takes them.

    Combinational from ``block``; a word per cycle, also from block to block.

    Members
    -------
    block : in, kv_block
    step : in, 1 bit, strobe: go to the next word; after the last, to the first of the next block
    row : out, position of the word's first chunk, divided by ``ports``
    chunk : out, 8 bits, the first chunk
    tag : out, word_tag
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "block": In(kv_block(cfg)),
                "step": In(1),
                "row": Out(log2(block_positions(cfg)) - log2(cfg.ports)),
                "chunk": Out(8),
                "tag": Out(word_tag(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, block, chunk, tag = self.cfg, self.block, self.chunk, self.tag
        lane_bits, col_bits, row_bits = log2(cfg.ports), log2(cfg.word_cols), log2(cfg.rows)
        w = Signal(log2(cfg.tile_cycles))  # word of the tile
        n = Signal(log2(block_positions(cfg) // cfg.cols))  # column-block of it, V: row-block
        t = Signal.like(block.last)  # first position of the word
        following = Signal(9)
        end_chunk, end_n = Signal(), Signal()
        m.d.comb += [
            t.eq(Mux(block.is_v, Cat(Const(0, lane_bits), w, n), Cat(Const(0, col_bits), w, n))),
            following.eq(chunk + Mux(block.is_v, 1, cfg.k_chunks)),
            end_chunk.eq(following >= block.head_chunks),
            end_n.eq(n == Mux(block.is_v, block.last >> row_bits, block.last >> log2(cfg.cols))),
            self.row.eq(t[lane_bits:]),
            tag.is_v.eq(block.is_v),
            tag.cost.eq(block.cost),
            tag.end.eq(w.all() & end_chunk & end_n),
            tag.mask.eq(reverse(chunk[:lane_bits])),
        ]
        with m.If(~block.is_v):
            m.d.comb += tag.mask[col_bits:].eq(t[col_bits:lane_bits])
        with m.If(self.step):
            m.d.sync += w.eq(w + 1)
            with m.If(w.all()):
                m.d.sync += chunk.eq(Mux(end_chunk, 0, following))
                with m.If(end_chunk):
                    m.d.sync += n.eq(Mux(end_n, 0, n + 1))
        return m


class Drainer(wiring.Component):
    """Reads blocks in the order in which the array takes them, one word per cycle.

    ``LATENCY`` cycles from a block to its first word. A word that is not taken stops all stages.

    Members
    -------
    filled : stream of kv_block, in
    free, free_cost : out, 1 bit strobe: the block's last word is being read; with its ``cost``
    en : out, 1 bit; addr, data : out, in, one per bank: the banks' read ports
    words : stream of 8 * word_bytes bits, out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.LATENCY = 5 + output_registers(cfg, "kv")
        super().__init__(
            {
                "filled": In(stream.Signature(kv_block(cfg))),
                "free": Out(1),
                "free_cost": Out(kv_block(cfg)["cost"].shape),
                "en": Out(1),
                "addr": Out(log2(bank_entries(cfg))).array(cfg.ports),
                "data": In(8 * cfg.port_bytes).array(cfg.ports),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, words, block = self.cfg, self.words, self.filled.payload
        col_bits = log2(cfg.word_cols)
        m.submodules.walk = walk = WordWalk(cfg)
        step = Signal()
        late = output_registers(cfg, "kv")
        valid = Signal(4 + late)  # of the stages before the word
        s1_tag, s2_tag, s3_tag = (
            Signal(word_tag(cfg), name=f"s{i}_tag", reset_less=True) for i in (1, 2, 3)
        )
        s1_row = Signal.like(self.addr[0], reset_less=True)
        s1_start = Signal.like(self.addr[0], reset_less=True)
        s2_entry = Signal.like(self.addr[0], reset_less=True)
        m.d.comb += [
            step.eq(~words.valid | words.ready),
            walk.block.eq(block),
            walk.step.eq(step & self.filled.valid),
            self.filled.ready.eq(step & walk.tag.end),
            self.en.eq(step & valid[2]),
            self.free.eq(self.en & s3_tag.end),
            self.free_cost.eq(s3_tag.cost),
        ]
        with m.If(step):
            m.d.sync += Cat(valid, words.valid).eq(Cat(self.filled.valid, valid))
        row = sum(Mux(bit, block.head_chunks << i, 0) for i, bit in enumerate(walk.row))
        with m.If(walk.step):
            m.d.sync += [
                s1_row.eq(row),
                s1_start.eq(block.base + walk.chunk),
                s1_tag.eq(walk.tag),
            ]
        with m.If(step & valid[0]):
            m.d.sync += [s2_entry.eq(s1_start + s1_row), s2_tag.eq(s1_tag)]
        with m.If(step & valid[1]):
            m.d.sync += s3_tag.eq(s2_tag)
            for bank, addr in enumerate(self.addr):
                # K: the bank holds one of the word's R/C chunks of a position, chunk j + dj.
                dj = reverse((s2_tag.mask ^ bank)[col_bits:])
                m.d.sync += addr.eq(s2_entry + Mux(s2_tag.is_v, 0, dj))
        self._route(m, step, valid, s3_tag)
        return m

    def _route(self, m, step, valid, tag):
        """Chunk ``lane`` of a word is in bank ``lane ^ mask``; for K ``order(lane) ^ mask``."""
        cfg = self.cfg
        size, word = 8 * cfg.port_bytes, register(m, self.words.payload)
        banks, end = list(self.data), len(valid) - 1
        if end > 3:
            banks = [Signal.like(bank, name="s5_data", reset_less=True) for bank in banks]
            with m.If(step & valid[3]):
                m.d.sync += [bank.eq(data) for bank, data in zip(banks, self.data)]
        for lane in range(cfg.ports):
            column, chunk = divmod(lane, cfg.k_chunks)
            high = reverse_int(chunk, log2(cfg.k_chunks))
            order = column + high * cfg.word_cols
            s4_bank = Signal(log2(cfg.ports), name=f"s4_bank_{lane}", reset_less=True)
            with m.If(step & valid[2]):
                m.d.sync += s4_bank.eq(tag.mask ^ Mux(tag.is_v, lane, order))
            bank = s4_bank
            if end > 3:
                bank = Signal.like(s4_bank, name=f"s5_bank_{lane}", reset_less=True)
                with m.If(step & valid[3]):
                    m.d.sync += bank.eq(s4_bank)
            with m.If(step & valid[end]):
                m.d.sync += word.word_select(lane, size).eq(Array(banks)[bank])


class KvBuffer(wiring.Component):
    """Turns K and V streams into tiles for the array.

    A block can be read when it is complete; several are on the way at a time, as many as
    ``kv_chunks`` holds. Up to one beat per port in and one word out per cycle.

    Members
    -------
    cmd : stream of kv_command, in; taken ahead of the beats; nothing in it is 0
    turns : stream of port numbers, in: of the streams' bursts, in order
    beats : streams of kv_beat, in, one per port; position-major
    words : stream of 8 * word_bytes bits, out. K: for each column-block of C positions, for each
        row-block of R dims, the tile (column c of a word at byte c * R). V: for each row-block of R
        positions, for each chunk, the tile (position i of a word at byte i * C). Positions and
        chunks that the stream does not have hold anything.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(kv_command(cfg))),
                "turns": In(stream.Signature(range(cfg.ports))),
                "beats": In(stream.Signature(kv_beat(cfg))).array(cfg.ports),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.commands = commands = Fifo(kv_command(cfg), COMMANDS)
        m.submodules.allocator = allocator = Allocator(cfg)
        m.submodules.filler = filler = Filler(cfg)
        m.submodules.blocks = blocks = Fifo(kv_block(cfg), BLOCKS)
        m.submodules.drainer = drainer = Drainer(cfg)
        # No path leads from who takes the words to the drainer's stages.
        m.submodules.drained = drained = Fifo(8 * cfg.word_bytes, 2)
        connect(m, flipped(self.cmd), commands.i)
        connect(m, commands.o, allocator.i)
        connect(m, allocator.o, filler.blocks)
        connect(m, flipped(self.turns), filler.turns)
        for outside, inside in zip(self.beats, filler.beats, strict=True):
            connect(m, flipped(outside), inside)
        connect(m, filler.filled, blocks.i)
        connect(m, blocks.o, drainer.filled)
        connect(m, drainer.words, drained.i)
        connect(m, drained.o, flipped(self.words))
        m.d.sync += [
            allocator.free.eq(drainer.free),
            allocator.free_cost.eq(drainer.free_cost),
        ]
        for index in range(cfg.ports):
            m.submodules[f"bank_{index}"] = bank = Ram(
                bank_entries(cfg), 8 * cfg.port_bytes, ultra="kv" in cfg.ultra
            )
            m.d.comb += [
                bank.w.en.eq(filler.en[index]),
                bank.w.addr.eq(filler.addr[index]),
                bank.w.data.eq(filler.data[index]),
                bank.r.en.eq(drainer.en),
                bank.r.addr.eq(drainer.addr[index]),
                drainer.data[index].eq(bank.r.data),
            ]
        return m

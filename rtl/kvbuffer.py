"""K and V on their way to the array: written position by position, read as tiles.

A block is up to R positions of one K or V stream. Chunk j of position t lies in bank
``(t % P) ^ f(j)``, where f(j) is ``j % P`` with its bits reversed, as entry
``base + (t // P) * head_chunks + j``. So both kinds of word find their P chunks in P different
banks: V takes P positions of one chunk (t % P runs through everything), K takes W positions
(the low bits of t) of R/C chunks (the low bits of j, which f turns into high bits).
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.rtl.layouts import kv_command
from tokenfabric.rtl.memory import Fifo, Ram

from tokenfabric.config import FabricConfig

__all__ = ["Allocator", "Drainer", "Filler", "KvBuffer"]

COMMANDS = 4  # waiting to be written
BLOCKS = 32  # written and not yet read


def _log2(value: int) -> int:
    return (value - 1).bit_length()


def _reverse(bits):
    return Cat(bits[i] for i in reversed(range(len(bits))))


def _reverse_int(value: int, bits: int) -> int:
    return sum((value >> i & 1) << (bits - 1 - i) for i in range(bits))


def _entries(cfg: FabricConfig) -> int:
    """Of one bank."""
    return cfg.kv_chunks // cfg.ports


def _block(cfg: FabricConfig) -> data.StructLayout:
    """``last`` is the number of its last position; ``cost`` is what it takes of the ring: its own
    entries, and those at the end of the banks that it left because it did not fit."""
    return data.StructLayout(
        {
            "is_v": unsigned(1),
            "head_chunks": unsigned(8),
            "last": unsigned(_log2(cfg.rows)),
            "base": unsigned(_log2(_entries(cfg))),
            "cost": unsigned(_entries(cfg).bit_length()),
        }
    )


class Allocator(wiring.Component):
    """Cuts streams into blocks and finds each a place in the ring when there is room.

    A block always gets room for R positions, in one piece. One block in 2 cycles.

    Members
    -------
    i : stream of kv_command, in
    o : stream of blocks, out, in order
    free, free_cost : in, strobe, a block has been read
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(kv_command(cfg))),
                "o": Out(stream.Signature(_block(cfg))),
                "free": In(1),
                "free_cost": In(_block(cfg)["cost"].shape),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i, o, rows = self.i, self.o, self.cfg.rows
        entries = _entries(self.cfg)
        left = Signal(16)  # positions
        base = Signal(range(entries + 1))
        used = Signal(range(entries + 1))
        taken = Signal.like(used)
        size = Signal(8 + _log2(rows // self.cfg.ports))
        more = Signal()
        m.d.comb += [
            size.eq(o.payload.head_chunks << _log2(rows // self.cfg.ports)),
            more.eq(left > rows),
            o.payload.last.eq(Mux(more, rows - 1, left - 1)),
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
                    m.d.sync += [base.eq(base + size), left.eq(left - rows)]
                    with m.If(more):
                        m.next = "PLACE"
                    with m.Else():
                        m.next = "TAKE"
        m.d.sync += used.eq(used + taken - Mux(self.free, self.free_cost, 0))
        return m


class Filler(wiring.Component):
    """Writes the beats of a block to the banks, one per cycle, without a pause between blocks.

    Members
    -------
    blocks : stream of blocks, in
    beats : stream of beats, in
    filled : stream of blocks, out; the banks hold the block two cycles later
    en : out, one bit per bank
    addr, data : out, for the bank that is enabled
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "blocks": In(stream.Signature(_block(cfg))),
                "beats": In(stream.Signature(8 * cfg.port_bytes)),
                "filled": Out(stream.Signature(_block(cfg))),
                "en": Out(cfg.ports),
                "addr": Out(_log2(_entries(cfg))),
                "data": Out(8 * cfg.port_bytes),
            }
        )

    def elaborate(self, platform):
        m = Module()
        beats, blocks, filled = self.beats, self.blocks, self.filled
        banks = _log2(self.cfg.ports)
        block = filled.payload
        busy = Signal()
        t = Signal.like(block.last)
        j = Signal(8)
        row = Signal.like(self.addr)  # entry of chunk 0 of position t
        bank = Signal(banks)
        take = Signal()
        end_j = Signal()
        end = Signal()
        m.d.comb += [
            end_j.eq(j + 1 == block.head_chunks),
            end.eq(end_j & (t == block.last)),
            beats.ready.eq(busy & filled.ready),
            take.eq(beats.valid & beats.ready),
            filled.valid.eq(busy & beats.valid & end),
            blocks.ready.eq(~busy | (take & end)),
            bank.eq(t[:banks] ^ _reverse(j[:banks])),
        ]
        m.d.sync += self.en.eq(Mux(take, 1 << bank, 0))
        with m.If(take):
            m.d.sync += [self.addr.eq(row + j), self.data.eq(beats.payload), j.eq(j + 1)]
            with m.If(end_j):
                m.d.sync += [j.eq(0), t.eq(t + 1)]
                with m.If(t[:banks].all()):
                    m.d.sync += row.eq(row + block.head_chunks)
        with m.If(blocks.ready):
            m.d.sync += [busy.eq(blocks.valid), t.eq(0), row.eq(blocks.payload.base)]
            m.d.sync += block.eq(blocks.payload)
        return m


class Drainer(wiring.Component):
    """Reads blocks in the order in which the array takes them, one word per cycle.

    LATENCY cycles from a block to its first word. A word that is not taken stops all stages.

    Members
    -------
    filled : stream of blocks, in
    free, free_cost : out, strobe, the block's last word is being read
    en, addr, data : the banks' read ports
    words : stream of words, out
    """

    LATENCY = 5

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "filled": In(stream.Signature(_block(cfg))),
                "free": Out(1),
                "free_cost": Out(_block(cfg)["cost"].shape),
                "en": Out(1),
                "addr": Out(_log2(_entries(cfg))).array(cfg.ports),
                "data": In(8 * cfg.port_bytes).array(cfg.ports),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, words, block = self.cfg, self.words, self.filled.payload
        lane_bits, col_bits = _log2(cfg.ports), _log2(cfg.word_cols)
        tag = data.StructLayout(
            {"is_v": 1, "mask": lane_bits, "end": 1, "cost": len(self.free_cost)}
        )
        step = Signal()
        valid = Signal(4)  # of stages 1 to 4
        s0_tag, s1_tag, s2_tag, s3_tag = (
            Signal(tag, name=f"s{i}_tag", reset_less=True) for i in range(4)
        )
        s0_row, s0_j = self.walk(m, step, s0_tag)
        s1_row = Signal.like(self.addr[0], reset_less=True)
        s1_start = Signal.like(self.addr[0], reset_less=True)
        s2_entry = Signal.like(self.addr[0], reset_less=True)
        m.d.comb += [
            step.eq(~words.valid | words.ready),
            self.en.eq(step & valid[2]),
            self.free.eq(self.en & s3_tag.end),
            self.free_cost.eq(s3_tag.cost),
        ]
        with m.If(step):
            m.d.sync += Cat(valid, words.valid).eq(Cat(self.filled.valid, valid))
        with m.If(step & self.filled.valid):
            m.d.sync += [
                s1_row.eq(sum(Mux(bit, block.head_chunks << i, 0) for i, bit in enumerate(s0_row))),
                s1_start.eq(block.base + s0_j),
                s1_tag.eq(s0_tag),
            ]
        with m.If(step & valid[0]):
            m.d.sync += [s2_entry.eq(s1_start + s1_row), s2_tag.eq(s1_tag)]
        with m.If(step & valid[1]):
            m.d.sync += s3_tag.eq(s2_tag)
            for bank, addr in enumerate(self.addr):
                # K: the bank holds one of the word's R/C chunks of a position, chunk j + dj.
                dj = _reverse((s2_tag.mask ^ bank)[col_bits:])
                m.d.sync += addr.eq(s2_entry + Mux(s2_tag.is_v, 0, dj))
        self.route(m, step, valid, s3_tag)
        return m

    def walk(self, m, step, tag):
        """Where the next word begins: returns (t // P, j) and sets ``tag``."""
        cfg, block = self.cfg, self.filled.payload
        lane_bits, col_bits = _log2(cfg.ports), _log2(cfg.word_cols)
        w = Signal(_log2(cfg.tile_cycles))  # word of the tile
        j = Signal(8)  # first chunk of the tile
        n = Signal(_log2(cfg.k_chunks))  # K: column-block of the block
        t = Signal.like(block.last)  # first position of the word
        following = Signal(9)
        end_j = Signal()
        end_n = Signal()
        m.d.comb += [
            t.eq(Mux(block.is_v, Cat(Const(0, lane_bits), w), Cat(Const(0, col_bits), w, n))),
            following.eq(j + Mux(block.is_v, 1, cfg.k_chunks)),
            end_j.eq(following >= block.head_chunks),
            end_n.eq(block.is_v | (n == block.last >> _log2(cfg.cols))),
            tag.is_v.eq(block.is_v),
            tag.cost.eq(block.cost),
            tag.end.eq(w.all() & end_j & end_n),
            tag.mask.eq(_reverse(j[:lane_bits])),
            self.filled.ready.eq(step & tag.end),
        ]
        with m.If(~block.is_v):
            m.d.comb += tag.mask[col_bits:].eq(t[col_bits:lane_bits])
        with m.If(step & self.filled.valid):
            m.d.sync += w.eq(w + 1)
            with m.If(w.all()):
                m.d.sync += j.eq(Mux(end_j, 0, following))
                with m.If(end_j):
                    m.d.sync += n.eq(Mux(end_n, 0, n + 1))
        return t[lane_bits:], j

    def route(self, m, step, valid, tag):
        """Chunk ``lane`` of a word is in bank ``lane ^ mask``; for K ``order(lane) ^ mask``."""
        cfg = self.cfg
        size = 8 * cfg.port_bytes
        for lane in range(cfg.ports):
            column, chunk = divmod(lane, cfg.k_chunks)
            high = _reverse_int(chunk, _log2(cfg.k_chunks))
            order = column + high * cfg.word_cols
            s4_bank = Signal(_log2(cfg.ports), name=f"s4_bank_{lane}", reset_less=True)
            with m.If(step & valid[2]):
                m.d.sync += s4_bank.eq(tag.mask ^ Mux(tag.is_v, lane, order))
            with m.If(step & valid[3]):
                m.d.sync += self.words.payload.word_select(lane, size).eq(Array(self.data)[s4_bank])


class KvBuffer(wiring.Component):
    """Turns K and V streams into tiles for the array.

    A block of R positions can be read when it is complete; several are on the way at a time, as
    many as ``kv_chunks`` holds. One beat in and one word out per cycle.

    Members
    -------
    cmd : stream of kv_command, in; taken ahead of the beats; nothing in it is 0
    beats : stream of beats, in, position-major
    words : stream of words, out. K: for each column-block of C positions, for each row-block of R
        dims, the tile (column c of a word at byte c * R). V: for each row-block of R positions, for
        each chunk, the tile (position i of a word at byte i * C). Positions and chunks that the
        stream does not have hold anything.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(kv_command(cfg))),
                "beats": In(stream.Signature(8 * cfg.port_bytes)),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.commands = commands = Fifo(kv_command(cfg), COMMANDS, block=False)
        m.submodules.allocator = allocator = Allocator(cfg)
        m.submodules.filler = filler = Filler(cfg)
        m.submodules.blocks = blocks = Fifo(_block(cfg), BLOCKS, block=False)
        m.submodules.drainer = drainer = Drainer(cfg)
        connect(m, flipped(self.cmd), commands.i)
        connect(m, commands.o, allocator.i)
        connect(m, allocator.o, filler.blocks)
        connect(m, flipped(self.beats), filler.beats)
        connect(m, filler.filled, blocks.i)
        connect(m, blocks.o, drainer.filled)
        connect(m, drainer.words, flipped(self.words))
        m.d.comb += [
            allocator.free.eq(drainer.free),
            allocator.free_cost.eq(drainer.free_cost),
        ]
        for index in range(cfg.ports):
            m.submodules[f"bank_{index}"] = bank = Ram(
                _entries(cfg), 8 * cfg.port_bytes, ultra="kv" in cfg.ultra
            )
            m.d.comb += [
                bank.w.en.eq(filler.en[index]),
                bank.w.addr.eq(filler.addr),
                bank.w.data.eq(filler.data),
                bank.r.en.eq(drainer.en),
                bank.r.addr.eq(drainer.addr[index]),
                drainer.data[index].eq(bank.r.data),
            ]
        return m

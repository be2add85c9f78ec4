"""K and V on their way to the array: written position by position, read as tiles.

A block is up to R positions (at least as many as a burst has beats) of one K or V stream. Chunk j
of position t lies in bank ``(t % P) ^ f(j)``, where f(j) is ``j % P`` with its bits reversed, as
entry ``base + (t // P) * head_chunks + j``. So both kinds of word find their P chunks in P
different banks: V takes P positions of one chunk (t % P runs through everything), K takes W
positions (the low bits of t) of R/C chunks (the low bits of j, which f turns into high bits).
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.rtl.layouts import kv_beat, kv_command
from tokenfabric.rtl.memory import Fifo, Ram

__all__ = ["Allocator", "Dealer", "Drainer", "Filler", "KvBuffer", "Lane"]

COMMANDS = 4  # waiting to be written
BLOCKS = 32  # written and not yet read
DEALT = 16  # bursts on their way into the banks


def _log2(value: int) -> int:
    return (value - 1).bit_length()


def _reverse(bits):
    return Cat(bits[i] for i in reversed(range(len(bits))))


def _reverse_int(value: int, bits: int) -> int:
    return sum((value >> i & 1) << (bits - 1 - i) for i in range(bits))


def _entries(cfg: FabricConfig) -> int:
    """Of one bank."""
    return cfg.kv_chunks // cfg.ports


def _positions(cfg: FabricConfig) -> int:
    """Of a block: with so many, every block but the last of a stream is whole bursts."""
    return max(cfg.rows, BURST_BEATS)


def _block(cfg: FabricConfig) -> data.StructLayout:
    """``last`` is the number of its last position; ``cost`` is what it takes of the ring: its own
    entries, and those at the end of the banks that it left because it did not fit."""
    return data.StructLayout(
        {
            "is_v": unsigned(1),
            "head_chunks": unsigned(8),
            "last": unsigned(_log2(_positions(cfg))),
            "base": unsigned(_log2(_entries(cfg))),
            "cost": unsigned(_entries(cfg).bit_length()),
        }
    )


class Allocator(wiring.Component):
    """Cuts streams into blocks and finds each a place in the ring when there is room.

    A block always gets room for all its positions, in one piece. One block in 2 cycles.

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
        i, o, positions = self.i, self.o, _positions(self.cfg)
        entries = _entries(self.cfg)
        left = Signal(16)  # positions
        base = Signal(range(entries + 1))
        used = Signal(range(entries + 1))
        taken = Signal.like(used)
        size = Signal(8 + _log2(positions // self.cfg.ports))
        more = Signal()
        m.d.comb += [
            size.eq(o.payload.head_chunks << _log2(positions // self.cfg.ports)),
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


def _job(cfg: FabricConfig) -> data.StructLayout:
    """Where the beats of a burst go: from chunk ``j`` of position ``t`` on; ``row`` is the entry of
    chunk 0 of that position."""
    return data.StructLayout(
        {
            "head_chunks": unsigned(8),
            "t": unsigned(_log2(cfg.ports)),
            "j": unsigned(8),
            "row": unsigned(_log2(_entries(cfg))),
        }
    )


class Dealer(wiring.Component):
    """Tells the lanes where the bursts of a block go, and when the lanes have written all of it.

    Streams begin with a whole burst, and blocks are whole bursts but the last of a stream. One
    burst in two cycles: it is computed in the first and given in the second.

    Members
    -------
    blocks : stream of blocks, in
    turns : stream of port numbers, in: whose burst is next
    jobs : stream of jobs, out, one per lane
    done : in, one strobe per lane: it has written a burst
    filled : stream of blocks, out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "blocks": In(stream.Signature(_block(cfg))),
                "turns": In(stream.Signature(range(cfg.ports))),
                "jobs": Out(stream.Signature(_job(cfg))).array(cfg.ports),
                "done": In(cfg.ports),
                "filled": Out(stream.Signature(_block(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, block = self.cfg, self.blocks.payload
        lane_bits = _log2(cfg.ports)
        dealt = data.StructLayout({"port": lane_bits, "end": 1, "block": _block(cfg)})
        m.submodules.dealt = waiting = Fifo(dealt, DEALT)
        t = Signal(_log2(_positions(cfg)) + 1)  # of the next burst's first beat
        j = Signal(8)
        whole, part = Signal(5), Signal(4)  # positions of a burst, chunks besides
        with m.Switch(block.head_chunks):
            for chunks in range(1, cfg.max_head_chunks + 1):
                with m.Case(chunks):
                    m.d.comb += [whole.eq(BURST_BEATS // chunks), part.eq(BURST_BEATS % chunks)]
        over = Signal()
        next_t, next_j, end = Signal.like(t), Signal(8), Signal()
        row = sum(Mux(bit, block.head_chunks << i, 0) for i, bit in enumerate(t[lane_bits:-1]))
        prepared, job = Signal(), Signal(_job(cfg))
        given, port = Signal(), self.turns.payload
        m.d.comb += [
            over.eq(j + part >= block.head_chunks),
            given.eq(
                prepared
                & self.turns.valid
                & waiting.i.ready
                & Array(lane.ready for lane in self.jobs)[port]
            ),
            self.turns.ready.eq(given),
            waiting.i.valid.eq(given),
            waiting.i.payload.port.eq(port),
            waiting.i.payload.end.eq(end),
            waiting.i.payload.block.eq(block),
            self.blocks.ready.eq(given & end),
        ]
        for index, lane in enumerate(self.jobs):
            m.d.comb += [lane.payload.eq(job), lane.valid.eq(given & (port == index))]
        m.d.sync += prepared.eq(self.blocks.valid & ~prepared)
        with m.If(prepared & ~given):
            m.d.sync += prepared.eq(1)
        past = t + whole  # and one more, if the burst's rest ends a position
        m.d.sync += [
            job.head_chunks.eq(block.head_chunks),
            job.t.eq(t),
            job.j.eq(j),
            job.row.eq(block.base + row),
            next_j.eq(j + part - Mux(over, block.head_chunks, 0)),
            next_t.eq(past + over),
            end.eq(Mux(over, past >= block.last, past > block.last)),
        ]
        with m.If(given):
            m.d.sync += [t.eq(Mux(end, 0, next_t)), j.eq(Mux(end, 0, next_j))]
        self.collect(m, waiting.o)
        return m

    def collect(self, m, burst):
        """Bursts are taken off in order, each when its lane has written it."""
        written = []  # bursts of a lane that have not been taken off
        taken = Signal()
        for index in range(self.cfg.ports):
            count = Signal(range(DEALT + 1), name=f"written_{index}")
            m.d.sync += count.eq(count + self.done[index] - (taken & (burst.payload.port == index)))
            written.append(count != 0)
        complete = burst.valid & Array(written)[burst.payload.port]
        m.d.comb += [
            self.filled.valid.eq(complete & burst.payload.end),
            self.filled.payload.eq(burst.payload.block),
            taken.eq(complete & (self.filled.ready | ~burst.payload.end)),
            burst.ready.eq(taken),
        ]


class Lane(wiring.Component):
    """Walks through the beats of a port's bursts and asks for the bank of each.

    Members
    -------
    jobs : stream of jobs, in
    beats : stream of {data, last of its burst}, in
    bank, addr, data : out, where a beat goes; ``valid``, and ``ready`` when it is being written
    done : out, strobe, the burst's last beat is being written
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "jobs": In(stream.Signature(_job(cfg))),
                "beats": In(stream.Signature(kv_beat(cfg))),
                "valid": Out(1),
                "ready": In(1),
                "bank": Out(range(cfg.ports)),
                "addr": Out(_log2(_entries(cfg))),
                "data": Out(8 * cfg.port_bytes),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        banks = _log2(self.cfg.ports)
        m.submodules.queue = queue = Fifo(_job(self.cfg), 4)
        # No path leads through the choice of banks to who reads memory.
        m.submodules.arrived = arrived = Fifo(kv_beat(self.cfg), 2)
        connect(m, flipped(self.jobs), queue.i)
        connect(m, flipped(self.beats), arrived.i)
        job, beat = Signal(_job(self.cfg)), arrived.o.payload
        busy, end_j, go = Signal(), Signal(), Signal()
        following = Signal(_job(self.cfg))  # where the beat after this one goes
        m.d.comb += [
            self.valid.eq(busy & arrived.o.valid),
            self.addr.eq(job.row + job.j),
            self.data.eq(beat.data),
            go.eq(self.valid & self.ready),
            arrived.o.ready.eq(go),
            self.done.eq(go & beat.last),
            queue.o.ready.eq(~busy | self.done),
            end_j.eq(job.j + 1 == job.head_chunks),
        ]
        m.d.comb += following.eq(job)
        with m.If(queue.o.ready):
            m.d.sync += busy.eq(queue.o.valid)
            m.d.comb += following.eq(queue.o.payload)
        with m.Else():
            m.d.comb += following.j.eq(Mux(end_j, 0, job.j + 1))
            with m.If(end_j):
                m.d.comb += following.t.eq(job.t + 1)
                with m.If(job.t.all()):
                    m.d.comb += following.row.eq(job.row + job.head_chunks)
        with m.If(queue.o.ready | go):
            m.d.sync += job.eq(following)
            m.d.sync += self.bank.eq(following.t ^ _reverse(following.j[:banks]))
        return m


class Filler(wiring.Component):
    """Writes the beats of a block to the banks: of each port one per cycle, if their banks differ.

    The ports walk through the same pattern of banks, so once out of step they hardly meet: four
    beats per cycle with heads of 4, 6 or 8 chunks, about three with 3 or 16.

    Members
    -------
    blocks : stream of blocks, in
    turns : stream of port numbers, in: whose burst is next
    beats : streams of beats, in, one per port
    filled : stream of blocks, out; the banks hold the block
    en, addr, data : out, the banks' write ports
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "blocks": In(stream.Signature(_block(cfg))),
                "turns": In(stream.Signature(range(cfg.ports))),
                "beats": In(stream.Signature(kv_beat(cfg))).array(cfg.ports),
                "filled": Out(stream.Signature(_block(cfg))),
                "en": Out(cfg.ports),
                "addr": Out(_log2(_entries(cfg))).array(cfg.ports),
                "data": Out(8 * cfg.port_bytes).array(cfg.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dealer = dealer = Dealer(self.cfg)
        connect(m, flipped(self.blocks), dealer.blocks)
        connect(m, flipped(self.turns), dealer.turns)
        connect(m, dealer.filled, flipped(self.filled))
        lanes = [Lane(self.cfg) for _ in range(self.cfg.ports)]
        for index, lane in enumerate(lanes):
            m.submodules[f"lane_{index}"] = lane
            connect(m, dealer.jobs[index], lane.jobs)
            connect(m, flipped(self.beats[index]), lane.beats)
        # The first of the lanes that want a bank gets it.
        granted = [
            ~Cat(other.valid & (other.bank == lane.bank) for other in lanes[:index]).any()
            for index, lane in enumerate(lanes)
        ]
        for bank in range(self.cfg.ports):
            wanted = [lane.valid & (lane.bank == bank) for lane in lanes]
            choice = 0
            for index in reversed(range(len(lanes))):
                choice = Mux(wanted[index], index, choice)
            m.d.sync += [
                self.en[bank].eq(Cat(wanted).any()),
                self.addr[bank].eq(Array(lane.addr for lane in lanes)[choice]),
                self.data[bank].eq(Array(lane.data for lane in lanes)[choice]),
            ]
        done = Cat(lane.done for lane in lanes)
        m.d.comb += [lane.ready.eq(grant) for lane, grant in zip(lanes, granted, strict=True)]
        m.d.sync += dealer.done.eq(done)
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
        row_bits = _log2(cfg.rows)
        n = Signal(_log2(_positions(cfg) // cfg.cols))  # column-block of the block, V: row-block
        t = Signal.like(block.last)  # first position of the word
        following = Signal(9)
        end_j = Signal()
        end_n = Signal()
        m.d.comb += [
            t.eq(Mux(block.is_v, Cat(Const(0, lane_bits), w, n), Cat(Const(0, col_bits), w, n))),
            following.eq(j + Mux(block.is_v, 1, cfg.k_chunks)),
            end_j.eq(following >= block.head_chunks),
            end_n.eq(n == Mux(block.is_v, block.last >> row_bits, block.last >> _log2(cfg.cols))),
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

    A block can be read when it is complete; several are on the way at a time, as many as
    ``kv_chunks`` holds. Up to one beat per port in and one word out per cycle.

    Members
    -------
    cmd : stream of kv_command, in; taken ahead of the beats; nothing in it is 0
    turns : stream of port numbers, in: of the streams' bursts, in order
    beats : streams of {data, last of its burst}, in, one per port; position-major
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
        m.submodules.blocks = blocks = Fifo(_block(cfg), BLOCKS)
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
                _entries(cfg), 8 * cfg.port_bytes, ultra="kv" in cfg.ultra
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

"""K and V on their way into the banks of KvBuffer: blocks get room, bursts their places.

A block is up to R positions (at least as many as a burst has beats) of one K or V stream. Chunk j
of position t lies in bank ``(t % P) ^ f(j)``, where f(j) is ``j % P`` with its bits reversed, as
entry ``base + (t // P) * head_chunks + j``. So both kinds of word find their P chunks in P
different banks: V takes P positions of one chunk (t % P runs through everything), K takes W
positions (the low bits of t) of R/C chunks (the low bits of j, which f turns into high bits).
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.rtl.layouts import kv_beat
from tokenfabric.rtl.memory import Fifo

__all__ = [
    "BurstLane",
    "Collector",
    "Dealer",
    "Filler",
    "bank_entries",
    "block_positions",
    "burst_place",
    "dealt_burst",
    "kv_block",
    "log2",
    "reverse",
    "reverse_int",
]

DEALT = 16  # bursts on their way into the banks


def log2(value: int) -> int:
    """Bits of 0 .. value - 1."""
    return (value - 1).bit_length()


def reverse(bits):
    """The lowest bit first."""
    return Cat(bits[i] for i in reversed(range(len(bits))))


def reverse_int(value: int, bits: int) -> int:
    """:func:`reverse` of a number of so many bits."""
    return sum((value >> i & 1) << (bits - 1 - i) for i in range(bits))


def bank_entries(cfg: FabricConfig) -> int:
    """Chunks in one bank."""
    return cfg.kv_chunks // cfg.ports


def block_positions(cfg: FabricConfig) -> int:
    """Positions of a block: with so many, every block but the last of a stream is whole bursts."""
    return max(cfg.rows, BURST_BEATS)


def kv_block(cfg: FabricConfig) -> data.StructLayout:
    """``last`` is the number of its last position; ``cost`` is what it takes of the ring: its own
    entries, and those at the end of the banks that it left because it did not fit."""
    return data.StructLayout(
        {
            "is_v": unsigned(1),
            "head_chunks": unsigned(8),
            "last": unsigned(log2(block_positions(cfg))),
            "base": unsigned(log2(bank_entries(cfg))),
            "cost": unsigned(bank_entries(cfg).bit_length()),
        }
    )


def burst_place(cfg: FabricConfig) -> data.StructLayout:
    """Where the beats of a burst go: from chunk ``j`` of position ``t`` on; ``row`` is the entry of
    chunk 0 of that position."""
    return data.StructLayout(
        {
            "head_chunks": unsigned(8),
            "t": unsigned(log2(cfg.ports)),
            "j": unsigned(8),
            "row": unsigned(log2(bank_entries(cfg))),
        }
    )


def dealt_burst(cfg: FabricConfig) -> data.StructLayout:
    """A burst that a lane has been told of; ``end``: the last of its block."""
    return data.StructLayout({"port": log2(cfg.ports), "end": 1, "block": kv_block(cfg)})


class Collector(wiring.Component):
    """Takes dealt bursts off in order, each when its lane has written it: one per cycle.

    Members
    -------
    i : stream of dealt_burst, in
    done : in, ``ports`` bits, one strobe per lane: it has written a burst; its bursts in order, and
        at most DEALT ahead of ``i``
    filled : stream of kv_block, out, in the cycle in which the block's last burst is taken off
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(dealt_burst(cfg))),
                "done": In(cfg.ports),
                "filled": Out(stream.Signature(kv_block(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        burst = self.i.payload
        written = []  # bursts of a lane that have not been taken off
        taken = Signal()
        for index in range(self.cfg.ports):
            count = Signal(range(DEALT + 1), name=f"written_{index}")
            m.d.sync += count.eq(count + self.done[index] - (taken & (burst.port == index)))
            written.append(count != 0)
        complete = self.i.valid & Array(written)[burst.port]
        m.d.comb += [
            self.filled.valid.eq(complete & burst.end),
            self.filled.payload.eq(burst.block),
            taken.eq(complete & (self.filled.ready | ~burst.end)),
            self.i.ready.eq(taken),
        ]
        return m


class Dealer(wiring.Component):
    """Tells the lanes where the bursts of a block go, and when the lanes have written all of it.

    Streams begin with a whole burst, and blocks are whole bursts but the last of a stream. One
    burst in two cycles: it is computed in the first and given in the second.

    Members
    -------
    blocks : stream of kv_block, in
    turns : stream of port numbers, in: whose burst is next
    jobs : streams of burst_place, out, one per lane
    done : in, ``ports`` bits, one strobe per lane: it has written a burst
    filled : stream of kv_block, out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "blocks": In(stream.Signature(kv_block(cfg))),
                "turns": In(stream.Signature(range(cfg.ports))),
                "jobs": Out(stream.Signature(burst_place(cfg))).array(cfg.ports),
                "done": In(cfg.ports),
                "filled": Out(stream.Signature(kv_block(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, block = self.cfg, self.blocks.payload
        lane_bits = log2(cfg.ports)
        m.submodules.dealt = waiting = Fifo(dealt_burst(cfg), DEALT)
        m.submodules.collector = collector = Collector(cfg)
        connect(m, waiting.o, collector.i)
        connect(m, collector.filled, flipped(self.filled))
        t = Signal(log2(block_positions(cfg)) + 1)  # of the next burst's first beat
        j = Signal(8)
        whole, part = Signal(5), Signal(5)  # positions of a burst, chunks besides
        with m.Switch(block.head_chunks):
            for chunks in range(1, cfg.max_head_chunks + 1):
                with m.Case(chunks):
                    m.d.comb += [whole.eq(BURST_BEATS // chunks), part.eq(BURST_BEATS % chunks)]
        over = Signal()
        next_t, next_j, end = Signal.like(t), Signal(8), Signal()
        row = sum(Mux(bit, block.head_chunks << i, 0) for i, bit in enumerate(t[lane_bits:-1]))
        prepared, job = Signal(), Signal(burst_place(cfg))
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
            collector.done.eq(self.done),
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
        return m


class BurstLane(wiring.Component):
    """Walks through the beats of a port's bursts and asks for the bank of each.

    One beat per cycle, also from burst to burst; the first two cycles after it came and after its
    burst's place came.

    Members
    -------
    jobs : stream of burst_place, in
    beats : stream of kv_beat, in
    valid, ready : out, in, 1 bit: there is a beat; it is being written
    bank, addr, data : out, range(ports), range(bank_entries), 8 * port_bytes: where it goes, and it
    done : out, 1 bit, strobe, the burst's last beat is being written
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "jobs": In(stream.Signature(burst_place(cfg))),
                "beats": In(stream.Signature(kv_beat(cfg))),
                "valid": Out(1),
                "ready": In(1),
                "bank": Out(range(cfg.ports)),
                "addr": Out(log2(bank_entries(cfg))),
                "data": Out(8 * cfg.port_bytes),
                "done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        banks = log2(self.cfg.ports)
        m.submodules.queue = queue = Fifo(burst_place(self.cfg), 4)
        # No path leads through the choice of banks to who reads memory.
        m.submodules.arrived = arrived = Fifo(kv_beat(self.cfg), 2)
        connect(m, flipped(self.jobs), queue.i)
        connect(m, flipped(self.beats), arrived.i)
        job, beat = Signal(burst_place(self.cfg)), arrived.o.payload
        busy, end_j, go = Signal(), Signal(), Signal()
        following = Signal(burst_place(self.cfg))  # where the beat after this one goes
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
            m.d.sync += self.bank.eq(following.t ^ reverse(following.j[:banks]))
        return m


class Filler(wiring.Component):
    """Writes the beats of a block to the banks: of each port one per cycle, if their banks differ.

    The ports walk through the same pattern of banks, so once out of step they hardly meet: four
    beats per cycle with heads of 4, 6 or 8 chunks, about three with 3 or 16.

    Members
    -------
    blocks : stream of kv_block, in
    turns : stream of port numbers, in: whose burst is next
    beats : streams of kv_beat, in, one per port
    filled : stream of kv_block, out; the banks hold the block
    en : out, ``ports`` bits; addr, data : out, one per bank: the banks' write ports
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "blocks": In(stream.Signature(kv_block(cfg))),
                "turns": In(stream.Signature(range(cfg.ports))),
                "beats": In(stream.Signature(kv_beat(cfg))).array(cfg.ports),
                "filled": Out(stream.Signature(kv_block(cfg))),
                "en": Out(cfg.ports),
                "addr": Out(log2(bank_entries(cfg))).array(cfg.ports),
                "data": Out(8 * cfg.port_bytes).array(cfg.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dealer = dealer = Dealer(self.cfg)
        connect(m, flipped(self.blocks), dealer.blocks)
        connect(m, flipped(self.turns), dealer.turns)
        connect(m, dealer.filled, flipped(self.filled))
        lanes = [BurstLane(self.cfg) for _ in range(self.cfg.ports)]
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

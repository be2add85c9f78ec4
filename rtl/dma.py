"""Reading DRAM: the ports, the weight stream that runs ahead, and fetches in order."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.rtl.axi import read_master
from tokenfabric.rtl.burst import (
    BLOCK_BITS,
    LEN_BITS,
    Splitter,
    WindowCheck,
    beat_bits,
    burst,
    read_client,
)
from tokenfabric.rtl.layouts import (
    ADDRESS_BITS,
    BeatTag,
    fetch_beat,
    fetch_command,
    kv_beat,
    stream_command,
    windows,
)
from tokenfabric.rtl.memory import Fifo

__all__ = ["LEAD", "Fetch", "FetchLane", "ReadPort", "WeightPort", "WeightStream"]

OWNERS = 16  # bursts in flight that a port remembers
FETCH_BEATS = 64  # per port
FETCH_BURSTS = 32  # of all ports, in flight: of K and V, of all others
LANE_BURSTS = 16  # of a port, in flight
LEAD = 4  # bursts that a port may be ahead of the slowest in the weight stream


class ReadPort(wiring.Component):
    """One AXI read port, shared by WeightStream and Fetch (Fetch first).

    Bursts outside the window are dropped and raise ``error_window``. Latency 3 cycles from a burst
    to AR, 1 from R to the client; one burst and one beat per cycle.

    Members
    -------
    weights, fetch : read_client, in
    axi : read_master, out
    windows : in, layouts.windows(), steady while bursts come
    halt : in, 1 bit: no burst is announced any more; one that stands on AR stays until accepted
    quiet : out, 1 bit: nothing is in flight; while ``halt`` it stays so
    error_window, error_axi : out, 1 bit, stay high until reset
    beat : out, 1 bit, strobe for each beat that arrived
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "weights": In(read_client(cfg)),
                "fetch": In(read_client(cfg)),
                "axi": Out(read_master(cfg.port_bytes)),
                "windows": In(windows()),
                "halt": In(1),
                "quiet": Out(1),
                "error_window": Out(1),
                "error_axi": Out(1),
                "beat": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi, weights, fetch = self.axi, self.weights, self.fetch
        m.submodules.check = check = WindowCheck(self.cfg)
        m.submodules.owners = owners = Fifo(1, OWNERS)
        free = Signal()  # AR can take a burst
        issue = Signal()
        m.d.comb += [
            check.windows.eq(self.windows),
            check.i.valid.eq(fetch.burst.valid | weights.burst.valid),
            check.i.payload.eq(
                Mux(fetch.burst.valid, fetch.burst.payload, weights.burst.payload.as_value())
            ),
            check.fetch.eq(fetch.burst.valid),
            fetch.burst.ready.eq(check.i.ready),
            weights.burst.ready.eq(check.i.ready & ~fetch.burst.valid),
            free.eq((~axi.arvalid | axi.arready) & ~self.halt & owners.i.ready),
            check.o.ready.eq(free),
            issue.eq(free & check.o.valid & check.o.payload.ok),
            owners.i.valid.eq(issue),
            owners.i.payload.eq(check.o.payload.fetch),
            axi.arsize.eq(beat_bits(self.cfg)),
            axi.arburst.eq(1),
        ]
        with m.If(issue):
            m.d.sync += [axi.arvalid.eq(1), axi.araddr.eq(check.o.payload.addr)]
            m.d.sync += axi.arlen.eq(check.o.payload.len)
        with m.Elif(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(free & check.o.valid & ~check.o.payload.ok):
            m.d.sync += self.error_window.eq(1)
        self._receive(m, owners.o, issue)
        return m

    def _receive(self, m, owner, issue):
        """Beats to whose burst is the oldest in flight; what is in flight."""
        axi = self.axi
        in_flight = Signal(range(OWNERS + 3))
        done = Signal()
        word = Signal.like(axi.rdata, reset_less=True)
        m.d.comb += [
            axi.rready.eq(1),
            # After a download beats may still come that the design before asked for.
            done.eq(axi.rvalid & axi.rlast & (in_flight != 0)),
            # The owner is known by then: it was queued with AR, two cycles before data can come.
            owner.ready.eq(done),
            self.quiet.eq(in_flight == 0),
            self.weights.data.eq(word),
            self.fetch.data.eq(word),
        ]
        m.d.sync += [
            in_flight.eq(in_flight + issue - done),
            self.weights.valid.eq(axi.rvalid & ~owner.payload),
            self.fetch.valid.eq(axi.rvalid & owner.payload),
            self.beat.eq(axi.rvalid),
        ]
        with m.If(axi.rvalid):
            m.d.sync += word.eq(axi.rdata)
            with m.If(axi.rresp != 0):
                m.d.sync += self.error_axi.eq(1)


class WeightPort(wiring.Component):
    """What one port does for WeightStream: whole bursts, as far ahead as its FIFO has room.

    One burst per cycle, one beat per cycle.

    Members
    -------
    load, command, first : in, 1 bit, stream_command, a block's number: strobe that starts
        ``command`` (steady after it); ``first`` is the port's first burst, in blocks of 16 beats
    hold : in, 1 bit: no burst is requested
    asked : out, 1 bit, strobe: a burst is requested
    idle : out, 1 bit: every burst of the command has been requested
    full : out, 1 bit: a burst waits for room
    port : read_client, out
    o : stream of 8 * port_bytes bits, out: the beats, 2 cycles after each came
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "load": In(1),
                "command": In(stream_command(cfg)),
                "first": In(ADDRESS_BITS - beat_bits(cfg) - BLOCK_BITS),
                "hold": In(1),
                "asked": Out(1),
                "idle": Out(1),
                "full": Out(1),
                "port": Out(read_client(cfg)),
                "o": Out(stream.Signature(8 * cfg.port_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        request = self.port.burst
        depth = self.cfg.weight_fifo_beats
        m.submodules.fifo = fifo = Fifo(
            8 * self.cfg.port_bytes, depth, ultra="weights" in self.cfg.ultra
        )
        credit = Signal(range(depth + 1), init=depth)  # beats neither requested nor in the FIFO
        in_flight = Signal(range(self.cfg.outstanding + 1))
        arrived = Signal(BLOCK_BITS)
        popped = Signal()
        asked = self.asked
        connect(m, fifo.o, flipped(self.o))
        m.d.comb += [
            fifo.i.valid.eq(self.port.valid),
            fifo.i.payload.eq(self.port.data),
            asked.eq(request.valid & request.ready),
            self.full.eq(~self.idle & (credit < BURST_BEATS)),
            request.valid.eq(
                ~self.idle
                & ~self.hold
                & (credit >= BURST_BEATS)
                & (in_flight < self.cfg.outstanding)
            ),
        ]
        m.d.sync += [
            popped.eq(self.o.valid & self.o.ready),
            credit.eq(credit + popped - Mux(asked, BURST_BEATS, 0)),
            arrived.eq(arrived + self.port.valid),
            in_flight.eq(in_flight + asked - (self.port.valid & arrived.all())),
        ]
        self._count(m, asked)
        return m

    def _count(self, m, asked):
        """The address of the next burst, and how many are left of the command."""
        block = Signal.like(self.first)
        superblocks = Signal(32)  # left in this pass
        repeats = Signal(32)
        final = Signal()  # superblocks == 1
        busy = Signal()
        m.d.comb += [
            self.idle.eq(~busy),
            self.port.burst.payload.addr.eq(block << (ADDRESS_BITS - len(block))),
            self.port.burst.payload.beats.eq(BURST_BEATS),
        ]
        with m.If(self.load | (asked & final)):
            m.d.sync += [
                block.eq(self.first),
                superblocks.eq(self.command.superblocks),
                final.eq(self.command.superblocks == 1),
            ]
        with m.Elif(asked):
            m.d.sync += [
                block.eq(block + self.cfg.ports),
                superblocks.eq(superblocks - 1),
                final.eq(superblocks == 2),
            ]
        with m.If(self.load):
            m.d.sync += repeats.eq(self.command.repeats)
            m.d.sync += busy.eq((self.command.superblocks != 0) & (self.command.repeats != 0))
        with m.Elif(asked & final):
            m.d.sync += [repeats.eq(repeats - 1), busy.eq(repeats != 1)]


class WeightStream(wiring.Component):
    """The weights in the order of use, one word per cycle, running ahead of who takes them.

    Superblock s lies at ``offset + s * superblock_bytes``, 16 beats for each port in turn. Each
    port runs on its own, at most LEAD bursts ahead of the slowest, with at most ``cfg.outstanding``
    bursts in flight, ``weight_fifo_beats`` ahead. ``offset`` is a multiple of 16 beats (lower bits
    are ignored).

    Members
    -------
    start : stream of stream_command, in; taken when all of the one before has been requested
    ports : read_client, out, one per port
    words : stream of 8 * word_bytes bits, out; port 0's beat in the low bits
    full : out, 1 bit, strobe: a port could not request because its FIFO has no room
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(stream.Signature(stream_command(cfg))),
                "ports": Out(read_client(cfg)).array(cfg.ports),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
                "full": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        start, words = self.start, self.words
        command = Signal.like(start.payload)
        load = Signal()
        ports = [WeightPort(self.cfg) for _ in range(self.cfg.ports)]
        # Far apart the ports would read different rows of the same banks.
        leads = [Signal(range(LEAD + 1), name=f"lead_{index}") for index in range(len(ports))]
        level = Signal()
        m.d.comb += level.eq(Cat(lead != 0 for lead in leads).all())
        for index, (port, lead) in enumerate(zip(ports, leads, strict=True)):
            m.d.comb += port.hold.eq(lead == LEAD)
            m.d.sync += lead.eq(lead + port.asked - level)
            m.submodules[f"port_{index}"] = port
            connect(m, port.port, flipped(self.ports[index]))
            m.d.comb += [
                port.load.eq(load),
                port.command.eq(command),
                port.first.eq((command.offset >> (ADDRESS_BITS - len(port.first))) + index),
                port.o.ready.eq(words.ready & words.valid),
            ]
        m.d.comb += [
            start.ready.eq(Cat(port.idle for port in ports).all() & ~load),
            words.valid.eq(Cat(port.o.valid for port in ports).all()),
            words.payload.eq(Cat(port.o.payload for port in ports)),
        ]
        m.d.sync += [
            load.eq(start.valid & start.ready),
            self.full.eq(Cat(port.full for port in ports).any()),
        ]
        with m.If(start.valid & start.ready):
            m.d.sync += command.eq(start.payload)
        return m


class FetchLane(wiring.Component):
    """What one port does for Fetch: a FIFO with room for all it asks for; K and V leave it here.

    One burst and one beat per cycle; a beat is offered 2 cycles after it came.

    Members
    -------
    i : stream of burst, in; taken when the port takes it and there is room for a whole burst
    is_kv : in, 1 bit, beside ``i``: a burst of K or V
    port : read_client, out
    kv : stream of kv_beat, out: the beats of K and V
    o : stream of kv_beat, out: all others
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(burst(cfg))),
                "is_kv": In(1),
                "port": Out(read_client(cfg)),
                "kv": Out(stream.Signature(kv_beat(cfg))),
                "o": Out(stream.Signature(kv_beat(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i, port, kv, o = self.i, self.port, self.kv, self.o
        sent = data.StructLayout({"beats": LEN_BITS, "kv": 1})
        m.submodules.fifo = fifo = Fifo(8 * self.cfg.port_bytes, FETCH_BEATS)
        m.submodules.bursts = bursts = Fifo(sent, LANE_BURSTS)
        # Beats that are neither asked for nor here.
        credit = Signal(range(FETCH_BEATS + 1), init=FETCH_BEATS)
        count = Signal(BLOCK_BITS)
        room, asked, end, there = Signal(), Signal(), Signal(), Signal()
        head = bursts.o.payload
        m.d.comb += [
            room.eq((credit >= BURST_BEATS) & bursts.i.ready),
            port.burst.payload.eq(i.payload),
            port.burst.valid.eq(i.valid & room),
            i.ready.eq(port.burst.ready & room),
            asked.eq(port.burst.valid & port.burst.ready),
            fifo.i.valid.eq(port.valid),
            fifo.i.payload.eq(port.data),
            bursts.i.valid.eq(asked),
            bursts.i.payload.beats.eq(i.payload.beats),
            bursts.i.payload.kv.eq(self.is_kv),
            there.eq(fifo.o.valid & bursts.o.valid),
            end.eq(count + 1 == head.beats),
            fifo.o.ready.eq((o.valid & o.ready) | (kv.valid & kv.ready)),
            bursts.o.ready.eq(fifo.o.ready & end),
            kv.valid.eq(there & head.kv),
            o.valid.eq(there & ~head.kv),
        ]
        for side in (kv, o):
            m.d.comb += [side.payload.data.eq(fifo.o.payload), side.payload.last.eq(end)]
        with m.If(fifo.o.ready):
            m.d.sync += count.eq(Mux(end, 0, count + 1))
        m.d.sync += credit.eq(credit + fifo.o.ready - Mux(asked, i.payload.beats, 0))
        return m


class Fetch(wiring.Component):
    """Reads of any length, their bursts dealt to the ports in turn.

    K and V come port by port, each port's in order, with ``kv_turns`` to say whose burst is next:
    one beat per port and cycle. All others' beats come in order, one per cycle at best. Each port
    may be 64 beats ahead.

    Members
    -------
    cmd : stream of fetch_command, in; ``beats`` is not 0
    ports : read_client, out, one per port
    out : stream of fetch_beat, out; the first beat of a burst 4 cycles after it came, at the
        earliest
    kv : streams of kv_beat, out, one per port; 2 cycles after it came
    kv_turns : stream of port numbers, out, one for each burst of K or V
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(fetch_command(cfg))),
                "ports": Out(read_client(cfg)).array(cfg.ports),
                "out": Out(stream.Signature(fetch_beat(cfg))),
                "kv": Out(stream.Signature(kv_beat(cfg))).array(cfg.ports),
                "kv_turns": Out(stream.Signature(range(cfg.ports))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        turn = Signal(range(self.cfg.ports))  # the port of the next burst
        order = data.StructLayout({"port": turn.shape(), "tag": BeatTag, "last": 1})
        m.submodules.splitter = splitter = Splitter(self.cfg)
        m.submodules.order = queue = Fifo(order, FETCH_BURSTS)
        m.submodules.turns = turns = Fifo(turn.shape(), FETCH_BURSTS)
        # No path leads from who asks to the splitter's arithmetic, nor back.
        m.submodules.commands = commands = Fifo(fetch_command(self.cfg), 2)
        connect(m, commands.i, flipped(self.cmd))
        connect(m, splitter.i, commands.o)
        connect(m, turns.o, flipped(self.kv_turns))
        bursts = splitter.o
        is_kv = bursts.payload.tag == BeatTag.KV
        room, asked = Mux(is_kv, turns.i.ready, queue.i.ready), Signal()
        lanes = [FetchLane(self.cfg) for _ in self.ports]
        for index, lane in enumerate(lanes):
            m.submodules[f"lane_{index}"] = lane
            connect(m, lane.port, flipped(self.ports[index]))
            connect(m, lane.kv, flipped(self.kv[index]))
            m.d.comb += [
                lane.i.payload.eq(bursts.payload.burst),
                lane.i.valid.eq(bursts.valid & room & (turn == index)),
                lane.is_kv.eq(is_kv),
            ]
        m.d.comb += [
            bursts.ready.eq(room & Array(lane.i.ready for lane in lanes)[turn]),
            asked.eq(bursts.valid & bursts.ready),
            turns.i.valid.eq(asked & is_kv),
            turns.i.payload.eq(turn),
            queue.i.valid.eq(asked & ~is_kv),
            queue.i.payload.port.eq(turn),
            queue.i.payload.tag.eq(bursts.payload.tag),
            queue.i.payload.last.eq(bursts.payload.last),
        ]
        m.d.sync += turn.eq(turn + asked)
        self._gather(m, queue.o, lanes)
        return m

    def _gather(self, m, head, lanes):
        """The beats of the oldest burst that is not K or V, then of the next."""
        # No path leads from who takes a beat, which its tag decides, back to the ports' FIFOs.
        m.submodules.gathered = gathered = Fifo(fetch_beat(self.cfg), 2)
        connect(m, gathered.o, flipped(self.out))
        out, port = gathered.i, head.payload.port
        valid = Array(lane.o.valid for lane in lanes)[port]
        beat = Array(lane.o.payload.data for lane in lanes)[port]
        end = Array(lane.o.payload.last for lane in lanes)[port]
        m.d.comb += [
            out.valid.eq(head.valid & valid),
            out.payload.data.eq(beat),
            out.payload.tag.eq(head.payload.tag),
            out.payload.last.eq(head.payload.last & end),
            head.ready.eq(out.valid & out.ready & end),
        ]
        for index, lane in enumerate(lanes):
            m.d.comb += lane.o.ready.eq(head.valid & out.ready & (port == index))

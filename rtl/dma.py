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

__all__ = ["LEAD", "Fetch", "ReadPort", "WeightPort", "WeightStream"]

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
    windows : in, steady while bursts come
    halt : in, no burst is announced any more; one that stands on AR stays until accepted
    quiet : out, nothing is in flight; while ``halt`` it stays so
    error_window, error_axi : out, stay high until reset
    beat : out, strobe for each beat that arrived
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
        self.receive(m, owners.o, issue)
        return m

    def receive(self, m, owner, issue):
        axi = self.axi
        in_flight = Signal(range(OWNERS + 3))
        done = Signal()
        word = Signal.like(axi.rdata, reset_less=True)
        m.d.comb += [
            axi.rready.eq(1),
            done.eq(axi.rvalid & axi.rlast),
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

    Members
    -------
    load, command, first : in, strobe that starts ``command`` (steady after it); ``first`` is the
        port's first burst, in blocks of 16 beats
    hold : in, no burst is requested
    asked : out, strobe, a burst is requested
    idle : out, every burst of the command has been requested
    full : out, a burst waits for room
    port : read_client, out
    o : stream of beats, out
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
        self.count(m, asked)
        return m

    def count(self, m, asked):
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
    words : stream of words, out; port 0's beat in the low bits
    full : out, strobe, a port could not request because its FIFO has no room
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


class Fetch(wiring.Component):
    """Reads of any length, their bursts dealt to the ports in turn.

    K and V come port by port, each port's in order, with ``kv_turns`` to say whose burst is next:
    one beat per port and cycle. All others' beats come in order, one per cycle at best. Each port
    may be 64 beats ahead.

    Members
    -------
    cmd : stream of fetch_command, in; ``beats`` is not 0
    ports : read_client, out, one per port
    out : stream of fetch_beat, out
    kv : streams of kv_beat, out, one per port
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
        ready, lanes = [], []
        for index, port in enumerate(self.ports):
            ask, take = Signal(name=f"ask_{index}"), Signal(name=f"take_{index}")
            free, lane = self.lane(m, index, port, ask, is_kv, take)
            m.d.comb += [
                port.burst.payload.eq(bursts.payload.burst),
                port.burst.valid.eq(bursts.valid & room & free & (turn == index)),
                ask.eq(port.burst.valid & port.burst.ready),
            ]
            ready.append(port.burst.ready & free)
            lanes.append((*lane, take))
        m.d.comb += [
            bursts.ready.eq(room & Array(ready)[turn]),
            asked.eq(bursts.valid & bursts.ready),
            turns.i.valid.eq(asked & is_kv),
            turns.i.payload.eq(turn),
            queue.i.valid.eq(asked & ~is_kv),
            queue.i.payload.port.eq(turn),
            queue.i.payload.tag.eq(bursts.payload.tag),
            queue.i.payload.last.eq(bursts.payload.last),
        ]
        m.d.sync += turn.eq(turn + asked)
        self.gather(m, queue.o, lanes)
        return m

    def lane(self, m, index, port, ask, is_kv, take):
        """One port's FIFO, its credit and its bursts; K and V leave it here, others by ``take``.

        Returns (room for a burst, (there is a beat for others, the beat, last of its burst)).
        """
        burst = data.StructLayout({"beats": LEN_BITS, "kv": 1})
        m.submodules[f"fifo_{index}"] = fifo = Fifo(8 * self.cfg.port_bytes, FETCH_BEATS)
        m.submodules[f"bursts_{index}"] = bursts = Fifo(burst, LANE_BURSTS)
        credit = Signal(range(FETCH_BEATS + 1), init=FETCH_BEATS, name=f"credit_{index}")
        count = Signal(BLOCK_BITS, name=f"count_{index}")
        end, there = Signal(name=f"end_{index}"), Signal(name=f"there_{index}")
        head, kv = bursts.o.payload, self.kv[index]
        m.d.comb += [
            fifo.i.valid.eq(port.valid),
            fifo.i.payload.eq(port.data),
            bursts.i.valid.eq(ask),
            bursts.i.payload.beats.eq(port.burst.payload.beats),
            bursts.i.payload.kv.eq(is_kv),
            there.eq(fifo.o.valid & bursts.o.valid),
            end.eq(count + 1 == head.beats),
            kv.valid.eq(there & head.kv),
            kv.payload.data.eq(fifo.o.payload),
            kv.payload.last.eq(end),
            fifo.o.ready.eq(take | (kv.valid & kv.ready)),
            bursts.o.ready.eq(fifo.o.ready & end),
        ]
        with m.If(fifo.o.ready):
            m.d.sync += count.eq(Mux(end, 0, count + 1))
        m.d.sync += credit.eq(credit + fifo.o.ready - Mux(ask, port.burst.payload.beats, 0))
        free = (credit >= BURST_BEATS) & bursts.i.ready
        return free, (there & ~head.kv, fifo.o.payload, end)

    def gather(self, m, head, lanes):
        """The beats of the oldest burst that is not K or V, then of the next."""
        # No path leads from who takes a beat, which its tag decides, back to the ports' FIFOs.
        m.submodules.gathered = gathered = Fifo(fetch_beat(self.cfg), 2)
        connect(m, gathered.o, flipped(self.out))
        out = gathered.i
        valid, beat, end, take = zip(*lanes)
        port, go = head.payload.port, Signal()
        m.d.comb += [
            out.valid.eq(head.valid & Array(valid)[port]),
            out.payload.data.eq(Array(beat)[port]),
            out.payload.tag.eq(head.payload.tag),
            out.payload.last.eq(head.payload.last & Array(end)[port]),
            go.eq(out.valid & out.ready),
            head.ready.eq(go & Array(end)[port]),
        ]
        m.d.comb += [lane.eq(go & (port == index)) for index, lane in enumerate(take)]

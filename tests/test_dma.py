"""ReadPort, WeightStream, Fetch and Writer against AXI slaves with random delays."""

from collections import deque

import numpy as np
import pytest
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from presets import TINY16
from streams import receiver, sender, simulate
from tokenfabric.core.config import preset
from tokenfabric.core.isa import JOB
from tokenfabric.rtl.axi import read_master
from tokenfabric.rtl.burst import WindowCheck
from tokenfabric.rtl.dma import LEAD, Fetch, ReadPort, WeightStream
from tokenfabric.rtl.layouts import BeatTag, fetch_beat, fetch_command, kv_beat, stream_command
from tokenfabric.rtl.writer import Writer

BASE = 0x3FF0_0000
SIZE = 1 << 16
TINY = preset("tiny")
WIDE = preset("pynq-z2").replace(name="wide", weight_fifo_beats=256)

# (chance that a slave stalls a channel, chance that a stream's consumer stalls, latencies)
STALLS = {
    "none": (0, 0, (1, 2)),
    "slow memory": (0.5, 0, (1, 60)),
    "slow consumer": (0, 0.7, (1, 20)),
    "all": (0.3, 0.3, (1, 60)),
}


class Reader(wiring.Component):
    """The read side as the top has it."""

    def __init__(self, cfg):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(stream.Signature(stream_command(cfg))),
                "cmd": In(stream.Signature(fetch_command(cfg))),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
                "out": Out(stream.Signature(fetch_beat(cfg))),
                "kv": Out(stream.Signature(kv_beat(cfg))).array(cfg.ports),
                "kv_turns": Out(stream.Signature(range(cfg.ports))),
                "axi": Out(read_master(cfg.port_bytes)).array(cfg.ports),
                "window_size": In(32, init=SIZE),
                "halt": In(1),
                "full": Out(1),
                "quiet": Out(cfg.ports),
                "error_window": Out(cfg.ports),
                "error_axi": Out(cfg.ports),
                "beat": Out(cfg.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.weights = weights = WeightStream(self.cfg)
        m.submodules.fetch = fetch = Fetch(self.cfg)
        connect(m, flipped(self.start), weights.start)
        connect(m, flipped(self.cmd), fetch.cmd)
        connect(m, weights.words, flipped(self.words))
        connect(m, fetch.out, flipped(self.out))
        connect(m, fetch.kv_turns, flipped(self.kv_turns))
        for inside, outside in zip(fetch.kv, self.kv):
            connect(m, inside, flipped(outside))
        m.d.comb += self.full.eq(weights.full)
        for index in range(self.cfg.ports):
            m.submodules[f"port_{index}"] = port = ReadPort(self.cfg)
            connect(m, weights.ports[index], port.weights)
            connect(m, fetch.ports[index], port.fetch)
            connect(m, port.axi, flipped(self.axi[index]))
            m.d.comb += [
                port.windows.window_base.eq(BASE),
                port.windows.window_size.eq(self.window_size),
                port.halt.eq(self.halt),
            ]
            for name in ("quiet", "error_window", "error_axi", "beat"):
                m.d.comb += getattr(self, name)[index].eq(getattr(port, name))
        return m


class ReadSlave:
    """Answers one port from ``memory`` in order; checks what the AXI rules and the contract ask."""

    def __init__(self, cfg, axi, memory, rng, stalls, *, bad_beat=None, latencies=None):
        self.cfg, self.axi, self.memory, self.rng = cfg, axi, memory, rng
        self.stall, _, self.latency = stalls
        self.latency = latencies or self.latency
        self.bad_beat = bad_beat
        self.bursts = []
        self.beats = 0
        self.most = 0  # bursts in flight

    async def run(self, ctx):
        axi, cfg, rng = self.axi, self.cfg, self.rng
        queue, held, now = deque(), None, 0
        rvalid = arready = 0
        channel = (axi.arvalid, axi.araddr, axi.arlen, axi.arsize, axi.arburst, axi.rready)
        async for _, _, valid, address, length, size, kind, rready in ctx.tick().sample(*channel):
            now += 1
            assert held is None or (valid and (address, length) == held), "AR changed or dropped"
            held = (address, length) if valid and not arready else None
            if valid and arready:
                beats = length + 1
                assert 1 << size == cfg.port_bytes and kind == 1 and beats <= 16
                assert address % cfg.port_bytes == 0
                block = 16 * cfg.port_bytes
                assert address // block == (address + beats * cfg.port_bytes - 1) // block
                start = address - BASE
                assert 0 <= start and start + beats * cfg.port_bytes <= len(self.memory)
                self.bursts.append((start, beats))
                due = now + int(rng.integers(*self.latency))
                queue.extend((due, start + i * cfg.port_bytes, i == length) for i in range(beats))
            if rvalid and rready:
                queue.popleft()
                self.beats += 1
            else:
                assert not rvalid, "the port does not take R"
            self.most = max(self.most, sum(last for _, _, last in queue))
            rvalid = bool(queue) and queue[0][0] <= now and rng.random() >= self.stall
            ctx.set(axi.rvalid, rvalid)
            if rvalid:
                _, start, last = queue[0]
                beat = self.memory[start : start + cfg.port_bytes]
                ctx.set(axi.rdata, int.from_bytes(beat, "little"))
                ctx.set(axi.rlast, last)
                ctx.set(axi.rresp, 2 if self.beats == self.bad_beat else 0)
            arready = rng.random() >= self.stall
            ctx.set(axi.arready, arready)


def read_system(cfg, stall, seed, *, bad=None, latencies=None):
    """(dut, memory, slaves, rng) of a random memory."""
    rng = np.random.default_rng(seed)
    memory = rng.integers(0, 256, SIZE, np.uint8).tobytes()
    dut = Reader(cfg)
    slaves = [
        ReadSlave(
            cfg,
            dut.axi[i],
            memory,
            np.random.default_rng([seed, i]),
            STALLS[stall],
            bad_beat=bad if i == 0 else None,
            latencies=latencies and latencies[i],
        )
        for i in range(cfg.ports)
    ]
    return dut, memory, slaves, rng


class KvReceiver:
    """Takes K and V from all ports; ``beats`` puts them in the order in which they were asked."""

    def __init__(self, dut, count, stall=0):
        self.dut, self.count, self.stall = dut, count, stall
        self.turns, self.lanes = [], [[] for _ in dut.kv]

    def benches(self):
        yield receiver(self.dut.kv_turns, 1 << 20, self.turns)
        for port, got in zip(self.dut.kv, self.lanes):
            rng = np.random.default_rng([3, len(got)])
            yield receiver(port, 1 << 20, got, rng, self.stall)

    async def run(self, ctx):
        while sum(map(len, self.lanes)) < self.count:
            await ctx.tick()

    def beats(self):
        found, lanes = [], [deque(lane) for lane in self.lanes]
        for turn in self.turns:
            burst = [lanes[turn].popleft()]
            while not burst[-1].last:
                burst.append(lanes[turn].popleft())
            found += [beat.data for beat in burst]
        assert not any(lanes)
        return found


def split(want):
    """Beats of fetches: (data of K and V, all others)."""
    kv = [data for data, tag, _ in want if tag is BeatTag.KV]
    return kv, [beat for beat in want if beat[1] is not BeatTag.KV]


def weight_words(cfg, memory, command):
    """The words that a stream command brings."""
    words = []
    for s in range(command["superblocks"]):
        start = command["offset"] + s * cfg.superblock_bytes
        block = np.frombuffer(memory[start : start + cfg.superblock_bytes], np.uint8)
        beats = block.reshape(cfg.ports, 16, cfg.port_bytes).transpose(1, 0, 2)
        words += [int.from_bytes(word.tobytes(), "little") for word in beats]
    return words * command["repeats"]


def fetch_beats(cfg, memory, command):
    """The (data, tag, last) that a fetch command brings."""
    size = cfg.port_bytes
    starts = [command["offset"] + i * size for i in range(command["beats"])]
    return [
        (int.from_bytes(memory[s : s + size], "little"), command["tag"], s == starts[-1])
        for s in starts
    ]


def random_fetches(cfg, rng, count):
    """Whole blocks, single beats, and pieces that begin and end anywhere, across 4 KB too."""
    size = cfg.port_bytes
    edge = 4096 // size
    shapes = [(0, 16), (edge - 1, 2), (2 * edge - 16, 32), (5, 1), (15, 1), (15, 17), (3, 29)]
    while len(shapes) < count:
        beats = int(rng.integers(1, 60))
        shapes.append((int(rng.integers(SIZE // size - beats)), beats))
    shapes.append((SIZE // size - 7, 7))  # up to the window's end
    return [
        {"offset": first * size, "beats": beats, "tag": BeatTag(int(rng.integers(6)))}
        for first, beats in shapes
    ]


@pytest.mark.parametrize("cfg", [TINY, WIDE, TINY16], ids=lambda cfg: cfg.name)
@pytest.mark.parametrize("stall", STALLS)
def test_weights_and_fetches_together(stall, cfg):
    dut, memory, slaves, rng = read_system(cfg, stall, len(stall) + cfg.ports)
    block = 16 * cfg.port_bytes
    starts = [
        {"offset": 3 * block, "superblocks": 5, "repeats": 2},
        {"offset": 0, "superblocks": 0, "repeats": 3},
        {"offset": 0, "superblocks": 2, "repeats": 0},
        {"offset": SIZE - cfg.superblock_bytes, "superblocks": 1, "repeats": 3},
        {"offset": 4096 - block, "superblocks": 9, "repeats": 1},
    ]
    fetches = random_fetches(cfg, rng, 14)
    want_words = [word for command in starts for word in weight_words(cfg, memory, command)]
    want_beats = [beat for command in fetches for beat in fetch_beats(cfg, memory, command)]
    want_kv, want_beats = split(want_beats)
    words, beats = [], []
    slow = STALLS[stall][1]
    kv = KvReceiver(dut, len(want_kv), slow)
    simulate(
        dut,
        [
            sender(dut.start, starts),
            sender(dut.cmd, fetches),
            receiver(dut.words, len(want_words), words, np.random.default_rng(1), slow),
            receiver(dut.out, len(want_beats), beats, np.random.default_rng(2), slow),
            kv.run,
        ],
        [*slaves, *kv.benches()],
    )
    assert kv.beats() == want_kv
    assert words == want_words
    assert [(b.data, BeatTag(b.tag), b.last) for b in beats] == want_beats
    assert sum(slave.beats for slave in slaves) == cfg.ports * len(words) + len(beats) + kv.count


def test_fetch_deals_bursts_in_turn_whatever_the_ports_do():
    cfg = WIDE
    latencies = [(60, 61), (1, 2), (5, 40), (20, 21)]
    dut, memory, slaves, rng = read_system(cfg, "none", 3, latencies=latencies)
    fetches = random_fetches(cfg, rng, 30)
    want = [beat for command in fetches for beat in fetch_beats(cfg, memory, command)]
    want_kv, want = split(want)
    got, kv = [], KvReceiver(dut, len(want_kv))
    simulate(
        dut,
        [sender(dut.cmd, fetches), receiver(dut.out, len(want), got, rng, 0), kv.run],
        [*slaves, *kv.benches()],
    )
    assert [(b.data, BeatTag(b.tag), b.last) for b in got] == want and kv.beats() == want_kv
    size, bursts = cfg.port_bytes, []
    for command in fetches:
        at, end = command["offset"], command["offset"] + command["beats"] * size
        while at < end:
            stop = min(end, (at // (16 * size) + 1) * 16 * size)
            bursts.append((at, (stop - at) // size))
            at = stop
    for index, slave in enumerate(slaves):
        assert slave.bursts == bursts[index :: cfg.ports]


def test_throughput_of_an_ideal_memory():
    """Once the first have come: a word of weights per cycle; alone, a fetched beat per cycle, of
    K and V one from each port."""
    cfg = WIDE
    dut, memory, slaves, rng = read_system(cfg, "none", 4, latencies=[(40, 41)] * 4)
    start = {"offset": 0, "superblocks": 24, "repeats": 1}
    got, times = [], []
    simulate(
        dut,
        [sender(dut.start, [start]), receiver(dut.words, 384, got, rng, 0, times)],
        slaves,
    )
    assert got == weight_words(cfg, memory, start)
    assert times[-1] - times[0] == 383
    assert times[0] <= 40 + 12

    dut, _, slaves, rng = read_system(cfg, "none", 4, latencies=[(200, 201)] * 4)
    simulate(dut, [sender(dut.start, [start]), receiver(dut.words, 130, [])], slaves)
    assert [slave.most for slave in slaves] == [cfg.outstanding] * cfg.ports

    dut, memory, slaves, rng = read_system(cfg, "none", 5, latencies=[(40, 41)] * 4)
    got, times = [], []
    command = {"offset": 0, "beats": 256, "tag": BeatTag.SCALE}
    simulate(dut, [sender(dut.cmd, [command]), receiver(dut.out, 256, got, rng, 0, times)], slaves)
    assert times[-1] - times[0] == 255
    assert times[0] <= 40 + 13

    dut, memory, slaves, rng = read_system(cfg, "none", 5, latencies=[(40, 41)] * 4)
    command = {"offset": 0, "beats": 1024, "tag": BeatTag.KV}
    order, times = [], []
    lanes = [receiver(port, 256, [], rng, 0, times) for port in dut.kv]
    turns = receiver(dut.kv_turns, 1 << 20, order)
    simulate(dut, [sender(dut.cmd, [command]), *lanes], [*slaves, turns])
    assert order == [0, 1, 2, 3] * 16
    assert max(times) - min(times) <= 255 + 4


def test_no_port_runs_far_ahead_of_the_others():
    """Else they would read different rows of the same banks of the DRAM."""
    cfg = WIDE
    latencies = [(300, 301), (1, 2), (1, 2), (20, 40)]
    dut, memory, slaves, rng = read_system(cfg, "none", 9, latencies=latencies)
    start = {"offset": 0, "superblocks": 40, "repeats": 1}
    got, leads = [], set()

    async def look(ctx):
        while True:
            await ctx.tick()
            counts = [len(slave.bursts) for slave in slaves]
            leads.add(max(counts) - min(counts))

    words = receiver(dut.words, 640, got, rng, 0)
    simulate(dut, [sender(dut.start, [start]), words], [*slaves, look])
    assert got == weight_words(cfg, memory, start) and 1 < max(leads) <= LEAD


def test_weights_run_ahead_to_the_fifo_and_no_further():
    cfg = TINY
    dut, memory, slaves, rng = read_system(cfg, "none", 6)
    start = {"offset": 0, "superblocks": 40, "repeats": 2}
    seen, got = [], []

    async def wait(ctx):
        await ctx.tick().repeat(1000)
        seen.append((ctx.get(dut.full), [slave.beats for slave in slaves]))
        await receiver(dut.words, 1280, got, rng, 0)(ctx)
        await ctx.tick().repeat(2)
        seen.append(ctx.get(dut.full))

    simulate(dut, [sender(dut.start, [start]), wait], slaves)
    assert seen == [(1, [cfg.weight_fifo_beats] * cfg.ports), 0]
    assert got == weight_words(cfg, memory, start)


def fails(cfg, *, start=None, cmd=None, size=SIZE, bad=None):
    """Error flags after a run of one command."""
    dut, _, slaves, _ = read_system(cfg, "none", 7, bad=bad)
    state = []

    async def bench(ctx):
        ctx.set(dut.window_size, size)
        await ctx.tick().repeat(120)
        state.append((ctx.get(dut.error_window), ctx.get(dut.error_axi)))

    command = sender(dut.start, [start]) if start else sender(dut.cmd, [cmd])
    words = receiver(dut.words, 1 << 20, [])
    beats = receiver(dut.out, 1 << 20, [])
    simulate(dut, [bench], [*slaves, command, words, beats])
    for slave in slaves:
        assert all(at + n * cfg.port_bytes <= size for at, n in slave.bursts)
    return state[0], sum(len(slave.bursts) for slave in slaves)


def test_each_window_has_its_base_and_its_size():
    """Every burst near an edge of a window, against the rule written out."""
    cfg = TINY
    at = {"window_base": 0x1000_0000, "window_size": 0x4000, "job_base": 0xFFFF_E000}
    at["job_size"] = 0x1000
    edges = [0, 0x1000, 0x4000, JOB, JOB + 0x1000, JOB + 0x4000, 1 << 32]
    bursts = [
        {"addr": edge + cfg.port_bytes * first, "beats": beats}
        for edge in edges
        for first in (-17, -16, -1, 0, 1)
        for beats in (1, 15, 16)
        if 0 <= edge + cfg.port_bytes * first < 1 << 32
    ]
    want = []
    for burst in bursts:
        window, offset = divmod(burst["addr"], JOB)
        name = ("window", "job")[window]
        ok = offset + burst["beats"] * cfg.port_bytes <= at[name + "_size"]
        want.append(((at[name + "_base"] + offset) % 2**32, burst["beats"] - 1, 0, int(ok)))
    assert {ok for *_, ok in want} == {0, 1}
    dut, got = WindowCheck(cfg), []

    async def settings(ctx):
        ctx.set(dut.windows, at)
        await sender(dut.i, bursts)(ctx)

    simulate(dut, [settings, receiver(dut.o, len(bursts), got)])
    fields = ("addr", "len", "fetch", "ok")
    assert [tuple(burst[name] for name in fields) for burst in got] == want


def test_window_and_axi_errors():
    cfg = TINY
    size = cfg.port_bytes

    def fetch(first, beats):
        return {"offset": first, "beats": beats, "tag": BeatTag.KV}

    assert fails(cfg, cmd=fetch(SIZE - 4 * size, 4)) == ((0, 0), 1)
    assert fails(cfg, cmd=fetch(SIZE - 4 * size, 4), size=SIZE - 1) == ((1, 0), 0)
    assert fails(cfg, cmd=fetch(SIZE, 1)) == ((1, 0), 0)
    assert fails(cfg, cmd=fetch(0xFFFF_FFF8, 1)) == ((1, 0), 0)  # its end is 1 << 32, not 0
    assert fails(cfg, cmd=fetch(0xFFFF_FFF8, 1), size=0xFFFF_FFFF) == ((1, 0), 0)
    assert fails(cfg, cmd=fetch(SIZE - 16 * size, 32)) == ((2, 0), 1)
    assert fails(cfg, cmd=fetch(0, 40), bad=3) == ((0, 1), 3)
    last = {"offset": SIZE - cfg.superblock_bytes, "superblocks": 2, "repeats": 1}
    assert fails(cfg, start=last) == ((3, 0), cfg.ports)
    assert fails(cfg, start=dict(last, superblocks=1)) == ((0, 0), cfg.ports)
    assert fails(cfg, start=dict(last, superblocks=1), bad=15) == ((0, 1), cfg.ports)


@pytest.mark.parametrize("seed", range(6))
def test_halt_then_quiet(seed):
    """After halt what was announced comes back, nothing new is announced, then all is quiet."""
    cfg = TINY
    dut, _, slaves, rng = read_system(cfg, "all", seed)
    start = {"offset": 0, "superblocks": 60, "repeats": 1}
    fetches = random_fetches(cfg, rng, 40)

    async def bench(ctx):
        await ctx.tick().repeat(20 + 23 * seed)
        waits = 0
        while not waits:  # halt comes while AR stands and is not taken
            await ctx.tick()
            await ctx.delay(1e-7)
            waits = sum(ctx.get(axi.arvalid & ~axi.arready) for axi in dut.axi)
        ctx.set(dut.halt, 1)
        await ctx.delay(1e-7)
        expected = [
            len(slave.bursts) + ctx.get(axi.arvalid)
            for slave, axi in zip(slaves, dut.axi, strict=True)
        ]
        await ctx.tick().until(dut.quiet.all())
        assert [s.beats for s in slaves] == [sum(n for _, n in s.bursts) for s in slaves]
        for _ in range(60):
            await ctx.tick()
            assert ctx.get(dut.quiet.all())
        assert [len(slave.bursts) for slave in slaves] == expected

    simulate(
        dut,
        [bench],
        [
            *slaves,
            sender(dut.start, [start]),
            sender(dut.cmd, fetches),
            receiver(dut.words, 1 << 20, [], np.random.default_rng(1), 0.3),
            receiver(dut.out, 1 << 20, [], np.random.default_rng(2), 0.3),
        ],
    )


def test_no_port_is_quiet_while_as_much_as_can_be_is_in_flight():
    dut, _, slaves, _ = read_system(TINY, "none", 8, latencies=[(300, 301)] * 2)
    fetches = [{"offset": 8 * i, "beats": 1, "tag": BeatTag.EMBED} for i in range(60)]

    async def bench(ctx):
        await ctx.tick().repeat(100)
        assert [slave.most for slave in slaves] == [17, 16]
        for _ in range(150):
            await ctx.tick()
            assert ctx.get(dut.quiet) == 0
        ctx.set(dut.halt, 1)
        await ctx.tick().until(dut.quiet.all())
        assert [slave.beats for slave in slaves] == [17, 16]

    simulate(dut, [bench], [*slaves, sender(dut.cmd, fetches)])


# --- Writer ------------------------------------------------------------------------------------


class WriteSlave:
    """Takes writes into ``memory``, answers after a while; checks the AXI rules."""

    def __init__(self, cfg, axi, rng, stalls, *, bad_burst=None):
        self.cfg, self.axi, self.rng = cfg, axi, rng
        self.stall, _, self.latency = stalls
        self.bad_burst = bad_burst
        self.memory = {}  # byte address -> value
        self.bursts = []
        self.answered = 0
        self.w_times = []

    async def run(self, ctx):
        axi, rng = self.axi, self.rng
        awready = wready = bvalid = 0
        now = beat = w_bursts = 0
        presented = 0  # AWs seen, accepted or not
        held_aw = held_w = None
        answers = deque()
        ports = (axi.awvalid, axi.awaddr, axi.awlen, axi.awsize, axi.wvalid, axi.wdata)
        ports += (axi.wstrb, axi.wlast, axi.bready)
        async for sampled in ctx.tick().sample(*ports):
            awvalid, addr, length, size, wvalid, data, strb, last, bready = sampled[2:]
            now += 1
            assert held_aw is None or (awvalid and (addr, length) == held_aw), "AW changed"
            assert held_w is None or (wvalid and (data, strb, last) == held_w), "W changed"
            if awvalid and held_aw is None:
                presented += 1
                self.announce(addr, length + 1, size)
            held_aw = (addr, length) if awvalid and not awready else None
            held_w = (data, strb, last) if wvalid and not wready else None
            if wvalid:
                assert w_bursts < presented, "W before its AW"
            if wvalid and wready:
                start, beats = self.bursts[w_bursts]
                self.store(start + beat * self.cfg.port_bytes, data, strb)
                self.w_times.append(now)
                beat += 1
                assert last == (beat == beats)
                if last:
                    answers.append((now + int(rng.integers(*self.latency)), w_bursts))
                    w_bursts, beat = w_bursts + 1, 0
            if bvalid and bready:
                answers.popleft()
                self.answered += 1
            accepted = presented - (held_aw is not None)
            bvalid = bool(answers) and answers[0][0] <= now and answers[0][1] < accepted
            ctx.set(axi.bvalid, bvalid)
            ctx.set(axi.bresp, 2 if self.answered == self.bad_burst else 0)
            assert len(self.bursts) - self.answered <= 8
            awready, wready = rng.random() >= self.stall, rng.random() >= self.stall
            ctx.set(axi.awready, awready)
            ctx.set(axi.wready, wready)

    def announce(self, addr, beats, size):
        cfg = self.cfg
        block = 16 * cfg.port_bytes
        assert 1 << size == cfg.port_bytes and beats <= 16 and addr % cfg.port_bytes == 0
        assert addr // block == (addr + beats * cfg.port_bytes - 1) // block
        assert BASE <= addr and addr + beats * cfg.port_bytes <= BASE + SIZE
        self.bursts.append((addr - BASE, beats))

    def store(self, at, data, strb):
        for i in range(self.cfg.port_bytes):
            if strb >> i & 1:
                self.memory[at + i] = data >> 8 * i & 255


def write_system(stall, seed, **more):
    cfg = TINY
    dut = Writer(cfg)
    return dut, WriteSlave(cfg, dut.axi, np.random.default_rng(seed), STALLS[stall], **more)


def write_run(cfg, first, beats, rng, *, full=False):
    """The beats of one run; the address has its low bits set, to be ignored."""
    size = cfg.port_bytes
    return [
        {
            "first": i == 0,
            "last": i == beats - 1,
            "addr": first * size + int(rng.integers(size))
            if i == 0
            else int(rng.integers(1 << 32)),
            "data": int.from_bytes(rng.bytes(size), "little"),
            "strb": (1 << size) - 1 if full else int(rng.integers(1 << size)),
        }
        for i in range(beats)
    ]


def write_model(cfg, runs):
    memory = {}
    for run in runs:
        at = run[0]["addr"] // cfg.port_bytes * cfg.port_bytes
        for beat in run:
            for i in range(cfg.port_bytes):
                if beat["strb"] >> i & 1:
                    memory[at + i] = beat["data"] >> 8 * i & 255
            at += cfg.port_bytes
    return memory


def write_windows(dut, size=SIZE):
    async def bench(ctx):
        ctx.set(dut.windows, {"window_base": BASE, "window_size": size})

    return bench


@pytest.mark.parametrize("slow_source", [0, 0.6])
@pytest.mark.parametrize("stall", STALLS)
def test_writer(stall, slow_source):
    cfg = TINY
    rng = np.random.default_rng(len(stall))
    dut, slave = write_system(stall, 1)
    edge = 4096 // cfg.port_bytes
    shapes = [(0, 16), (edge - 1, 2), (2 * edge - 16, 33), (5, 1), (15, 1), (15, 17), (3, 29)]
    shapes += [(int(rng.integers(1000)), 1) for _ in range(20)]
    shapes += [(int(rng.integers(1000)), int(rng.integers(1, 50))) for _ in range(8)]
    shapes.append((SIZE // cfg.port_bytes - 20, 20))
    runs = [write_run(cfg, first, beats, rng) for first, beats in shapes]
    beats = [beat for run in runs for beat in run]
    counted = []

    async def bench(ctx):
        assert ctx.get(dut.idle) and ctx.get(dut.quiet)
        await sender(dut.beats, beats[:-1], rng, slow_source)(ctx)
        await ctx.tick().repeat(200)
        assert not ctx.get(dut.idle)  # the last beat of the run has not come
        assert ctx.get(dut.quiet)
        await sender(dut.beats, beats[-1:])(ctx)
        assert not ctx.get(dut.idle)
        await ctx.tick().until(dut.idle)
        assert slave.memory == write_model(cfg, runs)
        assert slave.answered in (len(slave.bursts), len(slave.bursts) - 1)
        assert not ctx.get(dut.error_window) and not ctx.get(dut.error_axi)

    async def count(ctx):
        async for _, _, beat in ctx.tick().sample(dut.beat):
            counted.append(beat)

    simulate(dut, [write_windows(dut), bench], [slave, count])
    assert sum(counted) == len(beats)
    starts = [at for at, _ in slave.bursts]
    assert len(starts) == sum((f + n - 1) // 16 - f // 16 + 1 for f, n in shapes)


def test_writer_throughput():
    """Bursts follow each other without a pause when the port is ready."""
    cfg = TINY
    rng = np.random.default_rng(5)
    dut, slave = write_system("none", 1)
    beats = write_run(cfg, 0, 256, rng, full=True)
    beats += [beat for i in range(32) for beat in write_run(cfg, 7 * i, 1, rng)]

    async def bench(ctx):
        await sender(dut.beats, beats)(ctx)
        await ctx.tick().until(dut.idle)

    simulate(dut, [write_windows(dut), bench], [slave])
    times = np.array(slave.w_times)
    assert times[255] - times[0] == 255
    assert times[-1] - times[256] <= 2 * 32


@pytest.mark.parametrize(
    "first,beats,size,bad,bursts",
    [
        (SIZE // 8 - 16, 16, SIZE, None, 1),
        (SIZE // 8 - 16, 16, SIZE - 1, None, 0),
        (SIZE // 8 - 16, 40, SIZE, None, 1),
        ((1 << 29) - 1, 1, SIZE, None, 0),
        ((1 << 29) - 1, 1, (1 << 32) - 1, None, 0),
        (0, 64, SIZE, 2, 4),
    ],
)
def test_writer_errors(first, beats, size, bad, bursts):
    """No burst outside the window, none after it either; a bad response is told."""
    cfg = TINY
    rng = np.random.default_rng(6)
    dut, slave = write_system("none", 1, bad_burst=bad)
    payloads = write_run(cfg, first, beats, rng) + write_run(cfg, 0, 16, rng)
    state = []

    async def bench(ctx):
        await ctx.tick().repeat(120)
        state.append((ctx.get(dut.error_window), ctx.get(dut.error_axi), ctx.get(dut.quiet)))

    simulate(dut, [write_windows(dut, size), bench], [slave, sender(dut.beats, payloads)])
    outside = first * 8 + beats * 8 > size
    assert state == [(outside, bad is not None, 1)]
    assert len(slave.bursts) == (bursts if outside else bursts + 1)


@pytest.mark.parametrize("seed", range(6))
def test_writer_halt_then_quiet(seed):
    """What AW announced gets all its beats and its response; nothing else goes out."""
    cfg = TINY
    rng = np.random.default_rng(seed)
    dut, slave = write_system("all", seed)
    beats = write_run(cfg, 3, 400, rng)

    async def bench(ctx):
        await ctx.tick().repeat(100 + 13 * seed)
        while not ctx.get(dut.axi.awvalid & ~dut.axi.awready):
            await ctx.tick()
            await ctx.delay(1e-7)
        ctx.set(dut.halt, 1)
        await ctx.delay(1e-7)
        announced = len(slave.bursts)
        assert not ctx.get(dut.quiet)
        await ctx.tick().until(dut.quiet)
        assert slave.answered == len(slave.bursts)
        assert len(slave.w_times) == sum(n for _, n in slave.bursts)
        for _ in range(60):
            await ctx.tick()
            assert ctx.get(dut.quiet) and not ctx.get(dut.axi.awvalid)
        assert len(slave.bursts) in (announced, announced + 1)

    simulate(dut, [write_windows(dut), bench], [slave, sender(dut.beats, beats)])

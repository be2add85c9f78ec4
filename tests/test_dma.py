"""Reader, with all that it consists of, and Writer against AXI slaves with random delays."""

from collections import deque

import numpy as np
import pytest
from axi_slaves import SIZE, STALLS, ReadSlave, WriteSlave, fetch_beats, run, write_model, write_run
from presets import TINY16
from streams import receiver, sender, simulate
from tokenfabric.core.config import preset
from tokenfabric.core.isa import JOB
from tokenfabric.rtl.burst import WindowCheck
from tokenfabric.rtl.dma import LEAD
from tokenfabric.rtl.layouts import BeatTag
from tokenfabric.rtl.reader import Reader
from tokenfabric.rtl.writer import Writer

TINY = preset("tiny")
WIDE = preset("pynq-z2").replace(name="wide", weight_fifo_beats=256)


def read_system(cfg, stall, seed, *, bad=(0, None), latencies=None):
    """(dut, memory, slaves, rng) of a random memory; ``bad``: a port, and which of its beats."""
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
            bad_beat=bad[1] if i == bad[0] else None,
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
    words, beats, told = [], [], [0] * cfg.ports
    slow = STALLS[stall][1]
    kv = KvReceiver(dut, len(want_kv), slow)

    async def count(ctx):
        async for _, _, strobes in ctx.tick().sample(dut.beat):
            for port in range(cfg.ports):
                told[port] += strobes >> port & 1

    run(
        dut,
        [
            sender(dut.stream, starts),
            sender(dut.fetch, fetches),
            receiver(dut.words, len(want_words), words, np.random.default_rng(1), slow),
            receiver(dut.beats, len(want_beats), beats, np.random.default_rng(2), slow),
            kv.run,
        ],
        [*slaves, *kv.benches(), count],
    )
    assert kv.beats() == want_kv
    assert told == [slave.beats for slave in slaves]
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
    run(
        dut,
        [sender(dut.fetch, fetches), receiver(dut.beats, len(want), got, rng, 0), kv.run],
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
    run(
        dut,
        [sender(dut.stream, [start]), receiver(dut.words, 384, got, rng, 0, times)],
        slaves,
    )
    assert got == weight_words(cfg, memory, start)
    assert times[-1] - times[0] == 383
    assert times[0] <= 40 + 12

    dut, _, slaves, rng = read_system(cfg, "none", 4, latencies=[(200, 201)] * 4)
    run(dut, [sender(dut.stream, [start]), receiver(dut.words, 130, [])], slaves)
    assert [slave.most for slave in slaves] == [cfg.outstanding] * cfg.ports

    dut, memory, slaves, rng = read_system(cfg, "none", 5, latencies=[(40, 41)] * 4)
    got, times = [], []
    command = {"offset": 0, "beats": 256, "tag": BeatTag.SCALE}
    run(dut, [sender(dut.fetch, [command]), receiver(dut.beats, 256, got, rng, 0, times)], slaves)
    assert times[-1] - times[0] == 255
    assert times[0] <= 40 + 13

    dut, memory, slaves, rng = read_system(cfg, "none", 5, latencies=[(40, 41)] * 4)
    command = {"offset": 0, "beats": 1024, "tag": BeatTag.KV}
    order, times = [], []
    lanes = [receiver(port, 256, [], rng, 0, times) for port in dut.kv]
    turns = receiver(dut.kv_turns, 1 << 20, order)
    run(dut, [sender(dut.fetch, [command]), *lanes], [*slaves, turns])
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
    run(dut, [sender(dut.stream, [start]), words], [*slaves, look])
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

    run(dut, [sender(dut.stream, [start]), wait], slaves)
    assert seen == [(1, [cfg.weight_fifo_beats] * cfg.ports), 0]
    assert got == weight_words(cfg, memory, start)


def fails(cfg, *, start=None, cmd=None, size=SIZE, bad=(0, None)):
    """Error flags after a run of one command."""
    dut, _, slaves, _ = read_system(cfg, "none", 7, bad=bad)
    state = []

    async def bench(ctx):
        await ctx.tick().repeat(120)
        state.append((ctx.get(dut.error_window), ctx.get(dut.error_axi)))

    command = sender(dut.stream, [start]) if start else sender(dut.fetch, [cmd])
    words = receiver(dut.words, 1 << 20, [])
    beats = receiver(dut.beats, 1 << 20, [])
    run(dut, [bench], [*slaves, command, words, beats], size)
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
    assert fails(cfg, cmd=fetch(0, 40), bad=(0, 3)) == ((0, 1), 3)
    assert fails(cfg, cmd=fetch(0, 40), bad=(1, 3)) == ((0, 2), 3)
    last = {"offset": SIZE - cfg.superblock_bytes, "superblocks": 2, "repeats": 1}
    assert fails(cfg, start=last) == ((3, 0), cfg.ports)
    assert fails(cfg, start=dict(last, superblocks=1)) == ((0, 0), cfg.ports)
    assert fails(cfg, start=dict(last, superblocks=1), bad=(0, 15)) == ((0, 1), cfg.ports)


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
        await ctx.tick().until(dut.quiet)
        assert [s.beats for s in slaves] == [sum(n for _, n in s.bursts) for s in slaves]
        for _ in range(60):
            await ctx.tick()
            assert ctx.get(dut.quiet)
        assert [len(slave.bursts) for slave in slaves] == expected

    run(
        dut,
        [bench],
        [
            *slaves,
            sender(dut.stream, [start]),
            sender(dut.fetch, fetches),
            receiver(dut.words, 1 << 20, [], np.random.default_rng(1), 0.3),
            receiver(dut.beats, 1 << 20, [], np.random.default_rng(2), 0.3),
        ],
    )


@pytest.mark.parametrize("slow", [0, 1])
def test_no_port_is_quiet_while_as_much_as_can_be_is_in_flight(slow):
    """Nor are all of them while a single one is not."""
    latencies = [(1, 2), (1, 2)]
    latencies[slow] = (300, 301)
    dut, _, slaves, _ = read_system(TINY, "none", 8, latencies=latencies)
    fetches = [{"offset": 8 * i, "beats": 1, "tag": BeatTag.EMBED} for i in range(60)]

    async def bench(ctx):
        await ctx.tick().repeat(100)
        assert slaves[slow].most == 17 and slaves[1 - slow].beats >= 16
        for _ in range(150):
            await ctx.tick()
            assert not ctx.get(dut.quiet)
        ctx.set(dut.halt, 1)
        await ctx.tick().until(dut.quiet)
        assert all(slave.beats == len(slave.bursts) for slave in slaves)

    run(dut, [bench], [*slaves, sender(dut.fetch, fetches)])


# --- Writer ------------------------------------------------------------------------------------


def write_system(stall, seed, **more):
    cfg = TINY
    dut = Writer(cfg)
    return dut, WriteSlave(cfg, dut.axi, np.random.default_rng(seed), STALLS[stall], **more)


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

    run(dut, [bench], [slave, count])
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

    run(dut, [bench], [slave])
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

    run(dut, [bench], [slave, sender(dut.beats, payloads)], size)
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

    run(dut, [bench], [slave, sender(dut.beats, beats)])

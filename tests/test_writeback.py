"""Where results go: argmax, residual additions, logits in memory, counts of saturated values."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.sim import Simulator
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import saturate
from tokenfabric.rtl import logits as logits_module
from tokenfabric.rtl.argmax import Argmax
from tokenfabric.rtl.layouts import MatmulDest, MatmulKind
from tokenfabric.rtl.logits import LogitsWriter, in_flight
from tokenfabric.rtl.matmul import MatmulEngine
from tokenfabric.rtl.writeback import SaturationCounter, Writeback

CFG = preset("tiny")
COLS = CFG.cols
LOW, HIGH = -(1 << 31), (1 << 31) - 1
NO_RESULT = {"y": [0] * COLS}


def run(dut, bench, cycles):
    """Runs ``bench``, which must end within ``cycles``."""
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    ended = []

    async def whole(ctx):
        await bench(ctx)
        ended.append(True)

    sim.add_testbench(whole)
    sim.run_until(cycles * 1e-6)
    assert ended, f"not through in {cycles} cycles"


def blocks_of(logits):
    """Results in the order of the engine: for each column-block, for each row."""
    rows, channels = logits.shape
    for block in range(channels // COLS):
        for index in range(rows):
            y = logits[index, block * COLS : (block + 1) * COLS].tolist()
            yield {"y": y, "index": index, "block": block, "dest": MatmulDest.LOGITS}


# --- Argmax -----------------------------------------------------------------------------------


def logits_random(rng, shape):
    return rng.integers(LOW, HIGH + 1, shape)


def logits_ties(rng, shape):
    return rng.integers(-2, 2, shape)


def logits_negative(rng, shape):
    return rng.integers(LOW, LOW + 3, shape)


def logits_ascending(rng, shape):
    return np.broadcast_to(np.arange(shape[1]), shape) - 5


def logits_equal(rng, shape):
    return np.full(shape, LOW)


LOGITS = (logits_random, logits_ties, logits_negative, logits_ascending, logits_equal)


@pytest.mark.parametrize("make", LOGITS)
def test_argmax(make):
    """Several commands one after the other; the channels beyond ``vocab`` would win them."""
    rng = np.random.default_rng(len(make.__name__))
    dut = Argmax(CFG)
    commands = []
    for rows, vocab in ((4, 40), (1, 1), (4, 33), (3, 39), (2, 7), (4, 8), (1, 57)):
        logits = make(rng, (rows, -(-vocab // COLS) * COLS))
        logits[:, vocab:] = HIGH
        commands.append((logits, vocab))

    async def bench(ctx):
        for logits, vocab in commands:
            ctx.set(dut.vocab, vocab)
            for result in blocks_of(logits):
                ctx.set(dut.valid, 1)
                ctx.set(dut.result, result)
                await ctx.tick()
                if len(logits) < 4:  # the engine needs 4 cycles for a tile
                    ctx.set(dut.valid, 0)
                    ctx.set(dut.result, {"y": [HIGH] * COLS})
                    await ctx.tick().repeat(3)
            ctx.set(dut.valid, 0)
            await ctx.tick().repeat(dut.LATENCY - 1)
            want = ops.argmax(logits, vocab).tolist()
            found = []
            for index in range(len(logits)):
                ctx.set(dut.best_index, index)
                found.append(ctx.get(dut.best_token))
            assert found == want, (vocab, logits)

    run(dut, bench, 2000)


# --- LogitsWriter -----------------------------------------------------------------------------


@pytest.mark.parametrize("stall", [0.0, 0.5, 0.9])
def test_logits_reach_memory(stall):
    """Column-blocks begin while there is room and are then not held back, as in the engine."""
    rng = np.random.default_rng(int(stall * 10))
    dut = LogitsWriter(CFG)
    logits = rng.integers(LOW, HIGH + 1, (CFG.max_rows, 24 * COLS))
    addresses = [0x1000 + 0x400 * i for i in range(CFG.max_rows)]
    memory: dict[int, int] = {}
    runs = []

    async def sender(ctx):
        results = list(blocks_of(logits))
        for first in range(0, len(results), CFG.max_rows):
            while not ctx.get(dut.room):
                await ctx.tick()
            for result in results[first : first + CFG.max_rows]:
                ctx.set(dut.valid, 1)
                ctx.set(dut.result, result)
                ctx.set(dut.addr, addresses[result["index"]])
                await ctx.tick()
            ctx.set(dut.valid, 0)
        while len(memory) < logits.size:
            await ctx.tick()

    async def receiver(ctx):
        at = 0
        async for _, _, valid, ready, beat in ctx.tick().sample(
            dut.beats.valid, dut.beats.ready, dut.beats.payload
        ):
            ctx.set(dut.beats.ready, int(rng.random() >= stall))
            if not (valid and ready):
                continue
            at = beat.addr if beat.first else at + CFG.port_bytes
            assert beat.strb == 0xFF
            memory[at], memory[at + 4] = beat.data & 0xFFFFFFFF, beat.data >> 32
            if beat.last:
                runs.append(at)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(receiver, background=True)
    sim.add_testbench(sender)
    sim.run_until(20_000e-6)
    want = {
        addresses[row] + 4 * channel: int(value) & 0xFFFFFFFF
        for (row, channel), value in np.ndenumerate(logits)
    }
    assert memory == want
    assert len(runs) == CFG.max_rows * 24


def fill(first):
    """The engine fills the writer while nothing leaves it, ``first`` rows and then whole blocks.

    As fast as it can: one row of logits per cycle (attention's K brings its multipliers beside the
    tiles, so no cycle is lost for them). Returns by how many rows that came out before the engine
    waited the FIFO was too small (negative: too large), and whether all left, in order, in the end.
    """
    m = Module()
    m.submodules.engine = engine = MatmulEngine(CFG)
    m.submodules.logits = logits = LogitsWriter(CFG)
    m.d.comb += [
        engine.room.eq(logits.room),
        logits.valid.eq(engine.result_valid),
        logits.result.eq(engine.result),
        logits.addr.eq(engine.result.index << 16),
    ]
    arrived, left = [], []
    capacity = logits.depth + 1
    blocks = capacity // CFG.max_rows + 2  # more than fit
    rows = [(0, first)] + [(block, CFG.max_rows) for block in range(blocks)]
    want = [(index << 16) + 4 * COLS * block for block, count in rows for index in range(count)]

    async def bench(ctx):
        for port in (engine.kv_words, engine.kv_scales):
            ctx.set(port.valid, 1)
        for rows, count in ((first, 1), (CFG.max_rows, blocks)):
            command = {"kind": MatmulKind.K, "m": rows, "k": 1, "n": count, "bits": 2}
            ctx.set(engine.cmd.payload, command | {"dest": MatmulDest.LOGITS})
            ctx.set(engine.cmd.valid, rows > 0)
            await ctx.tick().repeat(2)
            ctx.set(engine.cmd.valid, 0)
            for _ in range(60 if rows == first else 6 * CFG.max_rows * blocks):
                _, _, valid = await ctx.tick().sample(engine.result_valid)
                arrived.append(valid)
        ctx.set(logits.beats.ready, 1)
        for _ in range(5 * CFG.max_rows * (blocks + 1)):
            _, _, valid, beat = await ctx.tick().sample(logits.beats.valid, logits.beats.payload)
            if valid and beat.last:
                left.append(beat.addr)

    sim = Simulator(m)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return sum(arrived) - capacity, left == want


@pytest.mark.parametrize("less", [0, 1])
def test_room_is_for_a_block_and_what_is_in_flight(less, monkeypatch):
    """The FIFO fills to its last entry and loses nothing; with a margin of one less it does."""
    monkeypatch.setattr(logits_module, "in_flight", lambda cfg: in_flight(cfg) - less)
    # Blocks are of max_rows: so that every number of rows is met before one.
    beyond, whole = zip(*(fill(first) for first in range(CFG.max_rows)))
    assert max(beyond) == less
    assert all(whole) == (less == 0)


# --- SaturationCounter ------------------------------------------------------------------------


def test_saturation_counter():
    rng = np.random.default_rng(1)
    dut = SaturationCounter(4)
    counts = np.zeros(16, int)

    async def bench(ctx):
        await ctx.tick().repeat(16)
        for _ in range(300):
            klass, count = int(rng.integers(16)), int(rng.integers(9))
            valid = int(rng.random() < 0.7)
            ctx.set(dut.valid, valid)
            ctx.set(dut.klass, klass)
            ctx.set(dut.count, count)
            counts[klass] += valid * count
            await ctx.tick()
        ctx.set(dut.valid, 0)
        await ctx.tick()
        found = []
        for klass in range(16):
            ctx.set(dut.read_class, klass)
            found.append(ctx.get(dut.read_count))
        assert found == counts.tolist()

    run(dut, bench, 1000)


# --- Writeback --------------------------------------------------------------------------------


def write_back(results, *, memory=None, dump=()):
    """Feeds a result (or None) per cycle; ``dump``: index -> address of the rows that dump.

    Returns writes {port: [(addr, value)]}, counts [(class, count)] and [count] of the additions,
    and the addresses of the beats. ``memory``: of RES, changed in place.
    """
    dut = Writeback(CFG)
    dump = dict(dump)
    found = {"out": [], "in": [], "res": [], "sat": [], "add": [], "beats": []}
    ports = {"out": dut.out_w, "in": dut.in_w, "res": dut.res_w}

    def lanes(value, bits):
        values = [value >> bits * i & (1 << bits) - 1 for i in range(COLS)]
        return [v - (v >> bits - 1 << bits) for v in values]

    async def surroundings(ctx):
        sampled = [s for port in ports.values() for s in (port.en, port.addr, port.data)]
        sampled += [dut.res_r.en, dut.res_r.addr, dut.sat_valid, dut.sat_class, dut.sat_count]
        sampled += [dut.add_valid, dut.add_count, dut.beats.valid, dut.beats.payload]
        async for _, _, *now in ctx.tick().sample(*sampled):
            read_en, read_addr = now[9:11]
            if read_en:  # old data in the cycle of a write
                value = sum((v & 0xFFFFFFFF) << 32 * i for i, v in enumerate(memory[read_addr]))
                ctx.set(dut.res_r.data, value)
            for number, name in enumerate(ports):
                en, addr, value = now[3 * number : 3 * number + 3]
                if en:
                    found[name].append((addr, lanes(value, 32 if name == "res" else 16)))
                    if name == "res" and memory is not None:
                        memory[addr] = found[name][-1][1]
            sat_valid, sat_class, sat_count, add_valid, add_count, beat_valid, beat = now[11:]
            if sat_valid:
                found["sat"].append((sat_class, sat_count))
            if add_valid:
                found["add"].append(add_count)
            if beat_valid and beat.first:
                found["beats"].append(beat.addr)

    async def bench(ctx):
        ctx.set(dut.beats.ready, 1)
        ctx.set(dut.vocab, 1000)
        for result in results:
            ctx.set(dut.valid, int(result is not None))
            ctx.set(dut.result, result or NO_RESULT)
            index = ctx.get(dut.dump_index)  # a combinational look-up
            ctx.set(dut.dump, int(index in dump))
            ctx.set(dut.dump_addr, dump.get(index, 0))
            await ctx.tick()
        ctx.set(dut.valid, 0)
        for _ in range(dut.LATENCY - 1):
            assert ctx.get(dut.busy)
            await ctx.tick()
        await ctx.tick().repeat(3 + 4 * len(results))
        assert not ctx.get(dut.busy)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_process(surroundings)
    sim.add_testbench(bench)
    sim.run_until(10_000e-6)
    return found


@pytest.mark.parametrize("gaps", [0.0, 0.6])
def test_residual_additions_saturate(gaps):
    rng = np.random.default_rng(int(gaps * 10))
    memory = {a: rng.integers(LOW, HIGH + 1, COLS).tolist() for a in range(40)}
    corners = [LOW, HIGH, 0, -1, 1, LOW + 1, HIGH - 1, 1 << 30]
    want_memory, want, counts, results = dict(memory), [], [], []
    for number in range(120):
        addr = number % 40
        y = rng.integers(LOW, HIGH + 1, COLS) >> int(rng.integers(0, 20))
        if number % 3 == 0:
            y = rng.choice(corners, COLS)
        if number < 8:
            memory[addr] = want_memory[addr] = corners[number:] + corners[:number]
        embed = bool(rng.random() < 0.3)
        dest = MatmulDest.EMBED if embed else MatmulDest.RES
        wide = y + (0 if embed else np.array(want_memory[addr]))
        want_memory[addr] = saturate(wide, 32).tolist()
        want.append((addr, want_memory[addr]))
        counts.append(ops.count_saturated(wide, 32))
        while rng.random() < gaps:
            results.append(None)
        results.append({"y": y.tolist(), "dst": addr, "dest": dest})
    found = write_back(results, memory=memory)
    assert found["res"] == want and memory == want_memory
    assert found["add"] == counts and sum(counts) > 20
    assert not found["out"] and not found["in"] and not found["beats"]


def test_each_destination():
    rng = np.random.default_rng(3)
    results, want = [], {"out": [], "in": []}
    for dst in range(30):
        dest = [MatmulDest.OUT, MatmulDest.OUT8, MatmulDest.ATT, MatmulDest.SCORES][dst % 4]
        y = rng.integers(-(1 << 15), 1 << 15, COLS).tolist()
        results.append({"y": y, "dst": dst, "dest": dest})
        if dest is not MatmulDest.SCORES:
            want["in" if dest is MatmulDest.ATT else "out"].append((dst, y))
    found = write_back(results)
    assert {name: found[name] for name in want} == want
    assert not found["res"] and not found["beats"] and not found["sat"]


def test_only_rows_that_dump_write_logits():
    logits = np.arange(4 * 16).reshape(4, 16)
    found = write_back(list(blocks_of(logits)), dump={1: 0x100, 3: 0x2000})
    assert found["beats"] == [0x100, 0x2000, 0x120, 0x2020]


def test_saturated_scores_count_up_to_the_limit():
    rng = np.random.default_rng(4)
    results, want = [], []
    for number in range(100):
        block, flags = int(rng.integers(4)), int(rng.integers(1 << COLS))
        limit = int(rng.choice([0, 7, 8, 9, 15, 16, 23, 31, 511, int(rng.integers(40))]))
        dest = MatmulDest.OUT if number % 5 == 0 else MatmulDest.SCORES
        lanes = [i for i in range(COLS) if flags >> i & 1]
        if dest is MatmulDest.SCORES:
            lanes = [i for i in lanes if block * COLS + i <= limit]
        if lanes:
            want.append((number % 16, len(lanes)))
        result = {"y": [0] * COLS, "saturated": flags, "block": block, "limit": limit}
        results.append({**result, "dest": dest, "sat": number % 16})
    assert write_back(results)["sat"] == want

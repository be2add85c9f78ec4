# amaranth: UnusedElaboratable=no
"""The units of KvBuffer one by one, each against what it must do, written down in Python."""

import random
from collections import deque

import pytest
from streams import receiver, sender, simulate
from tokenfabric.core.config import BURST_BEATS, preset
from tokenfabric.core.fixed import ceil_div
from tokenfabric.rtl.kvbuffer import Allocator, Drainer, WordWalk
from tokenfabric.rtl.kvfill import BurstLane, Collector, Dealer, Filler

# rows, cols, ports: words of one column and of more, of one and of more chunks per column
SHAPES = {"tiny": (8, 8, 2), "two": (16, 8, 4), "one-column": (16, 8, 2), "four": (32, 8, 4)}
EACH = pytest.mark.parametrize("name", SHAPES)
STALL = pytest.mark.parametrize("stall", [0.0, 0.5])


def config(name, extra=3):
    """``extra``: entries of a bank besides those of four blocks, so that these leave some over."""
    rows, cols, ports = SHAPES[name]
    chunks = 4 * max(rows, BURST_BEATS) * 64 // cols + extra * ports
    return preset("tiny").replace(
        name=name, rows=rows, cols=cols, ports=ports, max_head_dim=64, kv_chunks=chunks
    )


def positions_of(cfg):
    return max(cfg.rows, BURST_BEATS)


def swapped(cfg, j):
    """f(j) of the buffer's layout: the bits of j % P reversed."""
    bits = cfg.ports.bit_length() - 1
    return int(f"{j % cfg.ports:0{bits}b}"[::-1], 2)


def place(cfg, block, t, j):
    """(bank, entry) of chunk j of the block's position t."""
    row = block["base"] + t // cfg.ports * block["head_chunks"]
    return t % cfg.ports ^ swapped(cfg, j), row + j


def random_blocks(cfg, rng, count):
    """Blocks that lie one behind the other in the ring, each short enough to be whole."""
    blocks, base, entries = [], 0, cfg.kv_chunks // cfg.ports
    for _ in range(count):
        chunks = rng.randrange(1, cfg.max_head_chunks + 1)
        size = positions_of(cfg) // cfg.ports * chunks
        base = 0 if base + size > entries else base
        last = rng.randrange(positions_of(cfg))
        block = {"is_v": rng.getrandbits(1), "head_chunks": chunks, "last": last, "base": base}
        blocks.append({**block, "cost": rng.randrange(entries)})
        base += size
    return blocks


def fields(payload, names):
    return {name: getattr(payload, name) for name in names}


@EACH
@STALL
@pytest.mark.parametrize("extra", [0, 3])
def test_allocator(name, stall, extra):
    """Blocks of at most so many positions, each in one piece, never where one has not been read."""
    cfg, rng = config(name, extra), random.Random(f"allocator {name} {stall}")
    unit, size, entries = Allocator(cfg), positions_of(cfg), cfg.kv_chunks // cfg.ports
    commands, want, base = [], [], 0
    for _ in range(20):
        count = rng.choice([1, size - 1, size, size + 1, rng.randrange(1, 4 * size)])
        chunks = rng.choice([cfg.max_head_chunks, rng.randrange(1, cfg.max_head_chunks + 1)])
        is_v = rng.getrandbits(1)
        commands.append({"is_v": is_v, "positions": count, "head_chunks": chunks})
        for at in range(0, count, size):
            need = size // cfg.ports * chunks
            left, base = (0, base) if base + need <= entries else (entries - base, 0)
            last = min(size, count - at) - 1
            block = {"is_v": is_v, "head_chunks": chunks, "last": last, "base": base}
            want.append({**block, "cost": left + need})
            base += need
    got, live = [], deque()

    async def free(ctx):
        """Blocks are read some time after they were given, in order."""
        seen = 0
        while True:
            live.extend(block.cost for block in got[seen:])
            seen = len(got)
            assert sum(live) <= entries
            done = bool(live) and rng.random() < 0.1
            ctx.set(unit.free, int(done))
            ctx.set(unit.free_cost, live.popleft() if done else rng.randrange(entries))
            await ctx.tick()

    benches = [sender(unit.i, commands, rng, stall), receiver(unit.o, len(want), got, rng, stall)]
    simulate(unit, benches, [free])
    assert [fields(block, want[0]) for block in got] == want


@EACH
@STALL
def test_dealer(name, stall):
    """Where each burst begins; a block is filled when the lanes have written all of it."""
    cfg, rng = config(name), random.Random(f"dealer {name} {stall}")
    unit, blocks = Dealer(cfg), random_blocks(cfg, rng, 25)
    want, ends, turns = [[] for _ in range(cfg.ports)], [], []
    for block in blocks:
        beats = (block["last"] + 1) * block["head_chunks"]
        for beat in range(0, beats, BURST_BEATS):
            t, j = divmod(beat, block["head_chunks"])
            turns.append(rng.randrange(cfg.ports))
            _, entry = place(cfg, block, t, j)
            job = {"head_chunks": block["head_chunks"], "t": t % cfg.ports, "j": j}
            want[turns[-1]].append({**job, "row": entry - j})
        ends.append(len(turns))
    got, jobs = [], [[] for _ in range(cfg.ports)]
    written = [0] * cfg.ports

    async def lanes(ctx):
        while True:
            done = 0
            for port in range(cfg.ports):
                if written[port] < len(jobs[port]) and rng.random() < 0.2:
                    written[port] += 1
                    done |= 1 << port
            ctx.set(unit.done, done)
            await ctx.tick()

    async def watch(ctx):
        async for _, _, taken in ctx.tick().sample(unit.filled.valid & unit.filled.ready):
            if taken:  # each of its bursts has been written, port by port
                until = turns[: ends[len(got) - 1]] if got else []
                assert all(written[port] >= until.count(port) for port in range(cfg.ports))

    lane_ends = [
        receiver(unit.jobs[port], len(want[port]), jobs[port], random.Random(port), stall)
        for port in range(cfg.ports)
    ]
    inputs = [sender(unit.blocks, blocks, rng, stall), sender(unit.turns, turns, rng, stall)]
    outputs = [receiver(unit.filled, len(blocks), got, rng, stall), *lane_ends]
    simulate(unit, [*inputs, *outputs], [lanes, watch])
    assert [fields(block, blocks[0]) for block in got] == blocks
    for port, found in enumerate(jobs):
        assert [fields(job, ("head_chunks", "t", "j", "row")) for job in found] == want[port]


def test_collector():
    """A burst is taken off when its lane has written it, in order; only a block's last waits."""
    cfg, rng = config("two"), random.Random("collector")
    unit, block = Collector(cfg), {"head_chunks": 3, "base": 7}
    bursts = [{"port": rng.randrange(4), "end": int(n % 3 == 2), "block": block} for n in range(30)]
    ports = [burst["port"] for burst in bursts]
    written, times, got = [0] * 4, [], []

    async def lanes(ctx):
        """They write their bursts in order, but wait for no other lane."""
        while True:
            taken = ports[: len(times)]
            assert all(taken.count(port) <= written[port] for port in range(4))
            done = 0
            for port in range(4):
                if written[port] < ports.count(port) and rng.random() < 0.1:
                    written[port] += 1
                    done |= 1 << port
            ctx.set(unit.done, done)
            await ctx.tick()

    async def late(ctx):
        await ctx.tick().repeat(100)
        assert len(times) == 2 and not got  # they end no block, the third does
        await receiver(unit.filled, 10, got, rng, 0.3)(ctx)

    simulate(unit, [sender(unit.i, bursts, times=times), late], [lanes])
    assert [fields(each, block) for each in got] == [block] * 10


@EACH
@STALL
def test_burst_lane(name, stall):
    """The bank and the entry of each beat; one per cycle, also from burst to burst."""
    cfg, rng = config(name), random.Random(f"lane {name} {stall}")
    unit, jobs, beats, want = BurstLane(cfg), [], [], []
    for block in random_blocks(cfg, rng, 30):
        chunks, length = block["head_chunks"], rng.randrange(1, BURST_BEATS + 1)
        t, j = rng.randrange(cfg.ports), rng.randrange(chunks)
        jobs.append({"head_chunks": chunks, "t": t, "j": j, "row": block["base"]})
        for beat in range(length):
            value = rng.getrandbits(8 * cfg.port_bytes)
            beats.append({"data": value, "last": int(beat == length - 1)})
            past, chunk = divmod(j + beat, chunks)
            want.append((*place(cfg, block, t + past, chunk), value, beat == length - 1))
    got, times = [], []

    async def banks(ctx):
        now, ready, offer = 0, 0, None
        while len(got) < len(want):
            sampled = (unit.valid, unit.bank, unit.addr, unit.data, unit.done)
            _, _, valid, *beat = await ctx.tick().sample(*sampled)
            now += 1
            assert offer is None or (valid and beat[:3] == offer), "changed before written"
            offer = beat[:3] if valid and not ready else None
            assert not beat[3] or (valid and ready)
            if valid and ready:
                got.append(tuple(beat))
                times.append(now)
            ready = int(rng.random() >= stall)
            ctx.set(unit.ready, ready)

    source = random.Random("beats")
    inputs = [sender(unit.jobs, jobs, source, stall), sender(unit.beats, beats, source, stall)]
    simulate(unit, [*inputs, banks])
    assert got == want
    if not stall:
        assert times[-1] - times[0] == len(times) - 1


@EACH
@STALL
def test_filler(name, stall):
    """When a block is said to be filled, the banks hold each of its chunks in its place."""
    cfg, rng = config(name), random.Random(f"filler {name} {stall}")
    unit, blocks = Filler(cfg), random_blocks(cfg, rng, 10)
    contents, turns, beats = [], [], [[] for _ in range(cfg.ports)]
    for block in blocks:
        chunks, held = block["head_chunks"], {}
        count = (block["last"] + 1) * chunks
        for first in range(0, count, BURST_BEATS):
            turns.append(rng.randrange(cfg.ports))
            for at in range(first, min(first + BURST_BEATS, count)):
                value = rng.getrandbits(8 * cfg.port_bytes)
                held[place(cfg, block, *divmod(at, chunks))] = value
                last = at + 1 == count or at + 1 == first + BURST_BEATS
                beats[turns[-1]].append({"data": value, "last": int(last)})
        assert len(held) == count
        contents.append(held)
    banks, found = {}, 0

    async def watch(ctx):
        nonlocal found
        ctx.set(unit.filled.ready, 1)
        ports = (unit.en, *unit.addr, *unit.data)
        while found < len(blocks):
            _, _, filled, block, en, *rest = await ctx.tick().sample(
                unit.filled.valid, unit.filled.payload, *ports
            )
            if filled:
                assert fields(block, blocks[0]) == blocks[found]
                for at, value in contents[found].items():
                    assert banks.get(at) == value, at
                found += 1
            for bank in range(cfg.ports):
                if en >> bank & 1:
                    banks[bank, rest[bank]] = rest[cfg.ports + bank]

    async def linger(ctx):
        while found < len(blocks):
            await ctx.tick()

    lanes = [
        sender(unit.beats[port], each, random.Random(port), stall)
        for port, each in enumerate(beats)
    ]
    simulate(
        unit,
        [sender(unit.blocks, blocks, rng, stall), sender(unit.turns, turns), *lanes, linger],
        [watch],
    )


def words_of(cfg, block):
    """First position and first chunk of each of a block's words, in the array's order."""
    chunks, last, words = block["head_chunks"], block["last"], []
    per_tile, per_word = (cfg.rows, cfg.ports) if block["is_v"] else (cfg.cols, cfg.word_cols)
    for tile in range(ceil_div(last + 1, per_tile)):
        for chunk in range(0, chunks, 1 if block["is_v"] else cfg.k_chunks):
            words += [(tile * per_tile + w * per_word, chunk) for w in range(cfg.tile_cycles)]
    return words


def lanes_of(cfg, block, t, chunk):
    """(position, chunk) of each of the P chunks of a word."""
    if block["is_v"]:
        return [(t + i, chunk) for i in range(cfg.ports)]
    return [(t + c, chunk + d) for c in range(cfg.word_cols) for d in range(cfg.k_chunks)]


@EACH
@STALL
def test_word_walk(name, stall):
    """Each word's place, and a mask that leads each of its chunks to its bank."""
    cfg, rng = config(name), random.Random(f"walk {name} {stall}")
    unit = WordWalk(cfg)

    async def bench(ctx):
        for block in random_blocks(cfg, rng, 12):
            ctx.set(unit.block, block)
            words = words_of(cfg, block)
            for n, (t, chunk) in enumerate(words):
                while stall and rng.random() < stall:
                    await ctx.tick()
                assert (ctx.get(unit.row), ctx.get(unit.chunk)) == (t // cfg.ports, chunk)
                tag = ctx.get(unit.tag)
                assert (tag.is_v, tag.end) == (block["is_v"], n == len(words) - 1)
                assert tag.cost == block["cost"]
                for lane, (position, j) in enumerate(lanes_of(cfg, block, t, chunk)):
                    column, d = divmod(lane, cfg.k_chunks)
                    order = lane if block["is_v"] else column ^ swapped(cfg, d)
                    assert order ^ tag.mask == place(cfg, block, position, j)[0]
                ctx.set(unit.step, 1)
                await ctx.tick()
                ctx.set(unit.step, 0)

    simulate(unit, [bench])


@EACH
@STALL
def test_drainer(name, stall):
    """The chunks of each word out of their banks; a block is free when its last word is read."""
    cfg, rng = config(name), random.Random(f"drainer {name} {stall}")
    unit, blocks, want, costs = Drainer(cfg), random_blocks(cfg, rng, 12), [], []
    banks = [
        [rng.getrandbits(8 * cfg.port_bytes) for _ in range(cfg.kv_chunks // cfg.ports)]
        for _ in range(cfg.ports)
    ]
    for block in blocks:
        for t, chunk in words_of(cfg, block):
            lanes = lanes_of(cfg, block, t, chunk)
            places = [
                place(cfg, block, position, j) if j < block["head_chunks"] else None
                for position, j in lanes
            ]
            want.append([at and banks[at[0]][at[1]] for at in places])
    got, times, sent = [], [], []

    async def memory(ctx):
        """The banks; and what was freed."""
        ports = (unit.en, unit.free, unit.free_cost, *unit.addr)
        async for _, _, en, free, cost, *addresses in ctx.tick().sample(*ports):
            assert not free or en
            if free:
                costs.append(cost)
            if en:
                for bank, address in enumerate(addresses):
                    held = banks[bank]
                    ctx.set(unit.data[bank], held[address] if address < len(held) else 0)

    consumer = receiver(unit.words, len(want), got, rng, stall, times)
    simulate(unit, [sender(unit.filled, blocks, rng, stall, sent), consumer], [memory])
    size = 8 * cfg.port_bytes
    for word, lanes in zip(got, want, strict=True):
        for lane, value in enumerate(lanes):
            assert value is None or word >> size * lane & (1 << size) - 1 == value
    assert costs == [block["cost"] for block in blocks]
    if not stall:  # a block is taken with its last word, and offered again in the next cycle
        assert times[0] == unit.LATENCY + 1 and times[-1] - times[0] == len(times) - 1

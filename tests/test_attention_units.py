# amaranth: UnusedElaboratable=no
"""The units of ATTEND one by one, each against what it must do, written down in Python."""

import random
from itertools import groupby, pairwise

import pytest
from amaranth.sim import Simulator
from attention_jobs import HALF, WORD, Attend
from presets import TINY16
from streams import receiver, sender, simulate
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import ceil_div
from tokenfabric.rtl.attention import JobPasses, PairTable, PassCommands
from tokenfabric.rtl.layouts import BeatTag
from tokenfabric.rtl.plan import HeadWalk, JobRequests, RowGroups

TINY = preset("tiny")
CONFIGS = pytest.mark.parametrize(
    "cfg", [TINY, TINY16, preset("pynq-z2"), preset("kv260")], ids=lambda cfg: cfg.name
)
STALL = pytest.mark.parametrize("stall", [0.0, 0.5])


def looking_up(unit, rows):
    """The row table: the row at ``row_index``, in the same cycle."""

    async def bench(ctx):
        while True:
            index = ctx.get(unit.row_index)
            ctx.set(unit.row, rows[index] if index < len(rows) else {})
            await ctx.tick()

    return bench


# --- AttentionPlan ----------------------------------------------------------------------------


@CONFIGS
@STALL
def test_row_groups(cfg, stall):
    """Rows of one slot, and no others, form a group; ``begin`` comes at the first of each."""
    rng = random.Random(f"groups {cfg.name} {stall}")
    for _ in range(6):
        attend = Attend(cfg, rng)
        i, rows, unit = attend.i, attend.rows, RowGroups(cfg)
        want, got, begun, times = [], [], [], []
        for _, same in groupby(rows, lambda row: row["slot"]):
            size = len(list(same))
            first = want[-1][0] + want[-1][1] if want else 0
            positions = rows[first + size - 1]["position"] + 1
            together, last = size * i["group"] <= cfg.max_rows, first + size == len(rows)
            beats = positions * i["head_chunks"]
            want.append((first, size, positions, beats, together, last))

        async def watch(ctx, unit=unit, begun=begun, rows=rows):
            ctx.set(unit.rows, len(rows))
            sampled = ctx.tick().sample(unit.begin, unit.row_index, unit.instruction.imm)
            async for _, _, begin, index, imm in sampled:
                if begin:
                    begun.append((index, imm))

        simulate(
            unit,
            [
                sender(unit.cmd, [i] * 2),
                receiver(unit.o, 2 * len(want), got, rng, stall, times),
            ],
            [watch, looking_up(unit, rows)],
        )
        found = [(g.first, g.rows, g.positions, g.beats, g.together, g.last) for g in got]
        assert found == 2 * want
        assert begun == 2 * [(group[0], i["imm"]) for group in want]
        if not stall:  # rows, the end of a group, the offer; the receiver's first ready
            for n in range(1, len(want)):
                assert times[n] - times[n - 1] == want[n][1] + 2


@pytest.mark.parametrize("together", [0, 1])
@STALL
def test_head_walk(together, stall):
    """Query heads of each KV head, the KV heads' addresses; a start in the middle begins anew."""
    rng = random.Random(f"heads {together} {stall}")
    unit = HeadWalk()

    async def bench(ctx):
        for kv_heads, group in ((1, 1), (1, 5), (3, 1), (4, 3), (2, 255)):
            kv, scale, kv_pitch, scale_pitch = (rng.getrandbits(32) for _ in range(4))
            values = {"kv_pitch": kv_pitch, "scale_pitch": scale_pitch, "together": together}
            values |= {"kv_heads": kv_heads, "group": group}
            for name, value in values.items():
                ctx.set(getattr(unit, name), value)
            queries = range(0, kv_heads * group, group if together else 1)
            for steps in (len(queries) // 2, len(queries)):
                ctx.set(unit.kv_start, kv)
                ctx.set(unit.scale_start, scale)
                ctx.set(unit.start, 1)
                await ctx.tick()
                ctx.set(unit.start, 0)
                for name in ("kv_start", "scale_start"):
                    ctx.set(getattr(unit, name), rng.getrandbits(32))
                for query in queries[:steps]:
                    while True:
                        head = query // group
                        assert ctx.get(unit.query) == query & 255
                        assert ctx.get(unit.heads) == (group if together else 1)
                        assert ctx.get(unit.kv_at) == kv + head * kv_pitch & WORD
                        assert ctx.get(unit.scale_at) == scale + head * scale_pitch & WORD
                        assert ctx.get(unit.last) == (query == queries[-1])
                        step = rng.random() >= stall
                        ctx.set(unit.step, int(step))
                        await ctx.tick()
                        if step:
                            break
                ctx.set(unit.step, 0)

    simulate(unit, [bench])


@CONFIGS
@STALL
def test_job_requests(cfg, stall):
    """Job, scales, K, V in this order, the buffer told before each fetch; a job in 7 cycles."""
    rng = random.Random(f"requests {cfg.name} {stall}")
    unit, offset = JobRequests(cfg), rng.getrandbits(32)
    items, want = [], []
    for _ in range(25):
        positions, chunks = rng.randrange(1, cfg.max_context + 1), rng.randrange(1, 17)
        job = {"first": rng.randrange(cfg.max_rows), "rows": 1, "head": rng.getrandbits(8)}
        job |= {"heads": rng.getrandbits(8), "positions": positions, "last": rng.getrandbits(1)}
        kv, scale = rng.getrandbits(32), rng.getrandbits(32)
        beats = positions * chunks
        items.append({"job": job, "head_chunks": chunks, "beats": beats})
        items[-1] |= {"kv_at": kv, "scale_at": scale}
        want += [
            ("jobs", tuple(job.values())),
            ("fetch", (scale, 2 * ceil_div(positions, cfg.cols), BeatTag.SCALE)),
            ("kv", (0, positions, chunks)),
            ("fetch", (kv, beats, BeatTag.KV)),
            ("kv", (1, positions, chunks)),
            ("fetch", (kv + offset & WORD, beats, BeatTag.KV)),
        ]
    fields = {
        "jobs": ("first", "rows", "head", "heads", "positions", "last"),
        "fetch": ("offset", "beats", "tag"),
        "kv": ("is_v", "positions", "head_chunks"),
    }
    order, times = [], []

    async def watch(ctx):
        ctx.set(unit.v_offset, offset)
        sampled = [s for name in fields for s in _handshake(getattr(unit, name))]
        async for _, _, *values in ctx.tick().sample(*sampled):
            for at, (name, members) in enumerate(fields.items()):
                valid, ready, payload = values[3 * at :][:3]
                if valid and ready:
                    order.append((name, tuple(getattr(payload, member) for member in members)))

    counts = {"jobs": len(items), "fetch": 3 * len(items), "kv": 2 * len(items)}
    benches = [
        receiver(getattr(unit, name), count, [], random.Random(name), stall)
        for name, count in counts.items()
    ]
    simulate(unit, [sender(unit.i, items, rng, stall, times), *benches], [watch])
    assert order == want
    if not stall:
        assert {b - a for a, b in pairwise(times[1:])} == {7}


def _handshake(port):
    return port.valid, port.ready, port.payload


# --- AttentionControl -------------------------------------------------------------------------


@CONFIGS
def test_pass_commands(cfg):
    """Every field of every command, of random instructions and jobs; combinational."""
    rng = random.Random(f"commands {cfg.name}")
    unit = PassCommands(cfg)

    async def bench(ctx):
        for _ in range(20):
            attend = Attend(cfg, rng)
            i = attend.i
            ctx.set(unit.instruction, i)
            passes = iter(attend.passes)
            for first, rows, head, heads, positions in attend.jobs:
                job = {"first": first, "rows": rows, "head": head, "heads": heads}
                ctx.set(unit.job, {**job, "positions": positions})
                ctx.set(unit.pairs, rows * heads)
                for for_v in (0, 1):
                    ctx.set(unit.for_v, for_v)
                    _, matmul, softmax = next(passes)
                    found = ctx.get(unit.matmul)
                    assert {name: getattr(found, name) for name in matmul} == matmul
                    if softmax:
                        found = ctx.get(unit.softmax)
                        assert {name: getattr(found, name) for name in softmax} == softmax
                    step = i["head_chunks"] if for_v else matmul["k"] * cfg.k_chunks
                    side = "dst" if for_v else "src"
                    table = {**job, "base": i[side], "stride": i[f"{side}_stride"], "step": step}
                    found = ctx.get(unit.table)
                    assert {name: getattr(found, name) for name in table} == table
                    assert found.for_v == for_v

    sim = Simulator(unit)  # without a clock
    sim.add_testbench(bench)
    sim.run()


@CONFIGS
@STALL
def test_pair_table(cfg, stall):
    """Pairs row by row, their addresses and limits; n pairs in 4 + n cycles, one after another."""
    rng = random.Random(f"pairs {cfg.name} {stall}")
    unit, most = PairTable(cfg), cfg.max_rows
    rows = [{"position": rng.randrange(cfg.max_context)} for _ in range(most)]
    commands, want, found, times, counts = [], [], [], [], []
    for _ in range(12):
        count = rng.choice([1, most, rng.randrange(1, most + 1)])
        heads = rng.randrange(1, most // count + 1)
        first, head = rng.randrange(most - count + 1), rng.randrange(256 - heads)
        base, stride, step = rng.getrandbits(16), rng.getrandbits(12), rng.getrandbits(8)
        for_v = rng.getrandbits(1)
        commands.append({"first": first, "rows": count, "head": head, "heads": heads})
        commands[-1] |= {"base": base, "stride": stride, "step": step, "for_v": for_v}
        counts.append(count * heads)
        for pair in range(count * heads):
            row, h = first + pair // heads, head + pair % heads
            at = base + row * stride + h * step & HALF
            src = pair * (cfg.max_context // cfg.cols) if for_v else at
            want.append((pair, src, at, rows[row]["position"]))

    async def watch(ctx):
        taken = 0
        sampled = (unit.en, unit.index, unit.entry, unit.i.valid & unit.i.ready, unit.pairs)
        was = 0
        async for _, _, en, index, entry, done, pairs in ctx.tick().sample(*sampled):
            if was:
                assert pairs == counts[taken]
                taken += 1
            was = done
            if en:
                found.append((index, entry.src, entry.dst, entry.limit))

    benches = [sender(unit.i, commands, rng, stall, times)]

    async def linger(ctx):
        while len(times) < len(commands):
            await ctx.tick()
        await ctx.tick().repeat(10)

    simulate(unit, [*benches, linger], [watch, looking_up(unit, rows)])
    assert found == want
    if not stall:
        assert times == [sum(counts[: n + 1]) + 4 * (n + 1) for n in range(len(counts))]


@STALL
def test_job_passes(stall):
    """The order of a job's commands; V's product waits for the softmax, but its table does not."""
    rng = random.Random(f"passes {stall}")
    unit = JobPasses(TINY)
    sizes = [1, 3, 2]
    jobs = [{"first": n % 4, "last": int(n == size - 1)} for size in sizes for n in range(size)]
    instructions = [{"imm": rng.getrandbits(32)} for _ in sizes]
    events, early = [], []

    async def units(ctx):
        """Table, array and softmax: each takes what it is told at times, and is busy then."""
        left = {"table": 0, "matmul": 0, "softmax": 0}
        while True:
            for name in left:
                ready = left[name] == 0 and rng.random() >= stall
                ctx.set(getattr(unit, f"{name}_ready"), int(ready))
                if name != "table":
                    ctx.set(getattr(unit, f"{name}_busy"), int(left[name] > 0))
                left[name] = max(0, left[name] - 1)
            waits = ctx.get(unit.softmax_busy)
            for name in left:
                valid, ready = getattr(unit, f"{name}_valid"), getattr(unit, f"{name}_ready")
                if ctx.get(valid & ready):
                    assert ctx.get(unit.busy) and not (waits and name == "matmul")
                    for_v = name != "softmax" and ctx.get(unit.for_v)
                    events.append((name, for_v, ctx.get(unit.instruction.imm)))
                    left[name] = 0 if name == "table" else rng.randrange(1, 40)
                    early.append(name == "table" and waits)
            if ctx.get(unit.jobs.valid & unit.jobs.ready):
                assert not ctx.get(unit.matmul_busy)
                events.append("job")
            await ctx.tick()

    async def until_idle(ctx):
        while events.count("job") < len(jobs):
            await ctx.tick()
        await ctx.tick()
        assert not ctx.get(unit.busy)

    simulate(
        unit,
        [sender(unit.cmd, instructions, rng, stall), sender(unit.jobs, jobs, rng, stall),
         until_idle],
        [units],
    )  # fmt: skip
    want = []
    for size, instruction in zip(sizes, instructions):
        for _ in range(size):
            order = [("table", 0), ("matmul", 0), ("softmax", 0), ("table", 1), ("matmul", 1)]
            want += [(name, for_v, instruction["imm"]) for name, for_v in order] + ["job"]
    assert events == want
    assert any(early)

"""MatmulEngine against the integer reference: all kinds of commands, stalls, sequences, time."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from matmul_jobs import blank, product_job, random_jobs, random_memories, to_word
from presets import TINY16
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.rtl.layouts import MatmulDest, MatmulKind
from tokenfabric.rtl.matmul import MatmulEngine

STREAM, K, V, LOAD = MatmulKind
TINY, PYNQ = preset("tiny"), preset("pynq-z2")
STREAMS = ("words", "kv_words", "kv_scales")
STALLS = {  # share of cycles in which a stream sleeps, longest sleep
    "none": (0, 0),
    "often": (0.4, 1),
    "bursts": (0.05, 40),
}


# --- the bench -----------------------------------------------------------------------------------


class Source:
    """A stream with stalls; its payload stays while it waits."""

    def __init__(self, port, values, stalls, rng):
        self.port, self.values, self.rng = port, list(values), rng
        self.share, self.longest = stalls
        self.at = self.asleep = 0
        self.valid = False

    def drive(self, ctx, ready):
        """After each clock edge; ``ready`` as it was at the edge."""
        if self.valid and ready:
            self.at += 1
            self.valid = False
        if not self.valid and self.at < len(self.values):
            if self.asleep:
                self.asleep -= 1
            elif self.rng.random() < self.share:
                self.asleep = int(self.rng.integers(self.longest))
            else:
                self.valid = True
                ctx.set(self.port.payload, self.values[self.at])
        ctx.set(self.port.valid, self.valid)


class Bench:
    """Runs jobs and records everything that comes out.

    ``stalls`` by stream, ``room(cycle)`` says whether there is room.
    """

    def __init__(self, cfg, jobs, memories, *, stalls=None, seed=0, room=lambda cycle: True):
        self.cfg, self.jobs, self.room = cfg, jobs, room
        self.memories = memories
        self.stalls, self.rng = stalls or {}, np.random.default_rng(seed)
        self.results, self.params, self.spans, self.x_cycles = [], [], [], []
        self.counts = dict.fromkeys(
            ("count_busy", "wait_weights", "wait_kv", "wait_room", "idle"), 0
        )
        self.cycle = 0

    def run(self, deadline=20000):
        self.dut, self.deadline = MatmulEngine(self.cfg), deadline
        sim = Simulator(self.dut)
        sim.add_clock(1e-6)
        sim.add_testbench(self.commander)
        sim.add_testbench(self.surroundings, background=True)
        sim.run()
        return self

    async def commander(self, ctx):
        dut = self.dut
        for job in self.jobs:
            for index, (src, dst, limit) in enumerate(job.table):
                ctx.set(dut.table_w.en, 1)
                ctx.set(dut.table_w.addr, index)
                ctx.set(dut.table_w.data, {"src": src, "dst": dst, "limit": limit})
                await ctx.tick()
            ctx.set(dut.table_w.en, 0)
            for index, (mult, shift) in enumerate(job.row_scale):
                ctx.set(dut.row_scale_w.en, 1)
                ctx.set(dut.row_scale_w.payload, {"index": index, "mult": mult, "shift": shift})
                await ctx.tick()
            ctx.set(dut.row_scale_w.en, 0)
            ctx.set(dut.cmd.payload, job.command)
            ctx.set(dut.cmd.valid, 1)
            await ctx.tick().until(dut.cmd.ready)
            start = self.cycle
            ctx.set(dut.cmd.valid, 0)
            ctx.set(dut.cmd.payload, blank(LOAD, n=77))  # must not matter from here on
            assert ctx.get(dut.busy)
            while ctx.get(dut.busy):
                await ctx.tick()
            self.spans.append(self.cycle - start)
        await ctx.tick().repeat(30)

    async def surroundings(self, ctx):
        dut = self.dut
        sources = [
            Source(
                getattr(dut, name),
                [w for job in self.jobs for w in getattr(job, name)],
                self.stalls.get(name, (0, 0)),
                self.rng,
            )
            for name in STREAMS
        ]
        reads = [(dut.in_r, self.memories[0]), (dut.score_r, self.memories[1])]
        rows = self.cfg.rows
        ctx.set(dut.room, bool(self.room(0)))
        signals = [dut.result_valid, dut.result, dut.busy, dut.param_w.en]
        signals += [source.port.ready for source in sources]
        signals += [port.en for port, _ in reads] + [port.addr for port, _ in reads]
        signals += [getattr(dut, name) for name in self.counts]
        signals += [dut.cmd.ready, dut.param_w.addr, dut.param_w.data]
        async for _, _, *now in ctx.tick().sample(*signals):
            self.cycle += 1
            assert self.cycle < self.deadline, f"no end; {len(self.results)} results so far"
            valid, result, busy, param = now[:4]
            assert now[16] == (not busy)
            if valid:
                assert busy or result.dest == MatmulDest.EMBED
                self.results.append(as_dict(result))
            if param:
                assert busy
                self.params.append(tuple(now[-2:]))
            for source, ready in zip(sources, now[4:7], strict=True):
                source.drive(ctx, ready)
            for (port, memory), en, addr in zip(reads, now[7:9], now[9:11], strict=True):
                if en:
                    assert addr % self.cfg.k_chunks == 0
                    self.x_cycles.append(self.cycle)
                    at = addr * self.cfg.cols
                    ctx.set(port.data, to_word(memory[at : at + rows], "<i2"))
            for name, value in zip(self.counts, now[11:16], strict=True):
                self.counts[name] += value
            ctx.set(dut.room, bool(self.room(self.cycle)))

    def check(self):
        wanted = [result for job in self.jobs for result in job.results]
        assert len(self.results) == len(wanted)
        for number, (got, want) in enumerate(zip(self.results, wanted, strict=True)):
            assert got == want, f"result {number} of {len(wanted)}"
        assert self.params == [param for job in self.jobs for param in job.params]
        assert self.counts["count_busy"] == len(self.x_cycles)
        products = [job.command for job in self.jobs if job.command["kind"] is not LOAD]
        assert len(self.x_cycles) == sum(c["m"] * c["k"] * c["n"] for c in products)


def as_dict(result):
    plain = {name: getattr(result, name) for name in ("saturated", "dst", "index", "block")}
    plain |= {name: getattr(result, name) for name in ("limit", "dest", "sat", "last")}
    return {"y": list(result.y), **plain}


def str_or_name(value):
    return getattr(value, "name", str(value))


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stalls", STALLS)
@pytest.mark.parametrize("seed,cfg", [(0, TINY), (1, TINY), (0, TINY16)], ids=str_or_name)
def test_random_commands(stalls, seed, cfg):
    rng = np.random.default_rng([seed, len(stalls)])
    memories = random_memories(cfg, rng)
    jobs = random_jobs(cfg, rng, memories, 12)
    Bench(
        cfg, jobs, memories, stalls=dict.fromkeys(STREAMS, STALLS[stalls]), seed=seed
    ).run().check()


@pytest.mark.parametrize("stalls", ["none", "bursts"])
def test_random_commands_pynq(stalls):
    cfg = PYNQ
    rng = np.random.default_rng(len(stalls))
    memories = random_memories(cfg, rng)
    jobs = random_jobs(cfg, rng, memories, 6)
    jobs.append(product_job(cfg, rng, memories, STREAM, m=16, k=2, n=3, tail=1))
    Bench(cfg, jobs, memories, stalls=dict.fromkeys(STREAMS, STALLS[stalls])).run().check()


@pytest.mark.parametrize("kind", [STREAM, K, V])
def test_extremes(kind):
    """All weights -128, all activations -32768, the whole length of K or a head."""
    cfg = TINY
    rng = np.random.default_rng(1)
    memories = [np.full_like(memory, -32768) for memory in random_memories(cfg, rng)]
    n = cfg.max_head_chunks if kind is V else 2
    jobs = [
        product_job(cfg, rng, memories, kind, m=m, k=16, n=n, tail=1, extreme=True)
        for m in (1, cfg.max_rows)
    ]
    Bench(cfg, jobs, memories).run().check()


@pytest.mark.parametrize("kind", [STREAM, K, V])
@pytest.mark.parametrize(
    "cfg,m", [(TINY, 1), (TINY, 4), (PYNQ, 1), (PYNQ, 9), (TINY16, 4)], ids=str_or_name
)
def test_tiles_follow_without_a_pause(kind, cfg, m):
    """max(m, words) cycles per tile; a word of multipliers costs one, unless m hides it."""
    rng = np.random.default_rng(m)
    memories = random_memories(cfg, rng)
    k, n = 3, 5
    job = product_job(cfg, rng, memories, kind, m=m, k=k, n=n, tail=1)
    bench = Bench(cfg, [job], memories).run()
    bench.check()
    tile = max(m, cfg.tile_cycles)
    between = -(-n * cfg.cols // cfg.scale_channels) - 1 if kind is STREAM else 0
    hidden = m > cfg.tile_cycles
    span = (k * n - 1) * tile + m - 1 + (0 if hidden else between)
    assert bench.x_cycles[-1] - bench.x_cycles[0] == span
    # busy rises; start; a word of multipliers; a tile; the address of the first x.
    first = 2 + (kind is STREAM) + cfg.tile_cycles
    assert bench.spans[0] == first + span + bench.dut.DRAIN
    waits = bench.counts["wait_weights" if kind is STREAM else "wait_kv"]
    assert waits == (span + 1 - m * k * n) + cfg.tile_cycles + (kind is STREAM)


def test_room_holds_back_column_blocks():
    cfg = TINY
    rng = np.random.default_rng(3)
    memories = random_memories(cfg, rng)
    kwargs = {"m": 3, "k": 2, "tail": 1}
    jobs = [
        product_job(cfg, rng, memories, STREAM, n=2, dest=MatmulDest.LOGITS, **kwargs),
        product_job(cfg, rng, memories, STREAM, n=1, dest=MatmulDest.OUT, **kwargs),
    ]
    # One cycle of room is a whole column-block, and other destinations need none.
    bench = Bench(cfg, jobs, memories, room=lambda cycle: cycle in (200, 300)).run()
    bench.check()
    x = np.array(bench.x_cycles)
    assert [int(np.sum(x < edge)) for edge in (200, 300)] == [0, 6]
    assert np.sum(x < 320) == 12 and len(x) == 18 and x[-1] < 450
    assert bench.counts["wait_room"] > 250


@pytest.mark.parametrize(
    "late,stalls", [("words", (0.1, 90)), ("kv_words", (0.1, 90)), ("kv_scales", (0.9, 40))]
)
def test_late_stream(late, stalls):
    """One stream that sleeps far longer than the others must hold everything back."""
    cfg = TINY
    rng = np.random.default_rng(8)
    memories = random_memories(cfg, rng)
    kinds = (STREAM,) if late == "words" else (K, V)
    jobs = random_jobs(cfg, rng, memories, 4, kinds)
    Bench(cfg, jobs, memories, stalls={late: stalls}).run().check()


def test_embed_goes_through_requantize_between_commands():
    cfg = TINY
    rng = np.random.default_rng(4)
    lanes = rng.integers(-128, 128, (20, cfg.cols))
    mult, shift = rng.integers(0, 1 << 16, 20), rng.integers(0, 20, 20)
    bench = Bench(cfg, [], random_memories(cfg, rng))

    async def embed(ctx):
        dut = bench.dut
        for i in range(20):
            chunk = {"lanes": lanes[i].tolist(), "mult": int(mult[i]), "shift": int(shift[i])}
            ctx.set(dut.embed, {**chunk, "dst": 100 + i, "sat": 5})
            ctx.set(dut.embed_valid, 1)
            await ctx.tick()
            ctx.set(dut.embed_valid, 0)
            for _ in range(rng.integers(2)):
                await ctx.tick()
        await ctx.tick().repeat(20)

    bench.commander = embed
    bench.run()
    want = ops.embed(lanes, mult[:, None], shift[:, None])
    assert [r["y"] for r in bench.results] == want.tolist()
    assert [r["dst"] for r in bench.results] == list(range(100, 120))
    assert {(r["dest"], r["sat"], r["last"]) for r in bench.results} == {(MatmulDest.EMBED, 5, 0)}

"""MatmulEngine against the integer reference: all kinds of commands, stalls, sequences, time."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from amaranth.sim import Simulator
from presets import TINY16
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import saturate
from tokenfabric.rtl.layouts import MatmulDest, MatmulKind
from tokenfabric.rtl.matmul import MatmulEngine

STREAM, K, V, LOAD = MatmulKind
TINY, PYNQ = preset("tiny"), preset("pynq-z2")
BITS = (8, 16, 32)
STREAMS = ("words", "kv_words", "kv_scales")
STALLS = {  # share of cycles in which a stream sleeps, longest sleep
    "none": (0, 0),
    "often": (0.4, 1),
    "bursts": (0.05, 40),
}


# --- formats, as docs/microarchitecture.md has them ----------------------------------------------


def to_word(values, dtype) -> int:
    return int.from_bytes(np.asarray(values).astype(dtype).tobytes(), "little")


def column_words(cfg, tile):
    """Words of a tile [R, C]: W columns each, R int8 per column."""
    w = cfg.word_cols
    return [to_word(tile[:, i : i + w].T.ravel(), "i1") for i in range(0, cfg.cols, w)]


def row_words(cfg, tile):
    """Words of a tile [R, C]: P rows each, C int8 per row."""
    p = cfg.ports
    return [to_word(tile[i : i + p].ravel(), "i1") for i in range(0, cfg.rows, p)]


def weight_words(cfg, w, mult):
    """The weight stream of ``w`` int8 [inputs, channels] (whole blocks), ``mult`` [channels]."""
    words = []
    group = cfg.ports * cfg.cols // 2
    for g in range(0, w.shape[1], group):
        scales = np.zeros(group, int)
        scales[: len(mult[g : g + group])] = mult[g : g + group]
        words.append(to_word(scales, "<u2"))
        for c in range(g, min(g + group, w.shape[1]), cfg.cols):
            for r in range(0, w.shape[0], cfg.rows):
                words += column_words(cfg, w[r : r + cfg.rows, c : c + cfg.cols])
    return words


# --- jobs ----------------------------------------------------------------------------------------


@dataclass
class Job:
    """A command, what the streams bring for it, and what must come out."""

    command: dict
    table: list = field(default_factory=list)
    row_scale: list = field(default_factory=list)
    words: list = field(default_factory=list)
    kv_words: list = field(default_factory=list)
    kv_scales: list = field(default_factory=list)
    results: list = field(default_factory=list)
    params: list = field(default_factory=list)


def blank(kind, **changes):
    names = ("m", "k", "n", "tail", "shift", "shift_odd", "bits", "sat", "param")
    return {"kind": kind, "dest": MatmulDest.OUT, **dict.fromkeys(names, 0), **changes}


def load_job(cfg, rng, n):
    per_word = cfg.ports // 2  # chunks
    words = [to_word(rng.integers(0, 256, cfg.word_bytes), "u1") for _ in range(n)]
    param = int(rng.integers(cfg.param_chunks // per_word - n + 1)) * per_word
    params = [(param + i * per_word, word) for i, word in enumerate(words)]
    return Job(blank(LOAD, n=n, param=param), words=words, params=params)


def product_job(cfg, rng, memories, kind, *, m, k, n, tail, dest=None, extreme=False):
    """Random rows at random places of their memory; a quarter of the weights extreme, or all."""
    memory = memories[kind is V]
    blocks = len(memory) // cfg.rows
    src = rng.choice(blocks - k + 1, m) * cfg.k_chunks
    x = np.array([memory.reshape(-1, cfg.cols)[s : s + k * cfg.k_chunks].ravel() for s in src])
    x = x.astype(np.int64)
    x[:, (k - 1) * cfg.rows + tail * cfg.cols :] = 0
    w = rng.integers(-128, 128, (k * cfg.rows, n * cfg.cols))
    w[rng.random(w.shape) < (1 if extreme else 0.25)] = -128
    mult = rng.integers(0, 1 << 16, n * cfg.cols)
    mult[rng.random(mult.shape) < (1 if extreme else 0.1)] = 65535
    bits = int(rng.integers(3))
    near = max(0, 42 + k.bit_length() // 2 - BITS[bits])
    shift, shift_odd = (int(s) for s in np.clip(near + rng.integers(-6, 8, 2), 0, 63))
    dest = dest or MatmulDest(int(rng.choice([0, 1, 2, 4, 5])))
    command = blank(
        kind, m=m, k=k, n=n, tail=tail, shift=shift, shift_odd=shift_odd, bits=bits, dest=dest,
        sat=int(rng.integers(16)),
    )  # fmt: skip
    job = Job(command)
    dst, limit = rng.integers(0, 60000, m), rng.integers(0, 1 << 16, m)
    job.table = [tuple(map(int, row)) for row in zip(src, dst, limit, strict=True)]
    tiles = w.reshape(k, cfg.rows, n, cfg.cols).transpose(0, 2, 1, 3)  # [k, n, R, C]
    acc = x @ w
    if kind is V:
        mult, shifts = rng.integers(0, 1 << 16, m), rng.integers(near - 6, near + 8, m)
        job.row_scale = [(int(q), int(s)) for q, s in zip(mult, shifts, strict=True)]
        wide = ops.requantize(acc, mult[:, None], shifts[:, None])
        for kb in range(k):
            for nb in range(n):
                job.kv_words += row_words(cfg, tiles[kb, nb])
    else:
        odd = np.arange(n * cfg.cols) // cfg.cols % 2 == 1
        wide = ops.requantize(acc, mult, np.where(odd & (kind is STREAM), shift_odd, shift))
        if kind is K:
            job.kv_scales = [to_word(s, "<u2") for s in mult.reshape(n, cfg.cols)]
            for nb in range(n):
                for kb in range(k):
                    job.kv_words += column_words(cfg, tiles[kb, nb])
        else:
            job.words = weight_words(cfg, w, mult)
    y = saturate(wide, BITS[bits])
    for nb in range(n):
        lanes = slice(nb * cfg.cols, (nb + 1) * cfg.cols)
        for i in range(m):
            over = (y != wide)[i, lanes]
            job.results.append(
                {
                    "y": y[i, lanes].tolist(),
                    "saturated": sum(int(bit) << c for c, bit in enumerate(over)),
                    "dst": int(dst[i] + nb) & 0xFFFF,
                    "index": i,
                    "block": nb,
                    "limit": int(limit[i]),
                    "dest": dest,
                    "sat": command["sat"],
                    "last": int(nb == n - 1 and i == m - 1),
                }
            )
    return job


def random_memories(cfg, rng):
    """IN and SCORES as flat int16; a quarter of the values extreme."""
    memories = []
    for chunks in (cfg.in_chunks, cfg.score_chunks):
        memory = rng.integers(-32768, 32768, chunks * cfg.cols)
        memory[rng.random(len(memory)) < 0.25] = -32768
        memories.append(memory)
    return memories


def random_jobs(cfg, rng, memories, count, kinds=(STREAM, K, V, LOAD)):
    jobs = []
    for number in range(count):
        kind = (
            kinds[number % len(kinds)] if number < len(kinds) else kinds[rng.integers(len(kinds))]
        )
        if kind is LOAD:
            jobs.append(load_job(cfg, rng, int(rng.integers(1, 6))))
            continue
        m = int(rng.choice([1, cfg.max_rows, rng.integers(1, cfg.max_rows + 1)]))
        tail = int(rng.integers(1, cfg.k_chunks + 1))
        k, n = int(rng.integers(1, 4)), int(rng.integers(1, 6))
        jobs.append(product_job(cfg, rng, memories, kind, m=m, k=k, n=n, tail=tail))
    return jobs


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

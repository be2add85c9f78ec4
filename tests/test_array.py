"""ArrayUnit: commands from both sides, and what they leave in the memories, against numpy."""

from collections import deque

import numpy as np
import pytest
from matmul_jobs import LOAD, STREAM, K, V, blank, load_job, product_job, to_word
from streams import simulate
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import saturate
from tokenfabric.rtl.array import ArrayUnit
from tokenfabric.rtl.layouts import MatmulDest

SMALL = preset("tiny").replace(in_chunks=48, out_chunks=48, res_chunks=48)
STREAMS = ("words", "kv_words", "kv_scales")
EVENTS = ("count_busy", "wait_weights", "wait_kv", "wait_room", "idle")
BITS = {"in": 16, "out": 16, "res": 32}


def lanes_of(word, count, bits):
    values = [word >> bits * n & (1 << bits) - 1 for n in range(count)]
    return [value - (value >> bits - 1 << bits) for value in values]


class System:
    """The unit, its streams with stalls, SCORES, and a model of what all of it holds.

    ``patience``: the Writer takes nothing until the array has waited so many cycles for room.
    """

    def __init__(self, cfg, seed, stall=0.0, patience=0):
        self.cfg, self.stall, self.patience = cfg, stall, patience
        self.rng = np.random.default_rng([seed, cfg.cols])
        self.dut = ArrayUnit(cfg)
        self.queues = {name: deque() for name in STREAMS}
        self.counts = dict.fromkeys(EVENTS, 0)
        self.scores, self.dumps = [], {}  # scores as they come; row -> address of its logits
        self.memory, self.cycles = {}, 0  # what the Writer has been given
        chunks = {"in": cfg.in_chunks, "out": cfg.out_chunks, "res": cfg.res_chunks}
        self.model = {name: np.zeros((count, cfg.cols), np.int64) for name, count in chunks.items()}
        self.saturated, self.added = np.zeros(16, np.int64), 0  # by class; of those, additions
        self.score_memory = self.rng.integers(-32768, 32768, cfg.score_chunks * cfg.cols)

    def run(self, bench):
        async def whole(ctx):
            await ctx.tick().repeat(20)  # the counters clear themselves
            await self.fill(ctx)
            await bench(ctx)

        around = [*map(self.source, STREAMS), self.look_up, self.watch]
        simulate(self.dut, [whole], around)

    # --- around the unit

    def source(self, name):
        port, queue = getattr(self.dut, name), self.queues[name]

        async def bench(ctx):
            valid = False
            while True:
                if not valid and queue and self.rng.random() >= self.stall:
                    ctx.set(port.payload, queue[0])
                    valid = True
                ctx.set(port.valid, int(valid))
                _, _, ready = await ctx.tick().sample(port.ready)
                if valid and ready:
                    queue.popleft()
                    valid = False

        return bench

    async def look_up(self, ctx):
        """Who dumps, in the same cycle; the Writer is ready at times."""
        dut = self.dut
        while True:
            row = ctx.get(dut.dump_index)
            ctx.set(dut.dump, int(row in self.dumps))
            ctx.set(dut.dump_addr, self.dumps.get(row, 0))
            takes = self.counts["wait_room"] >= self.patience and self.rng.random() >= self.stall
            ctx.set(dut.beats.ready, int(takes))
            await ctx.tick()

    async def watch(self, ctx):
        """SCORES, the scores, beats and events."""
        dut, rows, cols, at = self.dut, self.cfg.rows, self.cfg.cols, 0
        # As numbers: to make structures of them in every cycle would take most of the time.
        sampled = [dut.score_r.en, dut.score_r.addr, dut.score_valid, dut.score.as_value()]
        sampled += [dut.beats.valid & dut.beats.ready, dut.beats.payload.as_value()]
        events = [getattr(dut, name) for name in EVENTS]
        async for _, _, en, addr, valid, score, taken, beat, *now in ctx.tick().sample(
            *sampled, *events
        ):
            if en:
                values = self.score_memory[addr * cols :][:rows]
                ctx.set(dut.score_r.data, to_word(values, "<i2"))
            if valid:
                score = dut.score.shape().from_bits(score)
                self.scores.append((score.index, score.block, score.limit, list(score.y)))
            if taken:
                beat = dut.beats.payload.shape().from_bits(beat)
                at = beat.addr if beat.first else at + self.cfg.port_bytes
                for n in range(self.cfg.port_bytes // 4):
                    self.memory[at + 4 * n] = beat.data >> 32 * n & 0xFFFF_FFFF
            for name, value in zip(EVENTS, now, strict=True):
                self.counts[name] += value

    async def fill(self, ctx):
        """IN through the vector unit's port, RES as embedding rows."""
        dut, cfg, rng = self.dut, self.cfg, self.rng
        values = rng.integers(-32768, 32768, self.model["in"].shape)
        values[rng.random(values.shape) < 0.25] = -32768
        self.model["in"][:] = values
        for at, chunk in enumerate(values):
            ctx.set(dut.vector_in_w.en, 1)
            ctx.set(dut.vector_in_w.addr, at)
            ctx.set(dut.vector_in_w.data, to_word(chunk, "<i2"))
            await ctx.tick()
        ctx.set(dut.vector_in_w.en, 0)
        for at in range(cfg.res_chunks):
            lanes = rng.integers(-128, 128, cfg.cols)
            mult, shift, sat = int(rng.integers(1 << 16)), int(rng.integers(20)), 5
            chunk = {"lanes": lanes.tolist(), "mult": mult, "shift": shift, "dst": at, "sat": sat}
            ctx.set(dut.embed, chunk)
            ctx.set(dut.embed_valid, 1)
            await ctx.tick()
            self.model["res"][at] = ops.embed(lanes, mult, shift)
        ctx.set(dut.embed_valid, 0)
        assert ctx.get(dut.busy)
        await self.until_idle(ctx)

    async def until_idle(self, ctx):
        while ctx.get(self.dut.busy):
            await ctx.tick()

    # --- commands

    async def command(self, ctx, job, attends):
        """One command, from ``attention`` or ``issue``; the other side wants something, too."""
        dut = self.dut
        side, other = (dut.attention, dut.issue) if attends else (dut.issue, dut.attention)
        ctx.set(dut.attends, int(attends))
        ctx.set(other.matmul.payload, blank(LOAD, n=77))
        ctx.set(other.matmul.valid, 1)
        ctx.set(other.table_en, 1)
        ctx.set(other.table, {"src": 1, "dst": 2, "limit": 3})
        for index, (src, dst, limit) in enumerate(job.table):
            ctx.set(side.table_en, 1)
            ctx.set(side.table_index, index)
            ctx.set(side.table, {"src": src, "dst": dst, "limit": limit})
            await ctx.tick()
        ctx.set(side.table_en, 0)
        for index, (mult, shift) in enumerate(job.row_scale):
            ctx.set(dut.row_scale_w.en, 1)
            ctx.set(dut.row_scale_w.payload, {"index": index, "mult": mult, "shift": shift})
            await ctx.tick()
        ctx.set(dut.row_scale_w.en, 0)
        for name, queue in self.queues.items():
            queue.extend(getattr(job, name))
        ctx.set(side.matmul.payload, job.command)
        ctx.set(side.matmul.valid, 1)
        assert ctx.get(side.matmul.ready) and not ctx.get(other.matmul.ready)
        await ctx.tick()
        ctx.set(side.matmul.valid, 0)
        while ctx.get(dut.busy):
            assert not ctx.get(other.matmul.ready)
            await ctx.tick()
        for port in (side, other):
            ctx.set(port.matmul.valid, 0)
            ctx.set(port.table_en, 0)
        assert not any(self.queues.values()), "words that nobody took"

    def product(self, kind, dest, **sizes):
        """A command whose results find room in their memory, and do not meet there."""
        cfg, rng = self.cfg, self.rng
        m = int(rng.integers(1, cfg.max_rows + 1))
        sizes = {"m": m, "k": int(rng.integers(1, 4)), "n": int(rng.integers(1, 5)), **sizes}
        memories = [self.model["in"].reshape(-1), self.score_memory]
        tail = int(rng.integers(1, cfg.k_chunks + 1))
        job = product_job(cfg, rng, memories, kind, tail=tail, dest=dest, **sizes)
        chunks = min(len(memory) for memory in self.model.values())
        places = chunks // sizes["n"] if dest is not MatmulDest.LOGITS else sizes["m"]
        starts = rng.choice(places, sizes["m"], replace=False) * sizes["n"]
        job.table = [
            (src, int(dst), int(limit % (sizes["n"] * cfg.cols)))
            for (src, _, limit), dst in zip(job.table, starts, strict=True)
        ]
        for result in job.results:
            _, dst, limit = job.table[result["index"]]
            result |= {"dst": dst + result["block"], "limit": limit}
        return job

    def apply(self, job):
        """What the results of a command must change."""
        dest, sat, cols = job.command["dest"], job.command["sat"], self.cfg.cols
        memory = {MatmulDest.ATT: "in", MatmulDest.OUT: "out", MatmulDest.OUT8: "out"}.get(dest)
        for result in job.results:
            y, at = np.array(result["y"]), result["dst"]
            lanes = [n for n in range(cols) if result["saturated"] >> n & 1]
            if dest is MatmulDest.SCORES:
                lanes = [n for n in lanes if result["block"] * cols + n <= result["limit"]]
            self.saturated[sat] += len(lanes)
            if memory:
                self.model[memory][at] = y.astype(np.int16)
            elif dest is MatmulDest.RES:
                wide = self.model["res"][at] + y
                self.model["res"][at] = saturate(wide, 32)
                self.saturated[0] += ops.count_saturated(wide, 32)
                self.added += ops.count_saturated(wide, 32)

    # --- looking

    async def read(self, ctx, name, at):
        """A chunk of OUT or RES, through the vector unit's port."""
        port = getattr(self.dut, f"vector_{name}_r")
        ctx.set(port.en, 1)
        ctx.set(port.addr, at & ~1 if name == "out" else at)
        await ctx.tick()
        ctx.set(port.en, 0)
        cols, bits = self.cfg.cols, BITS[name]
        word = ctx.get(port.data) >> (at % 2 * cols * bits if name == "out" else 0)
        return lanes_of(word, cols, bits)

    async def check(self, ctx, name, places):
        for at in places:
            assert await self.read(ctx, name, int(at)) == self.model[name][at].tolist(), (name, at)

    def check_counts(self, ctx):
        found = []
        for klass in range(16):
            ctx.set(self.dut.read_class, klass)
            found.append(ctx.get(self.dut.read_count))
        assert found == self.saturated.tolist()


@pytest.mark.parametrize("stall", [0.0, 0.5])
def test_results_reach_their_memory(stall):
    """Of commands from both sides; what one leaves in IN is what the next multiplies."""
    system, cfg = System(SMALL, 1, stall), SMALL
    todo = [
        (STREAM, MatmulDest.OUT),
        (V, MatmulDest.ATT),
        (STREAM, MatmulDest.RES),
        (K, MatmulDest.SCORES),
        (STREAM, MatmulDest.OUT8),
        (V, MatmulDest.ATT),
        (STREAM, MatmulDest.OUT),
    ]
    busy = 0

    async def bench(ctx):
        nonlocal busy
        for kind, dest in todo:
            job = system.product(kind, dest)
            before = len(system.scores)
            await system.command(ctx, job, attends=kind is not STREAM)
            system.apply(job)
            command = job.command
            busy += command["m"] * command["k"] * command["n"]
            want = [(r["index"], r["block"], r["limit"], r["y"]) for r in job.results]
            await ctx.tick()
            assert system.scores[before:] == (want if dest is MatmulDest.SCORES else [])
            places = sorted({r["dst"] for r in job.results})
            for name in ("out", "res"):
                await system.check(ctx, name, places)
        # IN is seen by the array alone: all of it once more, as the operand of whole rows. Every
        # other result is added at one place, until that saturates.
        for turn, first in enumerate(range(0, cfg.in_chunks, 4 * cfg.k_chunks)):
            dest, name = [(MatmulDest.OUT, "out"), (MatmulDest.RES, "res")][turn % 2]
            job = whole_row(system, first, dest)
            await system.command(ctx, job, attends=False)
            system.apply(job)
            await system.check(ctx, name, [3])
            busy += 4
        await system.check(ctx, "res", range(0, cfg.res_chunks, 7))
        system.check_counts(ctx)

    system.run(bench)
    assert system.counts["count_busy"] == busy and system.added and system.saturated[1:].any()
    assert system.counts["wait_weights"] and system.counts["wait_kv"] and system.counts["idle"]


def whole_row(system, first, dest):
    """One row of 4 row-blocks from chunk ``first`` of IN on, its large result at chunk 3."""
    cfg, job = system.cfg, system.product(STREAM, dest, m=1, k=4, n=1)
    x = system.model["in"].reshape(-1)[first * cfg.cols :][: 4 * cfg.rows].copy()
    x[3 * cfg.rows + job.command["tail"] * cfg.cols :] = 0
    job.table = [(first, 3, 0)]
    job.command |= {"shift": 4, "bits": 2}
    wide = ops.requantize(x @ weights_of(cfg, job.words), mult_of(cfg, job.words), 4)
    y = saturate(wide, 32)
    over = sum(int(bit) << n for n, bit in enumerate(y != wide))
    job.results[0] |= {"y": y.tolist(), "saturated": over, "dst": 3, "limit": 0}
    return job


def weights_of(cfg, words):
    """int8 [inputs, columns] of a column-block whose word of multipliers comes first."""
    data = b"".join(word.to_bytes(cfg.word_bytes, "little") for word in words[1:])
    tiles = np.frombuffer(data, np.int8).reshape(-1, cfg.cols, cfg.rows).astype(np.int64)
    return tiles.transpose(0, 2, 1).reshape(-1, cfg.cols)


def mult_of(cfg, words):
    return np.frombuffer(words[0].to_bytes(cfg.word_bytes, "little"), "<u2")[: cfg.cols]


def test_parameters_are_there_after_load():
    system, cfg, found = System(SMALL, 2, 0.3), SMALL, {}
    per_word = cfg.ports // 2

    async def bench(ctx):
        port, params = system.dut.vector_param_r, {}
        for _ in range(4):
            job = load_job(cfg, system.rng, int(system.rng.integers(1, 6)))
            await system.command(ctx, job, attends=False)
            size = 8 * cfg.word_bytes // per_word
            for at, word in job.params:
                params |= {at + n: word >> size * n & (1 << size) - 1 for n in range(per_word)}
            for at, value in params.items():
                ctx.set(port.en, 1)
                ctx.set(port.addr, at)
                await ctx.tick()
                ctx.set(port.en, 0)
                assert ctx.get(port.data) == value, at
                found[at] = value

    system.run(bench)
    assert len(found) >= 8


@pytest.mark.parametrize(("stall", "patience"), [(0.0, 0), (0.7, 0), (0.0, 40)])
def test_logits_are_compared_and_written(stall, patience):
    """The vocabulary ends in the middle of a block; only some rows are dumped, or all when more
    come than find room."""
    system, cfg = System(SMALL, 3, stall, patience), SMALL
    m, blocks = cfg.max_rows, 40 if patience else 7
    vocab = blocks * cfg.cols - 3
    dumps = {1: 0x1000, m - 1: 0x8000} | ({0: 0x10000, 2: 0x20000} if patience else {})
    system.dumps = dumps

    async def bench(ctx):
        ctx.set(system.dut.vocab, vocab)
        for _ in range(1 if patience else 2):
            job = system.product(STREAM, MatmulDest.LOGITS, m=m, k=2, n=blocks)
            await system.command(ctx, job, attends=False)
            system.apply(job)
            logits = np.zeros((m, blocks * cfg.cols), np.int64)
            for result in job.results:
                start = result["block"] * cfg.cols
                logits[result["index"], start : start + cfg.cols] = result["y"]
            found = []
            for row in range(m):
                ctx.set(system.dut.best_index, row)
                found.append(ctx.get(system.dut.best_token))
            assert found == ops.argmax(logits, vocab).tolist()
            for _ in range(1000):
                if len(system.memory) == len(dumps) * logits.shape[1]:
                    break
                await ctx.tick()
            assert system.memory == {
                address + 4 * channel: int(logits[row, channel]) & 0xFFFF_FFFF
                for row, address in dumps.items()
                for channel in range(logits.shape[1])
            }
            system.memory.clear()
        system.check_counts(ctx)

    system.run(bench)
    assert system.counts["wait_room"] >= patience

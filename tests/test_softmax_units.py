# amaranth: UnusedElaboratable=no
"""The units of SoftmaxUnit one by one, each against what it must do, written down in Python."""

import numpy as np
import pytest
from softmax_jobs import pack, unpack
from streams import simulate
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.rtl.exponential import EXP_BITS, ExponentialLane, RowTotal
from tokenfabric.rtl.softmax import RowMaximum, RowScales, ScoreReader, ScoreWalk, ScoreWriter

TINY = preset("tiny")
WIDE = TINY.replace(name="wide", rows=16, ports=4, kv_chunks=512)
ODD = WIDE.replace(name="short", max_context=128, max_rows=8)
CONFIGS = pytest.mark.parametrize("cfg", [TINY, WIDE, ODD], ids=lambda cfg: cfg.name)
STALL = pytest.mark.parametrize("stall", [0.0, 0.4])


def per_row(cfg):
    return cfg.max_context // cfg.cols


def commands(cfg, rng, count=5):
    """(rows, chunks of a row), the smallest and a long one among them."""
    most = min(per_row(cfg), 12)
    some = [(int(rng.integers(1, cfg.max_rows + 1)), int(rng.integers(1, most + 1)))]
    return [(1, 1), (cfg.max_rows, 2), (1, per_row(cfg)), *some * count]


def test_exponential_lane_stage_by_stage():
    """A stage that is not enabled keeps what it has: values may be any time apart."""
    rng = np.random.default_rng(1)
    unit = ExponentialLane()
    pairs = np.sort(rng.integers(-32768, 32768, (60, 2)), axis=1)
    pairs[::2, 0] = np.maximum(pairs[::2, 1] - rng.integers(0, 3000, 30), -32768)

    async def bench(ctx):
        ctx.set(unit.align, 2)
        for number, (score, maximum) in enumerate(pairs.tolist()):
            masked = number % 7 == 3
            ctx.set(unit.score, score)
            ctx.set(unit.maximum, maximum)
            ctx.set(unit.mask, int(not masked))
            for stage in range(unit.LATENCY):
                ctx.set(unit.enable, 1 << stage)
                await ctx.tick()
                ctx.set(unit.enable, 0)
                ctx.set(unit.score, int(rng.integers(-32768, 32768)))
                ctx.set(unit.mask, int(rng.integers(2)))
                await ctx.tick().repeat(int(rng.integers(1, 3)))
            want = 0 if masked else int(ops.softmax_exp(score, maximum, 2))
            assert ctx.get(unit.e) == want

    simulate(unit, [bench])


@pytest.mark.parametrize("lanes", [4, 8, 16])
@STALL
def test_row_total(lanes, stall):
    """Rows back to back, the largest sum among them; each total LATENCY cycles after its row."""
    rng = np.random.default_rng([lanes, int(10 * stall)])
    unit = RowTotal(lanes, EXP_BITS + 9)
    rows = [rng.integers(0, 1 << EXP_BITS, (int(rng.integers(1, 6)), lanes)) for _ in range(20)]
    rows[3] = np.full((512 // lanes, lanes), (1 << EXP_BITS) - 1)
    want, got = [], []

    async def bench(ctx):
        now = 0
        for row in rows:
            for number, chunk in enumerate(row):
                while rng.random() < stall:
                    await ctx.tick()
                    now += 1
                last = number == len(row) - 1
                ctx.set(unit.valid, 1)
                ctx.set(unit.last, int(last))
                ctx.set(unit.e.as_value(), pack(chunk, EXP_BITS))
                await ctx.tick()
                now += 1
                ctx.set(unit.valid, 0)
                ctx.set(unit.last, int(rng.integers(2)))
            want.append((now - 1 + unit.LATENCY, int(row.sum())))
        await ctx.tick().repeat(2 * unit.LATENCY)

    async def watch(ctx):
        now = 0
        async for _, _, valid, total in ctx.tick().sample(unit.total_valid, unit.total):
            if valid:
                got.append((now, total))
            now += 1

    simulate(unit, [bench], [watch])
    assert got == want


@CONFIGS
@STALL
def test_row_maximum(cfg, stall):
    """The largest score that takes part, anew with block 0; ``idle`` when it is in the table."""
    rng = np.random.default_rng([cfg.rows, int(10 * stall)])
    unit = RowMaximum(cfg)
    latency = cfg.cols.bit_length() - 1 + 3

    async def bench(ctx):
        for _ in range(4):
            chunks = int(rng.integers(1, 5))
            scores = rng.integers(-32768, 32768, (cfg.max_rows, chunks * cfg.cols))
            scores[0] = -32768
            limits = rng.integers(0, chunks * cfg.cols, cfg.max_rows)
            for block in range(chunks):
                for row in rng.permutation(cfg.max_rows).tolist():
                    while rng.random() < stall:
                        await ctx.tick()
                    lanes = scores[row, block * cfg.cols :][: cfg.cols].tolist()
                    limit = int(limits[row])
                    ctx.set(unit.score, {"y": lanes, "index": row, "block": block, "limit": limit})
                    ctx.set(unit.valid, 1)
                    assert not ctx.get(unit.idle)
                    await ctx.tick()
                    ctx.set(unit.valid, 0)
                await ctx.tick()  # the same row is at least 2 cycles away
            waited = 2  # since the last chunk came
            while not ctx.get(unit.idle):
                waited += 1
                await ctx.tick()
            assert waited == latency
            for row in range(cfg.max_rows):
                ctx.set(unit.row, row)
                assert ctx.get(unit.limit) == limits[row]
                assert ctx.get(unit.maximum) == scores[row, : limits[row] + 1].max()

    simulate(unit, [bench])


@CONFIGS
@STALL
def test_score_walk(cfg, stall):
    rng = np.random.default_rng([cfg.rows, 1])
    unit = ScoreWalk(cfg)

    async def bench(ctx):
        for rows, chunks in commands(cfg, rng):
            ctx.set(unit.rows, rows)
            ctx.set(unit.chunks, chunks)
            for row in range(rows):
                for chunk in range(chunks):
                    while rng.random() < stall:
                        await ctx.tick()
                    assert (ctx.get(unit.row), ctx.get(unit.chunk)) == (row, chunk)
                    assert ctx.get(unit.addr) == row * per_row(cfg) + chunk
                    assert ctx.get(unit.row_end) == (chunk == chunks - 1)
                    assert ctx.get(unit.end) == (chunk == chunks - 1 and row == rows - 1)
                    ctx.set(unit.step, 1)
                    await ctx.tick()
                    ctx.set(unit.step, 0)

    simulate(unit, [bench])


@CONFIGS
def test_score_reader(cfg):
    """A chunk per cycle, each with its row's maximum, masked by its limit."""
    rng = np.random.default_rng([cfg.rows, 2])
    unit = ScoreReader(cfg)
    memory = rng.integers(-32768, 32768, (cfg.score_chunks, cfg.cols))
    maxima = rng.integers(-32768, 32768, cfg.max_rows)
    limits = rng.integers(0, 3 * cfg.cols, cfg.max_rows)
    got = []

    async def ram(ctx):
        """R scores in the cycle after; what was read stays."""
        async for _, _, en, addr in ctx.tick().sample(unit.r.en, unit.r.addr):
            if en:
                first = addr // cfg.k_chunks * cfg.k_chunks
                ctx.set(unit.r.data, pack(memory[first : first + cfg.k_chunks].ravel()))

    async def table(ctx):
        while True:
            row = ctx.get(unit.row)
            ctx.set(unit.row_maximum, int(maxima[row]))
            ctx.set(unit.row_limit, int(limits[row]))
            await ctx.tick()

    async def bench(ctx):
        for rows, chunks in commands(cfg, rng, 2):
            ctx.set(unit.start, 1)
            await ctx.tick()
            ctx.set(unit.start, 0)
            ctx.set(unit.rows, rows)
            ctx.set(unit.chunks, chunks)
            await ctx.tick().repeat(unit.LATENCY)
            for row in range(rows):
                for chunk in range(chunks):
                    assert ctx.get(unit.valid)
                    lanes = unpack(ctx.get(unit.scores.as_value()), cfg.cols)
                    assert lanes == memory[row * per_row(cfg) + chunk].tolist()
                    assert ctx.get(unit.maximum) == maxima[row]
                    mask = chunk * cfg.cols + np.arange(cfg.cols) <= limits[row]
                    assert ctx.get(unit.mask) == pack(mask, 1)
                    got.append(lanes)
                    await ctx.tick()
            for _ in range(3):
                assert not ctx.get(unit.valid) and not ctx.get(unit.r.en)
                await ctx.tick()

    simulate(unit, [bench], [ram, table])
    assert got


@CONFIGS
@STALL
def test_score_writer(cfg, stall):
    """Scores where their row and block are, then p of the command's chunks one after the other."""
    rng = np.random.default_rng([cfg.rows, 3, int(10 * stall)])
    unit = ScoreWriter(cfg)

    async def write(ctx, kind, addr, lanes):
        """What comes now is written in the next cycle, and nothing else is."""
        ctx.set(getattr(unit, f"{kind}_valid"), 1)
        await ctx.tick()
        ctx.set(getattr(unit, f"{kind}_valid"), 0)
        assert ctx.get(unit.w.en) and ctx.get(unit.w.addr) == addr
        assert unpack(ctx.get(unit.w.data), cfg.cols) == lanes
        while rng.random() < stall:
            await ctx.tick()
            assert not ctx.get(unit.w.en)

    async def bench(ctx):
        for rows, chunks in commands(cfg, rng, 2):
            for _ in range(5):
                row, block = int(rng.integers(cfg.max_rows)), int(rng.integers(per_row(cfg)))
                lanes = rng.integers(-32768, 32768, cfg.cols).tolist()
                ctx.set(unit.score, {"y": lanes, "index": row, "block": block})
                await write(ctx, "score", row * per_row(cfg) + block, lanes)
            ctx.set(unit.rows, rows)
            ctx.set(unit.chunks, chunks)
            for row in range(rows):
                for chunk in range(chunks):
                    e = rng.integers(0, ops.EXP_ONE + 1, cfg.cols)
                    e[0] = ops.EXP_ONE
                    p = (e + (1 << (ops.EXP_P_SHIFT - 1))) >> ops.EXP_P_SHIFT
                    ctx.set(unit.e.as_value(), pack(e, EXP_BITS))
                    assert ctx.get(unit.row_end) == (chunk == chunks - 1)
                    await write(ctx, "e", row * per_row(cfg) + chunk, p.tolist())

    simulate(unit, [bench])


def test_row_scales():
    """The scales of the rows of one command after another, LATENCY cycles after each total."""
    rng = np.random.default_rng(4)
    bits = EXP_BITS + 9
    unit = RowScales(TINY, bits)
    totals = [1 << int(rng.integers(15, bits)) for _ in range(8)]
    totals += [int(total) for total in rng.integers(ops.EXP_ONE, 1 << bits, 24)]
    totals[:3] = [ops.EXP_ONE, 1 << 24, (1 << bits) - 1]

    async def bench(ctx):
        left = list(totals)
        while left:
            rows = min(len(left), int(rng.integers(1, TINY.max_rows + 1)))
            ctx.set(unit.rows, rows)
            for row in range(rows):
                total = left.pop(0)
                ctx.set(unit.total_valid, 1)
                ctx.set(unit.total, total)
                await ctx.tick()
                ctx.set(unit.total_valid, 0)
                for _ in range(unit.LATENCY - 1):
                    assert not ctx.get(unit.valid) and not ctx.get(unit.end)
                    await ctx.tick()
                assert ctx.get(unit.valid)
                scale = ctx.get(unit.scale)
                mult, shift = (int(value) for value in ops.attention_scale(total))
                assert (scale.index, scale.mult, scale.shift) == (row, mult, shift)
                assert ctx.get(unit.end) == (row == rows - 1)
                await ctx.tick()

    simulate(unit, [bench])

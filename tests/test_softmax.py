"""SoftmaxUnit against ops.softmax and ops.attention_scale."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.rtl.softmax import ALIGN_BITS, Exponential, SoftmaxUnit

from tokenfabric import ops
from tokenfabric.config import preset
from tokenfabric.fixed import ceil_div, to_signed

TINY = preset("tiny")
WIDE = TINY.replace(name="wide", rows=16, ports=4, kv_chunks=512)
CONFIGS = {
    "tiny": TINY,
    "two chunks per row-block": WIDE,
    "odd context": WIDE.replace(name="odd", max_context=176, max_rows=8),
}


def pack(values, bits: int = 16) -> int:
    return sum((int(v) & ((1 << bits) - 1)) << (bits * i) for i, v in enumerate(values))


def unpack(word: int, lanes: int, bits: int = 16) -> list[int]:
    return [int(v) for v in to_signed([word >> (bits * i) & 0xFFFF for i in range(lanes)], bits)]


class Job:
    """One command: scores of every lane, limits, and what must come of them."""

    def __init__(self, cfg, rng, *, m=None, blocks=None, align=None):
        most = cfg.max_context // cfg.rows
        self.m = m or int(rng.integers(1, cfg.max_rows + 1))
        self.blocks = blocks or int(rng.integers(1, min(most, 6) + 1))
        self.align = int(rng.integers(5)) if align is None else align
        width = self.blocks * cfg.rows
        spread = 1 << int(rng.integers(1, 16))
        self.scores = rng.integers(-spread, spread, (self.m, width)).clip(-32768, 32767)
        self.limits = rng.integers(width, size=self.m)
        extreme = rng.random(self.m) < 0.2
        self.scores[extreme] = rng.choice([-32768, 32767, 0], (int(extreme.sum()), width))
        if rng.integers(4) == 0:
            self.limits[:] = np.minimum(width - self.m + np.arange(self.m), width - 1).clip(0)
        self.finish()

    def finish(self):
        mask = np.arange(self.scores.shape[1]) <= self.limits[:, None]
        self.p, total = ops.softmax(self.scores, mask, self.align)
        self.scales = list(zip(*(v.tolist() for v in ops.attention_scale(total)), strict=True))


async def put_scores(ctx, dut, job, rng, gaps: bool):
    """Chunks in the array's order: block by block, row by row; the same row every 4 cycles."""
    cfg = dut.cfg
    for block in range(job.scores.shape[1] // cfg.cols):
        for index in range(job.m):
            while gaps and rng.integers(3) == 0:
                await ctx.tick()
            lanes = job.scores[index, block * cfg.cols :][: cfg.cols]
            ctx.set(dut.score_valid, 1)
            ctx.set(dut.score.y.as_value(), pack(lanes, 32))
            ctx.set(dut.score.index, index)
            ctx.set(dut.score.block, block)
            ctx.set(dut.score.limit, int(job.limits[index]))
            await ctx.tick()
            ctx.set(dut.score_valid, 0)
        for _ in range(job.m, 4):
            await ctx.tick()


async def check_job(ctx, dut, job, rng, gaps: bool = False):
    cfg = dut.cfg
    await put_scores(ctx, dut, job, rng, gaps)
    ctx.set(dut.cmd.valid, 1)
    ctx.set(dut.cmd.payload, {"m": job.m, "blocks": job.blocks, "align": job.align})
    await ctx.tick().until(dut.cmd.ready)
    ctx.set(dut.cmd.valid, 0)
    scales, cycles = [], 0
    while ctx.get(dut.busy):
        if ctx.get(dut.row_scale_valid):
            scale = dut.row_scale
            assert ctx.get(scale.index) == len(scales)
            scales.append((ctx.get(scale.mult), ctx.get(scale.shift)))
        cycles += 1
        await ctx.tick()
    assert scales == job.scales
    assert cycles == job.m * job.blocks * cfg.k_chunks + dut.LATENCY
    for index in range(job.m):
        for block in range(job.blocks):
            ctx.set(dut.p_r.en, 1)
            ctx.set(dut.p_r.addr, index * (cfg.max_context // cfg.cols) + block * cfg.k_chunks)
            await ctx.tick()
            ctx.set(dut.p_r.en, 0)
            got = unpack(ctx.get(dut.p_r.data), cfg.rows)
            assert got == job.p[index, block * cfg.rows :][: cfg.rows].tolist()


def run(dut, jobs, rng, gaps=False):
    done = []

    async def bench(ctx):
        for job in jobs:
            await check_job(ctx, dut, job, rng, gaps)
        assert not ctx.get(dut.row_scale_valid)
        done.append(True)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run_until(1e-6 * sum(20 * job.scores.size + 200 for job in jobs))
    assert done


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_random_commands(name, gaps):
    """One command after the other on one unit: whatever a row was before must not matter."""
    rng = np.random.default_rng([len(name), gaps])
    cfg = CONFIGS[name]
    jobs = [Job(cfg, rng) for _ in range(6)]
    jobs.append(Job(cfg, rng, m=1, blocks=1, align=0))
    jobs.append(Job(cfg, rng, m=cfg.max_rows, blocks=2, align=(1 << ALIGN_BITS) - 1))
    run(SoftmaxUnit(cfg), jobs, rng, gaps)


def test_corners():
    """One participant, all equal, the widest spread, rising, falling, a masked maximum."""
    cfg = CONFIGS["two chunks per row-block"]
    rng = np.random.default_rng(7)
    job = Job(cfg, rng, m=4, blocks=4, align=0)
    ramp = np.linspace(-32768, 32767, 64).astype(np.int64)
    job.scores[:] = [ramp, ramp[::-1], np.full(64, -32768), np.full(64, 32767)]
    jobs = []
    for limits, align in [((0, 0, 0, 0), 0), ((63, 63, 63, 63), 4), ((7, 8, 15, 16), 2)]:
        job.limits[:], job.align = limits, align
        job.finish()
        jobs.append(job)
        job = Job(cfg, rng, m=4, blocks=4, align=0)
        job.scores[:] = jobs[0].scores
    run(SoftmaxUnit(cfg), jobs, rng)


def test_whole_context():
    """The longest row, every score equal: the largest total."""
    cfg = CONFIGS["odd context"]
    rng = np.random.default_rng(8)
    job = Job(cfg, rng, m=2, blocks=cfg.max_context // cfg.rows, align=0)
    job.scores[0], job.limits[:] = 5, cfg.max_context - 1
    job.finish()
    run(SoftmaxUnit(cfg), [job], rng)


@pytest.mark.parametrize("align", range(1 << ALIGN_BITS))
def test_exponential_everywhere(align):
    """Every distance up to where nothing is left, and the longest ones."""
    lanes = 8
    dut = Exponential(lanes)
    rng = np.random.default_rng(align)
    reach = min(65536, (26 << ops.EXP_FRAC) >> align)
    distance = np.unique(np.concatenate([
        rng.integers(0, reach, 1500), np.arange(2048), np.arange(0, 65536, 997),
        (np.arange(32) << ops.EXP_FRAC) >> align, [reach - 1, 65535],
    ]) % 65536)  # fmt: skip
    distance = np.resize(distance, (ceil_div(len(distance), lanes), lanes))
    maximum = rng.integers(distance.max(axis=1) - 32768, 32768)
    scores = maximum[:, None] - distance
    mask = rng.random(scores.shape) < 0.9
    scores[~mask] = rng.integers(-32768, 32768, np.count_nonzero(~mask))
    expected = np.where(mask, ops.softmax_exp(np.minimum(scores, maximum[:, None]),
                                              maximum[:, None], align), 0)  # fmt: skip
    got = []

    async def bench(ctx):
        ctx.set(dut.align, align)
        for row in range(len(scores) + dut.LATENCY):
            ctx.set(dut.valid, row < len(scores))
            if row < len(scores):
                ctx.set(dut.scores.as_value(), pack(scores[row]))
                ctx.set(dut.maximum, int(maximum[row]))
                ctx.set(dut.mask, pack(mask[row], 1))
            await ctx.tick()
            assert ctx.get(dut.e_valid) == (row >= dut.LATENCY - 1 and len(got) < len(scores))
            if ctx.get(dut.e_valid):
                got.append([ctx.get(dut.e[lane]) for lane in range(lanes)])

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run_until(1e-6 * (len(scores) + 100))
    assert got == expected.tolist()

"""SoftmaxUnit against ops.softmax and ops.attention_scale."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from softmax_jobs import Job, pack, pack_fields, unpack
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import ceil_div
from tokenfabric.rtl.exponential import ALIGN_BITS, Exponential
from tokenfabric.rtl.softmax import SoftmaxUnit
from tokenfabric.sim.pysim_softmax import simulate_softmax

TINY = preset("tiny")
WIDE = TINY.replace(name="wide", rows=16, ports=4, kv_chunks=512)
CONFIGS = {
    "tiny": TINY,
    "two chunks per row-block": WIDE,
    "short context": WIDE.replace(name="short", max_context=128, max_rows=8),
}


async def put_scores(ctx, dut, job, rng, gaps: bool):
    """The same row at most every 4 cycles."""
    for block, index, lanes in job.chunks():
        if index == 0:
            for _ in range(job.m, 4):
                await ctx.tick()
        while gaps and rng.integers(3) == 0:
            await ctx.tick()
        fields = {"index": index, "block": block, "limit": job.limits[index]}
        payload = pack_fields(dut.score.shape(), y=pack(lanes, 32), **fields)
        ctx.set(dut.score.as_value(), payload)
        ctx.set(dut.score_valid, 1)
        await ctx.tick()
        ctx.set(dut.score_valid, 0)


async def check_job(ctx, dut, job, rng, gaps: bool = False):
    await put_scores(ctx, dut, job, rng, gaps)
    ctx.set(dut.cmd.valid, 1)
    ctx.set(dut.cmd.payload, {"m": job.m, "blocks": job.blocks, "align": job.align})
    await ctx.tick().until(dut.cmd.ready)
    ctx.set(dut.cmd.valid, 0)
    scales, cycles = [], 0
    while ctx.get(dut.busy):
        if ctx.get(dut.row_scale_valid):
            assert ctx.get(dut.row_scale.index) == len(scales)
            scales.append((ctx.get(dut.row_scale.mult), ctx.get(dut.row_scale.shift)))
        cycles += 1
        await ctx.tick()
    assert scales == job.scales
    assert cycles == job.m * job.blocks * dut.cfg.k_chunks + dut.LATENCY
    for addr, expected in job.reads():
        ctx.set(dut.p_r.en, 1)
        ctx.set(dut.p_r.addr, addr)
        await ctx.tick()
        ctx.set(dut.p_r.en, 0)
        assert unpack(ctx.get(dut.p_r.data), dut.cfg.rows) == expected


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
    jobs = [Job(cfg, rng) for _ in range(4)]
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
    cfg = CONFIGS["short context"]
    rng = np.random.default_rng(8)
    job = Job(cfg, rng, m=2, blocks=cfg.max_context // cfg.rows, align=0)
    job.scores[0], job.limits[:] = 5, cfg.max_context - 1
    job.finish()
    run(SoftmaxUnit(cfg), [job], rng)


@pytest.mark.parametrize("align", [*range(11), (1 << ALIGN_BITS) - 1])
def test_exponential_everywhere(align):
    """Every distance up to where nothing is left, and the longest ones."""
    lanes = 8
    dut = Exponential(lanes)
    rng = np.random.default_rng(align)
    reach = max(1, min(65536, (26 << ops.EXP_FRAC) >> align))
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


@pytest.mark.parametrize("name", ["tiny", "pynq-z2"])
@pytest.mark.parametrize("count", [1, 8, 33])
def test_one_row_for_notebooks(name, count):
    cfg, rng = preset(name), np.random.default_rng(count)
    scores = rng.integers(-3000, 3000, count)
    found = simulate_softmax(cfg, scores, 1)
    p, total = ops.softmax(scores, np.ones(count, bool), 1)
    assert found.p.tolist() == p.tolist()
    assert (found.mult, found.shift) == ops.attention_scale(total)
    assert sum(found.waves["score_valid"]) == ceil_div(count, cfg.rows) * cfg.k_chunks
    assert sum(found.waves["row_scale_valid"]) == 1


def test_a_row_longer_than_the_context_is_refused():
    with pytest.raises(UserError, match="513 scores"):
        simulate_softmax(TINY, np.zeros(513, int), 0)

"""Requantize and Accumulators against the integer reference."""

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.sim import Simulator
from tokenfabric.core import ops
from tokenfabric.core.config import ACC_BITS, preset
from tokenfabric.core.fixed import saturate
from tokenfabric.rtl.accumulate import Accumulators
from tokenfabric.rtl.requantize import Requantize

BITS = (8, 16, 32)
CORNERS = [0, 1, -1, 2, -2, 1 << 17, (1 << 17) - 1, -(1 << 17), (1 << 34) - 1]
CORNERS += [(1 << 35) - 1, -(1 << 35)]
CFG = preset("tiny")


def run(dut, bench, cycles):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run_until((cycles + 100) * 1e-6)


def near_limits(rng, count):
    """Accumulators, multipliers and shifts whose results lie around the limits of ``bits``."""
    bits = rng.integers(3, size=count)
    limit = np.int64(1) << (np.array(BITS)[bits] - 1)
    mult = rng.integers(1, 1 << 16, (count, CFG.cols))
    shift = rng.integers(0, 34, count)
    sign = rng.choice([-1, 1], (count, CFG.cols))
    target = (limit[:, None] * sign).astype(object) * (1 << shift.astype(object))[:, None]
    acc = target // mult.astype(object) + rng.integers(-2, 3, mult.shape)
    return np.clip(acc, -(1 << 35), (1 << 35) - 1).astype(np.int64), mult, shift, bits


def anything(rng, count):
    acc = rng.integers(-(1 << 35), 1 << 35, (count, CFG.cols)) >> rng.integers(0, 36, (count, 1))
    mult = rng.integers(0, 1 << 16, acc.shape)
    mult[rng.random(mult.shape) < 0.2] = 65535
    acc[rng.random(acc.shape) < 0.2] = -(1 << 35)
    return acc, mult, rng.integers(0, 64, count), rng.integers(3, size=count)


def corners(rng, count):
    """Every corner with every shift and size."""
    count = 64 * 3
    acc = np.array([rng.permutation(CORNERS)[: CFG.cols] for _ in range(count)])
    mult = rng.choice([0, 1, 2, 32768, 65535], acc.shape)
    return acc, mult, np.arange(count) % 64, np.arange(count) // 64


@pytest.mark.parametrize("gaps", [0, 0.5])
@pytest.mark.parametrize("values", [near_limits, anything, corners])
def test_requantize(values, gaps):
    rng = np.random.default_rng([len(values.__name__), int(gaps * 2)])
    acc, mult, shift, bits = values(rng, 300)
    wide = np.array([ops.requantize(a, q, s) for a, q, s in zip(acc, mult, shift, strict=True)])
    want = np.array([saturate(w, BITS[b]) for w, b in zip(wide, bits, strict=True)])
    dut = Requantize(CFG, unsigned(20))
    got, flags, tags, starts, ends = [], [], [], [], []

    async def bench(ctx):
        now = sent = 0
        while len(got) < len(acc) and now < 4 * len(acc) + 50:
            valid = sent < len(acc) and rng.random() >= gaps
            ctx.set(dut.valid, valid)
            at = min(sent, len(acc) - 1)
            ctx.set(dut.acc, acc[at].tolist())
            ctx.set(dut.mult, mult[at].tolist())
            ctx.set(dut.shift, int(shift[at]) if valid else 7)
            ctx.set(dut.bits, int(bits[at]) if valid else 1)
            ctx.set(dut.tag, sent)
            if valid:
                starts.append(now)
                sent += 1
            if ctx.get(dut.out_valid):
                ends.append(now)
                got.append([ctx.get(dut.y[c]) for c in range(CFG.cols)])
                flags.append([ctx.get(dut.saturated) >> c & 1 for c in range(CFG.cols)])
                tags.append(ctx.get(dut.out_tag))
            await ctx.tick()
            now += 1

    run(dut, bench, 4 * len(acc) + 50)
    assert np.array_equal(got, want)
    assert np.array_equal(flags, want != wide)
    assert tags == list(range(len(acc)))
    assert np.all(np.array(ends) - starts == Requantize.LATENCY)


@pytest.mark.parametrize("words", [Accumulators.REVISIT, 5, CFG.acc_words])
def test_accumulators(words):
    """Random additions to ``words`` addresses in turn: each comes again after ``words`` cycles."""
    rng = np.random.default_rng(words)
    dut = Accumulators(CFG)
    count = 12 * words
    psum = rng.integers(-(1 << 26), 1 << 26, (count, CFG.cols))
    addresses = np.tile(rng.permutation(CFG.acc_words)[:words], 12)
    first, last, valid = (rng.random(count) < share for share in (0.3, 0.3, 0.9))
    first[:words], last[:words], valid[:words] = True, False, True
    model, want, got = {}, [], []
    for i in np.flatnonzero(valid):
        total = psum[i] + (0 if first[i] else model[addresses[i]])
        if last[i]:
            want.append(total)
        else:
            model[addresses[i]] = total

    async def bench(ctx):
        for now in range(count + dut.LATENCY + 1):
            if ctx.get(dut.out_valid):
                got.append([ctx.get(dut.sums[c]) for c in range(CFG.cols)])
            ctx.set(dut.valid, now < count and bool(valid[now]))
            if now < count:
                ctx.set(dut.addr, int(addresses[now]))
                ctx.set(dut.first, bool(first[now]))
                ctx.set(dut.last, bool(last[now]))
            if 0 < now <= count:
                ctx.set(dut.psum, psum[now - 1].tolist())
            await ctx.tick()

    run(dut, bench, count + 20)
    assert np.array_equal(got, want)


def test_an_accumulator_holds_36_bits():
    dut = Accumulators(CFG)
    top = 1 << (len(dut.psum.as_value()) // CFG.cols - 1)
    rounds = (1 << (ACC_BITS - 1)) // top
    got = []

    async def bench(ctx):
        ctx.set(dut.psum, [-top] * CFG.cols)
        for now in range(rounds):
            ctx.set(dut.valid, 1)
            ctx.set(dut.first, now == 0)
            ctx.set(dut.last, now == rounds - 1)
            await ctx.tick()
            ctx.set(dut.valid, 0)
            await ctx.tick().repeat(Accumulators.REVISIT - 1)

    async def watch(ctx):
        async for _, _, valid, total in ctx.tick().sample(dut.out_valid, dut.sums[1]):
            if valid:
                got.append(total)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.add_testbench(watch, background=True)
    sim.run_until((3 * rounds + 50) * 1e-6)
    assert got == [-(1 << (ACC_BITS - 1))]

"""The units of Writeback that hold a pipeline, each by itself against plain Python."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.core import ops
from tokenfabric.core.config import preset
from tokenfabric.core.fixed import saturate
from tokenfabric.rtl.argmax import LargestLane
from tokenfabric.rtl.layouts import MatmulDest
from tokenfabric.rtl.writeback import ResidualAdder, SaturatedLanes

CFG = preset("tiny")
COLS = CFG.cols
LOW, HIGH = -(1 << 31), (1 << 31) - 1


def pipeline(dut, inputs, latency, look):
    """A set of inputs (name -> value) per cycle; what ``look(ctx)`` saw, latency cycles later."""
    seen = []

    async def bench(ctx):
        for now in range(len(inputs) + latency):
            for name, value in (inputs[now] if now < len(inputs) else {}).items():
                ctx.set(getattr(dut, name), value)
            if now >= latency:
                seen.append(look(ctx))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return seen


@pytest.mark.parametrize("low,high", [(LOW, HIGH + 1), (-2, 2), (LOW, LOW + 2)])
def test_largest_lane(low, high):
    """Random values, ties, and values no larger than what stands for a missing channel."""
    rng = np.random.default_rng(high & 0xFF)
    dut, inputs, want = LargestLane(CFG), [], []
    for _ in range(200):
        block, channels = int(rng.integers(1 << 16)), int(rng.integers(1, 2 * COLS))
        y = rng.integers(low, high, COLS)
        y[channels:] = HIGH
        best = int(np.argmax(y[:channels]))
        inputs.append({"y": y.tolist(), "block": block, "vocab": block * COLS + channels})
        want.append((int(y[best]), best))
    look = lambda ctx: (ctx.get(dut.largest), ctx.get(dut.lane))  # noqa: E731
    assert pipeline(dut, inputs, dut.LATENCY, look) == want


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_saturated_lanes(stall):
    rng = np.random.default_rng(int(stall * 10))
    dut, inputs, want = SaturatedLanes(CFG), [], []
    for _ in range(300):
        valid, sat = int(rng.random() >= stall), int(rng.integers(16))
        dest = MatmulDest.SCORES if rng.integers(2) else MatmulDest.OUT
        flags, block = int(rng.integers(1 << COLS)) * int(rng.integers(2)), int(rng.integers(6))
        limit = int(rng.choice([0, 7, 8, 15, 16, 40, 65535]))
        lanes = [i for i in range(COLS) if flags >> i & 1]
        if dest is MatmulDest.SCORES:
            lanes = [i for i in lanes if block * COLS + i <= limit]
        result = {"saturated": flags, "block": block, "limit": limit, "dest": dest, "sat": sat}
        inputs.append({"valid": valid, "result": result})
        want.append((sat, len(lanes)) if valid and lanes else None)

    def look(ctx):
        counted = ctx.get(dut.sat_class), ctx.get(dut.sat_count)
        return counted if ctx.get(dut.sat_valid) else None

    assert pipeline(dut, inputs, dut.LATENCY, look) == want


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_residual_adder(stall):
    """Each chunk of the stream comes again LATENCY cycles later at the earliest."""
    rng = np.random.default_rng(int(stall * 10))
    dut = ResidualAdder(CFG)
    memory = rng.integers(LOW, HIGH + 1, (ResidualAdder.LATENCY + 1, COLS))
    model = memory.copy()
    want, counts = [], []

    def value(lanes):
        return sum((int(v) & 0xFFFFFFFF) << 32 * i for i, v in enumerate(lanes))

    async def bench(ctx):
        for now in range(400):
            dst, add = now % len(memory), int(rng.integers(2))
            valid = int(now < 390 and rng.random() >= stall)
            y = rng.integers(LOW, HIGH + 1, COLS) >> int(rng.choice([0, 0, 20]))
            for name, given in (("valid", valid), ("add", add), ("dst", dst), ("y", y.tolist())):
                ctx.set(getattr(dut, name), given)
            if valid:
                wide = y + model[dst] * add
                model[dst] = saturate(wide, 32)
                counts.append((now + dut.LATENCY, ops.count_saturated(wide, 32)))
                want.append((now + dut.LATENCY - 1, dst, value(model[dst])))
            writes = [entry for entry in want if entry[0] == now]
            assert ctx.get(dut.res_w.en) == len(writes)
            for _, at, data in writes:
                assert (ctx.get(dut.res_w.addr), ctx.get(dut.res_w.data)) == (at, data)
                memory[at] = model[at]
            added = [count for when, count in counts if when == now]
            assert ctx.get(dut.add_valid) == len(added)
            assert not added or ctx.get(dut.add_count) == added[0]
            assert ctx.get(dut.res_r.en) == (valid and add)
            old = value(memory[dst])
            await ctx.tick()
            if valid and add:
                ctx.set(dut.res_r.data, old)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    assert sum(count for _, count in counts) > 20
    assert (memory == model).all()

"""Recip, Recip127 and Rsqrt against ops, over the widths their users have."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.core import ops
from tokenfabric.rtl.normalize import Recip, Recip127, Rsqrt

UNITS = {
    "recip": (Recip, ops.recip),
    "recip127": (Recip127, ops.recip127),
    "rsqrt": (Rsqrt, ops.rsqrt),
}


def operands(bits: int, rng) -> list[int]:
    """Powers of two and their neighbours, the ends of every segment, and random magnitudes."""
    top = (1 << bits) - 1
    values = {1, 2, 3, top, top - 1}
    for e in range(bits):
        values |= {(1 << e) - 1, 1 << e, (1 << e) + 1}
    for seg in range(256):
        edge = ((256 + seg) << bits) >> 9
        values |= {edge, edge - 1}
    values |= {int(rng.integers(1, top)) >> int(rng.integers(bits)) for _ in range(300)}
    values = [v for v in values if 1 <= v <= top]
    rng.shuffle(values)
    return values


@pytest.mark.parametrize("bits", [2, 9, 15, 32, 36, 49])
@pytest.mark.parametrize("name", UNITS)
def test_equals_ops(name, bits):
    """The first half back to back, the second with random gaps; always LATENCY cycles later."""
    unit, reference = UNITS[name]
    rng = np.random.default_rng(bits)
    values = operands(bits, rng)
    dut = unit(bits)
    expected = {}  # cycle -> (r, e)
    cycle = 0

    async def bench(ctx):
        nonlocal cycle
        queue = list(values)
        while queue or cycle < max(expected) + 3:
            gaps = len(queue) < len(values) // 2
            go = bool(queue) and not (gaps and rng.integers(3) == 0)
            x = queue.pop() if go else 0
            ctx.set(dut.x_valid, go)
            ctx.set(dut.x, x)
            if go:
                r, e = reference(x)
                expected[cycle + dut.LATENCY] = (int(r), int(e))
            valid, r, e = ctx.get(dut.r_valid), ctx.get(dut.r), ctx.get(dut.e)
            assert valid == (cycle in expected)
            assert not valid or (r, e) == expected[cycle]
            await ctx.tick()
            cycle += 1

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run_until(1e-6 * (4 * len(values) + 100))
    assert len(expected) == len(values) and cycle > max(expected)

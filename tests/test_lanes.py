"""ShiftRound, Sigmoid and the lane pipeline against ops and fixed."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.core import ops
from tokenfabric.core.fixed import rshift_round, saturate
from tokenfabric.rtl.lanes import Lanes, ShiftRound, Sigmoid


def stream_through(dut, latency, inputs, outputs):
    """Feeds one set of ``inputs`` (name -> list) per cycle; the outputs ``latency`` cycles later.

    ``latency`` includes the register that the unit leaves to its user, if it does.
    """
    count = len(next(iter(inputs.values())))
    seen = {name: [] for name in outputs}

    async def bench(ctx):
        for n in range(count + latency):
            if n < count:
                for name, values in inputs.items():
                    ctx.set(getattr(dut, name), values[n])
            if n >= latency:
                for name in outputs:
                    seen[name].append(ctx.get(getattr(dut, name)))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run_until((count + latency + 5) * 1e-6)
    return seen


@pytest.mark.parametrize("bits", [32, 40])
def test_shift_round(bits):
    rng = np.random.default_rng(bits)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    corners = [0, 1, -1, low, high, high - 1, low + 1]
    x, n = [], []
    for shift in range(64):
        half = min(1 << max(shift - 1, 0), high)
        near = [half, half - 1, -half, -half - 1, 3 * half]
        near += [int(v) for v in rng.integers(low, high, 3, endpoint=True)]
        values = [max(low, min(high, v)) for v in corners + near]
        x += values
        n += [shift] * len(values)
    got = stream_through(ShiftRound(bits), ShiftRound.LATENCY, {"x": x, "n": n}, ["y"])["y"]
    # Python integers: half of 2**63 and the sum with it do not fit int64
    assert got == [(a + (1 << s >> 1)) >> s for a, s in zip(x, n)]


@pytest.mark.parametrize("align", [0, 1, 3, 4, 8, 14, 15, 16, 31, 32, 40])
def test_sigmoid(align):
    rng = np.random.default_rng(align)
    x = [0, 1, -1, 32767, -32768, -32767, 4095, 4096, -4096, *rng.integers(-32768, 32768, 100)]
    x += [int(v) for v in rng.integers(-32768, 32768, 100) >> align] * (align < 15)
    inputs = {"x": [int(v) for v in x], "align": [align] * len(x)}
    got = stream_through(Sigmoid(), Sigmoid.LATENCY, inputs, ["s"])["s"]
    assert got == ops.sigmoid(x, align).tolist()


def reference(a, b, a2, c, add, shift1, shift2):
    t = rshift_round(a * b, shift1)
    wide = rshift_round(t + a2 * c if add else t * c, shift2)
    y = saturate(wide, 16)
    return y, int(sum(1 << i for i, change in enumerate(y != wide) if change))


@pytest.mark.parametrize("cols", [8, 16])
def test_lanes(cols):
    rng = np.random.default_rng(cols)
    inputs = {k: [] for k in ("a", "b", "a2", "c", "add", "shift1", "shift2")}
    for n in range(300):
        kind = n % 5 if n < 250 else 3  # norm, rope, quantize, swiglu, pass through
        a, a2 = rng.integers(-32768, 32768, (2, cols))
        b, c = rng.integers(-32768, 32768, (2, cols))
        if n < 25:
            a[:], a2[:], b[:], c[:] = (rng.choice([-32768, 32767, 0]) for _ in range(4))
        add, shift1, shift2 = kind in (1, 2, 4), 0, int(rng.integers(0, 64))
        if kind == 0:
            a = rng.integers(-(1 << 17), 1 << 17, cols)
            b[:] = rng.integers(1 << 15, (1 << 16) + 1) << 4
            shift1 = 17 + int(rng.integers(0, 8))  # so that t stays within 2**20
        elif kind == 1:
            c, shift2 = rng.integers(-32768, 32769, cols), ops.ROPE_FRAC
        elif kind == 2:
            b[:], c[:], shift1, shift2 = 65024, 0, 9 + int(rng.integers(0, 15)), 0
        elif kind == 3:
            b, shift1 = rng.integers(0, 1 << 16, cols), 12
        else:
            b[:], c[:], shift2 = 1, 0, 0
        for name, value in (("a", a), ("b", b), ("a2", a2), ("c", c)):
            inputs[name].append([int(v) for v in value])
        for name, value in (("add", add), ("shift1", shift1), ("shift2", shift2)):
            inputs[name].append(int(value))
    dut = Lanes(cols)
    got = stream_through(dut, Lanes.LATENCY, inputs, ["y", "saturated"])
    for n, values in enumerate(zip(*inputs.values())):
        y, saturated = reference(*(np.array(v, np.int64) for v in values))
        assert list(got["y"][n]) == y.tolist(), n
        assert got["saturated"][n] == saturated, n


def test_product():
    a, b = np.random.default_rng(0).integers(-(1 << 17), 1 << 17, (2, 50, 8))
    a[0], b[0], b[1] = -(1 << 17), -(1 << 17), (1 << 17) - 1
    inputs = {"a": [[int(v) for v in row] for row in a], "b": [[int(v) for v in row] for row in b]}
    got = stream_through(Lanes(8), Lanes.PRODUCT_LATENCY, inputs, ["product"])["product"]
    assert [list(row) for row in got] == (a * b).tolist()

"""Ram, Rom and Fifo against Python lists."""

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.rtl.memory import Fifo, Ram, Rom


def run(dut, *testbenches, deadline=20000):
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for testbench in testbenches:
        sim.add_testbench(testbench)
    sim.run_until(deadline * 1e-6)


@pytest.mark.parametrize("comb", [False, True])
@pytest.mark.parametrize("read_units,write_units", [(1, 1), (2, 1), (1, 2), (4, 2), (1, 4)])
def test_ram(read_units, write_units, comb):
    depth, unit = 32, 5
    dut = Ram(depth, unit, read_units=read_units, write_units=write_units, comb=comb)
    rng = np.random.default_rng(1)
    model = [0] * depth
    done = []

    async def bench(ctx):
        for _ in range(300):
            address = int(rng.integers(depth // write_units)) * write_units
            values = [int(v) for v in rng.integers(1 << unit, size=write_units)]
            packed = sum(v << (unit * i) for i, v in enumerate(values))
            write = bool(rng.integers(2))
            ctx.set(dut.w.en, write)
            ctx.set(dut.w.addr, address)
            ctx.set(dut.w.data, packed)
            await ctx.tick()
            if write:
                model[address : address + write_units] = values
            ctx.set(dut.w.en, 0)
            address = int(rng.integers(depth // read_units)) * read_units
            ctx.set(dut.r.addr, address)
            ctx.set(dut.r.en, 1)
            if not comb:
                await ctx.tick()
                ctx.set(dut.r.en, 0)
                ctx.set(dut.r.addr, 0)  # data stay
            got = ctx.get(dut.r.data)
            want = sum(v << (unit * i) for i, v in enumerate(model[address : address + read_units]))
            assert got == want
        done.append(True)

    run(dut, bench)
    assert done


def test_rom():
    dut = Rom([3, 1, 4, 1, 5], 3)
    seen = []

    async def bench(ctx):
        for address in range(5):
            ctx.set(dut.addr, address)
            await ctx.delay(1e-7)
            seen.append(ctx.get(dut.data))

    sim = Simulator(dut)
    sim.add_testbench(bench)
    sim.run()
    assert seen == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("ultra", [False, True])
@pytest.mark.parametrize("slow_reader", [False, True])
def test_fifo_keeps_order_and_throughput(slow_reader, ultra):
    dut = Fifo(8, 8, ultra=ultra)
    count = 200
    got = []
    ticks = []

    async def writer(ctx):
        for value in range(count):
            ctx.set(dut.i.payload, value)
            ctx.set(dut.i.valid, 1)
            await ctx.tick().until(dut.i.ready)
        ctx.set(dut.i.valid, 0)

    async def reader(ctx):
        rng = np.random.default_rng(0)
        tick = 0
        while len(got) < count:
            held = ctx.get(dut.level)
            assert held <= 8 + (2 if ultra else 1)
            ready = not slow_reader or rng.integers(4) == 0
            ctx.set(dut.o.ready, bool(ready))
            _, _, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            tick += 1
            if ready and valid:
                got.append(payload)
        ticks.append(tick)

    run(dut, writer, reader)
    assert got == [value & 255 for value in range(count)]
    assert slow_reader or ticks[0] <= count + 4

"""Registers on their AXI4-Lite port against a dict of them, with random stalls."""

import numpy as np
from streams import simulate
from tokenfabric.core import registers
from tokenfabric.core.config import preset
from tokenfabric.rtl.registers import Registers

CFG = preset("tiny")
OFFSETS = {register.name: register.offset for register in registers.REGISTERS}
STEADY = ("WINDOW_BASE", "WINDOW_SIZE", "JOB_BASE", "JOB_SIZE", "WATCHDOG")
COUNTS = [1000 + n for n in range(registers.SATURATION_COUNTERS)]

# What the host writes, and what it holds before. All that is here comes from the map or is written
# down, and is not what the unit does.
WRITTEN = {
    "WINDOW_BASE": 0,
    "WINDOW_SIZE": 0,
    "JOB_BASE": 0,
    "JOB_SIZE": 0,
    "WATCHDOG": 1 << 20,
    "HEARTBEAT": 0,
    "SEEN": 1 << 31,
}
assert WRITTEN.keys() == {r.name for r in registers.REGISTERS if r.access == "rw"}
FIXED = {"IDENT", "ABI", "FINGERPRINT_LO", "FINGERPRINT_HI"}
OTHERS = {f"READ_BEATS_{port}" for port in range(CFG.ports, registers.MAX_PORTS)}  # read as 0
OTHERS |= {f"SATURATED_{n}" for n in range(registers.SATURATION_COUNTERS)}
LIVE = {r.name for r in registers.REGISTERS if r.access == "ro"} - FIXED - OTHERS


async def stall(ctx, rng):
    await ctx.tick().repeat(int(rng.integers(1, 4)))


async def write(ctx, bus, rng, offset, value, strobes=15):
    await stall(ctx, rng)
    ctx.set(bus.awaddr, offset)
    ctx.set(bus.wdata, value)
    ctx.set(bus.wstrb, strobes)
    ctx.set(bus.awvalid, 1)
    ctx.set(bus.wvalid, 1)
    await ctx.tick().until(bus.awready & bus.wready)
    ctx.set(bus.awvalid, 0)
    ctx.set(bus.wvalid, 0)
    await stall(ctx, rng)
    ctx.set(bus.bready, 1)
    await ctx.tick().until(bus.bvalid)
    ctx.set(bus.bready, 0)


async def read(ctx, bus, rng, offset):
    await stall(ctx, rng)
    ctx.set(bus.araddr, offset)
    ctx.set(bus.arvalid, 1)
    await ctx.tick().until(bus.arready)
    ctx.set(bus.arvalid, 0)
    await stall(ctx, rng)
    ctx.set(bus.rready, 1)
    (value,) = await ctx.tick().sample(bus.rdata).until(bus.rvalid)
    ctx.set(bus.rready, 0)
    return value


def test_registers():
    rng, dut, commands = np.random.default_rng(2), Registers(CFG), []
    live = {name: int(rng.integers(1 << 32)) for name in sorted(LIVE)}
    fingerprint = int(CFG.fingerprint, 16)
    model = {name: 0 for name in OFFSETS} | live | WRITTEN
    model |= {"IDENT": registers.IDENT, "ABI": registers.ABI_VERSION}
    model |= {"FINGERPRINT_LO": fingerprint & 0xFFFFFFFF, "FINGERPRINT_HI": fingerprint >> 32}
    model |= {f"SATURATED_{n}": count for n, count in enumerate(COUNTS)}

    async def counters(ctx):
        async for klass in ctx.changed(dut.sat_class):
            ctx.set(dut.sat_count, COUNTS[klass[0]])

    async def strobes(ctx):
        async for _, _, *bits in ctx.tick().sample(dut.start, dut.stop, dut.reset):
            if any(bits):
                commands.append(bits)

    async def bench(ctx):
        for name, value in live.items():
            ctx.set(getattr(dut, name.lower()), value)
        asked = []
        for locked in (0, 1, 0):
            ctx.set(dut.locked, locked)
            for name in (list(OFFSETS)[i] for i in rng.permutation(len(OFFSETS))):
                assert await read(ctx, dut.bus, rng, OFFSETS[name]) == model[name], name
                other = list(OFFSETS)[rng.integers(len(OFFSETS))]  # read-only ones, too
                value, whole = int(rng.integers(1 << 32)), bool(rng.integers(4))
                await write(ctx, dut.bus, rng, OFFSETS[other], value, 15 if whole else 7)
                if whole and other in WRITTEN and not (locked and other in STEADY):
                    model[other] = value
                if whole and other == "CONTROL" and value & 7:
                    asked.append([int(value & 7 == 1), int(value & 6 == 2), value >> 2 & 1])
                name = list(WRITTEN)[rng.integers(len(WRITTEN))]
                assert ctx.get(getattr(dut.written, name)) == model[name]
            for word in range(1, 8):
                await write(ctx, dut.bus, rng, OFFSETS["CONTROL"], word)
                asked.append([int(word == 1), int(word & 6 == 2), word >> 2 & 1])
        await ctx.tick().repeat(3)
        assert commands == asked
        ctx.set(dut.rst, 1)
        await ctx.tick()
        ctx.set(dut.rst, 0)
        for name, first in WRITTEN.items():
            assert await read(ctx, dut.bus, rng, OFFSETS[name]) == first

    simulate(dut, [bench], background=[counters, strobes])

# amaranth: UnusedElaboratable=no
"""The SDRAM's controller against a chip that checks what its data sheet asks for."""

import re
from dataclasses import replace

import numpy as np
import pytest
from amaranth.sim import Simulator
from rigs.sdram import SimulatedSdram
from tokenfabric.core.boards import ULX3S_SDRAM
from tokenfabric.rtl import sdram
from tokenfabric.rtl.sdram import BEAT, NOP, SdramMemory
from tokenfabric.sim.dram import SDR_65_X16, traffic

CHIP = replace(ULX3S_SDRAM, power_up=2000)
MHZ = 65
DEADLINE = 40_000  # cycles
ROW = 1 << CHIP.column_bits + 1  # bytes
BURST = 16 * BEAT


class Bench:
    """The memory, its chip, and masters that keep a copy of what they wrote.

    tamper: what a broken controller would put on the pins instead.
    """

    def __init__(self, mhz=MHZ, tamper=lambda cycle, pins: pins):
        self.dut = SdramMemory(CHIP, mhz)
        self.chip, self.tamper = SimulatedSdram(CHIP, mhz), tamper
        self.sim = Simulator(self.dut)
        self.sim.add_clock(1e-6)
        self.cycle = 0
        self.sim.add_testbench(self._chip, background=True)

    def add(self, master, *args):
        async def bench(ctx):  # the simulator takes nothing but functions
            await master(ctx, *args)

        self.sim.add_testbench(bench)

    def run(self):
        self.sim.run()
        error = self.chip.error
        self.chip.close()
        assert not error, error

    async def _chip(self, ctx):
        pins = self.dut.pins
        names = ("command", "bank", "address", "mask", "dq_o", "dq_oe")
        while True:
            await ctx.tick()
            self.cycle += 1
            assert self.cycle < DEADLINE
            values = [ctx.get(getattr(pins, name)) for name in names]
            ctx.set(pins.dq_i, self.chip.clock(*self.tamper(self.cycle, values)))

    async def read(self, ctx, axi, address, beats, stalls=None):
        """A burst."""
        ctx.set(axi.araddr, address)
        ctx.set(axi.arlen, beats - 1)
        ctx.set(axi.arvalid, 1)
        await ctx.tick().until(axi.arready)
        ctx.set(axi.arvalid, 0)
        found = []
        while len(found) < beats:
            ready = stalls is None or bool(stalls.integers(2))
            ctx.set(axi.rready, ready)
            _, _, valid, data, last = await ctx.tick().sample(axi.rvalid, axi.rdata, axi.rlast)
            if ready and valid:
                found.append(data)
                assert last == (len(found) == beats)
        ctx.set(axi.rready, 0)
        return found

    async def write(self, ctx, axi, address, words, strobes, stalls=None):
        ctx.set(axi.awaddr, address)
        ctx.set(axi.awlen, len(words) - 1)
        ctx.set(axi.awvalid, 1)
        await ctx.tick().until(axi.awready)
        ctx.set(axi.awvalid, 0)
        for i, (word, strobe) in enumerate(zip(words, strobes)):
            while stalls is not None and stalls.integers(3) == 0:
                await ctx.tick()
            ctx.set(axi.wdata, int(word))
            ctx.set(axi.wstrb, int(strobe))
            ctx.set(axi.wlast, i == len(words) - 1)
            ctx.set(axi.wvalid, 1)
            await ctx.tick().until(axi.wready)
            ctx.set(axi.wvalid, 0)
        ctx.set(axi.bready, 1)
        await ctx.tick().until(axi.bvalid)
        ctx.set(axi.bready, 0)

    async def host(self, ctx, address, word=None):
        port = self.dut.host
        ctx.set(port.addr, address >> 3)
        ctx.set(port.write, word is not None)
        ctx.set(port.w_data, word or 0)
        ctx.set(port.en, 1)
        await ctx.tick().until(port.ready)
        ctx.set(port.en, 0)
        if word is None:
            (data,) = await ctx.tick().sample(port.r_data).until(port.r_valid)
            return data


def random_words(rng, count, size=BEAT):
    return [int(v) for v in rng.integers(0, 1 << 8 * size, count, dtype=np.uint64)]


@pytest.mark.parametrize("mhz", [25, 65, 85])
def test_all_masters_at_once_find_what_they_wrote(mhz):
    bench = Bench(mhz)
    axi = bench.dut.axi_0

    async def writer(ctx):
        """Bursts with gaps in their strobes, all over some rows of all banks; read again."""
        rng = np.random.default_rng(1)
        model = {}
        for _ in range(25):
            count = int(rng.integers(1, 17))
            address = int(rng.integers(4 * ROW * 6 // BURST)) * BURST
            words, strobes = random_words(rng, count), rng.integers(0, 1 << BEAT, count)
            if rng.integers(2):
                strobes[:] = (1 << BEAT) - 1
            await bench.write(ctx, axi, address, words, strobes, rng)
            for i, (word, strobe) in enumerate(zip(words, strobes)):
                for byte in range(BEAT):
                    if strobe >> byte & 1:
                        model[address + BEAT * i + byte] = word >> 8 * byte & 255
            words = await bench.read(ctx, axi, address, count, rng)
            for i, word in enumerate(words):
                for byte in range(BEAT):
                    at = address + BEAT * i + byte
                    assert model.get(at, 0) == word >> 8 * byte & 255

    async def host_and_reader(ctx):
        """A host's words, each at the end of the memory, which the second port sees."""
        rng = np.random.default_rng(2)
        base = (1 << CHIP.addr_bits) - 8 * ROW
        model = {}
        for _ in range(12):
            for _ in range(4):
                address = base + 8 * int(rng.integers(8 * ROW // 8))
                model[address] = random_words(rng, 1, 8)[0]
                await bench.host(ctx, address, model[address])
            for address in rng.choice(sorted(model), 4):
                assert await bench.host(ctx, int(address)) == model[int(address)]
            start = int(rng.choice(sorted(model))) // BURST * BURST
            found = await bench.read(ctx, bench.dut.axi_1, start, 16, rng)
            halves = np.array([model.get(start + i, 0) for i in range(0, BURST, 8)], "<u8")
            assert found == halves.view("<u4").tolist()

    bench.add(writer)
    bench.add(host_and_reader)
    bench.run()


@pytest.mark.parametrize("pattern", ["dealt", "random"])
def test_two_streams_get_what_the_model_says(pattern):
    """Bursts of one walk in turn, or of anywhere: as fast as with the simulated DRAM's model."""
    bench = Bench()
    rng = np.random.default_rng(0)
    count = 40  # bursts of each
    where = np.arange(2 * count) if pattern == "dealt" else rng.integers(0, 1 << 17, 2 * count)
    began, ended = [], []

    async def stream(ctx, port):
        axi = (bench.dut.axi_0, bench.dut.axi_1)[port]
        asked, left = 0, count * 16
        ctx.set(axi.rready, 1)
        ctx.set(axi.arlen, 15)
        while left:
            ctx.set(axi.arvalid, asked < count)
            ctx.set(axi.araddr, int(where[(2 * asked + port) % where.size]) * BURST)
            _, _, taken, valid = await ctx.tick().sample(axi.arready & axi.arvalid, axi.rvalid)
            asked += taken
            left -= valid
            if valid:
                began.append(bench.cycle)
        ended.append(bench.cycle)

    bench.add(stream, 0)
    bench.add(stream, 1)
    bench.run()
    share = 2 * count * 16 * 2 / (max(ended) - min(began))
    model, _ = traffic(SDR_65_X16, clock_mhz=MHZ, ports=2, port_bytes=BEAT, pattern=pattern)
    assert share == pytest.approx(model, abs=0.015)


def tampered(change):
    """What the chip says of pins that ``change`` has had a hand in."""
    bench = Bench(tamper=change)

    async def master(ctx):
        for step in range(3):
            address = step * 5 * ROW  # another row, and bank, each time
            await bench.host(ctx, address, step)
            await bench.host(ctx, address)
            await bench.host(ctx, address + 4 * ROW, step)

    bench.add(master)
    bench.sim.run_until(4e-3)
    error = bench.chip.error
    bench.chip.close()
    return error


def never(command):
    """Commands of this kind get lost."""
    return lambda cycle, pins: [NOP if pins[0] == command else pins[0], *pins[1:]]


def late():
    """Activations come a cycle late."""
    held = None

    def change(cycle, pins):
        nonlocal held
        if held is not None:
            pins, held = [*held, *pins[3:]], None
        elif pins[0] == sdram.ACTIVATE:
            held, pins = pins[:3], [NOP, *pins[1:]]
        return pins

    return change


@pytest.mark.parametrize(
    "change,complaint",
    [
        (never(sdram.REFRESH), "refreshes come before"),
        (never(sdram.LOAD_MODE), "no mode"),
        (never(sdram.PRECHARGE), "no precharge"),
        (never(sdram.ACTIVATE), "no row is open"),
        (late(), "tRCD"),
        (lambda cycle, pins: [*pins[:5], 0], "nobody drives"),
        (lambda cycle, pins: [*pins[:5], 1], "both sides drive"),
        (lambda cycle, pins: [pins[0], pins[1], pins[2] | 1 << 10, *pins[3:]], "mode|meant"),
        (lambda cycle, pins: [sdram.REFRESH if cycle == 100 else pins[0], *pins[1:]], "power-up"),
        (lambda cycle, pins: [sdram.REFRESH if cycle == 1500 else pins[0], *pins[1:]], "open|tRFC"),
        (
            lambda cycle, pins: [
                NOP if cycle > 2000 and pins[0] == sdram.REFRESH else pins[0],
                *pins[1:],
            ],
            "late",
        ),
    ],
)
def test_the_chip_notices(change, complaint):
    assert re.search(complaint, tampered(change))


def test_the_chip_notices_nothing_without_reason():
    assert tampered(lambda cycle, pins: pins) == ""


def test_a_clock_that_is_too_fast_is_refused():
    with pytest.raises(ValueError, match="cannot be run at 120 MHz"):
        SdramMemory(CHIP, 120)

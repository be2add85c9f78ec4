"""The error that counts, and ports that units share, against plain Python models."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from amaranth.sim import Simulator
from streams import simulate
from tokenfabric.core.config import preset
from tokenfabric.core.registers import Error
from tokenfabric.rtl.activations import Activations
from tokenfabric.rtl.memory import Ram, read_port, share_reads, share_writes, write_port
from tokenfabric.rtl.ports import MemoryErrors

PORTS, DEPTH = 3, 16


def the_error(write_axi, write_window, read_axi, read_window):
    for port in reversed(range(PORTS)):
        if read_window >> port & 1:
            return Error.WINDOW, port
        if read_axi >> port & 1:
            return Error.AXI_READ, port
    return (Error.WINDOW if write_window else Error.AXI_WRITE if write_axi else Error.NONE), 0


def test_the_error_that_counts():
    dut, seen = MemoryErrors(PORTS), set()

    async def bench(ctx):
        for raised in range(1 << 2 + 2 * PORTS):
            values = raised & 1, raised >> 1 & 1, raised >> 2 & 7, raised >> 2 + PORTS
            signals = dut.write_axi, dut.write_window, dut.read_axi, dut.read_window
            for signal, value in zip(signals, values, strict=True):
                ctx.set(signal, value)
            await ctx.delay(1e-7)
            got = ctx.get(dut.code), ctx.get(dut.port)
            assert got == the_error(*values), values
            seen.add(got)

    sim = Simulator(dut)
    sim.add_testbench(bench)
    sim.run()
    assert len(seen) == 2 + 2 * PORTS  # a write outside the window looks like one of port 0


class Shared(wiring.Component):
    """A memory with two writers and two readers."""

    def __init__(self):
        read, write = In(read_port(4, 8)), In(write_port(4, 8))
        super().__init__({"w": write.array(2), "r": read.array(2)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = Ram(DEPTH, 8)
        share_writes(m, ram.w, *self.w)
        share_reads(m, ram.r, *self.r)
        return m


def test_the_first_has_a_shared_port():
    rng, dut, both = np.random.default_rng(3), Shared(), []

    async def bench(ctx):
        memory, data = [0] * DEPTH, None
        for _ in range(500):
            asked = {}
            for kind, ports in (("w", dut.w), ("r", dut.r)):
                for port in ports:
                    en, addr, value = (int(v) for v in rng.integers((2, DEPTH, 256)))
                    ctx.set(port.en, en)
                    ctx.set(port.addr, addr)
                    if kind == "w":
                        ctx.set(port.data, value)
                    asked.setdefault(kind, []).append((en, addr, value))
            await ctx.tick()
            reads, writes = ([a for a in asked[kind] if a[0]] for kind in "rw")
            both.append((len(reads) == 2, len(writes) == 2))
            if reads:
                data = memory[reads[0][1]]  # what was there before this cycle's write
            if writes:
                memory[writes[0][1]] = writes[0][2]
            assert data is None or [ctx.get(port.data) for port in dut.r] == [data] * 2

    simulate(dut, [bench])
    assert np.sum(both, axis=0).min() > 50


CFG = preset("tiny")
ACT = CFG.cols * 16
# memory: (chunks, bits of a chunk, [writers: (port, chunks)], [readers: (port, chunks)])
MEMORIES = {
    "in": (CFG.in_chunks, ACT, [("writeback_in_w", 1), ("vector_in_w", 1)],
           [("matmul_in_r", CFG.k_chunks)]),
    "out": (CFG.out_chunks, ACT, [("writeback_out_w", 1)], [("vector_out_r", 2)]),
    "res": (CFG.res_chunks, 2 * ACT, [("writeback_res_w", 1)],
            [("writeback_res_r", 1), ("vector_res_r", 1)]),
    "param": (CFG.param_chunks, ACT, [("matmul_param_w", 8 * CFG.word_bytes // ACT)],
              [("vector_param_r", 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMORIES)
def test_what_a_unit_left_is_what_another_finds(name):
    """One writer and one reader per cycle, any of them, while the other memories are written."""
    chunks, bits, writers, readers = MEMORIES[name]
    rng, dut, model, checked = np.random.default_rng(4), Activations(CFG), {}, []
    others = [w for other, (_, _, ports, _) in MEMORIES.items() if other != name for w in ports]

    def place(width):
        return int(rng.integers(min(chunks, 16) // width)) * width

    async def bench(ctx):
        for port, _ in others:
            ctx.set(getattr(dut, port).en, 1)
        for _ in range(300):
            (writer, width), (reader, wide) = (p[rng.integers(len(p))] for p in (writers, readers))
            address, values = place(width), [int.from_bytes(rng.bytes(bits // 8), "little")
                                             for _ in range(width)]  # fmt: skip
            w, r, at = getattr(dut, writer), getattr(dut, reader), place(wide)
            writes = int(rng.integers(2))
            ctx.set(w.en, writes)
            ctx.set(w.addr, address)
            ctx.set(w.data, sum(v << bits * n for n, v in enumerate(values)))
            ctx.set(r.en, 1)
            ctx.set(r.addr, at)
            await ctx.tick()
            ctx.set(w.en, 0)
            ctx.set(r.en, 0)
            found = ctx.get(r.data)
            for n in range(wide):
                if at + n in model:
                    assert found >> bits * n & (1 << bits) - 1 == model[at + n]
                    checked.append(at + n)
            if writes:
                model.update({address + n: v for n, v in enumerate(values)})

    simulate(dut, [bench])
    assert len(checked) > 100

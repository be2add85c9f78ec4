"""The pysim memory and the AXI monitor, with the same design that tests the Verilated ones."""

from types import SimpleNamespace

import numpy as np
import pytest
from amaranth.sim import Simulator
from axi_dut import Copier, Fault
from tokenfabric.sim.axi_monitor import AxiProtocolError
from tokenfabric.sim.pysim_memory import AxiMemory

BASE = 0x1000_0000
SIZE = 1 << 14
START, STATUS, SOURCE, DESTINATION, BURSTS, BEATS, FAULT = range(0, 0x1C, 4)
LIMIT = 4000  # cycles


def port_of(dut: Copier, index: int) -> SimpleNamespace:
    prefix = f"m_axi_hp{index}_"
    names = [n[len(prefix) :] for n in dut.signature.members if n.startswith(prefix)]
    return SimpleNamespace(**{name: getattr(dut, prefix + name) for name in names})


def copy(ports=2, port_bytes=8, bursts=9, beats=16, source=0, destination=SIZE // 2,
         fault=Fault.NONE, size=SIZE, **memory):  # fmt: skip
    """(memory before, memory after, status, AxiMemory) of one copy."""
    dut = Copier(ports, port_bytes)
    before = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    after = before.copy()
    axi = AxiMemory([port_of(dut, i) for i in range(ports)], after, base=BASE, **memory)
    status = []

    async def access(ctx, channel, offset, value=0):
        ctl = {n: getattr(dut, f"s_axi_ctrl_{n}") for n in (
            "awaddr", "awvalid", "wdata", "wvalid", "bready", "bvalid",
            "araddr", "arvalid", "rready", "rvalid", "rdata")}  # fmt: skip
        valids = ("awvalid", "wvalid") if channel == "b" else ("arvalid",)
        ctx.set(ctl[valids[0].replace("valid", "addr")], offset)
        ctx.set(ctl["wdata"], value)
        for name in (*valids, channel + "ready"):
            ctx.set(ctl[name], 1)
        await ctx.tick()  # both ready at once: the copier is idle
        for name in valids:
            ctx.set(ctl[name], 0)
        await ctx.tick().until(ctl[channel + "valid"])
        ctx.set(ctl[channel + "ready"], 0)
        return ctx.get(ctl["rdata"])

    async def bench(ctx):
        settings = {
            SOURCE: BASE + source, DESTINATION: BASE + destination, BURSTS: bursts, BEATS: beats,
            FAULT: fault, START: 1,
        }  # fmt: skip
        for offset, value in settings.items():
            await access(ctx, "b", offset, value % 2**32)
        for _ in range(LIMIT):
            await ctx.tick()
            if ctx.get(dut.irq):
                break
        else:
            raise AssertionError(f"no end within {LIMIT} cycles")
        status.append(await access(ctx, "r", STATUS))

    sim = Simulator(dut)
    sim.add_clock(1e-8)
    sim.add_testbench(bench)
    axi.add_to(sim)
    sim.run()
    return before, after, status[0], axi


@pytest.mark.parametrize(("ports", "port_bytes"), [(1, 8), (2, 8), (3, 16)])
@pytest.mark.parametrize("stalls", [0, 0.5, 0.8])
@pytest.mark.parametrize("latency", [1, 30])
def test_copies_under_every_throttle(ports, port_bytes, stalls, latency):
    before, after, status, axi = copy(
        ports, port_bytes, stalls=stalls, latency=latency, seed=ports + latency
    )
    count = 9 * 16 * port_bytes
    before[SIZE // 2 : SIZE // 2 + count] = before[:count]
    assert np.array_equal(after, before) and status == 0
    size = 16 * port_bytes
    assert sorted(axi.reads) == sorted((i % ports, BASE + i * size, 16) for i in range(9))
    assert axi.writes == [(0, BASE + SIZE // 2 + i * size, 16) for i in range(9)]


def test_strobes():
    before, after, _, _ = copy(fault=Fault.HALF)
    expected = before.copy().reshape(-1, 8)
    rows = SIZE // 2 // 8
    expected[rows : rows + 9 * 16, :4] = before.reshape(-1, 8)[: 9 * 16, :4]
    assert np.array_equal(after, expected.ravel())


@pytest.mark.parametrize("where", [-128, SIZE - 128, SIZE])
@pytest.mark.parametrize("side", ["source", "destination"])
def test_outside_gets_decerr(where, side):
    before, after, status, _ = copy(bursts=1, size=SIZE - 64, **{side: where})
    if side == "source":
        before[SIZE // 2 : SIZE // 2 + 128] = 0
    assert np.array_equal(after, before) and status == 2


def test_a_chosen_read_gets_slverr():
    _, after, status, _ = copy(slverr_reads={4})
    assert status == 2
    written = after[SIZE // 2 : SIZE // 2 + 9 * 128].reshape(9, 128)
    assert np.count_nonzero(written.any(axis=1)) == 8


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault.ARVALID_DROPS, "arvalid dropped before arready"),
        (Fault.ARADDR_CHANGES, "payload of ar changed before arready"),
        (Fault.AWVALID_DROPS, "awvalid dropped before awready"),
        (Fault.WVALID_DROPS, "wvalid dropped before wready"),
        (Fault.WDATA_CHANGES, "payload of w changed before wready"),
        (Fault.WLAST_EARLY, "wlast is 1 at beat 14 of a burst of 16|15 beats written before"),
        (Fault.WLAST_LATE, "wlast is 0 at beat 15 of a burst of 16"),
        (Fault.ARSIZE, "arsize is 2, not the full width of 8 bytes"),
        (Fault.ARBURST, "arburst is 0, not INCR"),
    ],
)
def test_a_broken_rule_raises(fault, text):
    with pytest.raises(AxiProtocolError, match=text):
        copy(fault=fault, stalls=0.6)


@pytest.mark.parametrize("fault", [Fault.WLAST_EARLY, Fault.WLAST_LATE])
def test_data_before_its_address_is_checked_too(fault):
    texts = ""
    for seed in range(1, 8):
        with pytest.raises(AxiProtocolError, match=r"wlast is|beats written") as caught:
            copy(beats=5, fault=fault, stalls=0.6, latency=(4, 60)[seed % 2], seed=seed)
        texts += str(caught.value)
    # Both orders have come up.
    assert "wlast is" in texts and "beats written before an address" in texts


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"source": 4096 - 64}, "128 bytes at araddr 0x10000fc0 cross a 4 KB boundary"),
        ({"destination": 4096 - 8}, "at awaddr 0x10000ff8 cross a 4 KB boundary"),
        ({"beats": 17}, "arlen is 16, the ports take at most 16 beats"),
        ({"source": 4}, "araddr 0x100000.4 is not aligned to 8 bytes"),
    ],
)
def test_a_bad_burst_raises(arguments, text):
    with pytest.raises(AxiProtocolError, match=text):
        copy(**arguments)

"""The Verilated device: data, faults, protocol checks, and the cache of builds."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from axi_dut import Copier, Fault
from tokenfabric.core.errors import UserError
from tokenfabric.flow import toolchain
from tokenfabric.flow.verilog import to_verilog
from tokenfabric.sim import verilator
from tokenfabric.sim.dram import DDR3_1050_X16, IDEAL
from tokenfabric.sim.verilator import AxiProtocolError, RegisterError, VerilatedTop, build

pytestmark = pytest.mark.verilator

START, STATUS, SOURCE, DESTINATION, BURSTS, BEATS, FAULT, SUM, REFUSED, SILENT = range(0, 0x28, 4)
SIZE = 1 << 20
LIMIT = 1_000_000  # cycles

SHAPES = {"2x8": (2, 8), "4x16": (4, 16)}


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return {name: to_verilog(Copier(*shape)) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module")
def libraries(texts) -> dict[str, Path]:
    return {
        name: build(texts[name], ports=ports, port_bytes=port_bytes)
        for name, (ports, port_bytes) in SHAPES.items()
    }


@pytest.fixture
def make_top(libraries):
    tops = []

    def make(shape: str = "2x8", **changes) -> VerilatedTop:
        arguments = {"clock_mhz": 125, "memory_bytes": SIZE} | changes
        tops.append(VerilatedTop(libraries[shape], **arguments))
        top = tops[-1]
        top.memory[:] = np.random.default_rng(7).integers(0, 256, top.memory.size, dtype=np.uint8)
        return top

    yield make
    for top in tops:
        top.close()


def copy(
    top: VerilatedTop,
    source: int = 0,
    destination: int = SIZE // 2,
    bursts: int = 50,
    beats: int = 16,
    fault: Fault = Fault.NONE,
) -> int:
    """Copies within the memory (offsets from its base); returns the cycles it took."""
    top.write32(SOURCE, (top.base + source) % 2**32)
    top.write32(DESTINATION, (top.base + destination) % 2**32)
    top.write32(BURSTS, bursts)
    top.write32(BEATS, beats)
    top.write32(FAULT, fault)
    top.write32(START, 1)
    return top.run(LIMIT)


def is_copied(top: VerilatedTop, before: np.ndarray, count: int) -> bool:
    expected = before.copy()
    expected[SIZE // 2 : SIZE // 2 + count] = before[:count]
    return np.array_equal(top.memory, expected)


# --- data and time ---------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, *range(1, 11)])
def test_copies_under_every_throttle(make_top, shape, seed):
    top = make_top(shape)
    before = top.memory.copy()
    if seed:
        top.throttle(seed, (0.2, 0.5, 0.9)[seed % 3])
    for bursts, beats in ((1, 1), (50, 16), (33, 5)):
        # Whole pages, so that no burst of 5 beats crosses one.
        source = 0 if beats != 5 else 2048
        bursts = bursts if beats != 5 else 4096 // (top.port_bytes * 5) // 2
        top.memory[:] = before
        assert copy(top, source=source, bursts=bursts, beats=beats) < LIMIT
        count = bursts * beats * top.port_bytes
        expected = before.copy()
        expected[SIZE // 2 : SIZE // 2 + count] = before[source : source + count]
        assert np.array_equal(top.memory, expected)
        assert top.read32(STATUS) == 0
        low = before[source : source + count].view("<u4")[:: top.port_bytes // 4]
        assert top.read32(SUM) == int(low.sum(dtype=np.uint64)) % 2**32


def test_runs_repeat_and_seeds_differ(make_top):
    def cycles(seed):
        top = make_top()
        top.throttle(seed)
        return copy(top)

    assert cycles(3) == cycles(3)
    assert len({cycles(seed) for seed in range(1, 6)}) > 1


@pytest.mark.parametrize("shape", SHAPES)
def test_strobes(make_top, shape):
    top = make_top(shape)
    width = top.port_bytes
    before = top.memory.copy().reshape(-1, width)
    copy(top, bursts=5, fault=Fault.HALF)
    rows = SIZE // 2 // width
    expected = before.copy()
    expected[rows : rows + 80, : width // 2] = before[:80, : width // 2]
    assert np.array_equal(top.memory, expected.ravel())


def begin(top: VerilatedTop, bursts: int) -> None:
    for register, value in ((SOURCE, top.base), (DESTINATION, top.base + SIZE // 2),
                            (BURSTS, bursts), (BEATS, 16), (START, 1)):  # fmt: skip
        top.write32(register, value)


def step_until(top: VerilatedTop, condition) -> None:
    for _ in range(5000):
        if condition():
            return
        top.run(1, until_idle=False)
    raise AssertionError("5000 cycles")


def test_memory_changes_with_the_response(make_top):
    top = make_top(dram=IDEAL.replace(latency_cycles=200))
    before = top.memory.copy()
    begin(top, 1)
    step_until(top, lambda: top.counters(0).write_bytes == 128)
    written = top.cycles
    step_until(top, lambda: not np.array_equal(top.memory, before))
    assert top.cycles - written >= 200
    step_until(top, lambda: top.irq)
    assert is_copied(top, before, 128)


@pytest.mark.parametrize(("cycles", "seen"), [(50, True), (150, False)])
def test_memory_is_read_half_the_latency_after_the_address(make_top, cycles, seen):
    top = make_top(dram=IDEAL.replace(latency_cycles=200))
    begin(top, 1)
    step_until(top, lambda: top.counters(0).read_bursts == 1)
    top.run(cycles, until_idle=False)
    before = top.memory[:128].copy()
    top.memory[:128] ^= 255
    top.run(LIMIT)
    expected = before ^ 255 if seen else before
    assert np.array_equal(top.memory[SIZE // 2 : SIZE // 2 + 128], expected)


def test_latency_changes_time_and_never_data(make_top):
    cycles = []
    for latency in (10, 40, 200):
        top = make_top(dram=DDR3_1050_X16.replace(latency_cycles=latency))
        before = top.memory.copy()
        cycles.append(copy(top, bursts=200))
        assert is_copied(top, before, 200 * 128)
    assert cycles[0] < cycles[1] < cycles[2]


@pytest.mark.parametrize("latency", [1, 2, 40, 100])
def test_latency_is_that_of_a_read_on_idle_memory(make_top, latency):
    top = make_top(dram=IDEAL.replace(latency_cycles=latency))
    copy(top, bursts=1, beats=1)
    # In flight from the cycle after its address was taken, and the beat is shown in the last.
    assert top.counters(0).read_waits == latency


def test_the_clock_sets_how_much_memory_gives_per_cycle(make_top):
    slow, fast = (copy(make_top("4x16", clock_mhz=c), bursts=400) for c in (50, 200))
    assert fast > 1.5 * slow


def test_counters(make_top):
    top = make_top()
    copy(top, bursts=50)
    first, second = top.counters(0), top.counters(1)
    assert (first.read_bursts, second.read_bursts) == (25, 25)
    assert (first.read_bytes, second.read_bytes) == (25 * 128, 25 * 128)
    assert (first.write_bursts, first.write_bytes) == (50, 50 * 128)
    assert (second.write_bursts, second.write_bytes) == (0, 0)
    assert 2 <= first.max_reads <= top.dram.max_reads
    assert 1 <= first.max_writes <= 4
    assert first.read_waits > top.dram.latency_cycles
    assert first.bus_errors == 0
    with pytest.raises(ValueError, match="port 2 of 2"):
        top.counters(2)


def test_run_counts_cycles(make_top):
    top = make_top()
    start = top.cycles
    assert top.run(verilator.RUN_CHUNK + 17, until_idle=False) == verilator.RUN_CHUNK + 17
    assert top.cycles == start + verilator.RUN_CHUNK + 17
    assert top.irq and top.run(1000) == 0
    begin(top, 1000)
    assert top.run(100) == 100 and not top.irq
    assert top.read32(STATUS) == 1


def test_reset_between_runs(make_top):
    top = make_top()
    copy(top)
    top.reset()
    assert top.irq and top.read32(STATUS) == 0 and top.in_flight == 0
    before = top.memory.copy()
    copy(top)
    assert is_copied(top, before, 50 * 128)


def test_a_reset_that_takes_back_what_stands_on_a_port_is_found(make_top):
    """The memory forgets nothing; this design's reset, unlike the accelerator's, drops all."""
    top = make_top()
    top.throttle(5)
    begin(top, 1000)
    top.run(999)
    assert top.in_flight > 0
    top.reset()
    with pytest.raises(AxiProtocolError, match="arvalid dropped before arready"):
        copy(top)


def test_instances_do_not_share_anything(make_top):
    one, other = make_top(), make_top("2x8", base=0x4000_0000)
    before = one.memory.copy()
    copy(one)
    assert is_copied(one, before, 50 * 128)
    assert np.array_equal(other.memory, before)
    copy(other)
    assert is_copied(other, before, 50 * 128)


def test_closed_and_out_of_range(make_top, libraries):
    top = make_top()
    top.close()
    with pytest.raises(ValueError, match="closed"):
        top.run(1)
    with pytest.raises(ValueError, match="not in 32 bits"):
        VerilatedTop(libraries["2x8"], clock_mhz=100, memory_bytes=SIZE, base=2**32 - SIZE // 2)


# --- error responses --------------------------------------------------------------------------


# Memory that ends 64 bytes before a page does, so that a legal burst can reach over its end.
SHORT = SIZE - 64


@pytest.mark.parametrize("source", [-128, SIZE - 128, SIZE, -(1 << 28), 1 << 31])
def test_reads_outside_memory_get_decerr(make_top, source):
    top = make_top(memory_bytes=SHORT)
    before = top.memory.copy()
    assert copy(top, source=source, bursts=1) < LIMIT
    assert top.read32(STATUS) == 2
    assert f"m_axi_hp0: read of 128 bytes at 0x{top.base + source:08x}" in top.bus_errors[0]
    assert top.counters(0).bus_errors == 1
    before[SIZE // 2 : SIZE // 2 + 128] = 0  # what the design got and wrote
    assert np.array_equal(top.memory, before)


@pytest.mark.parametrize("destination", [-128, SIZE - 128, SIZE, 1 << 31])
def test_writes_outside_memory_get_decerr(make_top, destination):
    top = make_top(memory_bytes=SHORT)
    before = top.memory.copy()
    assert copy(top, destination=destination, bursts=1) < LIMIT
    assert top.read32(STATUS) == 2
    assert f"write of 128 bytes at 0x{top.base + destination:08x}" in top.bus_errors[0]
    assert np.array_equal(top.memory, before)


def test_the_nth_read_fails(make_top):
    top = make_top()
    before = top.memory.copy()
    top.fail_read(7)
    copy(top)
    assert top.read32(STATUS) == 2
    failed = [
        number
        for number in range(50)
        if not np.array_equal(
            top.memory[SIZE // 2 + number * 128 : SIZE // 2 + number * 128 + 128],
            before[number * 128 : number * 128 + 128],
        )
    ]
    assert len(failed) == 1
    copy(top)  # only that one
    assert top.read32(STATUS) == 0


def test_a_stuck_port_stops_the_design_and_not_the_simulation(make_top):
    top = make_top()
    top.stick(1)
    assert copy(top) == LIMIT
    assert top.counters(1).read_bursts == 0 and top.counters(1).read_address_stalls > LIMIT / 2
    top.stick(1, False)
    assert top.run(LIMIT) < LIMIT


# --- registers --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_registers(make_top, seed):
    top = make_top()
    if seed:
        top.throttle(seed, 0.7)
    for value in (0, 1, 0xFFFF_FFFF, 0x8000_0001):
        top.write32(SOURCE, value)
        assert top.read32(SOURCE) == value
    with pytest.raises(RegisterError, match="register 0x20: write got the error response 2"):
        top.write32(REFUSED, 1)
    with pytest.raises(RegisterError, match="register 0x20: read got the error response 2"):
        top.read32(REFUSED)
    with pytest.raises(RegisterError, match="register 0x24: read got no answer"):
        top.read32(SILENT)


# --- protocol ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault.ARVALID_DROPS, "arvalid dropped before arready"),
        (Fault.ARADDR_CHANGES, "araddr, len, size or burst changed before arready"),
        (Fault.AWVALID_DROPS, "awvalid dropped before awready"),
        (Fault.WVALID_DROPS, "wvalid dropped before wready"),
        (Fault.WDATA_CHANGES, "wdata, wstrb or wlast changed before wready"),
        (Fault.WLAST_EARLY, "wlast is 1 at beat 14 of a burst of 16|15 beats written before"),
        (Fault.WLAST_LATE, "wlast is 0 at beat 15 of a burst of 16"),
        (Fault.ARSIZE, "arsize is 2, not the full width's 3"),
        (Fault.ARBURST, "arburst is 0, not INCR"),
        (Fault.LITE_UNASKED, "s_axi_ctrl: response without a request"),
    ],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_broken_rule_ends_the_run(make_top, fault, text, seed):
    top = make_top()
    top.throttle(seed, 0.6)
    with pytest.raises(AxiProtocolError, match=text) as caught:
        copy(top, fault=fault)
    assert top.last_error == str(caught.value) and "cycle " in top.last_error
    assert top.cycles < 10_000  # at once, not when the design gives up
    with pytest.raises(AxiProtocolError, match=text):  # it stays broken
        top.run(1)
    # What stands on the ports then, no reset takes back; another simulation knows nothing of it.
    top = make_top()
    before = top.memory.copy()
    copy(top)
    assert top.last_error == "" and is_copied(top, before, 50 * 128)


@pytest.mark.parametrize("fault", [Fault.WLAST_EARLY, Fault.WLAST_LATE])
def test_data_before_its_address_is_checked_too(make_top, fault):
    texts = ""
    for seed in range(1, 200):
        top = make_top()
        top.throttle(seed, 0.8)
        with pytest.raises(AxiProtocolError, match=r"wlast is|beats written") as caught:
            copy(top, beats=5, fault=fault)
        texts += str(caught.value)
    # Both orders have come up.
    assert "wlast is" in texts and "beats written before an address" in texts


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            {"source": 4096 - 64},
            "burst of 128 bytes at araddr 0x10000fc0 crosses a 4 KB boundary",
        ),
        ({"destination": 4096 - 8}, "at awaddr 0x10000ff8 crosses a 4 KB boundary"),
        ({"beats": 17}, "arlen is 16, the ports take bursts of at most 16 beats"),
        ({"source": 4}, "araddr 0x10000004 is not aligned to 8 bytes"),
    ],
)
def test_a_bad_burst_ends_the_run(make_top, arguments, text):
    with pytest.raises(AxiProtocolError, match=text):
        copy(make_top(), **arguments)


def test_a_burst_may_end_at_a_page(make_top):
    top = make_top()
    copy(top, source=4096 - 128, destination=SIZE - 128, bursts=1)
    assert top.read32(STATUS) == 0


def test_register_data_must_not_change(make_top):
    top = make_top()
    top.write32(FAULT, Fault.LITE_RDATA_CHANGES)
    with pytest.raises(AxiProtocolError, match="rdata or rresp changed before ready"):
        for seed in range(1, 200):
            top.throttle(seed, 0.9)
            top.read32(SOURCE)


# --- builds -----------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch, libraries) -> Path:
    """An empty cache, but for Verilator's own library, which takes long to compile."""
    old = toolchain.cache_directory()
    monkeypatch.setenv("TOKENFABRIC_CACHE", str(tmp_path))
    if (old / "runtime").is_dir():
        shutil.copytree(old / "runtime", tmp_path / "runtime")
    return tmp_path


def leftovers(cache: Path) -> list[str]:
    return [p.name for p in (cache / "verilated").iterdir() if p.suffix == ".partial"]


BUILD = """
import sys
from tokenfabric.sim.verilator import build
text = open(sys.argv[1]).read()
print(build(text, ports=2, port_bytes=8, progress=lambda t: print(t, file=sys.stderr)))
"""


def start_build(path: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_cache(cache, texts):
    source = cache / "source.v"
    source.write_text(texts["2x8"])
    processes = [start_build(source) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (first, told), (second, told_second) = outputs
    assert first == second and not leftovers(cache)
    assert "waiting for another process" in told + told_second
    assert (told + told_second).count("linker") == 1

    messages = []
    start = time.monotonic()
    found = build(texts["2x8"], ports=2, port_bytes=8, progress=messages.append)
    assert str(found) == first.strip() and not messages
    assert time.monotonic() - start < 0.1

    changed = texts["2x8"].replace("module top", "/* changed */ module top")
    assert build(changed, ports=2, port_bytes=8, progress=messages.append) != found
    assert any("Verilator" in message for message in messages)
    assert sorted(p.name for p in found.parent.iterdir()) == ["build.log", "top.so", "top.v"]


def test_another_header_is_another_build(monkeypatch, tmp_path):
    """Every file that the harness includes is in the key of the cache."""
    keys = []

    def cached(kind, key, make, progress):
        keys.append(key)
        return tmp_path

    monkeypatch.setattr(verilator, "cached", cached)

    def key(headers) -> str:
        monkeypatch.setattr(verilator, "HEADERS", headers)
        build("module top; endmodule", ports=2, port_bytes=8)
        return keys[-1]

    headers = verilator.HEADERS
    assert key(headers) == key(headers)
    for header in headers:
        changed = tmp_path / header.name
        changed.write_text(header.read_text() + "// changed")
        assert key([changed if h is header else h for h in headers]) != keys[0], header.name


def test_the_harness_gets_all_headers_of_ours_that_it_includes():
    given = {verilator.HARNESS.name, "ports.h", *(path.name for path in verilator.HEADERS)}
    for path in (verilator.HARNESS, *verilator.HEADERS):
        included = set(re.findall(r'^#include "(.*)"', path.read_text(), re.M))
        assert {name for name in included if not name.lower().startswith("v")} <= given, path.name


def test_interrupt_leaves_nothing_behind(cache, texts):
    source = cache / "source.v"
    source.write_text(texts["2x8"])
    process = start_build(source)
    deadline = time.monotonic() + 60
    while not list(cache.glob("verilated/*.partial/fast0.cpp")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not leftovers(cache) and not list(cache.glob("verilated/*/top.so"))


def test_bad_verilog_is_one_line_with_the_log(cache):
    with pytest.raises(UserError, match=r"Verilator failed \(exit code 1\): %Error.*output is in"):
        build("module top(input clk; endmodule", ports=1, port_bytes=8)
    logs = list(cache.glob("verilated/*.log"))
    assert len(logs) == 1 and "syntax error" in logs[0].read_text()
    assert not leftovers(cache)


def test_missing_ports_are_one_line_with_the_log(cache, texts):
    with pytest.raises(UserError, match=r"C[+][+] compiler failed .*m_axi_hp2_.*output is in"):
        build(texts["2x8"], ports=3, port_bytes=8)


def test_a_missing_compiler_is_named(cache, texts, monkeypatch):
    toolchain.compiler.cache_clear()
    monkeypatch.setenv("PATH", str(cache))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"no C.. compiler .*apt install g"):
        build(texts["2x8"], ports=2, port_bytes=8)
    toolchain.compiler.cache_clear()


def test_waves(texts, libraries, make_top, tmp_path):
    with pytest.raises(ValueError, match="build with waves=True"):
        make_top().trace(tmp_path / "no.vcd")
    path = tmp_path / "run.vcd"
    with VerilatedTop(
        build(texts["2x8"], ports=2, port_bytes=8, waves=True), clock_mhz=125, memory_bytes=SIZE
    ) as top:
        top.trace(path)
        cycles = copy(top, bursts=2)
        top.trace(None)
    text = path.read_text()
    assert "m_axi_hp1_rdata" in text and text.count("#") > cycles


def test_the_number_of_ports_is_checked():
    with pytest.raises(ValueError, match="ports=9"):
        build("", ports=9, port_bytes=8)


CLOSED_IN_ANY_ORDER = """
from tokenfabric.core.config import preset
from tokenfabric.sim.devices import simulated_top

for _ in range(5):
    first, second = (simulated_top(preset("tiny"), 1 << 16) for _ in range(2))
    second.run(10, until_idle=False)
    second.close()
    junk = [bytearray(b"\\xff" * (1 << size)) for size in range(6, 17) for _ in range(50)]
    first.close()
"""


@pytest.mark.verilator
def test_devices_may_be_closed_in_any_order():
    """In a process of its own: what goes wrong is a crash, or a lock that nobody holds."""
    subprocess.run([sys.executable, "-c", CLOSED_IN_ANY_ORDER], check=True, timeout=300)

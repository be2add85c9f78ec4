"""The driver's parts that no remote board reaches: boards that Python runs on, and interrupts.

``pynq`` is a small stand-in here; tests/board has the real one.
"""

import asyncio
import importlib
import sys
import threading
import time
import types

import numpy as np
import pytest
from tokenfabric.core import registers
from tokenfabric.core.boards import VLNV
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.registers import Error, State, offset
from tokenfabric.host.calls import Caller
from tokenfabric.host.device import DeviceLost, DeviceTimeout
from tokenfabric.host.driver import RegisterDevice

from tokenfabric.cli import main

CONTROL_BASE = 0xA000_0000


class LocalBuffer(np.ndarray):
    """As pynq.buffer.PynqBuffer: memory that is gone when freed, and its DRAM's side."""

    def __new__(cls, size, address, log):
        self = super().__new__(cls, size, np.uint8)
        self.physical_address, self.log = address, log
        self.dram = np.zeros(size, np.uint8)
        return self

    def flush(self):
        self.dram[:] = self
        self.log.append(("flush", self.physical_address))

    def invalidate(self):
        self[:] = self.dram
        self.log.append(("invalidate", self.physical_address))

    def freebuffer(self):
        self.log.append(("free", self.physical_address))
        self.freed = True


class Board:
    """A board with one accelerator, and an allocator that goes up from ``next``."""

    capabilities: dict = {}  # noqa: RUF012  as pynq's devices have it

    def __init__(self):
        self.name, self.next, self.left, self.log = "fake", 0x1000_0000, 1 << 30, []
        self.registers = {
            offset("IDENT"): registers.IDENT,
            offset("ABI"): registers.ABI_VERSION,
            offset("FINGERPRINT_HI"): int(preset("tiny").fingerprint[:8], 16),
            offset("FINGERPRINT_LO"): int(preset("tiny").fingerprint[8:], 16),
        }
        self.buffers = []
        self.probed = Error.WINDOW  # how a start without windows ends

    def end(self):
        self.registers[offset("STATUS")] = State.IDLE

    def allocate(self, shape, dtype):
        if shape[0] > self.left:
            raise RuntimeError("Failed to allocate Memory!")
        self.buffers.append(LocalBuffer(shape[0], self.next, self.log))
        self.next += shape[0]
        return self.buffers[-1]


class Accelerator:
    """As pynq.DefaultIP."""

    def __init__(self, device):
        self.device, self.log = device, device.log
        self._registers = {r.name: {"address_offset": r.offset} for r in registers.REGISTERS}

    def read(self, at):
        return self.device.registers.get(at, 0)

    def write(self, at, value):
        assert type(value) is int
        known = self.device.registers
        known[at] = value
        if at == offset("CONTROL"):
            self.log.append(("control", value))
            if value == 4:
                self.device.end()
            elif not known.get(offset("JOB_SIZE")):
                known[offset("STATUS")], known[offset("ERROR")] = State.ERROR, self.device.probed
            else:
                known[offset("STATUS")] = State.RUNNING


@pytest.fixture
def flags(tmp_path):
    """The flags of the kernel's FPGA manager, as after power-up."""
    path = tmp_path / "flags"
    path.write_text("0\n", encoding="ascii")
    return path


@pytest.fixture
def board(monkeypatch, flags):
    """The board that the stand-in finds."""
    device = Board()
    pynq = types.ModuleType("pynq")
    pynq.DefaultIP = object
    pynq.Device = types.SimpleNamespace(active_device=device)
    pynq.Clocks = type("Clocks", (), {"fclk0_mhz": 100.0})
    pynq.allocate = lambda shape, dtype, target: target.allocate(shape, dtype)

    def mmio(address, length, device):
        assert (address, length) == (CONTROL_BASE, 4096), "a Zynq would hang"
        return Accelerator(device)

    def overlay(path, download, device):
        if download:
            device.log.append("download")
            flags.write_text("0", encoding="ascii")
        found = types.SimpleNamespace(npu_0=Accelerator(device))
        found.ip_dict = {"npu_0": {"type": VLNV, "phys_addr": CONTROL_BASE}}
        return found

    pynq.MMIO = mmio

    pynq.Overlay = overlay
    monkeypatch.setitem(sys.modules, "pynq", pynq)
    monkeypatch.delenv("PYNQ_REMOTE_DEVICES", raising=False)
    yield device


@pytest.fixture
def driver(board, flags, monkeypatch):
    """``host.pynq_device`` with the stand-in."""
    name = "tokenfabric.host.pynq_device"
    monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module(name)
    monkeypatch.setattr(module, "FLAGS", str(flags))
    yield module
    sys.modules.pop(name, None)


@pytest.fixture
def bitfile(tmp_path):
    path = tmp_path / "design.bit"
    path.write_bytes(b"")
    path.with_suffix(".hwh").write_bytes(b"")
    return path


# --- a board that Python runs on ------------------------------------------------------------------


class Image:
    """Of which the driver wants to know how large its windows are."""

    @staticmethod
    def memory(dumped):
        return 8192, 4096


def test_a_local_board_runs_frees_and_ends(driver, board, bitfile):
    with driver.Board(bitfile) as opened:
        assert (opened.remote, opened.config.name) == (False, "tiny")
        assert opened.clocks() == (None, 100.0)
        device = opened.device(Image())
        assert isinstance(device, RegisterDevice)
        assert board.registers[offset("WINDOW_BASE")] == 0x1000_0000
        assert board.registers[offset("JOB_BASE")] == 0x1000_2000
        device.write(16, np.arange(4, dtype=np.uint8))
        assert not board.buffers[0].dram.any()
        device.start()
        assert board.buffers[0].dram[16:20].tolist() == [0, 1, 2, 3]
        board.buffers[0].dram[100] = 7
        assert device.read(100, 1) == 7
    low, high = 0x1000_0000, 0x1000_2000
    assert board.log == [
        "download", ("flush", low), ("control", 1), ("invalidate", low),
        ("control", 4), ("control", 1), ("free", high), ("free", low),
    ]  # fmt: skip
    for use in (lambda: device.read(0, 1), lambda: device.write(0, np.zeros(1, np.uint8))):
        with pytest.raises(DeviceLost, match="load it again"):
            use()


def test_the_next_model_takes_the_place_of_the_first(driver, board, bitfile):
    with driver.Board(bitfile) as opened:
        first = opened.device(Image())
        first.start()
        opened.device(Image())
        assert board.log == [
            "download", ("control", 1), ("control", 4), ("control", 1),
            ("free", 0x1000_2000), ("free", 0x1000_0000),
        ]  # fmt: skip
        with pytest.raises(DeviceLost, match="load it again"):
            first.start()
        with pytest.raises(DeviceLost, match="load it again"):
            first.stop()


def test_memory_above_the_ports_reach_is_given_back(driver, board, bitfile):
    board.next = (1 << 32) - 8192
    with driver.Board(bitfile) as opened:
        with pytest.raises(UserError, match=r"at 0x100000000, .* below 0x100000000; boot with cma"):
            opened.device(Image())
        assert board.log == ["download", ("free", 1 << 32), ("free", (1 << 32) - 8192)]


def test_memory_that_is_not_there(driver, board, bitfile, monkeypatch):
    board.left = 5000
    with driver.Board(bitfile) as opened:
        for found, match in (
            ((0, 1), r"no 0\.0 MiB .* \(0 of 1 MiB are free\); close what else uses it, restart"),
            (None, "memory left; close what else uses it, restart the board"),
            ((0, 0), r"\(0 of 0 MiB are free\); boot with a larger cma="),
        ):
            monkeypatch.setattr(driver, "_cma", lambda device, found=found: found)
            with pytest.raises(UserError, match=match):
                opened.device(Image())


def test_an_accelerator_at_work_is_left_alone(driver, board, bitfile):
    with driver.Board(bitfile) as opened:
        board.registers[offset("STATUS")] = State.RUNNING
        for use in (
            lambda: driver.Board(bitfile, download=False),
            lambda: driver.Board(bitfile, take=False),
            lambda: opened.device(Image()),
        ):
            with pytest.raises(UserError, match="at work for another program; wait"):
                use()
    assert board.log == ["download"]


# --- what is in the fabric before it is programmed ------------------------------------------------


def test_a_run_is_ended_before_the_fabric_is_programmed(driver, board, bitfile):
    with driver.Board(bitfile) as opened:
        opened.device(Image()).start()
        driver.Board(bitfile).close()
    assert board.log == [
        "download", ("control", 1), ("control", 4), ("control", 1), "download",
        ("free", 0x1000_2000), ("free", 0x1000_0000),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["0", "1", "20", "100", "ffff", "", "no number"])
def test_a_fabric_that_others_programmed_is_not_touched(driver, board, bitfile, flags, text):
    """Nothing may answer where ours was."""
    driver.Board(bitfile).close()
    flags.write_text(text, encoding="ascii")
    board.registers[offset("STATUS")] = State.RUNNING
    with pytest.raises(UserError, match="at work"):  # this one has it still after programming
        driver.Board(bitfile)
    assert board.log == ["download"] * 2


def test_the_mark_is_left_when_the_accelerator_has_answered(driver, board, bitfile, flags):
    assert flags.read_text() == "0\n"
    board.registers[offset("IDENT")] = 0
    with pytest.raises(UserError, match="not programmed"):
        driver.Board(bitfile)
    assert flags.read_text() == "0"
    board.registers[offset("IDENT")] = registers.IDENT
    driver.Board(bitfile, download=False).close()
    assert flags.read_text() == "a0000000"


def test_something_else_at_the_marks_address_is_left_alone(driver, board, bitfile):
    driver.Board(bitfile).close()
    board.registers[offset("IDENT")] = 0x1234
    with pytest.raises(UserError, match="not programmed"):
        driver.Board(bitfile)
    assert board.log == ["download"] * 2


def test_an_accelerator_that_does_not_let_go_is_not_programmed(driver, board, bitfile, monkeypatch):
    from tokenfabric.host import driver as registers_driver

    driver.Board(bitfile).close()
    board.probed = Error.WATCHDOG
    with pytest.raises(DeviceTimeout, match="does not let go of the memory; restart the board"):
        driver.Board(bitfile)
    monkeypatch.setattr(registers_driver, "END_SECONDS", 0.2)
    board.registers[offset("STATUS")], board.end = State.RUNNING, lambda: None
    with pytest.raises(DeviceTimeout, match="does not let go of the memory; restart the board"):
        driver.Board(bitfile)
    assert board.log.count("download") == 1


def test_an_older_accelerator_is_ended_and_refused_in_one_line(driver, board, bitfile):
    driver.Board(bitfile).close()
    board.registers[offset("ABI")] = 2
    board.registers[offset("STATUS")] = State.RUNNING
    with pytest.raises(UserError, match="ABI version 2, this software has 3; build it again"):
        driver.Board(bitfile)
    assert board.log == ["download", ("control", 4), ("control", 1), "download"]


# --- memory that is not let go of -----------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "next", "error", "exit"])
def test_memory_in_use_is_not_given_back(driver, board, bitfile, capsys, monkeypatch, end):
    at_exit = []
    monkeypatch.setattr(driver.atexit, "register", at_exit.append)
    opened = driver.Board(bitfile)
    opened.device(Image()).start()
    board.probed = Error.WATCHDOG
    if end == "next":
        with pytest.raises(DeviceTimeout, match="restart the board"):
            opened.device(Image())
    elif end == "exit":
        at_exit[0]()
    else:
        with pytest.raises(KeyboardInterrupt), opened:
            raise KeyboardInterrupt
    opened.close()
    assert not any("free" in entry for entry in board.log)
    assert all(buffer.freed for buffer in board.buffers)  # so that no destructor frees them
    said = capsys.readouterr().err
    assert said.count("\n") == (end != "next")
    assert end == "next" or "its memory stays allocated: the accelerator does not let" in said


def test_an_interrupted_close_is_done_at_the_next(driver, board, bitfile):
    opened = driver.Board(bitfile)
    opened.device(Image()).start()
    end, board.end = board.end, lambda: pytest.fail("interrupted", pytrace=False)
    with pytest.raises(pytest.fail.Exception, match="interrupted"):
        opened.close()
    assert not any("free" in entry for entry in board.log)
    board.end = end
    opened.close()
    assert [entry for entry in board.log if "free" in entry] == [
        ("free", 0x1000_2000), ("free", 0x1000_0000)
    ]  # fmt: skip


def test_the_heartbeat_is_half_a_second_of_the_boards_clock(driver, board, bitfile):
    with driver.Board(bitfile) as opened:
        opened.device(Image())
        assert board.registers[offset("HEARTBEAT")] == round(opened.config.clock_mhz * 500_000)
        opened.device(Image(), heartbeat=777)
        assert board.registers[offset("HEARTBEAT")] == 777


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("STATUS", State.RUNNING), "the accelerator is at work for another program"),
        (("ABI", 2), "has an accelerator of ABI version 2, this software has 3"),
        (("FINGERPRINT_LO", 1), "the accelerator's fingerprint is"),
    ],
)
def test_doctor_says_what_is_in_the_fabric(driver, board, bitfile, capsys, change, line):
    driver.Board(bitfile).close()
    board.registers[offset(change[0])] = change[1]
    assert main(["doctor", "--bitstream", str(bitfile)]) == 1
    out = capsys.readouterr().out.splitlines()
    (found,) = (number for number, text in enumerate(out) if text.startswith("--  board"))
    assert line in out[found] and out[found + 1].strip().startswith("-> ")
    assert ("control", 4) not in board.log


def test_without_pynq_one_line_says_what_to_install(bitfile, capsys, monkeypatch):
    from tokenfabric.notebook import open_board

    monkeypatch.setitem(sys.modules, "pynq", None)
    monkeypatch.delitem(sys.modules, "tokenfabric.host.pynq_device", raising=False)
    remedy = "this needs the package pynq; install it with: pip install 'tokenfabric[board]'"
    assert main(["generate", "Once", "--on=board", f"--bitstream={bitfile}"]) == 2
    assert capsys.readouterr().err == f"tokenfabric: error: {remedy}\n"
    with pytest.raises(UserError) as caught:
        open_board(bitfile)
    assert str(caught.value) == remedy


# --- interrupts -----------------------------------------------------------------------------------


class Interrupt:
    """As pynq.Interrupt: waited for on one loop, set by ``fire`` from anywhere."""

    def __init__(self, loop):
        self.loop, self.event, self.waits = loop, asyncio.Event(), 0

    async def wait(self):
        assert asyncio.get_running_loop() is self.loop
        self.waits += 1
        await self.event.wait()
        self.event.clear()

    def fire(self):
        self.loop.call_soon_threadsafe(self.event.set)


@pytest.fixture
def loop():
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def running(loop):
    """The loop, which runs in another thread, as a notebook's does for its threads."""
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def waited(driver, interrupt, loop):
    """What ``_wait`` says, and how long it took."""
    begin = time.monotonic()
    return driver._wait(interrupt, loop), time.monotonic() - begin


@pytest.fixture
def patient(driver, monkeypatch):
    """An interrupt that comes is told from one that does not, however busy the machine is."""
    monkeypatch.setattr(driver, "INTERRUPT_SECONDS", 5.0)
    return driver


def test_an_interrupt_ends_the_wait_on_a_loop_that_does_not_run(patient, loop):
    interrupt = Interrupt(loop)
    loop.call_later(0.01, interrupt.event.set)
    found, seconds = waited(patient, interrupt, loop)
    assert found and seconds < 5 and interrupt.waits == 1


def test_an_interrupt_ends_the_wait_on_a_loop_of_another_thread(patient, running):
    interrupt = Interrupt(running)
    timer = threading.Timer(0.01, interrupt.fire)
    timer.start()
    found, seconds = waited(patient, interrupt, running)
    timer.join()
    assert found and seconds < 5 and interrupt.waits == 1


@pytest.mark.parametrize("which", ["loop", "running"])
def test_no_interrupt_is_no_error(driver, which, request):
    made = request.getfixturevalue(which)
    interrupt = Interrupt(made)
    for _ in range(2):
        found, seconds = waited(driver, interrupt, made)
        assert found and seconds >= 0.9 * driver.INTERRUPT_SECONDS
    assert interrupt.waits == 2


def test_a_loop_that_does_nothing_is_not_waited_for_longer(driver, running):
    """Something else blocks it: a cell of the notebook that computes."""
    released = threading.Event()
    running.call_soon_threadsafe(released.wait, 10)
    found, seconds = waited(driver, Interrupt(running), running)
    released.set()
    assert found and seconds < 5
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), running).result(5)
    assert not asyncio.all_tasks(running)  # what was not waited for is not left behind


def test_in_the_loops_own_thread_nobody_waits(driver, loop):
    interrupt = Interrupt(loop)

    async def cell():
        return waited(driver, interrupt, loop)

    found, seconds = loop.run_until_complete(cell())
    assert not found and seconds < driver.INTERRUPT_SECONDS and interrupt.waits == 0


def test_within_another_loop_nobody_waits(driver, loop):
    interrupt = Interrupt(loop)

    async def program():
        return driver._wait(interrupt, loop)

    assert asyncio.run(program()) is False and interrupt.waits == 0


def test_after_the_loops_end_nobody_waits(driver, loop):
    loop.close()
    assert driver._wait(Interrupt(loop), loop) is False


def test_a_board_with_an_interrupt_waits_for_it(driver, board, loop, monkeypatch):
    ip = Accelerator(board)
    ip.irq = Interrupt(loop)
    monkeypatch.setattr(driver, "_event_loop", lambda: loop)
    slept = []
    monkeypatch.setattr(driver.time, "sleep", slept.append)
    bus = driver.PynqBus(ip, (4096,))
    bus.advance()
    assert (ip.irq.waits, slept) == (1, [])
    loop.close()
    bus.advance()
    assert (ip.irq.waits, slept) == (1, [driver.POLL_SECONDS])
    bus.close()


# --- a remote board's caller ----------------------------------------------------------------------


class Refusal(Exception):
    """As gRPC's errors."""

    def __init__(self, text):
        self.text = text

    def code(self):
        return 14

    def details(self):
        return self.text


@pytest.fixture
def caller():
    """A Caller, with what it does when it hangs up."""
    hung_up = threading.Event()
    made = Caller("the board", 0.2, hung_up.set)
    made.hung_up = hung_up
    yield made
    made.close()


def fail(error):
    raise error


def test_a_call_that_fails_is_one_line_and_the_next_is_made(caller):
    for error, text in (
        (Refusal("no route\nto host"), "the board does not answer any more (no route); open it"),
        (RuntimeError("bus error"), "the board says: bus error; open it again"),
        (KeyError(), "the board says: KeyError; open it again"),
    ):
        with pytest.raises(DeviceLost) as caught:
            caller(fail, error)
        assert str(caught.value).startswith(text) and caught.value.__cause__ is error
        assert caller(lambda value: value, 5) == 5


def test_a_call_that_hangs_is_given_up_and_no_other_is_made(caller):
    made = []
    for _ in range(2):
        begin = time.monotonic()
        with pytest.raises(DeviceLost, match=r"has not answered for 0\.2 s; check its power"):
            caller(lambda: made.append(1) or caller.hung_up.wait(20))
        assert time.monotonic() - begin < 5
    assert made == [1] and caller.hung_up.is_set()


def test_what_moves_much_may_take_longer(caller):
    assert caller(lambda: time.sleep(0.4) or 1, moved=10_000_000) == 1


def test_a_closed_caller_makes_no_calls(caller):
    caller.close()
    with pytest.raises(DeviceLost, match="has been closed; open it again"):
        caller(fail, AssertionError("called"))
    assert not any(t.name == "the board" and t.is_alive() for t in _settled())


def _settled():
    end = time.monotonic() + 5
    while time.monotonic() < end and any(t.name == "the board" for t in threading.enumerate()):
        time.sleep(0.01)
    return threading.enumerate()

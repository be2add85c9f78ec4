"""The virtual board as PYNQ sees it: overlays, registers, buffers, runs, faults."""

import os
import shutil
import subprocess
import sys
import time

import grpc
import numpy as np
import pynq
import pytest
from conftest import BOARD
from small_models import golden, greedy
from tokenfabric.core import isa, registers
from tokenfabric.core.boards import VLNV, board
from tokenfabric.core.config import preset
from tokenfabric.core.image import PAGE
from tokenfabric.core.registers import Error, State, offset
from tokenfabric.host.handoff import design_of
from tokenfabric.sim.board import write_design
from tokenfabric.sim.board_model import FAULTS, MANAGER
from virtual import connect, overlay, start, use

MIB = 1 << 20
DEADLINE = 60.0
ACCESS = {"ro": "read-only", "rw": "read-write", "wo": "write-only"}


@pytest.fixture(scope="module")
def shared_board():
    with overlay(memory_mib=16) as loaded:
        yield loaded


@pytest.fixture
def loaded(shared_board):
    """A board, its device and its overlay, programmed anew."""
    running, device, design = shared_board
    use(device)
    design.download()
    return running, device, design


@pytest.fixture
def ip(loaded):
    return loaded[2].npu_0


def read(ip, name):
    return ip.read(offset(name)) & 0xFFFFFFFF  # pynq 3 reads signed integers


def write(ip, name, value):
    ip.write(offset(name), value)


def state(ip):
    return State(read(ip, "STATUS"))


def wait(ip):
    end = time.monotonic() + DEADLINE
    while state(ip) is State.RUNNING:
        assert time.monotonic() < end, "no end of the run"
    return state(ip)


# --- what pynq sees -------------------------------------------------------------------------------


def test_the_overlay_has_the_accelerator_where_the_board_has_it(loaded):
    entry = loaded[2].ip_dict["npu_0"]
    assert (entry["type"], entry["phys_addr"]) == (VLNV, board(BOARD).control_base)


def test_the_register_map_is_the_table(ip):
    found = {}
    for name, entry in ip._registers.items():
        fields = {
            field: (each["bit_offset"], each["bit_width"])
            for field, each in entry.get("fields", {}).items()
        }
        access = entry["access"], entry["description"], entry["size"]
        found[name] = entry["address_offset"], *access, fields
    assert found == {
        r.name: (r.offset, ACCESS[r.access], r.doc, 32, r.fields) for r in registers.REGISTERS
    }
    assert {r.name for r in registers.REGISTERS} <= set(dir(ip.register_map))


def test_registers_read_by_offset_and_by_name(ip):
    assert read(ip, "IDENT") == registers.IDENT
    assert int(ip.register_map.ABI) == registers.ABI_VERSION
    fingerprint = read(ip, "FINGERPRINT_HI") << 32 | read(ip, "FINGERPRINT_LO")
    assert f"{fingerprint:016x}" == preset("tiny").fingerprint
    ip.register_map.WATCHDOG = 0x1234_5678
    assert read(ip, "WATCHDOG") == 0x1234_5678
    assert ip.register_map.STATUS.state == State.IDLE


def test_the_clock_is_what_the_design_asks_for(loaded):
    assert pynq.Clocks.fclk0_mhz == pytest.approx(board(BOARD).ps_clock_mhz, rel=1e-3)


def test_the_bitfile_holds_the_design(loaded):
    text = loaded[0].bitfile.read_bytes()
    assert design_of(text).split()[0] == preset("tiny").fingerprint
    binary = pynq.pl_server.embedded_device.bit2bin(text)
    assert design_of(binary) == design_of(text)


NOTEBOOK = """
import sys, pynq
overlay = pynq.Overlay(sys.argv[1])
buffer = pynq.allocate((1000,), "u4")
buffer[:] = 7
buffer.flush()
buffer[:] = 0
buffer.invalidate()
print(hex(overlay.npu_0.register_map.IDENT), set(buffer.tolist()))
"""


def test_plain_notebook_code(loaded):
    """Nothing patched, nothing passed: the environment alone names the board."""
    bitfile = str(loaded[0].bitfile)
    environment = {**os.environ, **loaded[0].environment}
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK, bitfile],
        env=environment, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"{registers.IDENT:#x} {{7}}"


# --- buffers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4096, 5 * MIB + 3])
def test_what_is_flushed_comes_back(loaded, size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    with pynq.allocate((size,), "u1") as buffer:
        buffer[:] = data
        buffer.flush()
        buffer[:] = 0
        buffer.invalidate()
        assert np.array_equal(np.asarray(buffer), data)


def test_the_processors_copy_is_not_the_dram(loaded):
    """pynq always flushes what it writes and invalidates before it reads: here it does not."""
    from pynq.remote import buffer_pb2 as messages

    with pynq.allocate((64,), "u1") as buffer:
        buffer[:] = 1
        buffer.flush()
        name, stub = buffer.buffer_id, buffer.stub

        def stored():
            answers = stub.read(messages.BufferReadRequest(buffer_id=name))
            return b"".join(answer.data for answer in answers)

        two = bytes([2]) * 64
        assert not stub.write(iter([messages.BufferWriteRequest(buffer_id=name, data=two)])).msg
        assert stored() == two
        assert not stub.invalidate(messages.InvalidateRequest(buffer_id=name)).msg
        assert stored() == bytes([1]) * 64


def test_more_than_a_buffer_holds_is_refused(loaded):
    from pynq.remote import buffer_pb2 as messages

    with pynq.allocate((64,), "u1") as buffer:
        request = messages.BufferWriteRequest(buffer_id=buffer.buffer_id, data=bytes(65))
        assert buffer.stub.write(iter([request])).msg == "65 bytes for a buffer of 64"


def test_buffers_lie_apart_on_pages(loaded):
    with pynq.allocate((5000,), "u1") as first, pynq.allocate((64,), "u4") as second:
        low, high = sorted(b.physical_address for b in (first, second))
        assert low % PAGE == high % PAGE == 0 and high - low >= PAGE


def test_memory_runs_out_and_comes_back(loaded):
    with pynq.allocate((10 * MIB,), "u1") as half:
        assert half.physical_address
        with pynq.allocate((10 * MIB,), "u1") as none:
            with pytest.raises(RuntimeError, match="no such buffer: not allocated"):
                none.physical_address  # noqa: B018
            with pytest.raises(RuntimeError, match="no such buffer: not allocated"):
                none.flush()
            none.freed = True
        text = loaded[1].read_file("/proc/meminfo").decode()
        assert "CmaTotal: 16384 kB" in text and "CmaFree: 6144 kB" in text
    with pynq.allocate((16 * MIB,), "u1") as whole:
        assert whole.physical_address


# --- runs -----------------------------------------------------------------------------------------


class Machine:
    """A small random model in two buffers, and the means to run it."""

    def __init__(self, ip):
        self.ip = ip
        self.model, _, self.image, _ = golden(name="tiny")
        self.bulk, self.job = (pynq.allocate((size,), "u1") for size in self.image.memory())
        self.bulk[:] = 0
        self.bulk[PAGE : PAGE + self.image.payload.size] = self.image.payload
        self.bulk.flush()
        self.job[:] = 0xFF
        self.job.flush()
        for name, buffer in (("WINDOW", self.bulk), ("JOB", self.job)):
            write(ip, f"{name}_BASE", buffer.physical_address)
            write(ip, f"{name}_SIZE", buffer.nbytes)
        write(ip, "WATCHDOG", 1 << 20)

    def put(self, token, steps):
        flags = int(isa.RowFlag.WANT_LOGITS)
        row = {"token": token, "position": 0, "slot": 0, "flags": flags}
        data = self.image.descriptor([row], steps=steps).view(np.uint8)
        self.job[: data.size] = data

    def start(self):
        write(self.ip, "CONTROL", 1)

    def tokens(self, steps):
        at = self.image.map.ring - isa.JOB
        return np.asarray(self.job)[at : at + 8 * steps].view("<u4")[::2].tolist()

    def close(self):
        write(self.ip, "CONTROL", 4)
        self.bulk.freebuffer()
        self.job.freebuffer()


@pytest.fixture
def machine(ip):
    made = Machine(ip)
    yield made
    made.close()


def test_a_model_runs(machine):
    machine.put(3, 8)
    machine.job.flush()
    machine.start()
    assert wait(machine.ip) is State.DONE
    machine.job.invalidate()
    assert machine.tokens(8) == greedy(machine.model, [3], 8)


def test_a_missing_flush_shows(machine):
    machine.put(3, 1)
    machine.start()
    assert wait(machine.ip) is State.ERROR
    assert read(machine.ip, "ERROR") & 0xFF == Error.DESCRIPTOR


def test_a_missing_invalidate_shows(machine):
    machine.put(3, 1)
    machine.job.flush()
    machine.start()
    assert wait(machine.ip) is State.DONE
    assert machine.tokens(1) == [0xFFFFFFFF]
    machine.job.invalidate()
    assert machine.tokens(1) == greedy(machine.model, [3], 1)


def endless(machine, device):
    """A run that waits for a stuck memory port for ever."""
    device.write_file(FAULTS, b"stick 0 1")
    write(machine.ip, "WATCHDOG", 0xFFFFFFFF)
    machine.put(3, 1)
    machine.job.flush()
    machine.start()


def test_time_passes_and_registers_answer_during_a_run(machine, loaded):
    endless(machine, loaded[1])
    cycles, took = [], []
    for _ in range(20):
        before = time.monotonic()
        cycles.append(read(machine.ip, "CYCLES_LO"))
        took.append(time.monotonic() - before)
        time.sleep(0.01)
    assert state(machine.ip) is State.RUNNING
    assert np.all(np.diff(cycles) > 0)
    assert np.median(took) < 0.25
    loaded[1].write_file(FAULTS, b"stick 0 0")
    assert wait(machine.ip) is State.DONE
    machine.job.invalidate()
    assert machine.tokens(1) == greedy(machine.model, [3], 1)


def test_programming_ends_a_run_and_resets_the_registers(machine, loaded):
    endless(machine, loaded[1])
    assert state(machine.ip) is State.RUNNING
    loaded[2].download()
    assert state(machine.ip) is State.IDLE
    assert read(machine.ip, "WINDOW_BASE") == 0
    cycles = read(machine.ip, "CYCLES_LO")
    time.sleep(0.05)
    assert read(machine.ip, "CYCLES_LO") == cycles
    loaded[1].write_file(FAULTS, b"stick 0 0")
    machine.close()
    again = Machine(machine.ip)  # what was in the DRAM does not matter, nor the bursts of before
    test_a_model_runs(again)
    machine.bulk, machine.job = again.bulk, again.job


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_failing_read_ends_the_run(machine, loaded):
    loaded[1].write_file(FAULTS, b"fail_read 3")
    machine.put(3, 1)
    machine.job.flush()
    machine.start()
    assert wait(machine.ip) is State.ERROR
    assert read(machine.ip, "ERROR") & 0xFF == Error.AXI_READ


def test_a_throttled_memory_takes_longer(machine, loaded):
    cycles = []
    for fault in (b"throttle 1 0.8", b"throttle 1 0"):
        loaded[1].write_file(FAULTS, fault)
        machine.put(3, 2)
        machine.job.flush()
        machine.start()
        assert wait(machine.ip) is State.DONE
        cycles.append(read(machine.ip, "CYCLES_LO"))
    assert cycles[0] > 1.5 * cycles[1]


@pytest.mark.parametrize("text", [b" ", b"explode 1", b"stick 0", b"stick 99 1", b"throttle 1 2"])
def test_other_faults_are_refused(loaded, text):
    with pytest.raises(grpc.RpcError, match="no fault"):
        loaded[1].write_file(FAULTS, text)


def test_bad_addresses_are_refused(ip, loaded):
    with pytest.raises(RuntimeError, match="nothing answers at 0x1000"):
        pynq.MMIO(0x1000, 64).read(0)
    base = board(BOARD).control_base
    with pytest.raises(RuntimeError, match=f"nothing answers at {base + 0x1000:#x}"):
        pynq.MMIO(base + 0x1000, 64).write(0, 1)
    with pytest.raises(RuntimeError, match="not a word of a window"):
        loaded[1].mmap(base, 64).read(64)
    assert read(ip, "IDENT") == registers.IDENT


def test_a_freed_buffer_is_refused(loaded):
    buffer = pynq.allocate((4,), "u4")
    buffer.freebuffer()
    for call in (buffer.flush, buffer.invalidate, lambda: buffer.physical_address):
        with pytest.raises(RuntimeError, match="no such buffer"):
            call()


def test_another_boards_bitstream_leaves_the_fabric_empty(loaded):
    running, device, design = loaded
    other = "zcu104" if BOARD == "kv260" else "kv260"
    folder = running.bitfile.parent / "other"
    path = write_design(folder, board(other), preset("tiny"))
    # The map is right, the bitstream is not: a file that was not copied, a board mistaken.
    shutil.copy(running.bitfile.with_suffix(".hwh"), path.with_suffix(".hwh"))
    wrong = pynq.Overlay(str(path), device=device)
    with pytest.raises(RuntimeError, match="the bitstream is for another board"):
        read(wrong.npu_0, "IDENT")
    design.download()
    assert read(design.npu_0, "IDENT") == registers.IDENT


def test_a_rebuilt_file_of_the_same_name_is_loaded(loaded, tmp_path):
    """pynq sends none that the board has."""
    running, device, _ = loaded
    path = tmp_path / "same.bit"
    shutil.copy(running.bitfile.with_suffix(".hwh"), path.with_suffix(".hwh"))
    path.write_bytes(running.bitfile.read_bytes())
    right = pynq.Overlay(str(path), device=device)
    assert read(right.npu_0, "IDENT") == registers.IDENT
    path.write_bytes(running.bitfile.read_bytes().replace(b"TOKENFABRIC", b"SOMETHING--"))
    wrong = pynq.Overlay(str(path), device=device)
    with pytest.raises(RuntimeError, match="the fabric is empty"):
        read(wrong.npu_0, "IDENT")


def test_a_missing_bitstream_is_refused(loaded):
    with pytest.raises(grpc.RpcError, match=r"absent\.bin: no such file"):
        loaded[1].write_file(MANAGER + "firmware", b"absent.bin")
    assert read(loaded[2].npu_0, "IDENT") == registers.IDENT


def test_an_empty_fabric_does_not_answer():
    with start() as running:
        device = connect(running)
        design = pynq.Overlay(str(running.bitfile), device=device, download=False)
        with pytest.raises(RuntimeError, match="the fabric is empty, load a bitstream"):
            read(design.npu_0, "IDENT")


def test_two_boards_are_two(loaded):
    ours = loaded[2].npu_0
    with overlay() as (_, device, design):
        write(ours, "WATCHDOG", 11)
        write(design.npu_0, "WATCHDOG", 22)
        assert [read(ip, "WATCHDOG") for ip in (ours, design.npu_0)] == [11, 22]
        mine = pynq.allocate((64,), "u1", target=loaded[1])
        other = pynq.allocate((64,), "u1", target=device)
        assert mine.physical_address == other.physical_address
        for buffer, value in ((mine, 1), (other, 2)):
            buffer[:] = value
            buffer.flush()
        mine.invalidate()
        assert set(mine.tolist()) == {1}
        mine.freebuffer()
        other.freebuffer()


def test_a_board_that_dies_is_noticed():
    with overlay() as (running, _, design):
        assert read(design.npu_0, "IDENT") == registers.IDENT
        running.kill()
        with pytest.raises(grpc.RpcError) as caught:
            read(design.npu_0, "IDENT")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(RuntimeError, match="Failed to connect"):
            connect(running)

"""A board in software: memory, clocks, files and a fabric, without the network in front of it.

The fabric is the Verilated accelerator with its model of the DRAM. Buffers have a copy that the
processor sees, and only ``flush`` and ``invalidate`` move data between it and the DRAM: who forgets
one finds what he would find on a board.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenfabric.core import registers
from tokenfabric.core.boards import BoardSpec
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.registers import State
from tokenfabric.host.handoff import (
    CONTROL_BYTES,
    GPIO_BASE,
    GPIO_BYTES,
    SOURCE_MHZ,
    design,
    design_of,
    divisors,
    handoff,
)
from tokenfabric.sim.axi_monitor import SimulationError

__all__ = ["CMA_BASE", "BoardFault", "BoardModel"]

PAGE = 4096
CMA_BASE = 0x1000_0000
SLICE_SECONDS = 0.002  # simulated at a time while a run is under way: others come in between
# Cycles without traffic, after which the simulation asks whether the run is over. Not sooner: the
# accelerator cannot tell that from a host who is alive.
STILL_CYCLES = 20_000
FIRMWARE = "/lib/firmware/"
MANAGER = "/sys/class/fpga_manager/fpga0/"
# For tests: what is written there goes to VerilatedTop, what is read says how the memory fares.
FAULTS = "/sys/kernel/debug/tokenfabric"
FAULT_VALUES = {"fail_read": (int,), "stick": (int, int), "throttle": (int, float)}
PS_REGISTERS = range(0xF800_0000, 1 << 32)


class BoardFault(Exception):
    """What the board answers instead; one line."""


@dataclass
class Buffer:
    """``cpu``: what the processor sees of it."""

    address: int
    cpu: np.ndarray


class Fabric:
    """The accelerator behind its control port. Time passes in it while a run is under way."""

    def __init__(self, top: Any):
        self.top = top
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._awake = threading.Event()  # a run is under way, or the end has come
        self._closed = False
        self._cycles = 1_000  # of a slice
        self._still, self._moved = 0, (0, 0, 0)  # cycles since the traffic was another
        self._thread = threading.Thread(target=self._simulate, daemon=True, name="fabric")
        self._thread.start()

    def access(self, function: Callable, *arguments: Any) -> Any:
        """``function`` of the simulation, between two slices of time; BoardFault if it fails."""
        with self._turn:  # who waits here is next: a thread that simulates cannot get in between
            self._lock.acquire()
        try:
            return function(*arguments)
        except SimulationError as error:
            raise BoardFault(f"bus error: {error}") from error
        finally:
            self._lock.release()

    def read(self, offset: int) -> int:
        return self.access(self.top.read32, offset)

    def write(self, offset: int, value: int) -> None:
        self.access(self._write, offset, value)

    def _write(self, offset: int, value: int) -> None:
        self.top.write32(offset, value)
        if offset == registers.offset("CONTROL"):
            self._look()

    def _look(self) -> None:
        """Go on as long as the accelerator is at work."""
        if self.top.read32(registers.offset("STATUS")) == State.RUNNING:
            self._awake.set()
        else:
            self._awake.clear()

    def reset(self) -> int:
        """Everything in the fabric as after programming; the memory keeps what it has.

        Bursts that were in flight: on a board, the memory's ports would wait for ever, or answer
        to a design that has not asked.
        """
        return self.access(self._reset)

    def _reset(self) -> int:
        cut = self.top.in_flight
        self.top.reset()
        self._awake.clear()
        return cut

    def traffic(self) -> tuple[int, int]:
        """Bursts in flight, and bytes written so far."""
        in_flight, _, written = self.access(self._traffic)
        return in_flight, written

    def _traffic(self) -> tuple[int, int, int]:
        """Bursts in flight, bytes read and written so far."""
        ports = [self.top.counters(port) for port in range(self.top.ports)]
        read = sum(port.read_bytes for port in ports)
        return self.top.in_flight, read, sum(port.write_bytes for port in ports)

    def _simulate(self) -> None:
        while self._awake.wait() and not self._closed:
            try:
                self.access(self._slice)
            except BoardFault:  # every access from now on says so
                self._awake.clear()

    def _slice(self) -> None:
        """As many cycles as take SLICE_SECONDS."""
        if self._closed:
            return
        start = time.perf_counter()
        self.top.run(self._cycles, until_idle=False)
        speed = self._cycles / (time.perf_counter() - start)
        moved, self._moved = self._moved, self._traffic()
        self._still = self._still + self._cycles if moved == self._moved else 0
        self._cycles = min(max(100, round(speed * SLICE_SECONDS)), 2 * self._cycles)
        if self._still >= STILL_CYCLES:
            self._still = 0
            self._look()

    def close(self) -> None:
        """Ends the simulation."""
        self.access(self._end)
        self._thread.join()
        self.top.close()

    def _end(self) -> None:
        self._closed = True
        self._awake.set()


class BoardModel:
    """Everything a server of PYNQ.remote asks a board for.

    ``top``: the simulation; its memory, from CMA_BASE on, is what buffers are made of. Methods
    raise BoardFault.
    """

    def __init__(self, spec: BoardSpec, cfg: FabricConfig, top: Any):
        self.spec = spec
        self.design = design(cfg, handoff(spec, cfg))
        self.fabric = Fabric(top)
        self.memory, self.base = top.memory, top.base
        self.programmed: str | None = None  # the design that the fabric holds
        self.cut = 0  # bursts that were in flight when the fabric was programmed
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[int, int]] = {}
        self._buffers: dict[str, Buffer] = {}
        self._gpio: dict[int, int] = {}
        self._registers = _ps_registers(spec)
        machine = "aarch64" if spec.ps == "zynq_ultra_ps_e" else "armv7l"
        self._files = {
            "/proc/version": f"Linux version 0 (virtual board) {machine}\n".encode(),
            "/proc/device-tree/chosen/pynq_board": f"{spec.name} (virtual)\0".encode(),
            MANAGER + "state": b"operating\n",
            MANAGER + "flags": b"0\n",
        }

    # --- files ---------------------------------------------------------------------------------

    def exists(self, path: str) -> bool:
        return path in self._files or path in ("/proc/meminfo", FAULTS)

    def read_file(self, path: str) -> bytes:
        if path == "/proc/meminfo":
            total = self.memory.size >> 10
            used = sum(buffer.cpu.size for buffer in list(self._buffers.values())) >> 10
            return f"CmaTotal: {total} kB\nCmaFree: {total - used} kB\n".encode()
        if path == FAULTS:
            in_flight, written = self.fabric.traffic()
            return f"cut {self.cut}\nin flight {in_flight}\nwritten {written}\n".encode()
        return self._file(path)

    def _file(self, path: str) -> bytes:
        if path not in self._files:
            raise BoardFault(f"{path}: no such file")
        return self._files[path]

    def write_file(self, path: str, data: bytes) -> None:
        if path == MANAGER + "firmware":
            self._program(FIRMWARE + data.decode("ascii", "replace").strip())
        elif path == FAULTS:
            self._fault(data.decode("ascii", "replace"))
        self._files[path] = data

    def _program(self, path: str) -> None:
        """The fabric is what the firmware says; nothing answers if it is another design."""
        self.programmed = design_of(self._file(path))
        # A real board keeps the file, and PYNQ does not send one of the same name again.
        del self._files[path]
        self.cut += self.fabric.reset()

    def _fault(self, text: str) -> None:
        """One of FAULT_VALUES and its numbers: "fail_read 5", "stick 0 1", "throttle 7 0.5"."""
        name, *numbers = text.split() or [""]
        try:
            values = [kind(n) for kind, n in zip(FAULT_VALUES[name], numbers, strict=True)]
            self.fabric.access(getattr(self.fabric.top, name), *values)
        except (LookupError, ValueError):
            raise BoardFault(f"{FAULTS}: no fault {text!r}") from None

    # --- registers -----------------------------------------------------------------------------

    def open_window(self, base: int, length: int) -> str:
        """A name for a stretch of addresses; one that nobody has had before."""
        name = uuid.uuid4().hex
        with self._lock:
            self._windows[name] = (base, length)
        return name

    def read(self, window: str, offset: int) -> int:
        place, at = self._decode(window, offset)
        return self.fabric.read(at) if place is None else place.get(at, 0)

    def write(self, window: str, offset: int, value: int) -> None:
        place, at = self._decode(window, offset)
        if place is None:
            self.fabric.write(at, value)
        else:
            place[at] = value

    def _decode(self, window: str, offset: int) -> tuple[dict[int, int] | None, int]:
        """What answers there, None for the accelerator, and where in it."""
        address = self._address(window, offset)
        if address in PS_REGISTERS:
            return self._registers, address
        if self.programmed == self.design:
            control = address - self.spec.control_base
            if 0 <= control < CONTROL_BYTES:
                return None, control
            if 0 <= control - GPIO_BASE < GPIO_BYTES:
                return self._gpio, control
            why = ""
        elif self.programmed is None:
            why = "; the fabric is empty, load a bitstream"
        else:
            why = "; the bitstream is for another board or accelerator than this one"
        raise BoardFault(f"bus error: nothing answers at {address:#x}{why}")

    def _address(self, window: str, offset: int) -> int:
        found = self._windows.get(window)
        if found is None:
            raise BoardFault(
                "no such window; the board has been started anew, load the overlay again"
            )
        base, length = found
        if offset % 4 or not 0 <= offset <= length - 4:
            raise BoardFault(f"offset {offset:#x} is not a word of a window of {length:#x} bytes")
        return base + offset

    # --- buffers -------------------------------------------------------------------------------

    def allocate(self, size: int) -> str:
        """A contiguous buffer: the first gap that it fits into."""
        whole = -(-size // PAGE) * PAGE
        with self._lock:
            at = 0
            for buffer in sorted(self._buffers.values(), key=lambda b: b.address):
                if buffer.address - self.base - at >= whole:
                    break
                at = buffer.address - self.base + -(-buffer.cpu.size // PAGE) * PAGE
            if size <= 0 or at + whole > self.memory.size:
                raise BoardFault(f"no {size} bytes of contiguous memory left in the CMA area")
            name = uuid.uuid4().hex
            cpu = self.memory[at : at + size].copy()
            self._buffers[name] = Buffer(self.base + at, cpu)
        return name

    def buffer(self, name: str) -> Buffer:
        """The buffer of that name."""
        found = self._buffers.get(name)
        if found is None:
            raise BoardFault(
                "no such buffer: not allocated, or freed, or the board was started anew"
            )
        return found

    def free(self, name: str) -> None:
        self.buffer(name)
        with self._lock:
            self._buffers.pop(name, None)

    def flush(self, name: str) -> None:
        """From the processor's copy to the DRAM."""
        buffer = self.buffer(name)
        self._dram(buffer)[:] = buffer.cpu

    def invalidate(self, name: str) -> None:
        """From the DRAM to the processor's copy."""
        buffer = self.buffer(name)
        buffer.cpu[:] = self._dram(buffer)

    def _dram(self, buffer: Buffer) -> np.ndarray:
        at = buffer.address - self.base
        return self.memory[at : at + buffer.cpu.size]

    def close(self) -> None:
        self.memory = np.empty(0, np.uint8)
        self.fabric.close()


def _ps_registers(spec: BoardSpec) -> dict[int, int]:
    """Clock registers as firmware leaves them, 100 MHz: UG1087 (CRL_APB, CRF_APB), UG585 (slcr)."""
    first, second = divisors(100.0)
    if spec.ps == "zynq_ultra_ps_e":
        pll = round(SOURCE_MHZ * 2 / 33.333) << 8 | 1 << 16  # FBDIV, DIV2
        clock = 1 << 24 | second << 16 | first << 8
        found = dict.fromkeys(
            (0xFF5E_0020, 0xFF5E_0030, 0xFD1A_0020, 0xFD1A_002C, 0xFD1A_0038), pll
        )
        found.update(dict.fromkeys(range(0xFF5E_00C0, 0xFF5E_00D0, 4), clock))
        found[0xFD1A_0060] = 1 << 8
        return found
    pll = round(SOURCE_MHZ / 50) << 12  # PLL_FDIV, from 50 MHz
    found = dict.fromkeys((0xF800_0100, 0xF800_0104, 0xF800_0108), pll)
    found.update(dict.fromkeys(range(0xF800_0170, 0xF800_01B0, 0x10), second << 20 | first << 8))
    found[0xF800_0120] = 2 << 8
    return found

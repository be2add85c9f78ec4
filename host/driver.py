"""The Device that is reached through its registers: on a board or in a simulation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from tokenfabric.core import registers
from tokenfabric.core.errors import UserError
from tokenfabric.core.isa import JOB
from tokenfabric.core.registers import Error, State
from tokenfabric.host.device import DeviceError, DeviceLost, DeviceTimeout

__all__ = ["Bus", "RegisterDevice", "settle"]

HEARTBEAT = 1 << 26  # cycles: a quarter of a second at 300 MHz, a whole one at 65 MHz
END_SECONDS = 10.0
STUCK = "the accelerator does not let go of the memory; restart the board"


class Bus(Protocol):
    """What a RegisterDevice stands on: registers, memory, and the passing of time."""

    @property
    def bases(self) -> Sequence[int]:
        """Bus addresses of the bulk window and of the job window."""

    @property
    def memory(self) -> Sequence[np.ndarray]:
        """The windows as the host sees them, uint8."""

    def read32(self, offset: int) -> int:
        """A register."""

    def write32(self, offset: int, value: int) -> None:
        """Set a register."""

    def flush(self, window: int) -> None:
        """Make what the host wrote to ``memory[window]`` visible to the accelerator."""

    def invalidate(self, window: int) -> None:
        """Make what the accelerator wrote visible in ``memory[window]``."""

    def advance(self) -> None:
        """Let some time pass, until ``irq`` at most: wait on a board, step a simulation. Short."""


def settle(bus: Bus, deadline: float = END_SECONDS) -> None:
    """End a run and close the windows: from then on the accelerator leaves all memory alone.

    Needs nothing of the bus but registers and time. Does so for accelerators of ABI 2, too, whose
    registers as far as JOB_SIZE are the same. DeviceTimeout if bursts stay in flight.
    """
    end = time.monotonic() + deadline
    _until_over(bus, end, again=4)
    # That a run is over need not mean that its bursts are: ERROR may be a drain that was given up.
    # A start waits for them, and without windows it ends before it asks for anything.
    for name in ("JOB_BASE", "JOB_SIZE", "WINDOW_SIZE"):
        bus.write32(registers.offset(name), 0)
    bus.write32(registers.offset("CONTROL"), 1)
    _until_over(bus, end)
    if bus.read32(registers.offset("ERROR")) & 0xFF != Error.WINDOW:
        raise DeviceTimeout(STUCK)


def _until_over(bus: Bus, end: float, again: int = 0) -> None:
    """Until no run is under way; ``again``: a command to repeat meanwhile.

    That of ABI 2 hears no command in the first cycles of a run.
    """
    while bus.read32(registers.offset("STATUS")) == State.RUNNING:
        if time.monotonic() > end:
            raise DeviceTimeout(STUCK)
        if again:
            bus.write32(registers.offset("CONTROL"), again)
        bus.advance()


class RegisterDevice:
    """A :class:`~tokenfabric.host.device.Device` driven through ``registers.REGISTERS``.

    Checks identity and ABI when made, ends a run that a program before has left behind, and opens
    the memory of the bus as the two windows. UserError if the other side is not an accelerator of
    this version; DeviceTimeout if that run does not end.

    ``watchdog`` and ``heartbeat`` are in cycles of the fabric, 0 for never: without progress, and
    without any access of the host. A run of which the host has not asked for so long ends with
    ``Error.SILENT``: its process may be gone, and its memory belong to another.
    """

    def __init__(self, bus: Bus, *, watchdog: int = 1 << 20, heartbeat: int = HEARTBEAT):
        self.bus = bus
        self._seen = -1
        self._running = False
        self._dirty: set[int] = set()  # windows that the host has written since they were flushed
        self._stale: set[int] = set()  # windows that the accelerator may have written since
        ident, abi = self.register("IDENT"), self.register("ABI")
        if ident != registers.IDENT:
            raise UserError(
                f"the control port answers {ident:#010x}, an accelerator {registers.IDENT:#010x}; "
                "load the bitstream first"
            )
        if abi != registers.ABI_VERSION:
            raise UserError(
                f"the accelerator has ABI version {abi}, this software {registers.ABI_VERSION}; "
                "build both from the same release"
            )
        high, low = self.register("FINGERPRINT_HI"), self.register("FINGERPRINT_LO")
        self.fingerprint = f"{high << 32 | low:016x}"
        if self.register("STATUS") == State.RUNNING:  # its windows cannot be moved
            self._end(END_SECONDS)
        for name, window in (("JOB", 1), ("WINDOW", 0)):  # JOB_BASE first: it says whose they are
            self._set(name + "_BASE", bus.bases[window])
            self._set(name + "_SIZE", bus.memory[window].size)
        self._set("WATCHDOG", watchdog)
        self._set("HEARTBEAT", heartbeat)

    def register(self, name: str) -> int:
        """The register ``name``."""
        return self.bus.read32(registers.offset(name))

    def counter(self, name: str) -> int:
        """A 64-bit counter of ``registers.COUNTERS``; exact when no run is under way."""
        return self.register(name + "_HI") << 32 | self.register(name + "_LO")

    def saturations(self) -> list[int]:
        """Saturated values of the last run, by tensor class."""
        return [self.register(f"SATURATED_{i}") for i in range(registers.SATURATION_COUNTERS)]

    @property
    def pc(self) -> int:
        return self.register("PC")

    def _set(self, name: str, value: int) -> None:
        self.bus.write32(registers.offset(name), value)

    def write(self, address: int, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array).view(np.uint8).ravel()
        if self._running and self.poll()[0] is State.RUNNING:
            raise RuntimeError("a run is under way; wait for its end or stop it")
        part = self._slice(address, data.size)
        self._refresh(address // JOB)  # or flushing the whole window would undo what is new in it
        part[:] = data
        self._dirty.add(address // JOB)

    def read(self, address: int, count: int) -> np.ndarray:
        part = self._slice(address, count)
        self._refresh(address // JOB)
        return part.copy()

    def _refresh(self, window: int) -> None:
        if window in self._stale:
            self.bus.invalidate(window)
            if not self._running:
                self._stale.discard(window)

    def _slice(self, address: int, count: int) -> np.ndarray:
        window, offset = divmod(address, JOB)
        if not 0 <= window <= 1 or offset + count > self.bus.memory[window].size:
            raise DeviceError(Error.WINDOW, 0, f" ({count} bytes at {address:#x})")
        return self.bus.memory[window][offset : offset + count]

    def start(self) -> None:
        self._check_owner()
        if self.register("STATUS") == State.RUNNING:
            raise RuntimeError("a run is under way; wait for its end or stop it")
        for window in sorted(self._dirty):
            self.bus.flush(window)
        self._dirty.clear()
        self._stale = {0, 1}
        self._see(0)
        self._set("CONTROL", 1)
        self._running = True

    def _check_owner(self) -> None:
        """DeviceLost if the accelerator does not work, or would not work, for this device."""
        if self.register("JOB_BASE") != self.bus.bases[1]:
            self._running = False
            raise DeviceLost(
                "the accelerator's windows are not the ones this program opened: another program "
                "has taken it or loaded a bitstream; open it again"
            )

    def _see(self, value: int) -> None:
        if value != self._seen:
            self._set("SEEN", value)
            self._seen = value

    def stop(self) -> None:
        self._check_owner()
        self._set("CONTROL", 2)

    def reset(self, deadline: float = END_SECONDS) -> None:
        """End a run at once; DeviceTimeout if the accelerator does not let go of the memory."""
        self._check_owner()
        self._end(deadline)

    def _end(self, deadline: float) -> None:
        self._set("CONTROL", 4)
        self.wait(deadline)

    def release(self) -> None:
        """End a run and close the windows, after which their memory may be given away.

        DeviceTimeout if the accelerator does not let go of it; DeviceLost if it is another
        program's by now, or gone. The device is of no use then.
        """
        self._check_owner()
        settle(self.bus)
        self._set("SEEN", 1 << 31)  # no interrupt for whom nobody listens
        self._seen = -1  # whoever still waits for this run is told by the next poll

    def poll(self) -> tuple[State, int, Error]:
        state = State(self.register("STATUS"))
        if state is State.RUNNING:
            self.bus.advance()
            state = State(self.register("STATUS"))
        done = self.register("RING_HEAD")
        seen = done | (state is not State.RUNNING) << 31
        if self._running and seen != self._seen:
            self._check_owner()  # or the news is another program's
        self._running = state is State.RUNNING
        self._see(seen)
        return state, done, Error(self.register("ERROR") & 0xFF)

    def wait(self, deadline: float) -> State:
        end = time.monotonic() + deadline
        while (state := self.poll()[0]) is State.RUNNING:
            if time.monotonic() > end:
                raise DeviceTimeout(f"no end of the run within {deadline:g} s")
        return state

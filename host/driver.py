"""The Device that is reached through its registers: on a board or in a simulation."""

from __future__ import annotations

import time
from typing import Protocol

import numpy as np
from tokenfabric.host.device import DeviceError, DeviceTimeout

from tokenfabric import registers
from tokenfabric.errors import UserError
from tokenfabric.registers import Error, State

__all__ = ["Bus", "RegisterDevice"]


class Bus(Protocol):
    """What a RegisterDevice stands on: registers, memory, and the passing of time."""

    base: int  # bus address of ``memory``
    memory: np.ndarray  # uint8, the window

    def read32(self, offset: int) -> int:
        """A register."""

    def write32(self, offset: int, value: int) -> None:
        """Set a register."""

    def advance(self) -> None:
        """Let some time pass: sleep on a board, step a simulation. Short."""


class RegisterDevice:
    """A :class:`~tokenfabric.host.device.Device` driven through ``registers.REGISTERS``.

    Checks identity and ABI when made, and opens the whole memory of the bus as the window.
    UserError if the other side is not an accelerator of this version.
    """

    def __init__(self, bus: Bus, *, watchdog: int = 1 << 20):
        self.bus = bus
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
        self._set("WINDOW_BASE", bus.base)
        self._set("WINDOW_SIZE", bus.memory.size)
        self._set("WATCHDOG", watchdog)

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
        self._slice(address, data.size)[:] = data

    def read(self, address: int, count: int) -> np.ndarray:
        return self._slice(address, count).copy()

    def _slice(self, address: int, count: int) -> np.ndarray:
        if address < 0 or address + count > self.bus.memory.size:
            raise DeviceError(Error.WINDOW, 0, f" ({count} bytes at {address:#x})")
        return self.bus.memory[address : address + count]

    def start(self) -> None:
        if self.register("STATUS") == State.RUNNING:
            raise RuntimeError("a run is under way; wait for its end or stop it")
        self._set("CONTROL", 1)

    def stop(self) -> None:
        self._set("CONTROL", 2)

    def poll(self) -> tuple[State, int, Error]:
        state = State(self.register("STATUS"))
        if state is State.RUNNING:
            self.bus.advance()
            state = State(self.register("STATUS"))
        done = self.register("RING_HEAD")
        return state, done, Error(self.register("ERROR") & 0xFF)

    def wait(self, deadline: float) -> State:
        end = time.monotonic() + deadline
        while (state := self.poll()[0]) is State.RUNNING:
            if time.monotonic() > end:
                raise DeviceTimeout(f"no end of the run within {deadline:g} s")
        return state

"""The interface at which software and hardware meet, and the waiting on top of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import PAGE, Image
from tokenfabric.core.isa import JOB
from tokenfabric.core.registers import ERROR_TEXT, Error, State

__all__ = [
    "CountingDevice",
    "Device",
    "DeviceError",
    "DeviceLost",
    "DeviceTimeout",
    "counting",
    "end_run",
    "load",
    "put_job",
    "raise_error",
    "run",
]

CHUNK = 1 << 20  # bytes of an image that are loaded between two reports of progress


class DeviceError(RuntimeError):
    """A run ended in state ERROR. ``code`` says why, ``pc`` where."""

    def __init__(self, code: int, pc: int, detail: str = ""):
        self.code, self.pc = Error(code), pc
        super().__init__(
            f"the accelerator stopped with {self.code.name} at instruction {pc}: "
            f"{ERROR_TEXT[self.code]}{detail}"
        )


class DeviceTimeout(RuntimeError):
    """A run did not end before its deadline."""


class DeviceLost(RuntimeError):
    """The accelerator cannot be reached any more, or somebody else has it now; open it again."""


@runtime_checkable
class Device(Protocol):
    """An accelerator and its memory: the bulk window at address 0, the job window at ``isa.JOB``.

    ``start`` runs the job whose descriptor stands at ``isa.JOB`` (``isa.DESCRIPTOR``). Only one run
    at a time; ``read`` may be used during one.
    """

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the hardware reports."""

    @property
    def pc(self) -> int:
        """The instruction at which the last run is, or ended."""

    def saturations(self) -> list[int]:
        """Saturated values of the last run, by tensor class."""

    def write(self, address: int, array: np.ndarray) -> None:
        """Put the bytes of ``array`` at ``address``, at the latest with the next ``start``.

        Not during a run: RuntimeError.
        """

    def read(self, address: int, count: int) -> np.ndarray:
        """``count`` bytes from ``address`` as uint8."""

    def start(self) -> None:
        """Begin a run; raises RuntimeError if one is under way."""

    def poll(self) -> tuple[State, int, Error]:
        """State, steps whose tokens stand in the ring, and the error code."""

    def wait(self, deadline: float) -> State:
        """Until the run is over, at most ``deadline`` seconds (then DeviceTimeout)."""

    def stop(self) -> None:
        """End the run after the current step."""

    def reset(self, deadline: float) -> None:
        """End the run at once, in the middle of a step; DeviceTimeout if it does not end."""


@runtime_checkable
class CountingDevice(Device, Protocol):
    """A Device that is hardware, or simulated hardware: with registers and cycle counters."""

    def register(self, name: str) -> int:
        """The register of that name in ``registers.REGISTERS``."""

    def counter(self, name: str) -> int:
        """A 64-bit counter of ``registers.COUNTERS``; exact when no run is under way."""


def counting(device: Device, what: str) -> CountingDevice:
    """``device``, for ``what`` that needs its counters; UserError if it has none."""
    if not isinstance(device, CountingDevice):
        raise UserError(
            f"{what} needs cycle counters, which {type(device).__name__} lacks; use verilator, "
            "pysim or a board"
        )
    return device


def load(
    device: Device, image: Image, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Put the image into the device's memory."""
    size = image.payload.size
    for at in range(0, size, CHUNK):
        device.write(PAGE + at, image.payload[at : at + CHUNK])
        if progress is not None:
            progress("loading", min(at + CHUNK, size), size)


def put_job(device: Device, descriptor: np.ndarray) -> None:
    """Put a job where the next ``start`` looks for it."""
    device.write(JOB, descriptor)


def raise_error(device: Device) -> None:
    """Raise DeviceError if the last run ended in one."""
    state, _, error = device.poll()
    if state is State.ERROR:
        raise DeviceError(error, device.pc)


def end_run(device: Device, deadline: float, *, at_once: bool = False) -> None:
    """Leave the device ready for a start, whatever it was doing.

    A run under way ends after its step; in the middle of it if ``at_once``, or if the step takes
    longer than ``deadline`` seconds. DeviceTimeout if it does not end then either.
    """
    if device.poll()[0] is not State.RUNNING:
        return
    if not at_once:
        device.stop()
        try:
            device.wait(deadline)
            return
        except DeviceTimeout:
            pass
    device.reset(deadline)


def run(device: Device, deadline: float) -> None:
    """Start, wait, and raise DeviceError if the run failed."""
    device.start()
    device.wait(deadline)
    raise_error(device)

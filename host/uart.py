"""The bus over a serial line, as ``tokenfabric.core.link`` says: to a board without a processor."""

from __future__ import annotations

import binascii
import struct
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import Image, check_windows
from tokenfabric.core.link import BAD, BAUD, OK, SILENCE, UNIT, Command
from tokenfabric.host.device import DeviceLost
from tokenfabric.host.driver import RegisterDevice

__all__ = ["Line", "SerialBoard", "UartBus", "open_device"]

PRESET = "ulx3s"

MOST = 256  # units in a frame
GAP = 4  # units that are sent again rather than starting another frame
ATTEMPTS = 4
POLL_SECONDS = 0.001
PATIENCE_S = 0.5  # for an answer


class Line(Protocol):
    """What of pyserial's ``Serial`` is needed; ``read`` gives fewer bytes after its timeout."""

    def write(self, data: bytes) -> Any:
        """Send."""

    def read(self, size: int) -> bytes:
        """Receive."""

    def reset_input_buffer(self) -> None:
        """Forget what has come in."""


class UartBus:
    """A :class:`~tokenfabric.host.driver.Bus`. ``memory`` is a copy of the board's.

    ``flush`` sends what differs from what the board is known to hold. A frame with a wrong
    checksum is repeated; DeviceLost after ATTEMPTS of them.
    """

    def __init__(
        self,
        line: Line,
        sizes: tuple[int, int],
        *,
        pause: Callable[[float], None] = time.sleep,
    ):
        self.line, self._pause = line, pause
        self.bases = (0, sizes[0])
        self.memory = [np.zeros(size, np.uint8) for size in sizes]
        self._known: list[np.ndarray | None] = [None, None]  # nothing yet

    def read32(self, offset: int) -> int:
        """A register."""
        return int(struct.unpack_from("<I", self._request(Command.READ_REGISTER, offset, 1))[0])

    def write32(self, offset: int, value: int) -> None:
        """Set a register."""
        self._request(Command.WRITE_REGISTER, offset, 1, struct.pack("<Q", value & 0xFFFFFFFF))

    def flush(self, window: int) -> None:
        """Send what the host wrote."""
        memory, known = self.memory[window], self._known[window]
        units = memory.view("<u8")
        if known is None:
            differ = np.arange(units.size)
        else:
            differ = np.flatnonzero(units != known.view("<u8"))
        for first, last in _runs(differ):
            data = memory[first * UNIT : (last + 1) * UNIT].tobytes()
            self._request(Command.WRITE, self.bases[window] + first * UNIT, last + 1 - first, data)
        self._known[window] = memory.copy()

    def invalidate(self, window: int) -> None:
        """Fetch the whole window."""
        memory = self.memory[window]
        for first in range(0, memory.size, MOST * UNIT):
            count = min(MOST, (memory.size - first) // UNIT)
            data = self._request(Command.READ, self.bases[window] + first, count)
            memory[first : first + len(data)] = np.frombuffer(data, np.uint8)
        self._known[window] = memory.copy()

    def advance(self) -> None:
        """Wait a moment."""
        self._pause(POLL_SECONDS)

    def _request(self, command: Command, address: int, count: int, data: bytes = b"") -> bytes:
        """The data of the answer."""
        frame = _checked(struct.pack("<BBI", command, count - 1, address))
        frame += _checked(data) if data else b""
        expected = 3 + (0 if data else count * UNIT)
        for _ in range(ATTEMPTS):
            self.line.write(frame)
            answer = self.line.read(expected)
            whole = len(answer) == expected and binascii.crc_hqx(answer, 0xFFFF) == 0
            if whole and answer[0] == OK:
                return answer[1:-2]
            # A start that was heard must not be repeated because its answer was not.
            if command == Command.WRITE_REGISTER and not (
                answer[:1] == bytes([BAD]) and _is_whole(answer)
            ):
                break
            self._pause(2 * SILENCE)  # the board has given up what it was receiving
            self.line.reset_input_buffer()
        raise DeviceLost(
            "the board does not answer on the serial line, or not in a way that makes sense; "
            "check the port, and that the bitstream is loaded"
        )


def _checked(data: bytes) -> bytes:
    return data + struct.pack(">H", binascii.crc_hqx(data, 0xFFFF))


def _is_whole(answer: bytes) -> bool:
    return len(answer) == 3 and binascii.crc_hqx(answer, 0xFFFF) == 0


def _runs(units: np.ndarray) -> list[tuple[int, int]]:
    """First and last of the runs that cover ``units``, ascending, none longer than a frame."""
    runs: list[tuple[int, int]] = []
    for unit in units.tolist():
        if runs and unit - runs[-1][1] <= GAP and unit - runs[-1][0] < MOST:
            runs[-1] = runs[-1][0], unit
        else:
            runs.append((unit, unit))
    return runs


class SerialBoard:
    """The ULX3S at a serial port: ``load(model, on=SerialBoard("/dev/ttyUSB0"))``.

    UserError if there is no such port, or another accelerator behind it.
    """

    def __init__(self, port: str):
        try:
            import serial
        except ImportError:
            raise UserError(
                "a serial port needs pyserial; install it with: pip install 'tokenfabric[uart]'"
            ) from None
        self.config = preset(PRESET)
        try:
            self._line = serial.Serial(port, BAUD, timeout=PATIENCE_S)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot open the serial port {port}: {error}") from error

    def device(self, image: Image, dumped: int = 0) -> RegisterDevice:
        """The accelerator with its two windows, for ``image`` and so many rows of logits."""
        return open_device(self._line, image, dumped)

    def close(self) -> None:
        """Give the port back."""
        self._line.close()


def open_device(line: Line, image: Image, dumped: int = 0) -> RegisterDevice:
    """The accelerator at the other end of ``line``. UserError if the image does not fit on it."""
    sizes = image.memory(dumped)
    check_windows(preset(PRESET), sizes)
    device = RegisterDevice(UartBus(line, sizes))
    if device.fingerprint != preset(PRESET).fingerprint:
        raise UserError(
            f"the accelerator has fingerprint {device.fingerprint}, {PRESET} of this version "
            f"{preset(PRESET).fingerprint}; load the bitstream of this version"
        )
    return device

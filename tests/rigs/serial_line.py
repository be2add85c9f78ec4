"""A board with an SDRAM in Verilator, whose host sits at the other end of a serial line."""

from __future__ import annotations

import ctypes
from pathlib import Path

from rigs.sdram import HEADER, SdramParameters
from tokenfabric.core.boards import ULX3S_SDRAM
from tokenfabric.rtl.uart import divisor
from tokenfabric.sim.verilator import build_with

__all__ = ["SimulatedLine"]

HERE = Path(__file__).parent
PATIENCE = 2  # silences of the board after which nothing more is awaited


class SimulatedLine:
    """The :class:`~tokenfabric.host.uart.Line` of a simulated rtl.ulx3s.Board.

    hz, baud, silence: of the board. read() waits for PATIENCE silences. RuntimeError if the design
    treats the SDRAM as its data sheet forbids.
    """

    def __init__(self, verilog: str, *, hz: float, baud: float, silence: float, progress=None):
        self.hz, self.patience = hz, int(PATIENCE * silence * hz)
        library = build_with(HERE / "serial.cpp", [HERE / HEADER], verilog, progress)
        self._lib = ctypes.CDLL(str(library))
        self._lib.tf_line_open.restype = ctypes.c_void_p
        for name in ("read", "cycles"):
            getattr(self._lib, f"tf_line_{name}").restype = ctypes.c_uint64
        self._lib.tf_line_error.restype = ctypes.c_char_p
        sdram = SdramParameters.of(ULX3S_SDRAM, hz / 1e6)
        self._handle: ctypes.c_void_p | None = ctypes.c_void_p(
            self._lib.tf_line_open(divisor(hz, baud), ctypes.byref(sdram))
        )

    def write(self, data: bytes) -> None:
        """Send; returns when the last bit has gone."""
        self._lib.tf_line_write(self._handle, data, ctypes.c_uint64(len(data)))

    def read(self, size: int) -> bytes:
        """``size`` bytes, or what has come before the line fell silent."""
        data = ctypes.create_string_buffer(size)
        limits = ctypes.c_uint64(size), ctypes.c_uint64(self.patience)
        count = self._lib.tf_line_read(self._handle, data, *limits)
        if error := self._lib.tf_line_error(self._handle).decode():
            raise RuntimeError(f"SDRAM: {error}")
        return data.raw[:count]

    def reset_input_buffer(self) -> None:
        """Forget what has come in."""
        while self.read(1 << 16):
            pass

    def pause(self, seconds: float) -> None:
        """Let simulated time pass."""
        self._lib.tf_line_run(self._handle, ctypes.c_uint64(int(seconds * self.hz)))

    @property
    def cycles(self) -> int:
        """Since the board was made."""
        return int(self._lib.tf_line_cycles(self._handle))

    def close(self) -> None:
        """End the simulation."""
        if self._handle:
            self._lib.tf_line_close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

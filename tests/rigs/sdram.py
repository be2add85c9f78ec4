"""The SDRAM chip of a board without a processor, to be simulated cycle by cycle: sdram.h."""

from __future__ import annotations

import ctypes
from pathlib import Path

from tokenfabric.core.boards import SdramChip
from tokenfabric.flow.toolchain import shared_library

__all__ = ["HEADER", "SdramParameters", "SimulatedSdram"]

HEADER = "sdram.h"


class SdramParameters(ctypes.Structure):
    """``struct SdramParameters`` of sdram.h: bits of the addresses, and times in cycles."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "bank_bits row_bits column_bits activate precharge row_active row_cycle refresh"
            " activate_spacing write_recovery power_up mode refresh_interval"
        ).split()
    ]

    @classmethod
    def of(cls, chip: SdramChip, clock_mhz: float) -> SdramParameters:
        """What the chip asks for at this clock."""
        return cls(
            bank_bits=chip.bank_bits,
            row_bits=chip.row_bits,
            column_bits=chip.column_bits,
            **chip.cycles(clock_mhz),
        )


class SimulatedSdram:
    """A chip at the pins of ``rtl.sdram.pins``. UserError without a C++ compiler."""

    def __init__(self, chip: SdramChip, clock_mhz: float):
        self._lib = ctypes.CDLL(
            str(shared_library("sdram", Path(__file__).with_name("sdram.cpp"), HEADER))
        )
        self._lib.tf_sdram_open.restype = ctypes.c_void_p
        self._lib.tf_sdram_error.restype = ctypes.c_char_p
        parameters = SdramParameters.of(chip, clock_mhz)
        self._handle = ctypes.c_void_p(self._lib.tf_sdram_open(ctypes.byref(parameters)))

    def clock(self, command: int, bank: int, address: int, mask: int, dq: int, drive: int) -> int:
        """One clock edge with what is on the pins; the data lines as the FPGA finds them next."""
        return int(self._lib.tf_sdram_clock(self._handle, command, bank, address, mask, dq, drive))

    @property
    def error(self) -> str:
        """What was first done that the data sheet forbids, and when; "" if nothing was."""
        return str(self._lib.tf_sdram_error(self._handle).decode())

    def close(self) -> None:
        """End the simulation."""
        self._lib.tf_sdram_close(self._handle)

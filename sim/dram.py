"""The DRAM behind the simulated ports: what the data sheets say, in nanoseconds.

:class:`DramSpec` holds the numbers, ``sim/dram.h`` the model that uses them. The model is what
speed claims come from, so where it departs from data sheets it says so: ``write_extra_ns`` and
``turn_bytes`` are fitted to AMD's table "DDR Efficiency" (Zynq-7000 TRM, UG585), which
``tests/test_dram.py`` checks.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from fractions import Fraction

FRACTION_BITS = 16
MAX_IN_FLIGHT = 16  # kRing in dram.h
MAX_WINDOW = 64
MAX_BANKS = 64


class DramParameters(ctypes.Structure):
    """``struct DramParameters`` of dram.h: times in fabric cycles << 16, the rest in whole units."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "burst_bytes banks row_bytes burst write_extra activate precharge row_active"
            " activate_spacing four_activates write_recovery write_to_read read_to_write"
            " refresh_interval refresh request_cycles return_cycles read_window write_window"
            " turn_bursts max_reads max_writes read_fifo_beats"
        ).split()
    ]


@dataclass(frozen=True, kw_only=True)
class DramSpec:
    """One DRAM channel with its controller and the path from the fabric to it.

    ``ValueError`` if a number is out of the model's range.
    """

    name: str
    bus_bytes: int
    transfers_mts: int
    """Millions of transfers per second and data line."""
    burst_length: int = 8
    banks: int
    row_bytes: int
    """Open row of one bank, over all chips of the channel."""
    activate_ns: float  # tRCD
    precharge_ns: float  # tRP
    row_active_ns: float  # tRAS
    activate_spacing_ns: float  # tRRD
    four_activates_ns: float  # tFAW
    write_recovery_ns: float  # tWR, after the end of the data
    write_to_read_ns: float  # tWTR + CL
    read_to_write_ns: float
    refresh_interval_ns: float = 7800  # tREFI
    refresh_ns: float  # tRFC
    write_extra_ns: float = 0  # lost per column access of a write
    latency_cycles: int = 40
    """Fabric cycles from an accepted read address to its first beat, with the row open and the
    bus free."""
    read_window: int = 16
    write_window: int = 16
    turn_bytes: int = 512
    """Data moved in one direction before the other gets its turn."""
    max_reads: int = 16
    """Read bursts a port takes before the first one is returned."""
    max_writes: int = 8
    read_fifo_beats: int = 128
    """A port's buffer: data is fetched from memory only if there is room for it."""

    def __post_init__(self) -> None:
        for name, most in (
            ("max_reads", MAX_IN_FLIGHT),
            ("max_writes", MAX_IN_FLIGHT),
            ("read_window", MAX_WINDOW),
            ("write_window", MAX_WINDOW),
            ("banks", MAX_BANKS),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{self.name}: {name}={getattr(self, name)} is not in 1..{most}")
        if self.read_fifo_beats < 16:
            raise ValueError(f"{self.name}: read_fifo_beats={self.read_fifo_beats} is below 16")
        if self.latency_cycles < 1:
            raise ValueError(f"{self.name}: latency_cycles={self.latency_cycles} is below 1")

    @property
    def peak_bytes_per_second(self) -> float:
        return self.bus_bytes * self.transfers_mts * 1e6

    @property
    def peak_gbps(self) -> float:
        """Peak bandwidth in 10^9 bytes per second."""
        return self.peak_bytes_per_second / 1e9

    def replace(self, **changes) -> DramSpec:
        """The same DRAM with some numbers changed."""
        return replace(self, **changes)

    def parameters(self, clock_mhz: float) -> DramParameters:
        """The numbers for dram.h, with fabric cycles of ``clock_mhz``."""
        if not clock_mhz > 0:
            raise ValueError(f"clock_mhz={clock_mhz} is not positive")
        cycles_per_ns = Fraction(clock_mhz).limit_denominator(10**6) / 1000

        def time(ns: float | Fraction) -> int:
            return round(Fraction(ns).limit_denominator(10**6) * cycles_per_ns * 2**FRACTION_BITS)

        burst_bytes = self.bus_bytes * self.burst_length
        request = self.latency_cycles // 2
        return DramParameters(
            burst_bytes=burst_bytes,
            banks=self.banks,
            row_bytes=self.row_bytes,
            burst=time(Fraction(1000 * self.burst_length, self.transfers_mts)),
            write_extra=time(self.write_extra_ns),
            activate=time(self.activate_ns),
            precharge=time(self.precharge_ns),
            row_active=time(self.row_active_ns),
            activate_spacing=time(self.activate_spacing_ns),
            four_activates=time(self.four_activates_ns),
            write_recovery=time(self.write_recovery_ns),
            write_to_read=time(self.write_to_read_ns),
            read_to_write=time(self.read_to_write_ns),
            refresh_interval=time(self.refresh_interval_ns),
            refresh=time(self.refresh_ns),
            request_cycles=request,
            return_cycles=self.latency_cycles - request,
            read_window=self.read_window,
            write_window=self.write_window,
            turn_bursts=max(1, self.turn_bytes // burst_bytes),
            max_reads=self.max_reads,
            max_writes=self.max_writes,
            read_fifo_beats=self.read_fifo_beats,
        )


ZYNQ7000_DDR3_X16 = DramSpec(
    name="Zynq-7000, DDR3-1050 x16",
    bus_bytes=2,
    transfers_mts=1050,
    banks=8,
    row_bytes=2048,
    activate_ns=13.1,
    precharge_ns=13.1,
    row_active_ns=37.5,
    activate_spacing_ns=10,
    four_activates_ns=50,
    write_recovery_ns=15 + 13,
    write_to_read_ns=7.5 + 13.1,
    read_to_write_ns=4,
    refresh_ns=260,  # 4 Gb chip
    write_extra_ns=0.55,
)
"""PYNQ-Z1 and Z2: one 4 Gb chip, 2.1 GB/s."""

ZYNQMP_DDR4_X64 = DramSpec(
    name="Zynq UltraScale+, DDR4-2400 x64",
    bus_bytes=8,
    transfers_mts=2400,
    # Address bit 6 selects the bank group (default map), so that column accesses can follow one
    # another at full rate: banks come in pairs, each with a row of both groups open.
    banks=4,
    row_bytes=16384,
    activate_ns=13.75,
    precharge_ns=13.75,
    row_active_ns=32,
    activate_spacing_ns=6.4,
    four_activates_ns=30,
    write_recovery_ns=15 + 13,
    write_to_read_ns=7.5 + 13.75,
    read_to_write_ns=3,
    refresh_ns=350,  # 8 Gb chips
    write_extra_ns=0.2,
)
"""KV260 and KR260: four 8 Gb chips, 19.2 GB/s."""

"""The DRAM behind the simulated ports, in nanoseconds and bytes.

:class:`DramSpec` holds the times, ``sim/dram.h`` the model that uses them; names and peaks are
those of ``core/dram.py``. Speed claims rest on it. Times of banks and refresh are those of the data
sheets. What no data sheet tells (how far the controller looks ahead, when it turns the bus round,
what each write costs it) is fitted to AMD's measurements: "DDR Efficiency" in the Zynq-7000 manual
(UG585), which ``tests/test_dram.py`` compares with the model. The manual does not say how wide its
bus was: the fit is one for 16 bits, as on a PYNQ-Z2. A Zynq-7000 with 32 needs another one, and a
spec with another width under a name that says one is refused.

For Zynq UltraScale+ there is no such table: sequential reads are held to the 93 % that the best
published design reached (Hummingbird, arXiv 2507.03308), and streams that meet in the same banks to
the 64 % that was measured where nobody had aligned them.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from tokenfabric.core.boards import ULX3S_SDRAM
from tokenfabric.core.dram import PUBLISHED, Dram
from tokenfabric.flow.toolchain import shared_library

FRACTION_BITS = 16
MAX_IN_FLIGHT = 16  # kRing in dram_bursts.h
MAX_WINDOW = 64
MAX_BANKS = 64
MAX_PORTS = 8

# The controller's port that each port of a Zynq UltraScale+ leads to: HP1 and HP2 have one between
# them (UG1085, "PL-PS Interface Specifics"). HP0 shares its with the display, HP3 with a DMA of the
# processing system, which are taken to be idle; HPC0 goes through the cache-coherent interconnect.
CONTROLLER_PORTS = {"hp0": 3, "hp1": 4, "hp2": 4, "hp3": 5, "hpc0": 1}

# What that interconnect adds to a read's latency. An assumption: UG1085 ("APU Coherent Interfaces")
# says that HPC0 and HPC1 "have a longer latency to DDR" and no figure, nor was one found elsewhere.
# 50 ns are 27 cycles of the interconnect, there and back. From 0 to 200 ns a stream dealt to
# the ports of the kv260 keeps its share of the peak (tests/test_dram.py): enough is in flight.
DETOUR_NS = {"hpc0": 50.0}


class DramParameters(ctypes.Structure):
    """``struct DramParameters`` of dram_bursts.h: times in fabric cycles << 16, others in units."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "burst_bytes banks row_bytes read_access write_access activate precharge row_active"
            " activate_spacing four_activates write_recovery write_to_read read_to_write"
            " refresh_interval refresh request_cycles return_cycles read_window write_window"
            " turn_accesses max_reads max_writes read_fifo_beats controller_byte"
        ).split()
    ] + [(name, ctypes.c_int64 * MAX_PORTS) for name in ("controller_port", "detour_cycles")]


def _exact(number: float | Fraction) -> Fraction:
    return Fraction(number).limit_denominator(10**6)


@dataclass(frozen=True, kw_only=True)
class DramSpec:
    """One DRAM channel with its controller and the path from the fabric to it.

    ``ValueError`` if a number is out of the model's range.
    """

    published: Dram
    """Its name and peak, as hardware and software know them."""
    bus_bytes: int
    burst_length: int = 8
    banks: int
    row_bytes: int
    """Open row of one bank, over all chips of the channel."""
    activate_ns: float  # tRCD
    precharge_ns: float  # tRP
    row_active_ns: float  # tRAS
    activate_spacing_ns: float  # tRRD
    four_activates_ns: float  # tFAW
    write_recovery_ns: float  # tWR + CL, then as fitted
    write_to_read_ns: float  # tWTR + CL, then as fitted
    read_to_write_ns: float
    refresh_interval_ns: float = 7800  # tREFI
    refresh_ns: float  # tRFC
    read_extra_ns: float = 0  # lost per column access
    write_extra_ns: float = 0
    latency_cycles: int = 40
    """Fabric cycles from an accepted read address to its first beat, with the row open and the
    bus free."""
    read_window: int = 32
    """Column accesses that the controller chooses from: a new burst is looked at while fewer are
    waiting."""
    write_window: int = 32
    turn_bytes: int = 512
    """Data moved in one direction before the other gets its turn."""
    max_reads: int = 16
    """Read bursts a port takes before the first one is returned."""
    max_writes: int = 8
    read_fifo_beats: int = 128
    """A port's buffer: data is fetched from memory only if there is room for it."""
    controller_port_gbps: float = 0
    """10^9 bytes per second that one port of the controller reads; 0: as many as come."""
    controller_ports: tuple[int, ...] = tuple(range(MAX_PORTS))
    """The port of the controller that each AXI port leads to."""
    detours_ns: tuple[float, ...] = (0.0,) * MAX_PORTS
    """What the way of each AXI port adds to ``latency_cycles``."""

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
        if not all(0 <= port < MAX_PORTS for port in self.controller_ports):
            raise ValueError(f"{self.name}: controller_ports={self.controller_ports}")
        width = self.name.rpartition("-x")[2]
        if width.isdecimal() and int(width) != 8 * self.bus_bytes:
            raise ValueError(
                f"{self.name}: bus_bytes={self.bus_bytes}: what is fitted holds for {width} bits"
            )
        if self.latency_cycles < 1:
            raise ValueError(f"{self.name}: latency_cycles={self.latency_cycles} is below 1")

    @property
    def name(self) -> str:
        return self.published.name

    @property
    def peak_bytes_per_second(self) -> float:
        return self.published.peak_bytes_per_s

    @property
    def transfers_mts(self) -> float:
        """Millions of transfers per second and data line."""
        return self.peak_bytes_per_second / (self.bus_bytes * 1e6)

    @property
    def peak_gbps(self) -> float:
        """Peak bandwidth in 10^9 bytes per second."""
        return self.peak_bytes_per_second / 1e9

    def replace(self, **changes) -> DramSpec:
        """The same DRAM with some numbers changed."""
        return replace(self, **changes)

    def attached(self, ports: Sequence[str]) -> DramSpec:
        """With AXI ports that are these of :data:`CONTROLLER_PORTS`, in order."""
        return self.replace(
            controller_ports=tuple(CONTROLLER_PORTS[port] for port in ports),
            detours_ns=tuple(DETOUR_NS.get(port, 0.0) for port in ports),
        )

    def parameters(self, clock_mhz: float) -> DramParameters:
        """The numbers for dram.h, with fabric cycles of ``clock_mhz``."""
        if not clock_mhz > 0:
            raise ValueError(f"clock_mhz={clock_mhz} is not positive")
        scale = _exact(clock_mhz) * 2**FRACTION_BITS / 1000

        def time(ns: float | Fraction) -> int:
            return round(_exact(ns) * scale)

        access = 1000 * self.burst_length / _exact(self.transfers_mts)
        burst_bytes = self.bus_bytes * self.burst_length
        request = max(1, self.latency_cycles // 2)
        controller_byte = 1 / _exact(self.controller_port_gbps) if self.controller_port_gbps else 0
        return DramParameters(
            burst_bytes=burst_bytes,
            banks=self.banks,
            row_bytes=self.row_bytes,
            read_access=time(access + _exact(self.read_extra_ns)),
            write_access=time(access + _exact(self.write_extra_ns)),
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
            turn_accesses=max(1, self.turn_bytes // burst_bytes),
            max_reads=self.max_reads,
            max_writes=self.max_writes,
            read_fifo_beats=self.read_fifo_beats,
            controller_byte=time(controller_byte),
            controller_port=(ctypes.c_int64 * MAX_PORTS)(*self.controller_ports),
            detour_cycles=(ctypes.c_int64 * MAX_PORTS)(
                *(math.ceil(ns * clock_mhz / 1000) for ns in self.detours_ns)
            ),
        )


DDR3_1050_X16 = DramSpec(
    published=PUBLISHED["ddr3-1050-x16"],
    bus_bytes=2,
    banks=8,
    row_bytes=2048,
    activate_ns=13.3,
    precharge_ns=13.3,
    row_active_ns=35,
    activate_spacing_ns=7.5,
    four_activates_ns=40,
    write_recovery_ns=44,
    write_to_read_ns=19.6,
    read_to_write_ns=3.8,
    refresh_ns=260,  # a 4 Gb chip
    write_extra_ns=0.47,
    read_window=16,
    write_window=24,
    turn_bytes=256,
)
"""PYNQ-Z1 and Z2: one chip on a Zynq-7000."""

DDR4_2400_X64 = DramSpec(
    published=PUBLISHED["ddr4-2400-x64"],
    bus_bytes=8,
    # Address bit 6 selects one of the two bank groups, so that column accesses follow one another
    # at full rate: banks come in pairs, each with a row of both groups open.
    banks=4,
    row_bytes=16384,
    activate_ns=13.3,
    precharge_ns=13.3,
    row_active_ns=33,
    activate_spacing_ns=5.3,
    four_activates_ns=30,
    write_recovery_ns=44,
    write_to_read_ns=20.8,  # tWTR_L 7.5 + CL 13.3
    read_to_write_ns=3.3,  # four clocks
    refresh_ns=350,  # 8 Gb chips
    read_extra_ns=0.075,
    write_extra_ns=0.25,
    read_window=44,
    write_window=44,
    turn_bytes=2048,
    controller_port_gbps=8.53,  # 128 bits at the interconnect's 533 MHz
)
"""Four x16 chips on a Zynq UltraScale+ at the most that its controller does.

``read_extra_ns`` is an assumption: it is fitted to one published figure, 93 % of this peak (see
above), and stands for whatever the controller loses besides refresh and turns. Between 0, the best
there could be, and 0.4 ns a stream that is dealt to the ports reads 95.1 to 84.9 % (of 2133: 95.1
to 85.9 %).
"""

DDR4_2133_X64 = DDR4_2400_X64.replace(
    published=PUBLISHED["ddr4-2133-x64"],
    # The clocks that U-Boot's psu_init of the K26 programs (speed bin 2133R, 16-16-16), times
    # 0.9375 ns: tRCD and tRP 16, tRAS 36, tRRD 6, tFAW 32; tWTR_L 7.5 ns + CL 16; four clocks.
    activate_ns=15,
    precharge_ns=15,
    row_active_ns=33.75,
    activate_spacing_ns=5.625,
    four_activates_ns=30,
    write_to_read_ns=22.5,
    read_to_write_ns=3.75,
)
"""KV260 and KR260: the K26's chips as its own boot firmware runs them, with what is assumed for
2400: nobody has published a share of this peak."""

SDR_65_X16 = DramSpec(
    published=PUBLISHED["sdr-65-x16"],
    bus_bytes=2,
    burst_length=2,
    banks=1 << ULX3S_SDRAM.bank_bits,
    row_bytes=2 << ULX3S_SDRAM.column_bits,
    activate_ns=ULX3S_SDRAM.activate,
    precharge_ns=ULX3S_SDRAM.precharge,
    row_active_ns=ULX3S_SDRAM.row_active,
    # rtl/sdram.py opens a row when the burst before has been served, not ahead: fitted, as
    # latency and read_extra_ns are, to its simulation in tests/test_sdram.py.
    activate_spacing_ns=550,
    four_activates_ns=4 * 550,
    read_extra_ns=0.25,
    # As rtl/sdram.py waits: the same after bursts of both directions, in cycles of 65 MHz.
    write_recovery_ns=46,
    write_to_read_ns=46,
    read_to_write_ns=46,
    refresh_interval_ns=ULX3S_SDRAM.refresh_interval_ns,
    refresh_ns=ULX3S_SDRAM.refresh + ULX3S_SDRAM.precharge,
    latency_cycles=14,
    read_window=16,
    write_window=16,
    turn_bytes=64,
    max_reads=4,
    max_writes=1,
    read_fifo_beats=64,
)
"""ULX3S: one chip, at the fabric's clock, behind rtl/sdram.py."""

IDEAL = DramSpec(
    published=PUBLISHED["none"],
    bus_bytes=2,
    banks=8,
    row_bytes=4096,
    activate_ns=0,
    precharge_ns=0,
    row_active_ns=0,
    activate_spacing_ns=0,
    four_activates_ns=0,
    write_recovery_ns=0,
    write_to_read_ns=0,
    read_to_write_ns=0,
    refresh_interval_ns=0,
    refresh_ns=0,
)
"""A latency and nothing else, for tests."""

_ALL = (DDR3_1050_X16, DDR4_2133_X64, DDR4_2400_X64, SDR_65_X16, IDEAL)
DRAMS = {spec.name: spec for spec in _ALL}
"""By name, which is that of ``FabricConfig.dram``."""

PATTERNS = ("regions", "random", "dealt")


def traffic(
    spec: DramSpec,
    *,
    clock_mhz: float = 150,
    ports: int = 4,
    port_bytes: int = 8,
    beats: int = 16,
    reads: bool = True,
    writes: bool = False,
    pattern: str = "regions",
    stride: int | None = None,
    cycles: int = 100_000,
    seed: int = 1,
) -> tuple[float, float]:
    """Shares of the peak bandwidth that greedy masters read and write, alone on the channel.

    ``pattern``: "regions" walks each port through its own memory (by default all in different
    banks; else their starts are ``stride`` bytes apart), "random" jumps with every burst of
    ``beats``, "dealt" deals one walk to the ports in turn. Compiles the model if need be:
    ``UserError`` without a compiler.
    """
    if not 1 <= ports <= 8 or port_bytes not in (4, 8, 16) or not 1 <= beats <= 16:
        raise ValueError(f"ports={ports} (1..8), port_bytes={port_bytes} (4, 8, 16), beats={beats}")
    source = Path(__file__).with_name("dram_traffic.cpp")
    lib = ctypes.CDLL(str(shared_library("dram", source, "dram.h", "dram_bursts.h")))
    lib.tf_traffic.restype = None
    parameters, moved = spec.parameters(clock_mhz), (ctypes.c_uint64 * 2)()
    lib.tf_traffic(
        ctypes.byref(parameters), ports, port_bytes, beats, reads, writes, PATTERNS.index(pattern),
        ctypes.c_uint64((1 << 22) + spec.row_bytes if stride is None else stride),
        ctypes.c_int64(cycles), ctypes.c_uint64(seed), moved,
    )  # fmt: skip
    peak = spec.peak_bytes_per_second * cycles / (clock_mhz * 1e6)
    return moved[0] / peak, moved[1] / peak

"""The boards: what is soldered on them and where a design meets their processor. One home."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tokenfabric.core.config import FabricConfig, preset
from tokenfabric.core.errors import UserError

__all__ = [
    "BOARDS",
    "INSTANCE",
    "ULX3S_SDRAM",
    "VLNV",
    "BoardSpec",
    "SdramChip",
    "board",
    "memory_of",
]


# What an FPGA has. bram36: blocks of 36 kbit.
CAPACITY: dict[str, dict[str, float]] = {
    "xc7z020": {"lut": 53_200, "lutram": 17_400, "ff": 106_400, "dsp": 220, "bram36": 140},
    "xck26": {
        "lut": 117_120, "lutram": 57_600, "ff": 234_240, "dsp": 1_248, "bram36": 144, "uram": 64,
    },
    "xczu7ev": {
        "lut": 230_400, "lutram": 101_760, "ff": 460_800, "dsp": 1_728, "bram36": 312, "uram": 96,
    },
    "lfe5u-85f": {"lut": 83_640, "ff": 83_640, "dsp": 156, "bram36": 104},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SdramChip:
    """A x16 SDR SDRAM with CAS latency 2. Times in ns, of the slowest chip of its kind."""

    name: str
    bank_bits: int
    row_bits: int
    column_bits: int
    most_mhz: float  # at this CAS latency
    activate: float  # tRCD
    precharge: float  # tRP
    row_active: float  # tRAS
    row_cycle: float  # tRC
    refresh: float  # tRFC
    activate_spacing: float  # tRRD
    write_recovery: float  # tWR, tDPL
    power_up: float
    refresh_interval_ns: float  # between two on average
    mode_cycles: int = 2  # tMRD

    @property
    def addr_bits(self) -> int:
        """Of a byte."""
        return self.bank_bits + self.row_bits + self.column_bits + 1

    def cycles(self, clock_mhz: float) -> dict[str, int]:
        """The times, rounded up; what must not take longer, the refresh interval, down."""
        names = ("activate precharge row_active row_cycle refresh activate_spacing "
                 "write_recovery power_up").split()  # fmt: skip
        found = {name: math.ceil(getattr(self, name) * clock_mhz / 1000) for name in names}
        interval = int(self.refresh_interval_ns * clock_mhz / 1000)
        return {**found, "mode": self.mode_cycles, "refresh_interval": interval}


# MT48LC16M16A2-75, AS4C16M16SA-7, W9825G6KH-6 and IS42S16160G-7, what is slowest of each. The chip
# with 64 MB that some boards have is the same, with columns that stay unused.
ULX3S_SDRAM = SdramChip(
    name="256-Mbit SDRAM",
    bank_bits=2,
    row_bits=13,
    column_bits=9,
    most_mhz=100,
    activate=21,
    precharge=21,
    row_active=45,
    row_cycle=66,
    refresh=66,
    activate_spacing=15,
    write_recovery=15,
    power_up=200_000,
    refresh_interval_ns=7812.5,
)

VLNV = "tokenfabric.org:ip:tokenfabric:1.0"  # the accelerator's type: drivers bind to it
INSTANCE = "npu_0"  # its name in the block design, so in PYNQ
INTERRUPTS_AFTER = 0x1_0000  # PYNQ wants a controller between the accelerator and the processor


@dataclass(frozen=True, kw_only=True)
class BoardSpec:
    """One board. The accelerator itself is its preset: ports, widths, fabric clock."""

    name: str
    title: str
    preset: str
    part: str  # Vivado's name
    board_part: str  # Vivado's board file, as a pattern; the script does without if it is missing
    ps: str  # the processor's IP: processing_system7 or zynq_ultra_ps_e
    control_base: int  # bus address of s_axi_ctrl
    fpga: str  # its die, of CAPACITY
    memory_bytes: int
    ps_clock_mhz: float  # of the processor's first fabric clock; a PLL in the fabric makes others
    ps_settings: tuple[tuple[str, str], ...] = ()  # what the processor's IP must know besides

    @property
    def config(self) -> FabricConfig:
        return preset(self.preset)

    @property
    def interrupt_base(self) -> int:
        """Bus address of the interrupt controller."""
        return self.control_base + INTERRUPTS_AFTER


# Kria's firmware runs the I/O PLL, the only one that PYNQ divides, at 1000 MHz: 100 MHz can be had
# from it on every board, 300 MHz cannot.
_KV260 = BoardSpec(
    name="kv260",
    title="AMD Kria KV260",
    preset="kv260",
    part="xck26-sfvc784-2LV-c",
    board_part="xilinx.com:kv260_som:*",
    ps="zynq_ultra_ps_e",
    fpga="xck26",
    memory_bytes=4 << 30,
    control_base=0xA000_0000,
    ps_clock_mhz=100.0,
)

BOARDS = {
    spec.name: spec
    for spec in (
        BoardSpec(
            name="pynq-z2",
            title="TUL PYNQ-Z2",
            preset="pynq-z2",
            part="xc7z020clg400-1",
            board_part="tul.com.tw:pynq-z2:*",
            ps="processing_system7",
            fpga="xc7z020",
            memory_bytes=512 << 20,
            control_base=0x43C0_0000,
            ps_clock_mhz=100.0,
            ps_settings=(("PCW_CRYSTAL_PERIPHERAL_FREQMHZ", "50"),),
        ),
        _KV260,
        replace(
            _KV260,
            name="zcu104",
            title="AMD ZCU104",
            part="xczu7ev-ffvc1156-2-e",
            fpga="xczu7ev",
            memory_bytes=2 << 30,
            board_part="xilinx.com:zcu104:*",
        ),
    )
}


def memory_of(cfg: FabricConfig) -> int | None:
    """Bytes of the DRAM that an accelerator's board has; None for the accelerators of tests."""
    sizes = {spec.config.dram.name: spec.memory_bytes for spec in reversed(BOARDS.values())}
    sizes[preset("ulx3s").dram.name] = 1 << ULX3S_SDRAM.addr_bits
    return sizes.get(cfg.dram.name)


def board(name: str) -> BoardSpec:
    """The board called ``name``."""
    if name not in BOARDS:
        raise UserError(f"no board {name!r}; there are: {', '.join(BOARDS)}")
    return BOARDS[name]

"""The processors of Zynq-7000 and Zynq UltraScale+ as Vivado's block designs meet them.

Names of their pins and interfaces, settings of their IPs, and how their memory ports differ. Xilinx
UG585 (AXI_HP), UG1085 (S_AXI_HP).
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenfabric.core.boards import BoardSpec
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError

__all__ = ["ID_BITS", "PROCESSORS", "Processor", "Slave", "settings", "slaves"]

ID_BITS = 6  # of the S_AXI_HP ports of both families


@dataclass(frozen=True)
class Slave:
    """A memory port of a processor."""

    interface: str
    clock: str
    segment: str  # of addresses
    use: str  # settings
    width: str


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The processor's IP as the script meets it: names, and how its memory ports differ."""

    family: str  # Vivado's name
    protocol: str
    data_bits: tuple[int, ...]  # widths of a memory port
    address_bits: int
    len_bits: int
    lock_bits: int
    automation: str  # of the block automation
    clock: str  # pins and interfaces
    reset: str
    interrupt: str
    master: str
    master_clock: str
    clock_setting: str  # MHz
    settings: dict[str, str]
    slaves: dict[str, Slave]  # by their names in FabricConfig.ps_ports


def _ultrascale(name: str, number: int) -> Slave:
    return Slave(
        f"S_AXI_{name.upper()}_FPD",
        f"saxi{name}_fpd_aclk",
        f"SAXIGP{number}/{name.upper()}_DDR_LOW",
        f"PSU__USE__S_AXI_GP{number}",
        f"PSU__SAXIGP{number}__DATA_WIDTH",
    )


PROCESSORS = {
    "processing_system7": Processor(
        family="zynq",
        protocol="AXI3",
        data_bits=(32, 64),
        address_bits=32,
        len_bits=4,
        lock_bits=2,
        automation='make_external "FIXED_IO, DDR" Master Disable Slave Disable',
        clock="FCLK_CLK0",
        reset="FCLK_RESET0_N",
        interrupt="IRQ_F2P",
        master="M_AXI_GP0",
        master_clock="M_AXI_GP0_ACLK",
        clock_setting="PCW_FPGA0_PERIPHERAL_FREQMHZ",
        settings={
            "PCW_USE_M_AXI_GP0": "1",
            "PCW_USE_M_AXI_GP1": "0",
            "PCW_EN_CLK0_PORT": "1",
            "PCW_EN_RST0_PORT": "1",
            "PCW_USE_FABRIC_INTERRUPT": "1",
            "PCW_IRQ_F2P_INTR": "1",
        },
        slaves={
            f"hp{i}": Slave(
                f"S_AXI_HP{i}",
                f"S_AXI_HP{i}_ACLK",
                f"S_AXI_HP{i}/HP{i}_DDR_LOWOCM",
                f"PCW_USE_S_AXI_HP{i}",
                f"PCW_S_AXI_HP{i}_DATA_WIDTH",
            )
            for i in range(4)
        },
    ),
    "zynq_ultra_ps_e": Processor(
        family="zynquplus",
        protocol="AXI4",
        data_bits=(32, 64, 128),
        address_bits=49,
        len_bits=8,
        lock_bits=1,
        automation="",
        clock="pl_clk0",
        reset="pl_resetn0",
        interrupt="pl_ps_irq0",
        master="M_AXI_HPM0_FPD",
        master_clock="maxihpm0_fpd_aclk",
        clock_setting="PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
        settings={
            "PSU__USE__M_AXI_GP0": "1",  # M_AXI_HPM0_FPD, as wide as after a reset
            "PSU__MAXIGP0__DATA_WIDTH": "128",
            "PSU__USE__M_AXI_GP1": "0",
            "PSU__USE__M_AXI_GP2": "0",
            "PSU__FPGA_PL0_ENABLE": "1",
            "PSU__CRL_APB__PL0_REF_CTRL__SRCSEL": "IOPLL",  # the only source that PYNQ sets
            "PSU__USE__IRQ0": "1",
        },
        slaves={
            **{f"hpc{i}": _ultrascale(f"hpc{i}", i) for i in range(2)},
            **{f"hp{i}": _ultrascale(f"hp{i}", i + 2) for i in range(4)},
        },
    ),
}


def slaves(cfg: FabricConfig, spec: BoardSpec) -> list[Slave]:
    """The processor's ports for the accelerator's. UserError if there are no such ports."""
    processor, bits = PROCESSORS[spec.ps], 8 * cfg.port_bytes
    names = cfg.ps_ports or tuple(f"hp{number}" for number in range(cfg.ports))
    for what, wanted, there in (
        ("memory ports", names, processor.slaves),
        ("widths of memory ports", (bits,), processor.data_bits),
    ):
        if not set(wanted) <= set(there):
            raise UserError(
                f"board {spec.name}: the {what} are {', '.join(map(str, there))}, config "
                f"{cfg.name} needs {', '.join(map(str, wanted))}; use another config"
            )
    return [processor.slaves[name] for name in names]


def settings(cfg: FabricConfig, spec: BoardSpec) -> dict[str, str]:
    """Of the processor's IP: one master, the memory ports, a clock, an interrupt; no more."""
    processor = PROCESSORS[spec.ps]
    found = {**processor.settings, processor.clock_setting: f"{spec.ps_clock_mhz:g}"}
    for slave in slaves(cfg, spec):
        found |= {slave.use: "1", slave.width: str(8 * cfg.port_bytes)}
    return {**found, **dict(spec.ps_settings)}

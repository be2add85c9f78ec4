"""The IP for Vivado: its ports, and a shell around the accelerator in Verilog.

The shell gives each memory port of ``top`` all the signals of the processor's port, constants where
the accelerator has none, so that the two can be wired directly.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Shape
from amaranth.lib.wiring import Out
from tokenfabric.core.boards import VLNV, BoardSpec
from tokenfabric.core.config import FabricConfig
from tokenfabric.flow.zynq import ID_BITS, PROCESSORS, Processor
from tokenfabric.rtl.axi import lite, memory_port
from tokenfabric.rtl.control import RegisterPort

__all__ = ["CONTROL", "FILES", "Port", "ip_ports", "shell"]

CONTROL = "s_axi_ctrl"
MODIFIABLE_BUFFERABLE = 0b0011
FILES = ("hdl/top.v", f"hdl/{VLNV.split(':')[2]}.v")  # the accelerator, and the shell


@dataclass(frozen=True)
class Port:
    """A port of the IP. ``core``: bits of the accelerator's port of the same name, 0 if it has
    none; then an output is the constant ``value``."""

    name: str
    out: bool
    bits: int
    core: int = 0
    value: int = 0
    bus: str = ""  # the interface that it belongs to
    logical: str = ""  # its name there


def ip_ports(cfg: FabricConfig, spec: BoardSpec) -> list[Port]:
    """All ports of the IP, clock, reset and interrupt first."""
    ports = [
        Port("clk", False, 1, bus="clk", logical="CLK"),
        Port("resetn", False, 1, bus="resetn", logical="RST"),
        Port("irq", True, 1, core=1, bus="irq", logical="INTERRUPT"),
    ]
    for name, member in lite(RegisterPort.ADDR_BITS).members.items():
        bits = Shape.cast(member.shape).width
        out = member.flow is not Out  # the signature is the master's, we are the slave
        ports.append(Port(f"{CONTROL}_{name}", out, bits, bits, 0, CONTROL, name.upper()))
    for number in range(cfg.ports):
        ports += _memory_ports(cfg, PROCESSORS[spec.ps], number)
    return ports


def _memory_ports(cfg: FabricConfig, processor: Processor, number: int) -> list[Port]:
    bus = f"m_axi_hp{number}"
    own = memory_port(cfg.port_bytes, writes=number == 0).members
    ports = []

    def add(name: str, out: bool, bits: int, core: int = 0, value: int = 0) -> None:
        ports.append(Port(f"{bus}_{name}", out, bits, core, value, bus, name.upper()))

    for name, member in memory_port(cfg.port_bytes, writes=True).members.items():
        core = Shape.cast(member.shape).width
        wide = {"addr": processor.address_bits, "len": processor.len_bits}
        bits = wide.get(name[2:], core) if name[0] == "a" else core
        add(name, member.flow is Out, bits, core if name in own else 0)
    for channel in "rw":
        add(f"a{channel}id", True, ID_BITS)
        add(f"a{channel}lock", True, processor.lock_bits)
        add(f"a{channel}cache", True, 4, value=MODIFIABLE_BUFFERABLE)
        add(f"a{channel}prot", True, 3)
        add(f"a{channel}qos", True, 4)
        add("rid" if channel == "r" else "bid", False, ID_BITS)
    if processor.protocol == "AXI3":
        add("wid", True, ID_BITS)
    return ports


def _range(bits: int) -> str:
    return f"[{bits - 1}:0] " if bits > 1 else ""


def shell(ports: list[Port]) -> str:
    """Verilog of the IP's top module, around ``top``."""
    declared = [f"  {'output' if p.out else 'input'} wire {_range(p.bits)}{p.name}" for p in ports]
    body, pins = [], ["    .clk(clk)", "    .rst(rst)"]
    for port in ports:
        net = port.name
        if not port.core and port.out:
            body.append(f"  assign {port.name} = {port.bits}'d{port.value};")
        elif port.core and port.core != port.bits:  # only outputs: addresses and lengths
            net = f"core_{port.name}"
            body.append(f"  wire {_range(port.core)}{net};")
            missing = port.bits - port.core
            value = f"{{{missing}'d0, {net}}}" if missing > 0 else f"{net}{_range(port.bits)}"
            body.append(f"  assign {port.name} = {value.strip()};")
        if port.core:
            pins.append(f"    .{port.name}({net})")
    name = VLNV.split(":")[2]
    return "\n".join(
        [
            "`default_nettype none",
            f"module {name} (",
            ",\n".join(declared),
            ");",
            "  reg rst = 1'b1;",
            "  always @(posedge clk) rst <= ~resetn;",
            *body,
            "  top core (",
            ",\n".join(pins),
            "  );",
            "endmodule",
            "`default_nettype wire",
            "",
        ]
    )

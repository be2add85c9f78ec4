"""The registers behind the control port."""

from __future__ import annotations

from amaranth.hdl import Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import registers
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.axi import lite
from tokenfabric.rtl.control import RegisterPort, register_values

__all__ = ["COMMANDS", "STEADY", "WRITTEN", "Registers", "live_names"]

GROUP = 64  # bytes of registers that are read by one multiplexer
COMMANDS = ("start", "stop", "reset")  # bits of CONTROL
# Those that the host writes, and what they hold before: no watchdog period is too short to start,
# and nothing has ended that the host has not seen.
WRITTEN = {
    "WINDOW_BASE": 0,
    "WINDOW_SIZE": 0,
    "JOB_BASE": 0,
    "JOB_SIZE": 0,
    "WATCHDOG": 1 << 20,
    "HEARTBEAT": 0,
    "SEEN": 1 << 31,
}
STEADY = ("WINDOW_BASE", "WINDOW_SIZE", "JOB_BASE", "JOB_SIZE", "WATCHDOG")  # during a run


def live_names(cfg: FabricConfig) -> list[str]:
    """Registers that show what the fabric does."""
    counters = [f"{name}_{half}" for name, _ in registers.COUNTERS for half in ("LO", "HI")]
    beats = [*(f"READ_BEATS_{p}" for p in range(cfg.ports)), "WRITE_BEATS"]
    return ["STATUS", "ERROR", "PC", "RING_BASE", "RING_HEAD", *counters, *beats]


class Registers(wiring.Component):
    """``registers.REGISTERS`` on an AXI4-Lite port: one access at a time, never an error response.

    A register written has its value two cycles after address and data were taken. What is read is
    what it was three cycles before the response; reads of what does not exist give 0.

    Members
    -------
    bus : AXI4-Lite slave
    status, error, pc .. : in, 32 bits for each of ``live_names``, by its name in lower case
    written : out, 32 bits for each of WRITTEN, by name
    start, stop, reset : out, strobes: the bits of a word written to CONTROL, at most one at a time:
        reset before stop before start
    locked : in, writes to the registers of STEADY are ignored
    rst : in, the registers return to what they held first; an access under way goes on
    touched : out, strobe: an access begins
    sat_class : out, of the counter that is asked for, combinational
    sat_count : in, that counter, in the cycle of ``sat_class``
    """

    def __init__(self, cfg: FabricConfig):
        self.fingerprint, self.live = int(cfg.fingerprint, 16), live_names(cfg)
        written = {name: Out(32, init=init) for name, init in WRITTEN.items()}
        super().__init__(
            {
                "bus": In(lite(RegisterPort.ADDR_BITS)),
                **{name.lower(): In(32) for name in self.live},
                "written": Out(wiring.Signature(written)),
                **{name: Out(1) for name in COMMANDS},
                "locked": In(1),
                "rst": In(1),
                "touched": Out(1),
                "sat_class": Out(4),
                "sat_count": In(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.port = port = RegisterPort()
        wiring.connect(m, wiring.flipped(self.bus), port.bus)
        first = registers.offset("SATURATED_0")
        saturated = Signal(32)
        m.d.comb += self.sat_class.eq((port.read_addr - first) >> 2)
        m.d.sync += [saturated.eq(self.sat_count), port.read_data.eq(0)]
        # The register within each group of GROUP bytes, then the group.
        within = (GROUP - 1).bit_length()
        for number, values in self._groups().items():
            chosen = Signal(32, name=f"group_{number}")
            m.d.sync += chosen.eq(0)
            with m.Switch(port.read_addr[:within]):
                for offset, value in values:
                    with m.Case(offset):
                        m.d.sync += chosen.eq(value)
            with m.If(port.read_addr[within:] == number):
                m.d.sync += port.read_data.eq(chosen)
        with m.If(port.read_addr >= first):
            m.d.sync += port.read_data.eq(saturated)
        m.d.sync += self.touched.eq((self.bus.awvalid & self.bus.awready) | self.bus.arvalid)
        self._write(m, port)
        return m

    def _write(self, m: Module, port: RegisterPort) -> None:
        """What a written word does."""
        commands = [getattr(self, name) for name in COMMANDS]
        m.d.sync += [command.eq(0) for command in commands]
        with m.If(port.write_en):
            with m.Switch(port.write_addr):
                with m.Case(registers.offset("CONTROL")):
                    for bit, command in enumerate(commands):
                        first = ~port.write_data[bit + 1 : len(commands)].any()
                        m.d.sync += command.eq(port.write_data[bit] & first)
                for name in WRITTEN:
                    with m.Case(registers.offset(name)):
                        with m.If(~self.locked if name in STEADY else Const(1)):
                            m.d.sync += getattr(self.written, name).eq(port.write_data)
        with m.If(self.rst):
            m.d.sync += [command.eq(0) for command in commands]
            m.d.sync += [getattr(self.written, name).eq(WRITTEN[name]) for name in WRITTEN]

    def _groups(self) -> dict[int, list]:
        """By group, the offsets in it and what they read."""
        live = {name: getattr(self, name.lower()) for name in self.live}
        live |= {name: getattr(self.written, name) for name in WRITTEN}
        fixed = {
            "IDENT": registers.IDENT,
            "ABI": registers.ABI_VERSION,
            "FINGERPRINT_LO": self.fingerprint & 0xFFFFFFFF,
            "FINGERPRINT_HI": self.fingerprint >> 32,
        }
        groups: dict[int, list] = {}
        for offset, value in register_values(fixed, live):
            groups.setdefault(offset // GROUP, []).append((offset % GROUP, value))
        return groups

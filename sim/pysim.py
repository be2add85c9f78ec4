"""The design in Amaranth's own simulator: nothing to build, some hundred cycles a second."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Cat
from amaranth.sim import Simulator
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.top import Top
from tokenfabric.sim.axi_monitor import AxiProtocolError
from tokenfabric.sim.pysim_memory import OKAY, AxiMemory
from tokenfabric.sim.verilator import DEFAULT_BASE, RegisterError

__all__ = ["PysimBus"]

LATENCY = 10
STALLS = 0.1  # of the memory, so that the rules of waiting are checked, too
LITE_CYCLES = 1000  # a register access without an answer by then never gets one
ADVANCE_CYCLES = 200


class PysimBus:
    """``rtl.top.Top`` of ``cfg`` as a bus for ``host.driver.RegisterDevice``.

    ``memory``: the bulk window and the job window, one after the other from bus address ``base``
    on. ``cycles``: simulated so far. The AXI rules are checked on every port; a call during which
    one is broken raises ``AxiProtocolError``, and the device is of no use after that.
    """

    def __init__(self, cfg: FabricConfig, sizes: tuple[int, int], base: int = DEFAULT_BASE):
        memory = np.zeros(sum(sizes), np.uint8)
        self.bases, self.memory = (base, base + sizes[0]), np.split(memory, [sizes[0]])
        self.cycles, self.irq = 0, 1
        self._top = top = Top(cfg)
        self._request: tuple[bool, int, int] | None = None  # (write, offset, value)
        self._answer: tuple[int, int] | None = None  # (response, data)
        self._sim = Simulator(top)
        self._sim.add_clock(1e-6 / cfg.clock_mhz)
        self._sim.add_process(self._master)
        ports = [getattr(top, f"m_axi_hp{p}") for p in range(cfg.ports)]
        slaves = AxiMemory(ports, memory, base=base, latency=LATENCY, stalls=STALLS)
        slaves.add_to(self._sim)

    async def _master(self, ctx: Any) -> None:
        """Makes the accesses that ``_request`` asks for, and counts cycles."""
        bus = self._top.s_axi_ctrl
        waiting: list = []  # (valid, its ready's index) of the access under way
        channels = {
            True: (bus.awaddr, bus.bready, [(bus.awvalid, 0), (bus.wvalid, 1)]),
            False: (bus.araddr, bus.rready, [(bus.arvalid, 2)]),
        }
        ctx.set(bus.wstrb, 15)
        begun = False
        ready = Cat(bus.awready, bus.wready, bus.arready)
        answers = (bus.bvalid, Cat(bus.bresp, bus.rdata), bus.rvalid, Cat(bus.rresp, bus.rdata))
        trigger = ctx.tick().sample(self._top.irq, ready, *answers)
        async for _, _, self.irq, readies, bvalid, b, rvalid, r in trigger:
            self.cycles += 1
            if self._request is None:
                if bvalid or rvalid:
                    raise AxiProtocolError(f"cycle {self.cycles}: registers: unasked response")
                continue
            write, offset, value = self._request
            address, take, valids = channels[write]
            if not begun:
                begun, waiting = True, list(valids)
                for signal, to in ((address, offset), (bus.wdata, value), (take, 1)):
                    ctx.set(signal, to)
                for valid, _ in waiting:
                    ctx.set(valid, 1)
                continue
            for valid, index in waiting:
                if readies >> index & 1:
                    ctx.set(valid, 0)
            waiting = [entry for entry in waiting if not readies >> entry[1] & 1]
            if bvalid if write else rvalid:
                if waiting:
                    raise AxiProtocolError(f"cycle {self.cycles}: registers: early response")
                ctx.set(take, 0)
                response = b if write else r
                self._answer, self._request, begun = (response & 3, response >> 2), None, False

    def _step(self) -> None:
        self._sim.advance()  # half a clock cycle
        self._sim.advance()

    def flush(self, window: int) -> None:
        """Nothing to do: there is one copy of the memory."""

    def invalidate(self, window: int) -> None:
        """Nothing to do."""

    def advance(self) -> None:
        """A few hundred cycles, fewer if there is news."""
        for _ in range(ADVANCE_CYCLES):
            self._step()
            if self.irq:
                return

    def read32(self, offset: int) -> int:
        """A register, in simulated time."""
        return self._access(False, offset, 0)

    def write32(self, offset: int, value: int) -> None:
        """Set a register, in simulated time."""
        self._access(True, offset, value)

    def _access(self, write: bool, offset: int, value: int) -> int:
        self._answer, self._request = None, (write, offset, value)
        for _ in range(LITE_CYCLES):
            self._step()
            if self._answer is not None:
                self._step()  # the design sees that its answer was taken
                response, data = self._answer
                if response != OKAY:
                    raise RegisterError(f"register {offset:#x}: error response {response}")
                return data
        raise RegisterError(f"register {offset:#x}: no answer within {LITE_CYCLES} cycles")

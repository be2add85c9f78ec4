"""The design in Amaranth's own simulator: nothing to build, about a thousand cycles a second.

Memory slaves, AXI4-Lite master and a check of the AXI rules are one process that runs once a cycle.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.sim import Simulator
from tokenfabric.rtl.top import Top
from tokenfabric.sim.verilator import DEFAULT_BASE, AxiProtocolError, RegisterError

from tokenfabric.config import BURST_BEATS, FabricConfig

__all__ = ["PysimBus"]

LATENCY = (
    10  # cycles from a read address to its first beat, from the last beat written to its answer
)
QUEUE = 8  # bursts a port takes ahead
LITE_CYCLES = 1000  # a register access without an answer by then never gets one
ADVANCE_CYCLES = 200
OKAY, DECERR = 0, 3


def _address(port, channel: str):
    """The address channel as one value: what must not change while it waits."""
    names = ("valid", "addr", "len", "size", "burst")
    return Cat(getattr(port, f"a{channel}{name}") for name in names)


class _Channel:
    """What an address or data channel showed, checked: valid stays with its payload until ready.

    The channel's value has valid in bit 0. ``ready`` is what the slave drives.
    """

    def __init__(self, name: str, ready):
        self.name, self.pin, self.ready, self.waiting = name, ready, 0, 0

    def transfer(self, value: int) -> bool:
        if self.waiting and value != self.waiting:
            what = "changed" if value & 1 else "valid dropped"
            raise AxiProtocolError(f"{self.name} {what} before ready")
        done = value & 1 & self.ready
        self.waiting = 0 if done or not value & 1 else value
        return bool(done)

    def set_ready(self, ctx, ready: bool) -> None:
        if ready != self.ready:
            self.ready = int(ready)
            ctx.set(self.pin, self.ready)


class _Memory:
    """The window, and how a burst's address lies in it."""

    def __init__(self, memory: np.ndarray, base: int, port_bytes: int):
        self.memory, self.base, self.port_bytes = memory, base, port_bytes

    def burst(self, name: str, value: int) -> tuple[int, int, int]:
        """(offset, beats, response) of an address channel's value; AxiProtocolError for a bad one."""
        addr, beats = value >> 1 & 0xFFFFFFFF, (value >> 33 & 0xFF) + 1
        size, burst = value >> 41 & 7, value >> 44
        count = beats * self.port_bytes
        text = f"{name} of {beats} beats at {addr:#010x}"
        if beats > BURST_BEATS or 1 << size != self.port_bytes or burst != 1:
            raise AxiProtocolError(f"{text}: size {size}, type {burst}")
        if addr % self.port_bytes or addr % 4096 + count > 4096:
            raise AxiProtocolError(f"{text} is not aligned or crosses 4 KB")
        at = addr - self.base
        return at, beats, OKAY if 0 <= at <= len(self.memory) - count else DECERR


class _Reads:
    """The read channels of one port: bursts answered in order, a beat per cycle."""

    def __init__(self, port, name: str, memory: _Memory):
        self.port, self.name, self.memory = port, name, memory
        self.address = _Channel(f"{name}: ar", port.arready)
        self.beats: deque = deque()  # (due, data, last, response)
        self.bursts = 0  # in flight
        self.shown = False
        self.samples = (_address(port, "r"), port.rready)

    def step(self, ctx, now: int, address: int, rready: int) -> None:
        if self.address.transfer(address):
            self._take(now, address)
        # Ready falls after every burst, so that waiting addresses are seen.
        self.address.set_ready(ctx, self.bursts < QUEUE and not self.address.ready)
        if self.shown and rready:
            self.bursts -= self.beats.popleft()[2]
            self.shown = False
            ctx.set(self.port.rvalid, 0)
        if not self.shown and self.beats and self.beats[0][0] <= now:
            _, data, last, response = self.beats[0]
            self.shown = True
            ctx.set(self.port.rvalid, 1)
            ctx.set(self.port.rdata, data)
            ctx.set(self.port.rlast, last)
            ctx.set(self.port.rresp, response)

    def _take(self, now: int, address: int) -> None:
        at, beats, response = self.memory.burst(f"{self.name}: read", address)
        size = self.memory.port_bytes
        data = bytes(size * beats)
        if response == OKAY:
            data = self.memory.memory[at : at + size * beats].tobytes()
        self.bursts += 1
        for i in range(beats):
            beat = int.from_bytes(data[i * size : (i + 1) * size], "little")
            self.beats.append((now + LATENCY, beat, int(i == beats - 1), response))


class _Writes:
    """The write channels of one port: a burst is in memory when it is answered."""

    def __init__(self, port, name: str, memory: _Memory):
        self.port, self.name, self.memory = port, name, memory
        self.address = _Channel(f"{name}: aw", port.awready)
        self.data = _Channel(f"{name}: w", port.wready)
        # Data may come before its address: AXI allows it.
        self.bursts: deque = deque()  # (offset, beats, response): announced
        self.bodies: deque = deque()  # lists of (data, strobe): complete
        self.beats: list = []  # of the body under way
        self.answers: deque = deque()  # (due, burst, body)
        self.shown = False
        beat = Cat(port.wvalid, port.wlast, port.wstrb, port.wdata)
        self.samples = (_address(port, "w"), beat, port.bready)

    def step(self, ctx, now: int, address: int, beat: int, bready: int) -> None:
        if self.address.transfer(address):
            self.bursts.append(self.memory.burst(f"{self.name}: write", address))
        if self.data.transfer(beat):
            self._take(beat)
        if self.bursts and self.bodies:
            self._match(now)
        self.address.set_ready(ctx, len(self.bursts) < QUEUE and not self.address.ready)
        self.data.set_ready(ctx, now % 4 != 0)
        if self.shown and bready:
            self.shown = False
            ctx.set(self.port.bvalid, 0)
        if not self.shown and self.answers and self.answers[0][0] <= now:
            _, (at, _, response), beats = self.answers.popleft()
            if response == OKAY:
                self._store(at, beats)
            self.shown = True
            ctx.set(self.port.bvalid, 1)
            ctx.set(self.port.bresp, response)

    def _take(self, beat: int) -> None:
        size = self.memory.port_bytes
        self.beats.append((beat >> 2 + size, beat >> 2 & (1 << size) - 1))
        if beat >> 1 & 1:
            self.bodies.append(self.beats)
            self.beats = []

    def _match(self, now: int) -> None:
        burst, body = self.bursts.popleft(), self.bodies.popleft()
        if len(body) != burst[1]:
            raise AxiProtocolError(f"{self.name}: wlast at beat {len(body)} of {burst[1]}")
        self.answers.append((now + LATENCY, burst, body))

    def _store(self, at: int, beats: list) -> None:
        size = self.memory.port_bytes
        for number, (data, strobe) in enumerate(beats):
            for i in range(size):
                if strobe >> i & 1:
                    self.memory.memory[at + number * size + i] = data >> 8 * i & 0xFF


class _Lite:
    """The master of the register port: one access at a time, set by ``begin``."""

    def __init__(self, port):
        self.port = port
        self.request: tuple[bool, int, int] | None = None
        self.answer: tuple[int, int] | None = None  # (response, data)
        self.pending: list = []  # (valid pin, index of its ready in the samples)
        self.samples = (
            Cat(port.awready, port.wready, port.arready),
            Cat(port.bvalid, port.bresp),
            Cat(port.rvalid, port.rresp, port.rdata),
        )

    def step(self, ctx, now: int, ready: int, written: int, read: int) -> None:
        port = self.port
        if self.request is None:
            if (written | read) & 1:
                raise AxiProtocolError("s_axi_ctrl: response without a request")
            return
        write, offset, value = self.request
        if not self.pending and self.answer is None:
            pins = ((port.awvalid, 0), (port.wvalid, 1)) if write else ((port.arvalid, 2),)
            self.pending = [*pins, None]
            ctx.set(port.awaddr if write else port.araddr, offset)
            ctx.set(port.wdata, value)
            ctx.set(port.wstrb, 15)
            for pin in (port.bready if write else port.rready, *(pin for pin, _ in pins)):
                ctx.set(pin, 1)
            return
        for entry in self.pending[:-1]:
            if ready >> entry[1] & 1:
                ctx.set(entry[0], 0)
                self.pending.remove(entry)
        response = written if write else read
        if response & 1:
            if len(self.pending) > 1:
                raise AxiProtocolError("s_axi_ctrl: response before its request was taken")
            ctx.set(port.bready if write else port.rready, 0)
            self.answer = response >> 1 & 3, response >> 3
            self.request, self.pending = None, []


class PysimBus:
    """``rtl.top.Top`` of ``cfg`` as a bus for ``host.driver.RegisterDevice``.

    ``memory`` is uint8, ``memory_bytes`` long, at bus address ``base``. ``cycles``: simulated so far.
    ``AxiProtocolError`` as soon as the design breaks a rule of AXI, and in every call from then on.
    """

    def __init__(self, cfg: FabricConfig, memory_bytes: int, base: int = DEFAULT_BASE):
        self.base, self.memory = base, np.zeros(memory_bytes, np.uint8)
        self.cycles, self.irq = 0, 1
        top = Top(cfg)
        memory = _Memory(self.memory, base, cfg.port_bytes)
        ports = [getattr(top, f"m_axi_hp{p}") for p in range(cfg.ports)]
        self._lite = _Lite(top.s_axi_ctrl)
        self._slaves = [
            self._lite,
            _Writes(ports[0], "m_axi_hp0", memory),
            *(_Reads(port, f"m_axi_hp{p}", memory) for p, port in enumerate(ports)),
        ]
        # One signal of all that the process looks at: sampling many costs more than the slaves do.
        samples, at, self._fields = [top.irq], 1, []
        for slave in self._slaves:
            self._fields.append([])
            for sample in slave.samples:
                self._fields[-1].append((at, len(sample)))
                samples.append(sample)
                at += len(sample)
        self._pins, self._broken = Signal(at), ""
        m = Module()
        m.submodules.top = top
        m.d.comb += self._pins.eq(Cat(samples))
        self._sim = Simulator(m)
        self._sim.add_clock(1e-6 / cfg.clock_mhz)
        self._sim.add_process(self._run)

    async def _run(self, ctx) -> None:
        fields = [
            [(at, (1 << width) - 1) for at, width in slave_fields] for slave_fields in self._fields
        ]
        async for _, _, pins in ctx.tick().sample(self._pins):
            self.cycles += 1
            self.irq = pins & 1
            try:
                for slave, parts in zip(self._slaves, fields):
                    slave.step(ctx, self.cycles, *(pins >> at & mask for at, mask in parts))
            except AxiProtocolError as error:
                self._broken = f"cycle {self.cycles}: {error}"
                return

    def _step(self) -> None:
        self._sim.advance()  # half a clock cycle
        self._sim.advance()
        if self._broken:
            raise AxiProtocolError(self._broken)

    def advance(self) -> None:
        """A few hundred cycles, fewer if the run ends."""
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
        self._lite.answer, self._lite.request = None, (write, offset, value)
        for _ in range(LITE_CYCLES):
            self._step()
            if self._lite.answer is not None:
                self._step()  # takes ready down
                response, data = self._lite.answer
                if response:
                    raise RegisterError(f"register {offset:#x}: error response {response}")
                return data
        raise RegisterError(f"register {offset:#x}: no answer within {LITE_CYCLES} cycles")

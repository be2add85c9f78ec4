"""The AXI rules for masters, checked in pysim; ``harness.cpp`` checks the same in Verilator.

A ``port`` is any object with the signals of :mod:`tokenfabric.rtl.axi` as attributes: the read
channels, the write channels, or both.
"""

from __future__ import annotations

from collections import deque
from typing import Any

MAX_BEATS = 16
PAGE = 4096
INCR = 1


class SimulationError(RuntimeError):
    """The simulated design did what it must not."""


class AxiProtocolError(SimulationError):
    """The design broke a rule of AXI; the text says cycle, port and rule."""


async def watch(ctx: Any, port: Any, name: str = "port", domain: str = "sync") -> None:
    """A process (``Simulator.add_process``) that raises ``AxiProtocolError`` at the first breach.

    Checked: valid and its payload stay until ready; bursts are INCR, of full width and aligned, at
    most 16 beats, within a 4 KB page; wlast stands at the announced beat and only there. Write data
    may come before its address. A reset forgets what was under way.
    """
    checks: list[_Reads | _Writes] = []
    if hasattr(port, "arvalid"):
        checks.append(_Reads(name, len(port.rdata) // 8))
    if hasattr(port, "awvalid"):
        checks.append(_Writes(name, len(port.wdata) // 8))
    signals = [getattr(port, signal) for check in checks for signal in check.SIGNALS]
    cycle = 0
    async for _, reset, *values in ctx.tick(domain).sample(*signals):
        for check in checks:
            count = len(check.SIGNALS)
            if reset:
                check.clear()
            else:
                check.step(cycle, *values[:count])
            values = values[count:]
        cycle += 1


class _Channel:
    """Valid and payload stay until ready."""

    def __init__(self, name: str, channel: str):
        self.name, self.channel = name, channel
        self.waiting: tuple | None = None

    def transfer(self, cycle: int, valid: int, ready: int, *payload: int) -> bool:
        if self.waiting is not None and not valid:
            fail(cycle, self.name, f"{self.channel}valid dropped before {self.channel}ready")
        if self.waiting not in (None, payload):
            fail(cycle, self.name, f"payload of {self.channel} changed before {self.channel}ready")
        self.waiting = payload if valid and not ready else None
        return bool(valid and ready)


class _Reads:
    SIGNALS = ("arvalid", "arready", "araddr", "arlen", "arsize", "arburst")

    def __init__(self, name: str, port_bytes: int):
        self.name, self.port_bytes = name, port_bytes
        self.clear()

    def clear(self) -> None:
        self.address = _Channel(self.name, "ar")

    def step(self, cycle: int, valid: int, ready: int, *burst: int) -> None:
        if valid and self.address.waiting is None:
            check_burst(cycle, self.name, "ar", self.port_bytes, *burst)
        self.address.transfer(cycle, valid, ready, *burst)


class _Writes:
    SIGNALS = ("awvalid", "awready", "awaddr", "awlen", "awsize", "awburst",
               "wvalid", "wready", "wdata", "wstrb", "wlast")  # fmt: skip

    def __init__(self, name: str, port_bytes: int):
        self.name, self.port_bytes = name, port_bytes
        self.clear()

    def clear(self) -> None:
        self.address, self.data = _Channel(self.name, "aw"), _Channel(self.name, "w")
        self.announced: deque[int] = deque()  # beats of bursts whose data is not complete
        self.complete: deque[int] = deque()  # beats of bursts whose address has not come
        self.beats = 0

    def step(self, cycle: int, awvalid: int, awready: int, *values: int) -> None:
        burst, (wvalid, wready, *beat) = values[:4], values[4:]
        if awvalid and self.address.waiting is None:
            check_burst(cycle, self.name, "aw", self.port_bytes, *burst)
        if self.address.transfer(cycle, awvalid, awready, *burst):
            self._address(cycle, burst[1] + 1)
        if self.data.transfer(cycle, wvalid, wready, *beat):
            self._beat(cycle, last=beat[-1])

    def _address(self, cycle: int, beats: int) -> None:
        if not self.complete:
            self.announced.append(beats)
            written = self.beats if len(self.announced) == 1 else 0
            if written >= beats:
                self._mismatch(cycle, written, beats)
        elif (written := self.complete.popleft()) != beats:
            self._mismatch(cycle, written, beats)

    def _mismatch(self, cycle: int, written: int, beats: int) -> None:
        text = f"{written} beats written before an address that announces {beats}"
        fail(cycle, self.name, text)

    def _beat(self, cycle: int, last: int) -> None:
        beats = self.announced[0] if self.announced else MAX_BEATS
        self.beats += 1
        early = last and self.announced and self.beats < beats
        if early or (not last and self.beats >= beats):
            fail(
                cycle, self.name, f"wlast is {last} at beat {self.beats - 1} of a burst of {beats}"
            )
        if last:
            if self.announced:
                self.announced.popleft()
            else:
                self.complete.append(self.beats)
            self.beats = 0


def check_burst(
    cycle: int,
    name: str,
    channel: str,
    port_bytes: int,
    addr: int,
    len_: int,
    size: int,
    burst: int,
) -> None:
    """Raises ``AxiProtocolError`` for a burst that the memory ports of a Zynq do not take."""
    count = (len_ + 1) * port_bytes
    if len_ >= MAX_BEATS:
        fail(cycle, name, f"{channel}len is {len_}, the ports take at most {MAX_BEATS} beats")
    if 1 << size != port_bytes:
        fail(cycle, name, f"{channel}size is {size}, not the full width of {port_bytes} bytes")
    if burst != INCR:
        fail(cycle, name, f"{channel}burst is {burst}, not INCR")
    if addr % port_bytes:
        fail(cycle, name, f"{channel}addr {addr:#010x} is not aligned to {port_bytes} bytes")
    if addr % PAGE + count > PAGE:
        fail(cycle, name, f"{count} bytes at {channel}addr {addr:#010x} cross a 4 KB boundary")


def fail(cycle: int, name: str, text: str) -> None:
    raise AxiProtocolError(f"cycle {cycle}: {name}: {text}")

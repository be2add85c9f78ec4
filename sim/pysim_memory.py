"""Memory behind AXI master ports in pysim: numpy on one side, handshakes on the other.

For tests of units. No DRAM timing: a fixed latency, and stalls at random if asked for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import numpy as np
from tokenfabric.sim.axi_monitor import watch

OKAY, SLVERR, DECERR = 0, 2, 3
MAX_BURSTS = 16  # taken per port and direction


class AxiMemory:
    """``memory`` (uint8, first byte at bus address ``base``) for master ``ports``, in place.

    A port is any object with the signals of :mod:`tokenfabric.rtl.axi` as attributes, from the
    master's side. ``latency``: cycles from an address to its first beat and from the last written
    beat to its response. ``stalls``: share of the cycles in which a channel is held back, at random
    from ``seed``. Read bursts whose number (over all ports, from 0) is in ``slverr_reads`` get
    SLVERR; bursts that are not wholly inside get DECERR. Data is read after the latency, and
    written when the response is given. ``reads`` and ``writes`` list the bursts as
    (port, address, beats). AXI rules are checked with :func:`~tokenfabric.sim.axi_monitor.watch`.
    """

    def __init__(
        self,
        ports: Sequence[Any],
        memory: np.ndarray,
        *,
        base: int = 0,
        latency: int = 4,
        stalls: float = 0,
        seed: int = 1,
        slverr_reads: Collection[int] = (),
    ):
        self.ports, self.memory, self.base = ports, memory, base
        self.latency, self.stalls, self.seed = latency, stalls, seed
        self.slverr_reads = slverr_reads
        self.reads: list[tuple[int, int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def add_to(self, sim: Any, domain: str = "sync") -> None:
        """Adds the slaves and monitors to an ``amaranth.sim.Simulator``."""
        for index, port in enumerate(self.ports):
            if hasattr(port, "arvalid"):
                sim.add_process(partial(self._serve_reads, index=index, domain=domain))
            if hasattr(port, "awvalid"):
                sim.add_process(partial(self._serve_writes, index=index, domain=domain))
            sim.add_process(partial(watch, port=port, name=f"port {index}", domain=domain))

    def _inside(self, address: int, count: int) -> bool:
        return 0 <= address - self.base <= self.memory.size - count

    async def _serve_reads(self, ctx: Any, index: int, domain: str) -> None:
        port, rng = self.ports[index], random.Random(f"{self.seed} r {index}")
        width = len(port.rdata) // 8
        bursts: deque = deque()  # (due, address, beats, response)
        beats: deque = deque()  # (data, last, response) of the burst on the bus
        arready = rvalid = now = 0
        sampled = (port.arvalid, port.araddr, port.arlen, port.rready)
        async for _, reset, arvalid, address, length, rready in ctx.tick(domain).sample(*sampled):
            now += 1
            if arvalid and arready:
                response = OKAY if self._inside(address, (length + 1) * width) else DECERR
                if len(self.reads) in self.slverr_reads:
                    response = SLVERR
                self.reads.append((index, address, length + 1))
                bursts.append((now + self.latency, address, length + 1, response))
            if rvalid and rready:
                beats.popleft()
                rvalid = 0
            if reset:
                bursts.clear()
                beats.clear()
                rvalid = 0
            if not beats and bursts and bursts[0][0] <= now:
                beats.extend(self._fetch(width, *bursts.popleft()[1:]))
            rvalid = int(rvalid or (bool(beats) and rng.random() >= self.stalls))
            arready = int(len(bursts) < MAX_BURSTS and not reset and rng.random() >= self.stalls)
            ctx.set(port.arready, arready)
            ctx.set(port.rvalid, rvalid)
            if rvalid:
                for signal, value in zip((port.rdata, port.rlast, port.rresp), beats[0]):
                    ctx.set(signal, value)

    def _fetch(self, width: int, address: int, beats: int, response: int) -> list[tuple]:
        start = address - self.base
        data = bytes(beats * width)
        if response == OKAY:
            data = self.memory[start : start + beats * width].tobytes()
        words = [data[i * width : (i + 1) * width] for i in range(beats)]
        return [
            (int.from_bytes(w, "little"), i == beats - 1, response) for i, w in enumerate(words)
        ]

    async def _serve_writes(self, ctx: Any, index: int, domain: str) -> None:
        port, rng = self.ports[index], random.Random(f"{self.seed} w {index}")
        bursts: deque = deque()  # (address, beats)
        bodies: deque = deque()  # (due, beats); a beat is (data, strobes)
        body: list = []
        awready = wready = bvalid = now = 0
        sampled = (port.awvalid, port.awaddr, port.awlen, port.wvalid, port.wdata, port.wstrb,
                   port.wlast, port.bready)  # fmt: skip
        async for _, reset, awvalid, address, length, *values in ctx.tick(domain).sample(*sampled):
            wvalid, data, strobes, last, bready = values
            now += 1
            if awvalid and awready:
                self.writes.append((index, address, length + 1))
                bursts.append((address, length + 1))
            if wvalid and wready:
                body.append((data, strobes))
                if last:
                    bodies.append((now + self.latency, body))
                    body = []
            if bvalid and bready:
                bvalid = 0
            if reset:
                bursts.clear()
                bodies.clear()
                body, bvalid = [], 0
            answer = bursts and bodies and bodies[0][0] <= now and rng.random() >= self.stalls
            if not bvalid and answer:
                bvalid = 1
                ctx.set(port.bresp, self._store(bursts.popleft()[0], bodies.popleft()[1], port))
            awready = int(len(bursts) < MAX_BURSTS and not reset and rng.random() >= self.stalls)
            wready = int(len(bodies) < MAX_BURSTS and not reset and rng.random() >= self.stalls)
            for signal, value in zip(
                (port.awready, port.wready, port.bvalid), (awready, wready, bvalid)
            ):
                ctx.set(signal, value)

    def _store(self, address: int, beats: list[tuple[int, int]], port: Any) -> int:
        width = len(port.wdata) // 8
        if not self._inside(address, len(beats) * width):
            return DECERR
        for number, (data, strobes) in enumerate(beats):
            start = address - self.base + number * width
            for i in range(width):
                if strobes >> i & 1:
                    self.memory[start + i] = data >> 8 * i & 255
        return OKAY

# amaranth: UnusedElaboratable=no
"""Watchdog and supervisor against a plain model, cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.core.registers import Error, State
from tokenfabric.rtl.control import Supervisor, Watchdog


def simulate(dut, bench) -> None:
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_watchdog_counts_cycles_without_progress(limit):
    rng = np.random.default_rng(limit)
    dut = Watchdog()

    async def bench(ctx):
        ctx.set(dut.limit, limit)
        idle, bites = 0, False
        for _ in range(400):
            progress, clear = rng.random() < 0.15, rng.random() < 0.03
            ctx.set(dut.progress, int(progress))
            ctx.set(dut.clear, int(clear))
            assert ctx.get(dut.bites) == bites
            await ctx.tick()
            bites = not clear and limit != 0 and idle >= limit
            idle = 0 if clear or progress else idle + 1

    simulate(dut, bench)


@dataclass
class Plain:
    """What the supervisor must do, as sentences in Python: one call a cycle."""

    phase: str = "IDLE"
    state: int = State.IDLE
    code: int = 0
    port: int = 0
    stopping: bool = False
    begun: bool = False
    idle: int = 0
    bites: bool = False
    quiet: bool = False  # a cycle ago
    settled: int = 0
    ending: int = 0
    halt: bool = True
    unit_reset: bool = False
    given_up: bool = False
    resetting: int = 0  # cycles in RESET
    silent: int = 0
    silence: bool = False  # too long

    def shown(self) -> dict[str, int]:
        return {
            "state": self.state, "code": self.code, "code_port": self.port, "halt": self.halt,
            "begun": self.begun, "stop_steps": self.stopping, "unit_reset": self.unit_reset,
            "unit_start": self.phase == "START", "running": self.phase == "RUN",
        }  # fmt: skip

    def cycle(self, watchdog: int, heartbeat: int, i: dict[str, int]) -> None:
        bites, phase, clear = self.bites, self.phase, False
        stopped, given_up, silence = self.stopping, self.given_up, self.silence
        self.halt, self.unit_reset = phase != "RUN", phase == "RESET" and self.resetting < 32
        if phase != "IDLE":
            self.stopping |= bool(i["stop"])
            self.given_up |= bool(i["reset"])
        if phase == "IDLE" and i["start"]:
            self.state, self.code, self.port = State.RUNNING, 0, 0
            self.stopping = self.given_up = self.begun = False
            self.phase, clear = "QUIET", True
        elif phase == "QUIET":
            if self.quiet:
                self.phase, self.resetting = "RESET", -1
            elif bites:
                self.state, self.code, self.phase = State.ERROR, Error.WATCHDOG, "IDLE"
        elif phase == "RESET":
            clear = True
            if self.resetting == 63:
                self.phase = "START"
        elif phase == "START":
            self.begun, self.phase = True, "RUN"
        elif phase == "RUN":
            if i["error"]:
                self.code, self.port = i["error"], i["port"]
                self.ending, self.phase = State.ERROR, "HALT"
            elif i["finished"]:
                self.ending = State.STOPPED if stopped else State.DONE
                self.phase = "HALT"
            elif given_up:
                self.ending, self.phase = State.IDLE, "HALT"
            elif bites or silence:
                self.code = Error.WATCHDOG if bites else Error.SILENT
                self.ending, self.phase = State.ERROR, "HALT"
        elif phase == "HALT":
            self.phase, clear = "DRAIN", True
        elif phase == "DRAIN":
            if self.settled == 7:
                self.state, self.phase = self.ending, "IDLE"
            elif bites:
                self.state, self.phase = State.ERROR, "IDLE"
                self.code = self.code or Error.WATCHDOG
            self.settled = (self.settled + 1) % 8 if self.quiet else 0
        self.resetting += 1
        limit = watchdog or (1 << 15 if phase in ("QUIET", "DRAIN") else 0)
        self.bites = not clear and limit != 0 and self.idle >= limit
        self.idle = 0 if clear or i["progress"] else self.idle + 1
        self.silence = phase != "IDLE" and heartbeat != 0 and self.silent >= heartbeat
        self.silent = 0 if phase == "IDLE" or i["touched"] else self.silent + 1
        self.quiet = bool(i["quiet"])


RATES = {
    "busy": {"start": 0.2, "quiet": 0.9, "progress": 0.5, "finished": 0.05, "error": 0.02},
    "stuck ports": {"start": 0.2, "quiet": 0.1, "progress": 0.05, "finished": 0.05, "reset": 0.005},
    "impatient": {"start": 0.3, "quiet": 0.8, "stop": 0.1, "finished": 0.1, "reset": 0.01},
    "hung": {"start": 0.2, "quiet": 0.7, "progress": 0.02},
    "left alone": {"start": 0.2, "quiet": 0.9, "progress": 0.5, "touched": 0.02},
}


@pytest.mark.parametrize("watchdog", [0, 12])
@pytest.mark.parametrize("name", RATES)
def test_every_cycle_of_the_supervisor(name, watchdog):
    rng = np.random.default_rng([watchdog, len(name)])
    dut, plain, heartbeat = Supervisor(), Plain(), 90 if name == "left alone" else 0
    seen, codes = set(), set()

    async def bench(ctx):
        ctx.set(dut.watchdog, watchdog)
        ctx.set(dut.heartbeat, heartbeat)
        for cycle in range(4_000):
            inputs = {
                what: int(rng.random() < RATES[name].get(what, 0))
                for what in ("start", "stop", "reset", "progress", "finished", "quiet", "touched")
            }
            wrong = rng.random() < RATES[name].get("error", 0)
            inputs["error"] = int(rng.integers(1, 8)) if wrong else 0
            inputs["port"] = int(rng.integers(0, 4))
            for what, value in inputs.items():
                ctx.set(getattr(dut, what), value)
            wanted = plain.shown()
            found = {what: ctx.get(getattr(dut, what)) for what in wanted}
            assert found == wanted, (cycle, plain.phase)
            seen.add((plain.phase, plain.state))
            codes.add(plain.code)
            await ctx.tick()
            plain.cycle(watchdog, heartbeat, inputs)

    simulate(dut, bench)
    phases = {"IDLE", "QUIET", "RESET", "START", "RUN", "HALT", "DRAIN"}
    if (name, watchdog) != ("hung", 0):  # which nothing ends
        assert {phase for phase, _ in seen} == phases
    if name == "impatient":
        assert ("IDLE", State.STOPPED) in seen and ("IDLE", State.IDLE) in seen
    if name == "left alone":
        assert Error.SILENT in codes
    if name == "hung" and watchdog:
        assert ("IDLE", State.ERROR) in seen

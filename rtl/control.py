"""The control port: registers, counters, and the supervision of a run."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import registers
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.registers import Error, State
from tokenfabric.rtl.axi import lite

__all__ = ["Counters", "RegisterPort", "Supervisor"]


class RegisterPort(wiring.Component):
    """AXI4-Lite slave for ``registers.REGISTERS``: one access at a time, never an error response.

    Members: ``bus`` (In); ``read_addr`` (Out: byte offset), ``read_data`` (In: two cycles later);
    ``write_en``, ``write_addr``, ``write_data`` (Out; only whole words).
    """

    ADDR_BITS = 12

    def __init__(self):
        super().__init__(
            {
                "bus": In(lite(self.ADDR_BITS)),
                "read_addr": Out(self.ADDR_BITS),
                "read_data": In(32),
                "write_en": Out(1),
                "write_addr": Out(self.ADDR_BITS),
                "write_data": Out(32),
            }
        )

    def elaborate(self, platform):
        m = Module()
        bus = self.bus
        with m.FSM(name="write"):
            with m.State("ADDRESS"):  # address and data are taken together
                m.d.comb += [
                    bus.awready.eq(bus.awvalid & bus.wvalid),
                    bus.wready.eq(bus.awvalid & bus.wvalid),
                ]
                m.d.sync += [self.write_addr.eq(bus.awaddr), self.write_data.eq(bus.wdata)]
                m.d.sync += self.write_en.eq(bus.awready & bus.wstrb.all())
                with m.If(bus.awready):
                    m.next = "RESPONSE"
            with m.State("RESPONSE"):
                m.d.comb += bus.bvalid.eq(1)
                m.d.sync += self.write_en.eq(0)
                with m.If(bus.bready):
                    m.next = "ADDRESS"
        with m.FSM(name="read"):
            with m.State("ADDRESS"):
                m.d.comb += bus.arready.eq(1)
                m.d.sync += self.read_addr.eq(bus.araddr)
                with m.If(bus.arvalid):
                    m.next = "LOOK-UP"
            with m.State("LOOK-UP"):
                m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += bus.rdata.eq(self.read_data)
                m.next = "DATA"
            with m.State("DATA"):
                m.d.comb += bus.rvalid.eq(1)
                with m.If(bus.rready):
                    m.next = "ADDRESS"
        return m


class Counters(wiring.Component):
    """One event counter of 64 bits per entry of ``registers.COUNTERS``, 32-bit ones for beats.

    Members: ``clear``, ``run`` (In: counts only while high); ``events``, ``read_beats``,
    ``write_beat`` (In: strobes); ``values`` (Out: dict-like: name -> 32-bit Value in ``value``).
    """

    def __init__(self, cfg: FabricConfig):
        self.ports = cfg.ports
        self.names = [name for name, _ in registers.COUNTERS]
        self.value: dict = {}
        super().__init__(
            {
                "clear": In(1),
                "run": In(1),
                "events": In(len(self.names)),
                "read_beats": In(cfg.ports),
                "write_beat": In(1),
            }
        )
        for name in self.names:
            self.value[name + "_LO"] = Signal(32, name=f"{name.lower()}_lo")
            self.value[name + "_HI"] = Signal(32, name=f"{name.lower()}_hi")
        for port in range(cfg.ports):
            self.value[f"READ_BEATS_{port}"] = Signal(32, name=f"read_beats_{port}")
        self.value["WRITE_BEATS"] = Signal(32, name="write_beats")

    def elaborate(self, platform):
        m = Module()
        for index, name in enumerate(self.names):
            low, high = self.value[name + "_LO"], self.value[name + "_HI"]
            carry = Signal(name=f"{name.lower()}_carry")
            with m.If(self.clear):
                m.d.sync += [low.eq(0), high.eq(0), carry.eq(0)]
            with m.Else():
                m.d.sync += carry.eq(0)
                with m.If(self.run & self.events[index]):
                    m.d.sync += Cat(low, carry).eq(low + 1)
                with m.If(carry):
                    m.d.sync += high.eq(high + 1)
        beats = [(self.value[f"READ_BEATS_{p}"], self.read_beats[p]) for p in range(self.ports)]
        for count, strobe in [*beats, (self.value["WRITE_BEATS"], self.write_beat)]:
            with m.If(self.clear):
                m.d.sync += count.eq(0)
            with m.Elif(self.run & strobe):
                m.d.sync += count.eq(count + 1)
        return m


class Watchdog(wiring.Component):
    """Bites when nothing has moved for too long.

    Members: ``limit`` (In: cycles, 0 never), ``progress`` (In: something moves), ``clear`` (In:
    begin again); ``bites`` (Out: register, a cycle after ``limit`` cycles without progress, until
    cleared or something moves).
    """

    def __init__(self):
        super().__init__({"limit": In(32), "progress": In(1), "clear": In(1), "bites": Out(1)})

    def elaborate(self, platform):
        m = Module()
        idle_cycles = Signal(32)
        with m.If(self.clear):
            m.d.sync += [idle_cycles.eq(0), self.bites.eq(0)]
        with m.Else():
            m.d.sync += [
                idle_cycles.eq(Mux(self.progress, 0, idle_cycles + 1)),
                self.bites.eq((self.limit != 0) & (idle_cycles >= self.limit)),
            ]
        return m


class Supervisor(wiring.Component):
    """Start, end and error of a run, with its watchdog.

    A start waits until no transaction is in flight, resets every unit, and runs. The end, an error,
    the watchdog, a host that is silent, or a reset command halts the memory ports; when what was in
    flight has arrived, the state changes. Commands count from the start on: a stop that comes
    before the units run lets them do one step, a reset none.

    Ports that do not become quiet, before a run or after it, end in ERROR when the watchdog's
    period is over; with a watchdog of 0, after DRAIN cycles.

    RESET holds ``unit_reset`` for RESET_CYCLES, and as long again passes before ``unit_start``: the
    copies of it that come later by less than that are all up at once, and down before.

    Members
    -------
    start, stop, reset : in, strobes, commands; not more than one at a time
    stop_steps : out, level
    watchdog, heartbeat : in, cycles, 0 never
    touched : in, strobe, the host has been heard of
    progress, finished, quiet : in
    error, port : in, code (0 none) and port
    halt, unit_reset, unit_start : out
    state, code, code_port, running : out
    begun : out, the units' state is of this run, and not of the one before because the start still
        waits, or was given up
    """

    DRAIN = 1 << 15
    RESET_CYCLES = 32

    def __init__(self):
        super().__init__(
            {
                "start": In(1),
                "stop": In(1),
                "reset": In(1),
                "stop_steps": Out(1),
                "watchdog": In(32),
                "heartbeat": In(32),
                "touched": In(1),
                "progress": In(1),
                "finished": In(1),
                "error": In(8),
                "port": In(4),
                "quiet": In(1),
                "halt": Out(1, init=1),
                "begun": Out(1),
                "unit_reset": Out(1),
                "unit_start": Out(1),
                "state": Out(3),
                "code": Out(8),
                "code_port": Out(4),
                "running": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.dog = dog = Watchdog()
        m.submodules.heart = heart = Watchdog()
        ending = Signal(3)
        quiet_now = Signal()  # late by a cycle: a burst may be on its way into a port
        given_up = Signal()  # a reset has been asked for
        count = Signal(range(2 * self.RESET_CYCLES))
        m.d.comb += [dog.progress.eq(self.progress), heart.progress.eq(self.touched)]
        m.d.comb += [dog.limit.eq(self.watchdog), heart.limit.eq(self.heartbeat)]
        m.d.sync += [quiet_now.eq(self.quiet), count.eq(0)]
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += heart.clear.eq(1)
                with m.If(self.start):
                    m.d.sync += [
                        self.state.eq(State.RUNNING),
                        self.code.eq(0),
                        self.code_port.eq(0),
                        self.stop_steps.eq(0),
                        given_up.eq(0),
                        self.begun.eq(0),
                    ]
                    m.d.comb += dog.clear.eq(1)
                    m.next = "QUIET"
            with m.State("QUIET"):
                with m.If(quiet_now):
                    m.next = "RESET"
                with m.Elif(dog.bites):
                    m.d.sync += [self.state.eq(State.ERROR), self.code.eq(Error.WATCHDOG)]
                    m.next = "IDLE"
            with m.State("RESET"):
                m.d.comb += dog.clear.eq(1)
                m.d.sync += count.eq(count + 1)
                with m.If(count.all()):
                    m.next = "START"
            with m.State("START"):
                m.d.comb += self.unit_start.eq(1)
                m.d.sync += self.begun.eq(1)
                m.next = "RUN"
            with m.State("RUN"):
                self._ends(m, ending, dog.bites, heart.bites, given_up)
            with m.State("HALT"):
                m.d.comb += dog.clear.eq(1)
                m.next = "DRAIN"
            with m.State("DRAIN"):
                settled = Signal(3)  # bursts on their way into a port when it was halted
                m.d.sync += settled.eq(Mux(quiet_now, settled + 1, 0))
                with m.If(settled == 7):
                    m.d.sync += self.state.eq(ending)
                    m.next = "IDLE"
                with m.Elif(dog.bites):
                    m.d.sync += self.state.eq(State.ERROR)
                    with m.If(self.code == 0):
                        m.d.sync += self.code.eq(Error.WATCHDOG)
                    m.next = "IDLE"
        # Registers, for they go everywhere.
        m.d.sync += self.halt.eq(~fsm.ongoing("RUN"))
        m.d.sync += self.unit_reset.eq(fsm.ongoing("RESET") & (count < self.RESET_CYCLES))
        m.d.comb += self.running.eq(fsm.ongoing("RUN"))
        with m.If((self.watchdog == 0) & (fsm.ongoing("QUIET") | fsm.ongoing("DRAIN"))):
            m.d.comb += dog.limit.eq(self.DRAIN)
        with m.If(~fsm.ongoing("IDLE")):
            m.d.sync += self.stop_steps.eq(self.stop_steps | self.stop)
            m.d.sync += given_up.eq(given_up | self.reset)
        return m

    def _ends(self, m: Module, ending, hung, silent, given_up) -> None:
        """What ends a run, and how it is said to have ended; the first of several counts."""
        with m.If(self.error != 0):
            m.d.sync += [self.code.eq(self.error), self.code_port.eq(self.port)]
            m.d.sync += ending.eq(State.ERROR)
            m.next = "HALT"
        with m.Elif(self.finished):
            m.d.sync += ending.eq(Mux(self.stop_steps, State.STOPPED, State.DONE))
            m.next = "HALT"
        with m.Elif(given_up):
            m.d.sync += ending.eq(State.IDLE)
            m.next = "HALT"
        with m.Elif(hung | silent):
            code = Mux(hung, Error.WATCHDOG, Error.SILENT)
            m.d.sync += [self.code.eq(code), ending.eq(State.ERROR)]
            m.next = "HALT"


def register_values(fixed: dict, live: dict) -> list:
    """``(offset, value)`` of every readable register, from constants and signals by name."""
    values = []
    for register in registers.REGISTERS:
        if register.name in live:
            values.append((register.offset, live[register.name]))
        elif register.name in fixed:
            values.append((register.offset, Const(fixed[register.name], 32)))
    return values

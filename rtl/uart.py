"""The host's link over a serial line: registers and memory, as ``tokenfabric.core.link`` says."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import crc, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.link import BAD, OK, SILENCE, UNIT
from tokenfabric.rtl.axi import lite
from tokenfabric.rtl.control import RegisterPort
from tokenfabric.rtl.sdram import host_port

__all__ = ["Link", "divisor"]

TOLERANCE = 0.02  # of the line rate: two ends off by it still agree on the tenth bit


def divisor(clock_hz: float, baud: float) -> int:
    """Clock cycles per bit."""
    cycles = round(clock_hz / baud)
    if cycles < 8 or abs(clock_hz / cycles / baud - 1) > TOLERANCE:
        raise ValueError(f"{baud:g} baud cannot be made from {clock_hz:g} Hz")
    return cycles


class Receiver(wiring.Component):
    """``valid`` for one cycle with each byte; bytes without a stop bit are dropped."""

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"rx": In(1, init=1), "valid": Out(1), "byte": Out(8)})

    def elaborate(self, platform):
        m = Module()
        line = Signal(3, init=0b111)
        m.d.sync += [line.eq(Cat(self.rx, line)), self.valid.eq(0)]
        timer, left = Signal(range(self.divisor + self.divisor // 2)), Signal(range(10))
        with m.If(left == 0):
            with m.If(~line[2]):  # half the start bit, then to the middle of the first
                m.d.sync += [timer.eq(self.divisor + self.divisor // 2 - 2), left.eq(9)]
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Else():
            m.d.sync += [timer.eq(self.divisor - 1), left.eq(left - 1)]
            with m.If(left == 1):
                m.d.sync += self.valid.eq(line[2])
            with m.Else():
                m.d.sync += self.byte.eq(Cat(self.byte[1:], line[2]))
        return m


class Transmitter(wiring.Component):
    """Puts bytes on the line."""

    def __init__(self, divisor: int):
        self.divisor = divisor
        super().__init__({"i": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform):
        m = Module()
        timer, left = Signal(range(self.divisor)), Signal(range(11))
        shift = Signal(9, init=0x1FF)
        m.d.comb += [self.i.ready.eq(left == 0), self.tx.eq(shift[0])]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [shift.eq(Cat(0, self.i.payload)), left.eq(10)]
            m.d.sync += timer.eq(self.divisor - 1)
        with m.Elif(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(left != 0):
            m.d.sync += [shift.eq(Cat(shift[1:], 1)), left.eq(left - 1)]
            m.d.sync += timer.eq(Mux(left == 1, 0, self.divisor - 1))
        return m


# CRC-16/CCITT as core/link.py says it; a frame is whole when the checksum over it and its own
# checksum is zero. ITU-T V.41.
CHECKSUM = crc.Algorithm(
    crc_width=16, polynomial=0x1021, initial_crc=0xFFFF,
    reflect_input=False, reflect_output=False, xor_output=0,
)  # fmt: skip


class Silence(wiring.Component):
    """How long the line has been silent.

    Members: ``got`` (In: a byte has come); ``quiet`` (Out: none has for ``cycles`` cycles, from the
    next one on).
    """

    def __init__(self, cycles: int):
        self.cycles = cycles
        super().__init__({"got": In(1), "quiet": Out(1)})

    def elaborate(self, platform):
        m = Module()
        count = Signal(range(self.cycles + 1))
        m.d.comb += self.quiet.eq(count == self.cycles)
        m.d.sync += count.eq(Mux(self.got, 0, count + ~self.quiet))
        return m


class Unit(wiring.Component):
    """The UNIT bytes that came in last, or go out next, low byte first, and a count of bytes.

    Members: ``data`` (Out); ``put`` (In: with ``byte`` a byte comes in at the top), ``take`` (In:
    the lowest byte goes), ``load`` (In: all of it becomes ``loaded``); ``step`` (In: counts),
    ``clear`` (In: begins at zero), ``count`` (Out), ``last`` (Out: of UNIT). All take effect in the
    next cycle.
    """

    def __init__(self):
        super().__init__(
            {
                "data": Out(8 * UNIT),
                "put": In(1),
                "byte": In(8),
                "take": In(1),
                "load": In(1),
                "loaded": In(8 * UNIT),
                "step": In(1),
                "clear": In(1),
                "count": Out(range(UNIT)),
                "last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.last.eq(self.count == UNIT - 1)
        with m.If(self.put):
            m.d.sync += self.data.eq(Cat(self.data[8:], self.byte))
        with m.If(self.take):
            m.d.sync += self.data.eq(self.data >> 8)
        with m.If(self.load):
            m.d.sync += self.data.eq(self.loaded)
        with m.If(self.step):
            m.d.sync += self.count.eq(self.count + 1)
        with m.If(self.clear):
            m.d.sync += self.count.eq(0)
        return m


class Access(wiring.Component):
    """One access to a register or to a word of the memory, for as long as it takes.

    Members: ``read``, ``write`` (In: held until ``done``), ``register`` (In: a register; otherwise
    memory), ``address`` (In: of the byte), ``data`` (In: to write); ``done`` (Out: for one cycle,
    with ``found`` after a read); ``control`` (Out: AXI4-Lite), ``memory`` (Out: host_port).

    A write is done in the cycle in which it is taken; a read when its answer is there, and the next
    one may then begin in the cycle after.
    """

    def __init__(self, addr_bits: int):
        super().__init__(
            {
                "read": In(1),
                "write": In(1),
                "register": In(1),
                "address": In(32),
                "data": In(8 * UNIT),
                "done": Out(1),
                "found": Out(8 * UNIT),
                "control": Out(lite(RegisterPort.ADDR_BITS)),
                "memory": Out(host_port(addr_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        control, memory = self.control, self.memory
        asked = Signal()  # a read is on its way
        wants = self.read & ~asked
        m.d.comb += [
            control.awaddr.eq(self.address),
            control.wdata.eq(self.data),
            control.wstrb.eq(0b1111),
            control.awvalid.eq(self.write & self.register),
            control.wvalid.eq(self.write & self.register),
            control.bready.eq(1),
            control.araddr.eq(self.address),
            control.arvalid.eq(wants & self.register),
            control.rready.eq(1),
            memory.addr.eq(self.address >> 3),
            memory.w_data.eq(self.data),
            memory.write.eq(self.write),
            memory.en.eq((wants | self.write) & ~self.register),
        ]
        with m.If(self.register):
            m.d.comb += [
                self.found.eq(control.rdata),
                self.done.eq(
                    (self.write & control.awready & control.wready) | (asked & control.rvalid)
                ),
            ]
        with m.Else():
            m.d.comb += [
                self.found.eq(memory.r_data),
                self.done.eq((self.write & memory.ready) | (asked & memory.r_valid)),
            ]
        taken = Mux(self.register, control.arready, memory.ready)
        with m.If(wants & taken):
            m.d.sync += asked.eq(1)
        with m.If(asked & self.done):
            m.d.sync += asked.eq(0)
        return m


class Link(wiring.Component):
    """Answers requests (core/link.py), one at a time.

    Members: ``rx``, ``tx`` (the line); ``control`` (Out: AXI4-Lite), ``memory`` (Out: host_port);
    ``active`` (Out: a request is under way). As fast as the line: an access has the time of a byte.
    """

    def __init__(self, clock_hz: float, baud: float, addr_bits: int, silence: float = SILENCE):
        self.divisor = divisor(clock_hz, baud)
        self.silence = int(clock_hz * silence)
        self.addr_bits = addr_bits
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "control": Out(lite(RegisterPort.ADDR_BITS)),
                "memory": Out(host_port(addr_bits)),
                "active": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.receiver = receiver = Receiver(self.divisor)
        m.submodules.transmitter = transmitter = Transmitter(self.divisor)
        m.submodules.checksum = checksum = CHECKSUM(data_width=8).create()
        m.submodules.silence = silence = Silence(self.silence)
        m.submodules.unit = unit = Unit()
        m.submodules.access = access = Access(self.addr_bits)
        m.submodules.frame = frame = Frame()
        o, got = transmitter.i, receiver.valid
        for port in ("control", "memory"):
            wiring.connect(m, getattr(access, port), wiring.flipped(getattr(self, port)))
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            silence.got.eq(got),
            # What comes in and what goes out, one after the other; a start is for the next byte.
            checksum.start.eq(frame.restart),
            checksum.valid.eq((got | (o.valid & o.ready)) & ~frame.restart),
            checksum.data.eq(Mux(got, receiver.byte, o.payload)),
            unit.byte.eq(receiver.byte),
            unit.loaded.eq(access.found),
            unit.put.eq(frame.put),
            unit.take.eq(frame.take),
            unit.load.eq(frame.load),
            unit.step.eq(frame.step),
            unit.clear.eq(frame.clear),
            access.read.eq(frame.read),
            access.write.eq(frame.write),
            access.register.eq(frame.register),
            access.address.eq(frame.address),
            access.data.eq(unit.data),
            frame.got.eq(got),
            frame.quiet.eq(silence.quiet),
            frame.unit.eq(unit.data),
            frame.count.eq(unit.count),
            frame.last.eq(unit.last),
            frame.crc.eq(checksum.crc),
            frame.done.eq(access.done),
            o.valid.eq(frame.o.valid),
            o.payload.eq(frame.o.payload),
            frame.o.ready.eq(o.ready),
            self.active.eq(frame.active),
        ]
        return m


class Frame(wiring.Component):
    """The order of a request and its answer: the only unit of the link that knows frames.

    Members: ``got``, ``quiet``, ``unit``, ``count``, ``last``, ``crc``, ``done`` (In) and ``put``,
    ``take``, ``load``, ``step``, ``clear``, ``restart``, ``read``, ``write`` (Out): of the units
    beside it; ``register``, ``address`` (Out: of the access); ``o`` (Out: stream of the bytes to
    send); ``active`` (Out: from the first byte of a request to the last of its answer).
    """

    def __init__(self):
        inputs = ("got", "quiet", "last", "done")
        outputs = ("put", "take", "load", "step", "clear", "restart", "read", "write")
        super().__init__(
            {
                **{name: In(1) for name in inputs},
                **{name: Out(1) for name in (*outputs, "register", "active")},
                "unit": In(8 * UNIT),
                "count": In(range(UNIT)),
                "crc": In(16),
                "address": Out(32),
                "o": Out(stream.Signature(8)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        writes = Signal()  # the request is one
        left = Signal(8)  # units after this one
        sent = self.o.valid & self.o.ready
        with m.FSM() as fsm:
            self._request(m, writes, left)
            self._answer(m, writes, left, sent)
            m.d.comb += self.active.eq(~fsm.ongoing("HEAD"))
        return m

    def _request(self, m, writes, left):
        def receive(following, *, whole, broken):
            with m.If(self.got):
                m.d.comb += [self.put.eq(1), self.step.eq(1)]
                with m.If(whole):
                    m.next = following
            with m.Elif(broken):
                m.next = "BROKEN"

        with m.State("HEAD"):
            receive("COMMAND", whole=self.last, broken=self.quiet & (self.count != 0))
        with m.State("COMMAND"):
            m.d.comb += self.restart.eq(1)
            m.d.sync += [
                Cat(writes, self.register).eq(self.unit[:2]),
                left.eq(self.unit[8:16]),
                self.address.eq(self.unit[16:48]),
            ]
            # One register at a time: it is written when the checksum has been seen.
            known = (self.unit[2:8] == 0) & (~self.unit[1] | (self.unit[8:16] == 0))
            with m.If((self.crc != 0) | ~known):
                m.next = "BROKEN"
            with m.Elif(self.unit[0]):
                m.next = "DATA"
            with m.Else():
                m.next = "STATUS"
        with m.State("DATA"):
            receive("STORE", whole=self.last, broken=self.quiet)
        with m.State("STORE"):
            m.d.comb += self.write.eq(~self.register)
            with m.If(self.register | self.done):
                m.d.sync += left.eq(left - 1)
                with m.If(left == 0):
                    m.next = "CHECK"
                with m.Else():
                    m.d.sync += self.address.eq(self.address + UNIT)
                    m.next = "DATA"
        with m.State("CHECK"):  # the bytes of a checksum are no data
            with m.If(self.got):
                m.d.comb += self.step.eq(1)
                with m.If(self.count == 1):
                    m.next = "CHECKED"
            with m.Elif(self.quiet):
                m.next = "BROKEN"
        with m.State("CHECKED"):
            m.d.comb += [self.clear.eq(1), self.restart.eq(1)]
            with m.If(self.crc != 0):
                m.next = "BROKEN"
            with m.Elif(self.register):
                m.next = "SET"
            with m.Else():
                m.next = "STATUS"
        with m.State("SET"):
            m.d.comb += self.write.eq(1)
            with m.If(self.done):
                m.next = "STATUS"
        with m.State("BROKEN"):
            m.d.comb += [self.clear.eq(1), self.restart.eq(1)]
            m.d.sync += writes.eq(1)
            with m.If(self.quiet):
                m.next = "REFUSE"

    def _answer(self, m, writes, left, sent):
        for state, status in (("STATUS", OK), ("REFUSE", BAD)):
            with m.State(state):
                m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(status)]
                with m.If(self.o.ready):
                    with m.If(writes):
                        m.next = "CRC"
                    with m.Else():
                        m.next = "LOAD"
        with m.State("LOAD"):
            m.d.comb += [self.read.eq(1), self.load.eq(self.done)]
            with m.If(self.done):
                m.next = "SEND"
        with m.State("SEND"):
            m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(self.unit[:8])]
            with m.If(sent):
                m.d.comb += [self.take.eq(1), self.step.eq(1)]
                with m.If(self.last):
                    m.d.sync += [left.eq(left - 1), self.address.eq(self.address + UNIT)]
                    with m.If(left == 0):
                        m.next = "CRC"
                    with m.Else():
                        m.next = "LOAD"
        with m.State("CRC"):  # the checksum of its own first byte is what is left of it
            m.d.comb += [self.o.valid.eq(1), self.o.payload.eq(self.crc[8:])]
            with m.If(sent):
                m.d.comb += self.step.eq(1)
                with m.If(self.count == 1):
                    m.d.comb += [self.clear.eq(1), self.restart.eq(1)]
                    m.next = "HEAD"

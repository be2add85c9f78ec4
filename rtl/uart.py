"""The host's link over a serial line: registers and memory, as ``tokenfabric.core.link`` says."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
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


def crc16(crc, byte):
    """The checksum after one more byte."""
    bits = list(crc)
    for bit in reversed(list(byte)):
        out = bits[15] ^ bit
        bits = [out, *bits[:15]]
        bits[5] = bits[5] ^ out
        bits[12] = bits[12] ^ out
    return Cat(bits)


class Link(wiring.Component):
    """Answers requests, one at a time.

    Members: ``rx``, ``tx`` (the line); ``control`` (Out: AXI4-Lite), ``memory`` (Out: host_port);
    ``active`` (Out: a request is under way).
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
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]
        self.byte, self.got = receiver.byte, receiver.valid
        self.o = transmitter.i
        self.unit = Signal(8 * UNIT)  # what came in last, or goes out next
        self.count = Signal(range(UNIT))  # bytes of it that have
        self.write, self.register = Signal(), Signal()
        self.left = Signal(8)  # units after this one
        self.address = Signal(32)
        self.crc = Signal(16, init=0xFFFF)
        crc = Signal(16)
        moves = Signal()  # a byte in or out that the checksum counts
        m.d.comb += [
            moves.eq(self.got | (self.o.valid & self.o.ready)),
            crc.eq(crc16(self.crc, Mux(self.got, self.byte, self.o.payload))),
        ]
        with m.If(moves):
            m.d.sync += self.crc.eq(crc)
        silence = Signal(range(self.silence + 1))
        quiet = silence == self.silence
        m.d.sync += silence.eq(Mux(self.got, 0, silence + ~quiet))
        self._wires(m)
        with m.FSM() as fsm:
            self._receive(m, quiet)
            self._answer(m)
            m.d.comb += self.active.eq(~fsm.ongoing("HEAD"))
        return m

    def _wires(self, m):
        control, memory = self.control, self.memory
        m.d.comb += [
            control.awaddr.eq(self.address),
            control.wdata.eq(self.unit),
            control.wstrb.eq(0b1111),
            control.bready.eq(1),
            control.araddr.eq(self.address),
            control.rready.eq(1),
            memory.addr.eq(self.address >> 3),
            memory.w_data.eq(self.unit),
            memory.write.eq(self.write),
        ]

    def _receive(self, m, quiet):
        shifted = Cat(self.unit[8:], self.byte)
        whole = Signal()
        m.d.comb += whole.eq(self.got & (self.count == UNIT - 1))
        with m.State("HEAD"):
            with m.If(self.got):
                m.d.sync += [self.unit.eq(shifted), self.count.eq(self.count + 1)]
                with m.If(whole):
                    m.next = "COMMAND"
            with m.Elif(quiet & (self.count != 0)):
                m.next = "BROKEN"
        with m.State("COMMAND"):
            m.d.sync += [
                Cat(self.write, self.register).eq(self.unit[:2]),
                self.left.eq(self.unit[8:16]),
                self.address.eq(self.unit[16:48]),
                self.crc.eq(0xFFFF),
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
            with m.If(self.got):
                m.d.sync += [self.unit.eq(shifted), self.count.eq(self.count + 1)]
                with m.If(whole):
                    m.next = "STORE"
            with m.Elif(quiet):
                m.next = "BROKEN"
        with m.State("STORE"):
            m.d.comb += self.memory.en.eq(~self.register)
            with m.If(self.register | self.memory.ready):
                m.d.sync += self.left.eq(self.left - 1)
                with m.If(self.left == 0):
                    m.next = "CHECK"
                with m.Else():
                    m.d.sync += self.address.eq(self.address + UNIT)
                    m.next = "DATA"
        with m.State("CHECK"):
            with m.If(self.got):
                m.d.sync += self.count.eq(self.count + 1)
                with m.If(self.count == 1):
                    m.next = "CHECKED"
            with m.Elif(quiet):
                m.next = "BROKEN"
        with m.State("CHECKED"):
            m.d.sync += [self.count.eq(0), self.crc.eq(0xFFFF)]
            with m.If(self.crc != 0):
                m.next = "BROKEN"
            with m.Elif(self.register):
                m.next = "SET"
            with m.Else():
                m.next = "STATUS"
        with m.State("SET"):
            m.d.comb += [self.control.awvalid.eq(1), self.control.wvalid.eq(1)]
            with m.If(self.control.awready & self.control.wready):
                m.next = "STATUS"
        with m.State("BROKEN"):
            m.d.sync += [self.count.eq(0), self.write.eq(1), self.crc.eq(0xFFFF)]
            with m.If(quiet):
                m.next = "REFUSE"

    def _answer(self, m):
        o, sent = self.o, self.o.valid & self.o.ready
        for state, status in (("STATUS", OK), ("REFUSE", BAD)):
            with m.State(state):
                m.d.comb += [o.valid.eq(1), o.payload.eq(status)]
                with m.If(o.ready):
                    with m.If(self.write):
                        m.next = "CRC"
                    with m.Else():
                        m.next = "LOAD"
        with m.State("LOAD"):
            m.d.comb += [
                self.memory.en.eq(~self.register),
                self.control.arvalid.eq(self.register),
            ]
            with m.If(self.register & self.control.arready):
                m.next = "REGISTER"
            with m.Elif(~self.register & self.memory.ready):
                m.next = "MEMORY"
        with m.State("MEMORY"):
            with m.If(self.memory.r_valid):
                m.d.sync += self.unit.eq(self.memory.r_data)
                m.next = "SEND"
        with m.State("REGISTER"):
            with m.If(self.control.rvalid):
                m.d.sync += self.unit.eq(self.control.rdata)
                m.next = "SEND"
        with m.State("SEND"):
            m.d.comb += [o.valid.eq(1), o.payload.eq(self.unit[:8])]
            with m.If(sent):
                m.d.sync += [self.unit.eq(self.unit >> 8), self.count.eq(self.count + 1)]
                with m.If(self.count == UNIT - 1):
                    m.d.sync += [self.left.eq(self.left - 1), self.address.eq(self.address + UNIT)]
                    with m.If(self.left == 0):
                        m.next = "CRC"
                    with m.Else():
                        m.next = "LOAD"
        with m.State("CRC"):
            m.d.comb += [o.valid.eq(1), o.payload.eq(self.crc[8:])]
            with m.If(sent):
                m.d.sync += [self.crc.eq(self.crc << 8), self.count.eq(self.count + 1)]
                with m.If(self.count == 1):
                    m.d.sync += [self.count.eq(0), self.crc.eq(0xFFFF)]
                    m.next = "HEAD"

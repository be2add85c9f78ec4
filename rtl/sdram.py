"""SDR SDRAM as the memory behind two AXI ports and a host: for an FPGA without a processor.

JEDEC Standard 21-C, "Synchronous DRAM"; Micron, "256Mb: x4, x8, x16 SDRAM" (MT48LC16M16A2).
"""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.boards import SdramChip
from tokenfabric.core.config import BURST_BEATS
from tokenfabric.core.link import UNIT
from tokenfabric.rtl.axi import memory_port
from tokenfabric.rtl.memory import Fifo
from tokenfabric.rtl.pipeline import delay, delays

__all__ = ["BEAT", "SdramController", "SdramMemory", "host_port", "pins"]

BEAT = 4  # bytes: of an AXI beat and of a burst of two columns
COLUMNS = 2  # in a burst
CAS_LATENCY = 2
MODE = 0b001 | CAS_LATENCY << 4  # two columns, in sequence
HOST_BEATS = UNIT // BEAT  # in a word of the host's
BOOT_REFRESHES = 8
ALL_BANKS = 1 << 10  # of a precharge, in the address
PIN_CYCLES = 2  # from a decision to its command on the pins
LATENCY = PIN_CYCLES + CAS_LATENCY + COLUMNS - 1  # from there to the last of its words
# After a burst, until one in the other direction or a precharge: the words read are off the bus
# and it has been idle for a cycle; the words written have had their time to be stored. After an
# activation the same, so that it does not cut short what a burst asked for.
QUIET = CAS_LATENCY + COLUMNS

FIFO_BEATS = 4 * BURST_BEATS
WRITER, HOST = 2, 3  # sources besides the read ports

# Commands: RAS#, CAS#, WE#, first letter lowest.
NOP, ACTIVATE, READ, WRITE, PRECHARGE, REFRESH, LOAD_MODE = 7, 6, 5, 1, 2, 4, 0


def host_port(addr_bits: int) -> wiring.Signature:
    """A host's view of the memory: words of 64 bits. ``en`` stays until ``ready``.

    ``r_valid`` comes with the word that was asked for, some cycles after.
    """
    return wiring.Signature(
        {
            "en": Out(1),
            "ready": In(1),
            "write": Out(1),
            "addr": Out(addr_bits),
            "w_data": Out(8 * UNIT),
            "r_valid": In(1),
            "r_data": In(8 * UNIT),
        }
    )


def pins(chip: SdramChip) -> wiring.Signature:
    """The chip's, as they come out of registers and go into some. CKE is high, CS# low."""
    return wiring.Signature(
        {
            "command": Out(3, init=NOP),
            "bank": Out(chip.bank_bits),
            "address": Out(13),
            "mask": Out(2),
            "dq_o": Out(16),
            "dq_oe": Out(1),
            "dq_i": In(16),
        }
    )


def access(chip: SdramChip) -> data.StructLayout:
    """A beat to read or write. ``tag`` comes back with what was read."""
    return data.StructLayout(
        {"write": 1, "addr": beat_bits(chip), "data": 8 * BEAT, "strobe": BEAT, "tag": 3}
    )


def beat_bits(chip: SdramChip) -> int:
    """Of a beat's number."""
    return chip.addr_bits - (BEAT - 1).bit_length()


def refuse(chip: SdramChip, clock_mhz: float) -> None:
    """ValueError where the controller's pauses are too short for the chip."""
    cycles = chip.cycles(clock_mhz)
    if (
        cycles["write_recovery"] > QUIET + 1 - (COLUMNS - 1)
        or cycles["row_active"] > QUIET + 1
        or clock_mhz > chip.most_mhz
    ):
        raise ValueError(f"{chip.name} cannot be run at {clock_mhz:g} MHz in this way")


class SdramController(wiring.Component):
    """One access per burst of two columns: every two cycles where rows are open.

    Rows stay open until another of their bank is asked for; addresses are row, bank, column, so a
    walk through memory changes the bank with every row. Refreshes come in time, whatever is asked
    for. In order.

    Members: ``i`` (In: stream of :func:`access`); ``r_valid``, ``r_data``, ``r_tag``: what was
    read, ``LATENCY`` cycles after its access was taken; ``pins`` (Out: :func:`pins`).

    The chip's clock is to come between two of the fabric's, see rtl/ulx3s.py.
    """

    def __init__(self, chip: SdramChip, clock_mhz: float):
        self.chip = chip
        self.cycles = cycles = chip.cycles(clock_mhz)
        self.interval = cycles["refresh_interval"] - 1
        self.boot_intervals = cycles["power_up"] // self.interval + 1
        super().__init__(
            {
                "i": In(stream.Signature(access(chip))),
                "r_valid": Out(1),
                "r_data": Out(8 * BEAT),
                "r_tag": Out(3),
                "pins": Out(pins(chip)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        self.command, self.address = Signal(3, init=NOP), Signal(13)
        self.bank = Signal(self.chip.bank_bits)
        self.pause, self.busy = Signal(range(16)), Signal(range(16))  # cycles
        self.open = Signal(1 << self.chip.bank_bits)
        self.due = Signal()
        now = self.i.payload
        column, self.now_bank, self.row = self._split(now.addr)
        m.d.comb += [self.command.eq(NOP), self.bank.eq(self.now_bank)]
        m.d.sync += [
            self.pause.eq(self.pause - (self.pause != 0)),
            self.busy.eq(self.busy - (self.busy != 0)),
        ]
        tick = self._ticks(m)
        self._look(m)
        with m.FSM():
            self._boot(m, tick)
            with m.State("RUN"):
                with m.If(self.due):
                    m.next = "CLOSE"
                with m.Elif(self.pause == 0):
                    self._serve(m, column)
            self._refresh(m)
        self._write_pins(m, self.i.ready & now.write)
        self._read_pins(m, self.i.ready & ~now.write)
        return m

    def _split(self, addr):
        """Column, bank and row of a beat."""
        within = (COLUMNS - 1).bit_length()
        columns = self.chip.column_bits - within
        column = Cat(Const(0, within), addr[:columns])
        bank = addr[columns:][: self.chip.bank_bits]
        return column, bank, addr[columns + self.chip.bank_bits :]

    def _ticks(self, m):
        """``due`` once per interval; returns when."""
        timer = Signal(range(self.interval + 1))
        tick = Signal()
        m.d.sync += [timer.eq(Mux(tick, 0, timer + 1)), tick.eq(timer == self.interval - 1)]
        with m.If(tick):
            m.d.sync += self.due.eq(1)
        return tick

    def _boot(self, m, tick):
        left = Signal(range(self.boot_intervals + 1), init=self.boot_intervals)
        with m.State("POWER_UP"):
            with m.If(tick):
                m.d.sync += left.eq(left - 1)
                with m.If(left == 0):
                    m.next = "CLOSE"
        with m.State("MODE"):
            with m.If(self.pause == 0):
                m.d.comb += [self.command.eq(LOAD_MODE), self.address.eq(MODE), self.bank.eq(0)]
                self._wait(m, self.pause, self.cycles["mode"])
                m.next = "RUN"

    def _look(self, m):
        """Whether the row of the access at the input is open: known when both have settled."""
        self.rows = Array(
            Signal(self.chip.row_bits, name=f"row_{i}") for i in range(len(self.open))
        )
        self.settled, self.is_open, self.hit = Signal(), Signal(), Signal()
        m.d.sync += [
            self.settled.eq(self.i.valid & (self.command == NOP)),
            self.is_open.eq(self.open.bit_select(self.now_bank, 1)),
            self.hit.eq(self.rows[self.now_bank] == self.row),
        ]

    def _serve(self, m, column):
        """The command that the access at the input needs next."""
        write = self.i.payload.write
        writing = Signal()  # the last burst
        quiet = self.busy == 0
        one_hot = Const(1, len(self.open)) << self.now_bank
        with m.If(self.settled & ~self.is_open):
            m.d.comb += [self.command.eq(ACTIVATE), self.address.eq(self.row)]
            m.d.sync += [self.rows[self.now_bank].eq(self.row), self.open.eq(self.open | one_hot)]
            self._wait(m, self.pause, self.cycles["activate"])
            self._wait(m, self.busy, QUIET + 1)
        with m.Elif(self.settled & self.hit & (quiet | (write == writing))):
            m.d.comb += [
                self.i.ready.eq(1),
                self.command.eq(Mux(write, WRITE, READ)),
                self.address.eq(column),
            ]
            m.d.sync += writing.eq(write)
            self._wait(m, self.pause, COLUMNS)
            self._wait(m, self.busy, QUIET + 1)
        with m.Elif(self.settled & ~self.hit & quiet):
            m.d.comb += self.command.eq(PRECHARGE)
            m.d.sync += self.open.eq(self.open & ~one_hot)
            self._wait(m, self.pause, self.cycles["precharge"])

    def _refresh(self, m):
        left = Signal(range(BOOT_REFRESHES + 1), init=BOOT_REFRESHES)
        with m.State("CLOSE"):
            with m.If((self.pause == 0) & (self.busy == 0)):
                m.d.comb += [self.command.eq(PRECHARGE), self.address.eq(ALL_BANKS)]
                m.d.sync += [self.open.eq(0), self.due.eq(0)]
                self._wait(m, self.pause, self.cycles["precharge"])
                m.next = "REFRESH"
        with m.State("REFRESH"):
            with m.If(self.pause == 0):
                m.d.comb += self.command.eq(REFRESH)
                m.d.sync += left.eq(left - (left != 0))
                self._wait(m, self.pause, self.cycles["refresh"])
                with m.If(left == 1):
                    m.next = "MODE"
                with m.Elif(left == 0):
                    m.next = "RUN"

    def _wait(self, m, counter, cycles):
        """The next command that heeds ``counter`` comes so many cycles after this one."""
        m.d.sync += counter.eq(cycles - 1)

    def _write_pins(self, m, start):
        """Commands and words through two registers, the second of them in the pad.

        The drivers are on from a cycle before the words to the end of the last.
        """
        now = self.i.payload
        more = COLUMNS - 1  # words after the first
        words, masks = Signal(16 * more, reset_less=True), Signal(2 * more, reset_less=True)
        going = Signal(COLUMNS)
        mask = Mux(now.write, ~now.strobe, 0)
        m.d.sync += [
            going.eq(Cat(start, going)),
            self.pins.dq_oe.eq(start | going.any()),
            words.eq(Mux(self.i.ready, now.data[16:], words[16:])),
            masks.eq(Mux(self.i.ready, mask[2:], masks[2:])),
        ]
        for name, value in (
            ("command", self.command),
            ("bank", self.bank),
            ("address", self.address),
            ("mask", Mux(self.i.ready, mask[:2], masks[:2])),
            ("dq_o", Mux(self.i.ready, now.data[:16], words[:16])),
        ):
            pin = getattr(self.pins, name)
            for stage in range(PIN_CYCLES):
                later = Signal.like(pin, name=f"{name}_{stage}", reset_less=True)
                m.d.sync += later.eq(value)
                value = later
            m.d.comb += pin.eq(value)

    def _read_pins(self, m, start):
        captured = delays(m, self.pins.dq_i, COLUMNS, name="captured")[1:]
        m.d.comb += [
            self.r_valid.eq(delay(m, start, LATENCY, "reading", reset_less=False)),
            self.r_data.eq(Cat(*reversed(captured))),
            self.r_tag.eq(delay(m, self.i.payload.tag, LATENCY, "tag")),
        ]


class SdramMemory(wiring.Component):
    """The whole chip; addresses beyond it wrap.

    Bursts are answered in order, writes when their last beat has been taken. A read that is asked
    for after a write's answer gives what was written, one before it anything. No error answers.
    All channels go through queues, so that no path leads from one master to another.

    Members: ``axi_0`` (In: memory_port with writes), ``axi_1`` (In: without), ``host`` (In),
    ``pins`` (Out).
    """

    def __init__(self, chip: SdramChip, clock_mhz: float):
        refuse(chip, clock_mhz)
        self.chip, self.clock_mhz = chip, clock_mhz
        self.host_bits = chip.addr_bits - (UNIT - 1).bit_length()
        self.request = data.StructLayout({"addr": beat_bits(chip), "len": 4})
        super().__init__(
            {
                "axi_0": In(memory_port(BEAT, writes=True)),
                "axi_1": In(memory_port(BEAT, writes=False)),
                "host": In(host_port(self.host_bits)),
                "pins": Out(pins(chip)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.controller = controller = SdramController(self.chip, self.clock_mhz)
        wiring.connect(m, controller.pins, wiring.flipped(self.pins))
        i, host = controller.i, self.host
        reads = [self._read_port(m, port, controller) for port in (0, 1)]
        requests, words = self._write_port(m)
        going, source = Signal(), Signal(2)  # the burst
        addr, left = Signal(beat_bits(self.chip)), Signal(4)
        taken, last = i.valid & i.ready, left == 0
        first = Signal(8 * (UNIT - BEAT))  # of a word for the host
        of_host = controller.r_valid & (controller.r_tag[:2] == HOST)
        m.d.comb += [
            i.valid.eq(going & ((source != WRITER) | words.valid)),
            i.payload.addr.eq(addr),
            i.payload.tag.eq(Cat(source, last)),
            i.payload.write.eq(Mux(source == HOST, host.write, source == WRITER)),
            i.payload.data.eq(
                Mux(source == HOST, host.w_data.word_select(last, 8 * BEAT), words.payload.data)
            ),
            i.payload.strobe.eq(Mux(source == HOST, -1, words.payload.strobe)),
            words.ready.eq(i.ready & (source == WRITER)),
            host.ready.eq(taken & last & (source == HOST)),
            host.r_data.eq(Cat(first, controller.r_data)),
            host.r_valid.eq(of_host & controller.r_tag[2]),
        ]
        with m.If(of_host):
            m.d.sync += first.eq(controller.r_data)
        with m.If(self.axi_0.bready):
            m.d.sync += self.axi_0.bvalid.eq(0)
        with m.If(taken):
            m.d.sync += [addr.eq(addr + 1), left.eq(left - 1)]
            with m.If(last & (source == WRITER)):
                m.d.sync += self.axi_0.bvalid.eq(1)
        with m.If(~going | (taken & last)):
            m.d.sync += going.eq(0)
            again = going & (source == HOST)  # it has what it asked for, but asks still
            answering = self.axi_0.bvalid | (going & (source == WRITER))
            self._choose(m, ~again, ~answering, reads, requests, (going, source, addr, left))
        return m

    def _choose(self, m, may_host, may_write, reads, requests, burst):
        """The next burst: the host's, one to write, or of the read ports in turn."""
        previous = Signal()  # read port
        going, source, addr, left = burst

        def start(who, request, length):
            m.d.sync += [going.eq(1), source.eq(who), addr.eq(request), left.eq(length)]

        with m.If(self.host.en & may_host):
            start(HOST, Cat(Const(0, HOST_BEATS.bit_length() - 1), self.host.addr), HOST_BEATS - 1)
        with m.Elif(requests.valid & may_write):
            m.d.comb += requests.ready.eq(1)
            start(WRITER, requests.payload.addr, requests.payload.len)
        for port in (0, 1):
            this, other = reads[port], reads[1 - port]
            with m.Elif(this.valid & ((previous != port) | ~other.valid)):
                m.d.comb += this.ready.eq(1)
                m.d.sync += previous.eq(port)
                start(port, this.payload.addr, this.payload.len)

    def _write_port(self, m):
        """The streams of what is to be written, and where."""
        axi = self.axi_0
        word = data.StructLayout({"data": 8 * BEAT, "strobe": BEAT})
        m.submodules.writes = requests = Fifo(self.request, 2)
        m.submodules.words = words = Fifo(word, 2)
        m.d.comb += [
            requests.i.valid.eq(axi.awvalid),
            requests.i.payload.addr.eq(axi.awaddr >> (BEAT - 1).bit_length()),
            requests.i.payload.len.eq(axi.awlen),
            axi.awready.eq(requests.i.ready),
            words.i.valid.eq(axi.wvalid),
            words.i.payload.data.eq(axi.wdata),
            words.i.payload.strobe.eq(axi.wstrb),
            axi.wready.eq(words.i.ready),
        ]
        return requests.o, words.o

    def _read_port(self, m, port, controller):
        """The stream of bursts for whose answers there is room; those go back to the port."""
        axi = (self.axi_0, self.axi_1)[port]
        beat = data.StructLayout({"data": unsigned(8 * BEAT), "last": 1})
        m.submodules[f"reads_{port}"] = requests = Fifo(self.request, 2)
        m.submodules[f"fifo_{port}"] = fifo = Fifo(beat, FIFO_BEATS)
        room = Signal(name=f"room_{port}")
        granted = stream.Signature(self.request).create(path=(f"granted_{port}",))
        promised = Signal(range(FIFO_BEATS + 1), name=f"promised_{port}")
        m.d.comb += [
            requests.i.valid.eq(axi.arvalid),
            requests.i.payload.addr.eq(axi.araddr >> (BEAT - 1).bit_length()),
            requests.i.payload.len.eq(axi.arlen),
            axi.arready.eq(requests.i.ready),
            room.eq(promised <= FIFO_BEATS - BURST_BEATS),
            granted.valid.eq(requests.o.valid & room),
            granted.payload.eq(requests.o.payload),
            requests.o.ready.eq(granted.ready),
            fifo.i.valid.eq(controller.r_valid & (controller.r_tag[:2] == port)),
            fifo.i.payload.data.eq(controller.r_data),
            fifo.i.payload.last.eq(controller.r_tag[2]),
            axi.rvalid.eq(fifo.o.valid),
            axi.rdata.eq(fifo.o.payload.data),
            axi.rlast.eq(fifo.o.payload.last),
            fifo.o.ready.eq(axi.rready),
        ]
        asked = Mux(granted.valid & granted.ready, granted.payload.len + 1, 0)
        m.d.sync += promised.eq(promised + asked - (axi.rvalid & axi.rready))
        return granted

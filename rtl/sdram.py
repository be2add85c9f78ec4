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


class RefreshTimer(wiring.Component):
    """When the chip has to be refreshed.

    Members: ``tick`` (Out: for one cycle in every interval); ``due`` (Out: from the cycle after a
    tick until ``done``); ``done`` (In: for one cycle).
    """

    def __init__(self, interval: int):
        self.interval = interval
        super().__init__({"tick": Out(1), "due": Out(1), "done": In(1)})

    def elaborate(self, platform):
        m = Module()
        timer = Signal(range(self.interval + 1))
        m.d.sync += [
            timer.eq(Mux(self.tick, 0, timer + 1)),
            self.tick.eq(timer == self.interval - 1),
        ]
        with m.If(self.tick):
            m.d.sync += self.due.eq(1)
        with m.If(self.done):
            m.d.sync += self.due.eq(0)
        return m


class OpenRows(wiring.Component):
    """Which row of each bank is open, and whether it is the one that the next access needs.

    Members: ``bank``, ``row`` (In: of the next access), ``look`` (In: it is there, and no command
    is being given); ``settled`` (Out: ``is_open`` and ``hit`` are about it), ``is_open`` (Out: a
    row of its bank is), ``hit`` (Out: if so, its own); ``activate`` (In: ``row`` of ``bank``
    opens), ``close`` (In: the row of ``bank`` closes), ``close_all`` (In). Outputs are registers.
    """

    def __init__(self, chip: SdramChip):
        self.chip = chip
        super().__init__(
            {
                "bank": In(chip.bank_bits),
                "row": In(chip.row_bits),
                **{name: In(1) for name in ("look", "activate", "close", "close_all")},
                **{name: Out(1) for name in ("settled", "is_open", "hit")},
            }
        )

    def elaborate(self, platform):
        m = Module()
        is_open = Signal(1 << self.chip.bank_bits)
        rows = Array(Signal(self.chip.row_bits, name=f"row_{i}") for i in range(len(is_open)))
        one_hot = Const(1, len(is_open)) << self.bank
        m.d.sync += [
            self.settled.eq(self.look),
            self.is_open.eq(is_open.bit_select(self.bank, 1)),
            self.hit.eq(rows[self.bank] == self.row),
        ]
        with m.If(self.activate):
            m.d.sync += [rows[self.bank].eq(self.row), is_open.eq(is_open | one_hot)]
        with m.If(self.close):
            m.d.sync += is_open.eq(is_open & ~one_hot)
        with m.If(self.close_all):
            m.d.sync += is_open.eq(0)
        return m


class SdramPads(wiring.Component):
    """Commands and words on their way to the pins and back, the last registers in the pads.

    Members: ``command``, ``bank``, ``address`` (In: on the pins PIN_CYCLES later); ``access`` (In:
    the one that is taken), ``write``, ``read`` (In: its burst begins with this command);
    ``r_valid``, ``r_data``, ``r_tag`` (Out: LATENCY cycles after ``read``); ``pins`` (Out).

    The drivers are on from a cycle before the words to the end of the last.
    """

    def __init__(self, chip: SdramChip):
        self.chip = chip
        super().__init__(
            {
                "command": In(3),
                "bank": In(chip.bank_bits),
                "address": In(13),
                "access": In(access(chip)),
                "write": In(1),
                "read": In(1),
                "r_valid": Out(1),
                "r_data": Out(8 * BEAT),
                "r_tag": Out(3),
                "pins": Out(pins(chip)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        now, taken = self.access, self.write | self.read
        more = COLUMNS - 1  # words after the first
        words, masks = Signal(16 * more, reset_less=True), Signal(2 * more, reset_less=True)
        going = Signal(COLUMNS)
        mask = Mux(now.write, ~now.strobe, 0)
        m.d.sync += [
            going.eq(Cat(self.write, going)),
            self.pins.dq_oe.eq(self.write | going.any()),
            words.eq(Mux(taken, now.data[16:], words[16:])),
            masks.eq(Mux(taken, mask[2:], masks[2:])),
        ]
        for name, value in (
            ("command", self.command),
            ("bank", self.bank),
            ("address", self.address),
            ("mask", Mux(taken, mask[:2], masks[:2])),
            ("dq_o", Mux(taken, now.data[:16], words[:16])),
        ):
            pin = getattr(self.pins, name)
            for stage in range(PIN_CYCLES):
                later = Signal.like(pin, name=f"{name}_{stage}", reset_less=True)
                m.d.sync += later.eq(value)
                value = later
            m.d.comb += pin.eq(value)
        captured = delays(m, self.pins.dq_i, COLUMNS, name="captured")[1:]
        m.d.comb += [
            self.r_valid.eq(delay(m, self.read, LATENCY, "reading", reset_less=False)),
            self.r_data.eq(Cat(*reversed(captured))),
            self.r_tag.eq(delay(m, now.tag, LATENCY, "tag")),
        ]
        return m


class SdramController(wiring.Component):
    """One access per burst of two columns: every two cycles where rows are open.

    Rows stay open until another of their bank is asked for; addresses are row, bank, column, so a
    walk through memory changes the bank with every row. Refreshes come in time, whatever is asked
    for. In order.

    Members: ``i`` (In: stream of :func:`access`); ``r_valid``, ``r_data``, ``r_tag`` (Out: what was
    read, ``LATENCY`` cycles after its access was taken); ``pins`` (Out: :func:`pins`).

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
        m.submodules.timer = timer = RefreshTimer(self.interval)
        m.submodules.rows = rows = OpenRows(self.chip)
        m.submodules.pads = pads = SdramPads(self.chip)
        pause, busy = Signal(range(16)), Signal(range(16))  # cycles
        now = self.i.payload
        column, bank, row = self._split(now.addr)
        wiring.connect(m, pads.pins, wiring.flipped(self.pins))
        m.d.comb += [
            rows.bank.eq(bank),
            rows.row.eq(row),
            rows.look.eq(self.i.valid & (pads.command == NOP)),
            pads.command.eq(NOP),
            pads.bank.eq(bank),
            pads.access.eq(now),
            pads.write.eq(self.i.ready & now.write),
            pads.read.eq(self.i.ready & ~now.write),
            *[
                getattr(self, name).eq(getattr(pads, name))
                for name in ("r_valid", "r_data", "r_tag")
            ],
        ]
        m.d.sync += [pause.eq(pause - (pause != 0)), busy.eq(busy - (busy != 0))]
        with m.FSM():
            self._boot(m, timer.tick, pads, pause)
            with m.State("RUN"):
                with m.If(timer.due):
                    m.next = "CLOSE"
                with m.Elif(pause == 0):
                    self._serve(m, rows, pads, column, pause, busy)
            self._refresh(m, timer, rows, pads, pause, busy)
        return m

    def _split(self, addr):
        """Column, bank and row of a beat."""
        within = (COLUMNS - 1).bit_length()
        columns = self.chip.column_bits - within
        column = Cat(Const(0, within), addr[:columns])
        bank = addr[columns:][: self.chip.bank_bits]
        return column, bank, addr[columns + self.chip.bank_bits :]

    def _boot(self, m, tick, pads, pause):
        left = Signal(range(self.boot_intervals + 1), init=self.boot_intervals)
        with m.State("POWER_UP"):
            with m.If(tick):
                m.d.sync += left.eq(left - 1)
                with m.If(left == 0):
                    m.next = "CLOSE"
        with m.State("MODE"):
            with m.If(pause == 0):
                m.d.comb += [pads.command.eq(LOAD_MODE), pads.address.eq(MODE), pads.bank.eq(0)]
                m.d.sync += pause.eq(self.cycles["mode"] - 1)
                m.next = "RUN"

    def _serve(self, m, rows, pads, column, pause, busy):
        """The command that the access at the input needs next; ``pause``: cycles until another."""
        write = self.i.payload.write
        writing = Signal()  # the last burst
        quiet = busy == 0
        with m.If(rows.settled & ~rows.is_open):
            m.d.comb += [pads.command.eq(ACTIVATE), pads.address.eq(rows.row), rows.activate.eq(1)]
            m.d.sync += [pause.eq(self.cycles["activate"] - 1), busy.eq(QUIET)]
        with m.Elif(rows.settled & rows.hit & (quiet | (write == writing))):
            m.d.comb += [
                self.i.ready.eq(1),
                pads.command.eq(Mux(write, WRITE, READ)),
                pads.address.eq(column),
            ]
            m.d.sync += [writing.eq(write), pause.eq(COLUMNS - 1), busy.eq(QUIET)]
        with m.Elif(rows.settled & ~rows.hit & quiet):
            m.d.comb += [pads.command.eq(PRECHARGE), rows.close.eq(1)]
            m.d.sync += pause.eq(self.cycles["precharge"] - 1)

    def _refresh(self, m, timer, rows, pads, pause, busy):
        left = Signal(range(BOOT_REFRESHES + 1), init=BOOT_REFRESHES)
        with m.State("CLOSE"):
            with m.If((pause == 0) & (busy == 0)):
                m.d.comb += [pads.command.eq(PRECHARGE), pads.address.eq(ALL_BANKS)]
                m.d.comb += [rows.close_all.eq(1), timer.done.eq(1)]
                m.d.sync += pause.eq(self.cycles["precharge"] - 1)
                m.next = "REFRESH"
        with m.State("REFRESH"):
            with m.If(pause == 0):
                m.d.comb += pads.command.eq(REFRESH)
                m.d.sync += [left.eq(left - (left != 0)), pause.eq(self.cycles["refresh"] - 1)]
                with m.If(left == 1):
                    m.next = "MODE"
                with m.Elif(left == 0):
                    m.next = "RUN"


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

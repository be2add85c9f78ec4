"""The memories: the only place in the RTL where a RAM is made."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.pipeline import register

__all__ = [
    "ULTRA",
    "Fifo",
    "Ram",
    "Rom",
    "output_registers",
    "read_port",
    "share_reads",
    "share_writes",
    "write_port",
]

ULTRA = "ultra"


def read_port(addr_bits: int, data_bits: int) -> wiring.Signature:
    """A unit's view of a memory's read port: data are there in the cycle after ``en``, and stay."""
    return wiring.Signature(
        {"en": Out(1), "addr": Out(addr_bits), "data": In(data_bits)},
    )


def write_port(addr_bits: int, data_bits: int) -> wiring.Signature:
    """A unit's view of a memory's write port."""
    return wiring.Signature(
        {"en": Out(1), "addr": Out(addr_bits), "data": Out(data_bits)},
    )


def share_writes(m: Module, memory, *ports) -> None:
    """Several units write one memory, one of them in a cycle: the first whose ``en`` is high.

    memory : a memory's write port; ports : of the units, the first before the others. Nobody is
    told to wait: the units never write at once, or may lose the write.
    """
    _select(m, memory, ports, write=True)


def share_reads(m: Module, memory, *ports) -> None:
    """Several units read one memory, one of them in a cycle: the first whose ``en`` is high.

    memory : a memory's read port; ports : of the units, the first before the others. All see the
    data, which stay as long as none of them reads.
    """
    _select(m, memory, ports, write=False)
    m.d.comb += [port.data.eq(memory.data) for port in ports]


def _select(m: Module, memory, ports, *, write: bool) -> None:
    for number, port in enumerate(ports):
        with m.If(port.en) if number == 0 else m.Elif(port.en):
            m.d.comb += [memory.en.eq(1), memory.addr.eq(port.addr)]
            if write:
                m.d.comb += memory.data.eq(port.data)


def output_registers(cfg: FabricConfig, *names: str) -> int:
    """1 if one of these memories is made of UltraRAM, else 0.

    UltraRAM is slow: what reads it puts the data into a register before anything else, its own, so
    everything that accompanies them comes so many cycles later.
    """
    return int(any(name in cfg.ultra for name in names))


class Ram(wiring.Component):
    """One write port, one read port, both synchronous; a read in the cycle of a write is old data.

    Addresses are in units of ``unit`` bits. One port may be wider than the other: a wide access
    takes ``width / unit`` consecutive, aligned units (low address bits ignored), the first in the
    low bits.

    Parameters
    ----------
    depth : units in the memory, a multiple of the wider port's units
    unit : bits of a unit
    read_units, write_units : units per access of each port, powers of two
    comb : read asynchronously (small memories: becomes LUT RAM, not block RAM)
    ultra : made of UltraRAM

    Members
    -------
    r : read_port, in; ``data`` are there a cycle after ``en`` (``comb``: at once); one read per
        cycle
    w : write_port, in; one write per cycle
    """

    def __init__(
        self, depth: int, unit: int, *, read_units=1, write_units=1, comb=False, ultra=False
    ):
        self.depth, self.unit, self.ultra = depth, unit, ultra
        self.read_units, self.write_units, self.comb = read_units, write_units, comb
        self.wide = max(read_units, write_units)
        if depth % self.wide:
            raise ValueError(f"depth {depth} is not a multiple of {self.wide} units")
        bits = max(1, (depth - 1).bit_length())
        super().__init__(
            {
                "r": In(read_port(bits, unit * read_units)),
                "w": In(write_port(bits, unit * write_units)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        words = self.depth // self.wide
        low = (self.wide - 1).bit_length()
        mem = Memory(shape=unsigned(self.wide * self.unit), depth=words, init=[])
        m.submodules[_name(self.ultra)] = mem
        w = mem.write_port(granularity=self.unit * self.write_units)
        r = mem.read_port(domain="comb" if self.comb else "sync")
        lanes = self.wide // self.write_units
        w_lane = self.w.addr[:low] >> (self.write_units - 1).bit_length() if low else 0
        m.d.comb += [
            w.addr.eq(self.w.addr >> low),
            w.data.eq(self.w.data.replicate(lanes)),
            w.en.eq(Mux(self.w.en, 1 << w_lane if lanes > 1 else 1, 0)),
            r.addr.eq(self.r.addr >> low),
        ]
        select = self.r.addr[:low] >> (self.read_units - 1).bit_length() if low else 0
        if not self.comb:
            m.d.comb += r.en.eq(self.r.en)
            if self.wide > self.read_units:
                held = Signal(low)
                with m.If(self.r.en):
                    m.d.sync += held.eq(select)
                select = held
        if self.wide > self.read_units:
            m.d.comb += self.r.data.eq(r.data.word_select(select, self.unit * self.read_units))
        else:
            m.d.comb += self.r.data.eq(r.data)
        return m


class Rom(wiring.Component):
    """A table of constants: becomes LUTs.

    Members
    -------
    addr : in, index of an entry of ``table``
    data : out, that entry, ``width`` bits, combinational
    """

    def __init__(self, table, width: int):
        self.table = [int(v) for v in table]
        super().__init__(
            {
                "addr": In((len(self.table) - 1).bit_length()),
                "data": Out(width),
            }
        )

    def elaborate(self, platform):
        m = Module()
        width = len(self.data)
        with m.Switch(self.addr):
            for index, value in enumerate(self.table):
                with m.Case(index):
                    m.d.comb += self.data.eq(value & ((1 << width) - 1))
        return m


class Fifo(wiring.Component):
    """A queue of ``depth`` entries (a power of two) of ``shape`` between two streams.

    First-word latency 2 cycles, of UltraRAM (``ultra``) 3; throughput one entry per cycle.

    Members
    -------
    i, o : streams of ``shape``, in and out
    level : out, entries that have been taken in and not yet handed out
    """

    def __init__(self, shape, depth: int, *, ultra=False):
        if depth & (depth - 1) or depth < 2:
            raise ValueError(f"FIFO depth {depth} is not a power of two of at least 2")
        self.shape, self.depth, self.ultra = shape, depth, ultra
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "level": Out(range(depth + 2 + ultra)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i, o = self.i, self.o
        i_bits, o_bits = _as_bits(i.payload), _as_bits(o.payload)
        mem = Memory(shape=unsigned(len(i_bits)), depth=self.depth, init=[])
        m.submodules[_name(self.ultra)] = mem
        w = mem.write_port()
        r = mem.read_port(domain="sync")
        wp = Signal(range(self.depth))
        rp = Signal(range(self.depth))
        stored = Signal(range(self.depth + 1))  # entries in the memory
        push = Signal()
        pull = Signal()
        read = Signal() if self.ultra else o.valid  # the memory's output holds an entry
        moves = Signal()  # it leaves
        m.d.comb += [
            i.ready.eq(~stored[-1]),  # the depth is a power of two
            push.eq(i.valid & i.ready),
            pull.eq((stored != 0) & (~read | moves)),
            w.addr.eq(wp),
            w.data.eq(i_bits),
            w.en.eq(push),
            r.addr.eq(rp),
            r.en.eq(pull),
            self.level.eq(stored + read + (o.valid if self.ultra else 0)),
        ]
        m.d.sync += stored.eq(stored + push - pull)
        with m.If(push):
            m.d.sync += wp.eq(wp + 1)
        with m.If(pull):
            m.d.sync += [rp.eq(rp + 1), read.eq(1)]
        with m.Elif(moves):
            m.d.sync += read.eq(0)
        if self.ultra:
            shown = register(m, o_bits)
            m.d.comb += moves.eq(~o.valid | o.ready)
            with m.If(moves):
                m.d.sync += [o.valid.eq(read), shown.eq(r.data)]
        else:
            m.d.comb += [moves.eq(o.ready), o_bits.eq(r.data)]
        return m


def _name(ultra: bool) -> str:
    """Of the memory in a component: ``to_verilog`` knows those for UltraRAM by it."""
    return ULTRA if ultra else "mem"


def _as_bits(payload):
    return payload.as_value() if isinstance(payload, data.View) else payload

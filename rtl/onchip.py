"""Block RAM as the memory behind two AXI ports and a host: for boards without DRAM, or before it.

Both ports of the RAM are used: AXI port 0, its writes and the host share the first, AXI port 1 has
the second for itself. Each delivers a beat per cycle.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from tokenfabric.rtl.axi import memory_port
from tokenfabric.rtl.memory import Fifo
from tokenfabric.rtl.pipeline import delay, delays

__all__ = ["OnchipMemory", "host_port"]

BANK_WORDS = 4096  # of 64 bits: 16 block RAMs of the ECP5, four bits wide, need no multiplexer
STAGES = 5  # of a host's word besides the banks: request, address, decoded address, RAM, register


def host_port(addr_bits: int) -> wiring.Signature:
    """A host's view of the memory: words of 64 bits, one access per cycle, never refused.

    ``r_data`` belongs to the ``en`` of as many cycles before as the memory's ``latency``.
    """
    return wiring.Signature(
        {
            "en": Out(1),
            "write": Out(1),
            "addr": Out(addr_bits),
            "w_data": Out(64),
            "r_data": In(64),
        }
    )


class OnchipMemory(wiring.Component):
    """``size`` bytes, a multiple of 8; addresses beyond it wrap or read zero.

    Bursts are answered in order, writes when their last beat has been taken. A read that is asked
    for after a write's answer gives what was written, one before it anything. No error answers.

    Members: ``axi_0`` (In: memory_port with writes), ``axi_1`` (In: without), ``host`` (In).
    ``latency``: cycles from the ``en`` of ``host`` to the word, more the larger the memory is.
    """

    def __init__(self, size: int):
        if size % 8:
            raise ValueError(f"{size} bytes are not a multiple of 8")
        self.words = size // 8
        self.addr_bits = (self.words - 1).bit_length()
        self.banks = -(-self.words // BANK_WORDS)
        self.latency = STAGES + self.banks
        self.fifo_beats = 1 << (self.latency + 3).bit_length()  # enough for a beat per cycle
        super().__init__(
            {
                "axi_0": In(memory_port(8, writes=True)),
                "axi_1": In(memory_port(8, writes=False)),
                "host": In(host_port(self.addr_bits)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        axi = self.axi_0
        host = {name: Signal.like(getattr(self.host, name)) for name in ("en", "write", "addr")}
        host["w_data"] = Signal.like(self.host.w_data)
        m.d.sync += [register.eq(getattr(self.host, name)) for name, register in host.items()]
        w_fire, w_addr = self._writes(m, axi, host["en"])
        r_0, addr_0 = self._reads(m, 0, axi, host["en"] | w_fire)
        r_1, addr_1 = self._reads(m, 1, self.axi_1, 0)
        # The first stage: whose turn it is.
        write = Signal(8)
        address_0, address_1 = Signal.like(host["addr"]), Signal.like(host["addr"])
        word = Signal(64)
        m.d.sync += [
            write.eq(Mux(host["en"], host["write"].replicate(8), Mux(w_fire, axi.wstrb, 0))),
            address_0.eq(Mux(host["en"], host["addr"], Mux(w_fire, w_addr, addr_0))),
            address_1.eq(addr_1),
            word.eq(Mux(host["en"], host["w_data"], axi.wdata)),
        ]
        outputs = self._banks(m, write, word, (address_0, address_1))
        m.d.comb += self.host.r_data.eq(outputs[0])
        for port, (read, output) in enumerate(zip((r_0, r_1), outputs)):
            fifo = getattr(self, f"fifo_{port}")
            there = delays(m, read, self.latency - 1, name=f"there_{port}", reset_less=False)[-1]
            m.d.comb += [
                fifo.i.valid.eq(there[0]),
                fifo.i.payload.data.eq(output),
                fifo.i.payload.last.eq(there[1]),
            ]
        return m

    def _reads(self, m, port, axi, blocked):
        """Bursts into addresses; never more of them than the FIFO has room for.

        Returns (a read and whether it is its burst's last, as two bits; its word address).
        """
        beat = data.StructLayout({"data": unsigned(64), "last": 1})
        fifo = Fifo(beat, self.fifo_beats, block=False)
        m.submodules[f"fifo_{port}"] = fifo
        setattr(self, f"fifo_{port}", fifo)
        burst = data.StructLayout({"addr": self.addr_bits, "len": 8})
        m.submodules[f"bursts_{port}"] = bursts = Fifo(burst, 2, block=False)
        addr = Signal(self.addr_bits, name=f"read_addr_{port}")
        left = Signal(9, name=f"read_left_{port}")
        beats = self.fifo_beats
        room = Signal(range(beats + 1), init=beats, name=f"room_{port}")
        go, last, take = (Signal(name=f"{name}_{port}") for name in ("go", "last", "take"))
        m.d.comb += [
            last.eq(left == 1),
            go.eq((left != 0) & (room != 0) & ~blocked),
            axi.arready.eq(bursts.i.ready),
            bursts.i.valid.eq(axi.arvalid),
            bursts.i.payload.addr.eq(axi.araddr >> 3),
            bursts.i.payload.len.eq(axi.arlen),
            bursts.o.ready.eq((left == 0) | (last & go)),
            axi.rvalid.eq(fifo.o.valid),
            axi.rdata.eq(fifo.o.payload.data),
            axi.rlast.eq(fifo.o.payload.last),
            fifo.o.ready.eq(axi.rready),
            take.eq(axi.rvalid & axi.rready),
        ]
        m.d.sync += room.eq(room + take - go)
        with m.If(bursts.o.valid & bursts.o.ready):
            m.d.sync += [addr.eq(bursts.o.payload.addr), left.eq(bursts.o.payload.len + 1)]
        with m.Elif(go):
            m.d.sync += [addr.eq(addr + 1), left.eq(left - 1)]
        return Cat(go, last), addr

    def _writes(self, m, axi, blocked):
        """Returns (a beat is taken; its word address)."""
        addr = Signal(self.addr_bits, name="write_addr")
        writing, fire = Signal(), Signal()
        m.d.comb += [
            axi.awready.eq(~writing & ~axi.bvalid),
            axi.wready.eq(writing & ~blocked),
            fire.eq(axi.wvalid & axi.wready),
        ]
        with m.If(axi.awvalid & axi.awready):
            m.d.sync += [addr.eq(axi.awaddr >> 3), writing.eq(1)]
        with m.If(fire):
            m.d.sync += addr.eq(addr + 1)
            with m.If(axi.wlast):
                m.d.sync += [writing.eq(0), axi.bvalid.eq(1)]
        with m.If(axi.bvalid & axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        return fire, addr

    def _banks(self, m, write, word, addresses):
        """The words at both addresses, ``latency - 2`` cycles later.

        The banks are all over the chip, so they stand in a row: each hands what it was asked on to
        the next one, and what it was given by the one before unless the word is its own.
        """
        low = (min(self.words, BANK_WORDS) - 1).bit_length()
        found = [Const(0, 64)] * len(addresses)
        for bank in range(self.banks):
            depth = min(BANK_WORDS, self.words - bank * BANK_WORDS)
            memory = Memory(shape=unsigned(64), depth=depth, init=[])
            m.submodules[f"bank_{bank}"] = memory
            w = memory.write_port(granularity=8)
            mine = [Signal(name=f"mine_{bank}_{p}") for p in range(len(addresses))]
            m.d.comb += [own.eq(a[low:] == bank) for own, a in zip(mine, addresses)]
            within = [delay(m, a[:low], 1, f"within_{bank}_{p}") for p, a in enumerate(addresses)]
            m.d.comb += [w.addr.eq(within[0]), w.data.eq(delay(m, word, 1, f"word_{bank}"))]
            m.d.comb += w.en.eq(delay(m, Mux(mine[0], write, 0), 1, f"en_{bank}", reset_less=False))
            for port, own in enumerate(mine):
                r = memory.read_port()
                m.d.comb += [r.addr.eq(within[port]), r.en.eq(1)]
                data_ = delay(m, r.data, 1, f"data_{bank}_{port}")
                own = delays(m, own, 3, name=f"own_{bank}_{port}", reset_less=False)[3]
                found[port] = delay(m, Mux(own, data_, found[port]), 1, f"found_{bank}_{port}")
            write = delay(m, write, 1, f"write_{bank}", reset_less=False)
            word = w.data
            addresses = [delay(m, a, 1, f"address_{bank}_{p}") for p, a in enumerate(addresses)]
        return found

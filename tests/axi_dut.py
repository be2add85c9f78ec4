"""A copying engine with the ports of the accelerator, and ways to misbehave on request.

Burst k is read through port k % ports and written through port 0. Registers (bytes):
0x00 write 1 = start; 0x04 bit 0 busy, bit 1 a response was an error; 0x08 source;
0x0C destination; 0x10 bursts; 0x14 beats per burst; 0x18 a :class:`Fault`;
0x1C 32-bit sum of the beats' low words; 0x20 is answered with SLVERR; 0x24 is never answered.
"""

from __future__ import annotations

import enum

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import fifo
from amaranth.lib.wiring import Component, In, Out


class Fault(enum.IntEnum):
    NONE = 0
    ARVALID_DROPS = 1
    ARADDR_CHANGES = 2
    WLAST_EARLY = 3  # in burst 6, whose data may come before its address: four are in flight
    WLAST_LATE = 4
    WDATA_CHANGES = 5
    ARSIZE = 6
    ARBURST = 7
    LITE_UNASKED = 8
    LITE_RDATA_CHANGES = 9
    AWVALID_DROPS = 10
    WVALID_DROPS = 11
    HALF = 12  # legal: only the lower half of each beat is written


def read_ports(prefix: str, port_bytes: int) -> dict:
    return {
        f"{prefix}_{name}": direction(width)
        for name, direction, width in (
            ("araddr", Out, 32), ("arlen", Out, 8), ("arsize", Out, 3), ("arburst", Out, 2),
            ("arvalid", Out, 1), ("arready", In, 1), ("rdata", In, 8 * port_bytes),
            ("rresp", In, 2), ("rlast", In, 1), ("rvalid", In, 1), ("rready", Out, 1),
        )
    }  # fmt: skip


def write_ports(prefix: str, port_bytes: int) -> dict:
    return {
        f"{prefix}_{name}": direction(width)
        for name, direction, width in (
            ("awaddr", Out, 32), ("awlen", Out, 8), ("awsize", Out, 3), ("awburst", Out, 2),
            ("awvalid", Out, 1), ("awready", In, 1), ("wdata", Out, 8 * port_bytes),
            ("wstrb", Out, port_bytes), ("wlast", Out, 1), ("wvalid", Out, 1), ("wready", In, 1),
            ("bresp", In, 2), ("bvalid", In, 1), ("bready", Out, 1),
        )
    }  # fmt: skip


def lite_ports(prefix: str) -> dict:
    return {
        f"{prefix}_{name}": direction(width)
        for name, direction, width in (
            ("awaddr", In, 12), ("awvalid", In, 1), ("awready", Out, 1), ("wdata", In, 32),
            ("wstrb", In, 4), ("wvalid", In, 1), ("wready", Out, 1), ("bresp", Out, 2),
            ("bvalid", Out, 1), ("bready", In, 1), ("araddr", In, 12), ("arvalid", In, 1),
            ("arready", Out, 1), ("rdata", Out, 32), ("rresp", Out, 2), ("rvalid", Out, 1),
            ("rready", In, 1),
        )
    }  # fmt: skip


class Copier(Component):
    def __init__(self, ports: int = 2, port_bytes: int = 8, depth: int = 64):
        self.ports = ports
        self.port_bytes = port_bytes
        self.depth = depth
        members = {"irq": Out(1), **lite_ports("s_axi_ctrl")}
        for i in range(ports):
            members |= read_ports(f"m_axi_hp{i}", port_bytes)
        super().__init__(members | write_ports("m_axi_hp0", port_bytes))

    def elaborate(self, platform):
        m = Module()
        r = self.registers(m)
        done = Signal()
        with m.If(r["start"]):
            m.d.sync += [r["busy"].eq(1), r["error"].eq(0), r["sum"].eq(0)]
        with m.Elif(r["busy"] & done):
            m.d.sync += r["busy"].eq(0)
        m.d.comb += self.irq.eq(~r["busy"])
        fifos = [self.reader(m, i, r) for i in range(self.ports)]
        self.writer(m, fifos, r, done)
        return m

    def registers(self, m):
        r = {n: Signal(32, name=n) for n in ("source", "destination", "bursts", "sum")}
        r["beats"] = Signal(9)
        r["fault"] = Signal(8)
        r |= {n: Signal(name=n) for n in ("start", "busy", "error")}
        p = {n: getattr(self, f"s_axi_ctrl_{n}") for n in (
            "awaddr awvalid awready wdata wvalid wready bresp bvalid bready"
            " araddr arvalid arready rdata rresp rvalid rready").split()}  # fmt: skip
        writing = p["awvalid"] & p["wvalid"] & ~p["bvalid"]
        m.d.comb += [p["awready"].eq(writing), p["wready"].eq(writing)]
        m.d.sync += r["start"].eq(0)
        with m.If(p["bvalid"] & p["bready"]):
            m.d.sync += p["bvalid"].eq(0)
        with m.If(writing):
            m.d.sync += [p["bvalid"].eq(1), p["bresp"].eq(Mux(p["awaddr"] == 0x20, 2, 0))]
            with m.Switch(p["awaddr"]):
                with m.Case(0x00):
                    m.d.sync += r["start"].eq(p["wdata"][0])
                for offset, name in ((0x08, "source"), (0x0C, "destination"), (0x10, "bursts"),
                                     (0x14, "beats"), (0x18, "fault")):  # fmt: skip
                    with m.Case(offset):
                        m.d.sync += r[name].eq(p["wdata"])
        with m.If((r["fault"] == Fault.LITE_UNASKED) & r["busy"]):
            m.d.sync += p["bvalid"].eq(1)
        reading = p["arvalid"] & ~p["rvalid"] & (p["araddr"] != 0x24)
        m.d.comb += p["arready"].eq(reading)
        with m.If(p["rvalid"] & p["rready"]):
            m.d.sync += p["rvalid"].eq(0)
        with m.If(reading):
            m.d.sync += [p["rvalid"].eq(1), p["rresp"].eq(Mux(p["araddr"] == 0x20, 2, 0))]
            with m.Switch(p["araddr"]):
                with m.Case(0x04):
                    m.d.sync += p["rdata"].eq(Cat(r["busy"], r["error"]))
                for offset, name in ((0x08, "source"), (0x1C, "sum")):
                    with m.Case(offset):
                        m.d.sync += p["rdata"].eq(r[name])
        with m.If((r["fault"] == Fault.LITE_RDATA_CHANGES) & p["rvalid"] & ~p["rready"]):
            m.d.sync += p["rdata"].eq(~p["rdata"])
        return r

    def reader(self, m, i, r):
        p = {
            n: getattr(self, f"m_axi_hp{i}_{n}")
            for n in (
                "araddr arlen arsize arburst arvalid arready rdata rresp rlast rvalid rready"
            ).split()
        }
        m.submodules[f"fifo{i}"] = data = fifo.SyncFIFOBuffered(
            width=8 * self.port_bytes, depth=self.depth
        )
        burst = Signal(32, name=f"read_burst{i}")
        fault = r["fault"]
        size = self.port_bytes.bit_length() - 1
        waited = Signal(name=f"waited{i}")
        m.d.comb += [
            p["arvalid"].eq(
                (burst < r["bursts"]) & r["busy"] & ~((fault == Fault.ARVALID_DROPS) & waited)
            ),
            p["araddr"].eq(
                r["source"] + burst * (r["beats"] << size)
                + Mux((fault == Fault.ARADDR_CHANGES) & waited, 4096, 0)
            ),
            p["arlen"].eq(r["beats"] - 1),
            p["arsize"].eq(size - (fault == Fault.ARSIZE)),
            p["arburst"].eq(Mux(fault == Fault.ARBURST, 0, 1)),
            p["rready"].eq(data.w_rdy),
            data.w_data.eq(p["rdata"]),
            data.w_en.eq(p["rvalid"] & p["rready"]),
        ]  # fmt: skip
        m.d.sync += waited.eq(p["arvalid"] & ~p["arready"])
        with m.If(p["arvalid"] & p["arready"]):
            m.d.sync += burst.eq(burst + self.ports)
        with m.If(r["start"]):
            m.d.sync += burst.eq(i)
        with m.If(p["rvalid"] & p["rready"] & (p["rresp"] != 0)):
            m.d.sync += r["error"].eq(1)
        return data

    def writer(self, m, fifos, r, done):
        p = {n: getattr(self, f"m_axi_hp0_{n}") for n in (
            "awaddr awlen awsize awburst awvalid awready wdata wstrb wlast wvalid wready"
            " bresp bvalid bready").split()}  # fmt: skip
        fault = r["fault"]
        size = self.port_bytes.bit_length() - 1
        addressed, written, answered = (
            Signal(32, name=n) for n in ("addressed", "written", "answered")
        )
        turn = Signal(range(max(2, self.ports)))
        beat = Signal(9)
        aw_waited, w_waited, flip = Signal(), Signal(), Signal()
        data = Array([f.r_data for f in fifos])[turn]
        ready = Array([f.r_rdy for f in fifos])[turn]
        all_bytes = (1 << self.port_bytes) - 1
        last_beat = (
            r["beats"] - 1
            - ((fault == Fault.WLAST_EARLY) & (written == 6))
            + ((fault == Fault.WLAST_LATE) & (written == 6))
        )  # fmt: skip
        m.d.comb += [
            p["awvalid"].eq(
                (addressed < r["bursts"]) & r["busy"] & (addressed - answered < 4)
                & ~((fault == Fault.AWVALID_DROPS) & aw_waited)
            ),
            p["awaddr"].eq(r["destination"] + addressed * (r["beats"] << size)),
            p["awlen"].eq(r["beats"] - 1), p["awsize"].eq(size), p["awburst"].eq(1),
            p["wdata"].eq(data ^ ((fault == Fault.WDATA_CHANGES) & flip)),
            p["wstrb"].eq(Mux(fault == Fault.HALF, all_bytes >> self.port_bytes // 2, all_bytes)),
            p["wlast"].eq(beat == last_beat),
            p["wvalid"].eq(
                ready & (written < r["bursts"]) & ~((fault == Fault.WVALID_DROPS) & w_waited)
            ),
            p["bready"].eq(1),
            done.eq(answered == r["bursts"]),
        ]  # fmt: skip
        m.d.sync += [
            aw_waited.eq(p["awvalid"] & ~p["awready"]),
            w_waited.eq(p["wvalid"] & ~p["wready"]),
            flip.eq(~flip),
        ]
        for i, source in enumerate(fifos):
            m.d.comb += source.r_en.eq((turn == i) & p["wvalid"] & p["wready"])
        with m.If(p["awvalid"] & p["awready"]):
            m.d.sync += addressed.eq(addressed + 1)
        with m.If(p["wvalid"] & p["wready"]):
            m.d.sync += [beat.eq(beat + 1), r["sum"].eq(r["sum"] + data[:32])]
            with m.If(p["wlast"]):
                m.d.sync += [
                    beat.eq(0), written.eq(written + 1),
                    turn.eq(Mux(turn == self.ports - 1, 0, turn + 1)),
                ]  # fmt: skip
        with m.If(p["bvalid"] & p["bready"]):
            m.d.sync += answered.eq(answered + 1)
            with m.If(p["bresp"] != 0):
                m.d.sync += r["error"].eq(1)
        with m.If(r["start"]):
            m.d.sync += [addressed.eq(0), written.eq(0), answered.eq(0), beat.eq(0), turn.eq(0)]

"""The memory ports: who reads and writes through them, and what goes wrong there."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.registers import Error
from tokenfabric.rtl.arbiter import Arbiter
from tokenfabric.rtl.axi import write_master
from tokenfabric.rtl.layouts import fetch_command, write_beat
from tokenfabric.rtl.reader import Reader
from tokenfabric.rtl.writer import Writer

__all__ = ["MemoryErrors", "MemoryPorts"]

READER_STREAMS = ("stream", "words", "beats", "kv_turns")


class MemoryErrors(wiring.Component):
    """The one error that counts of those that the ports raise. Combinational.

    Reads count before writes, among them the highest port; on a port the window before the bus.

    Members
    -------
    write_axi, write_window : in
    read_axi, read_window : in, a bit per port
    code : out, ``registers.Error``, 0 for none
    port : out, 4 bits, of a read; else 0
    """

    def __init__(self, ports: int):
        super().__init__(
            {
                "write_axi": In(1),
                "write_window": In(1),
                "read_axi": In(ports),
                "read_window": In(ports),
                "code": Out(8),
                "port": Out(4),
            }
        )

    def elaborate(self, platform):
        m = Module()
        with m.If(self.write_axi):
            m.d.comb += self.code.eq(Error.AXI_WRITE)
        with m.If(self.write_window):
            m.d.comb += self.code.eq(Error.WINDOW)
        for number, (axi, window) in enumerate(zip(self.read_axi, self.read_window, strict=True)):
            with m.If(axi):
                m.d.comb += [self.code.eq(Error.AXI_READ), self.port.eq(number)]
            with m.If(window):
                m.d.comb += [self.code.eq(Error.WINDOW), self.port.eq(number)]
        return m


class MemoryPorts(wiring.Component):
    """All accesses to memory: Reader and Writer, and the units that take turns at both.

    Latency and throughput: see these; taking turns adds nothing.

    Parameters
    ----------
    fetches, writes : units that ask for reads, that write; the first go before the others

    Members
    -------
    axi_r : read_masters, out, one per port
    axi_w : write_master, out
    windows : in, steady while accesses go on
    halt : in, no burst is announced any more
    fetch : streams of fetch_command, in, one per unit
    write : streams of write_beat, in, one per unit; its runs stay together
    stream, words, full, beats, kv, kv_turns : see Reader
    writer_idle : out, see Writer
    quiet : out, nothing is in flight; while ``halt`` it stays so
    error, error_port : out, see MemoryErrors; stay until reset
    read_beats : out, a bit per port, strobe for each beat that arrived
    write_beat : out, strobe for each beat that was accepted
    """

    def __init__(self, cfg: FabricConfig, *, fetches: int, writes: int):
        self.cfg, self.reader = cfg, Reader(cfg)
        of_reader = self.reader.signature.members
        super().__init__(
            {
                "axi_r": of_reader["axi"],
                "axi_w": Out(write_master(cfg.port_bytes)),
                "windows": of_reader["windows"],
                "halt": In(1),
                "fetch": In(stream.Signature(fetch_command(cfg))).array(fetches),
                "write": In(stream.Signature(write_beat(cfg))).array(writes),
                **{name: of_reader[name] for name in (*READER_STREAMS, "kv", "full")},
                "writer_idle": Out(1),
                "quiet": Out(1),
                "error": Out(8),
                "error_port": Out(4),
                "read_beats": Out(cfg.ports),
                "write_beat": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, reader = self.cfg, self.reader
        m.submodules.reader = reader
        m.submodules.writer = writer = Writer(cfg)
        m.submodules.errors = errors = MemoryErrors(cfg.ports)
        fetches = Arbiter(fetch_command(cfg), len(self.fetch), runs=False)
        writes = Arbiter(write_beat(cfg), len(self.write), runs=True)
        m.submodules.fetches, m.submodules.writes = fetches, writes
        for arbiter, sources, sink in (
            (fetches, self.fetch, reader.fetch),
            (writes, self.write, writer.beats),
        ):
            for source, i in zip(sources, arbiter.i, strict=True):
                connect(m, flipped(source), i)
            connect(m, arbiter.o, sink)
        for inside, outside in (*zip(reader.axi, self.axi_r), *zip(reader.kv, self.kv)):
            connect(m, inside, flipped(outside))
        connect(m, writer.axi, flipped(self.axi_w))
        for name in READER_STREAMS:
            connect(m, getattr(reader, name), flipped(getattr(self, name)))
        for unit in (reader, writer):
            m.d.comb += [unit.windows.eq(self.windows), unit.halt.eq(self.halt)]
        m.d.comb += [
            errors.read_axi.eq(reader.error_axi),
            errors.read_window.eq(reader.error_window),
            errors.write_axi.eq(writer.error_axi),
            errors.write_window.eq(writer.error_window),
            self.error.eq(errors.code),
            self.error_port.eq(errors.port),
            self.full.eq(reader.full),
            self.writer_idle.eq(writer.idle),
            self.quiet.eq(reader.quiet & writer.quiet),
            self.read_beats.eq(reader.beat),
            self.write_beat.eq(writer.beat),
        ]
        return m

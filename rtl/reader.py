"""All reads of memory: who asks, and the ports that they share."""

from __future__ import annotations

from amaranth.hdl import Cat, Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.rtl.axi import read_master
from tokenfabric.rtl.dma import Fetch, ReadPort, WeightStream
from tokenfabric.rtl.layouts import fetch_beat, fetch_command, kv_beat, stream_command, windows

__all__ = ["Reader"]


class Reader(wiring.Component):
    """The weight stream and all other reads, on the same ports.

    Latency and throughput: see WeightStream, Fetch and ReadPort; nothing is added to theirs.

    Members
    -------
    axi : read_masters, out, one per port
    windows : in, steady while reads go on
    halt : in, no burst is announced any more
    stream : stream of stream_command, in: the weights to stream
    words : stream of the weight stream's words, out
    full : out, the weight stream waits for room
    fetch : stream of fetch_command, in: everything else
    beats : stream of fetch_beat, out, but for K and V
    kv : streams of kv_beat, out, one per port
    kv_turns : stream of port numbers, out, one for each burst of K or V
    quiet : out, nothing is in flight; while ``halt`` it stays so
    error_window, error_axi : out, a bit per port, stay high until reset
    beat : out, a bit per port, strobe for each beat that arrived
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "axi": Out(read_master(cfg.port_bytes)).array(cfg.ports),
                "windows": In(windows()),
                "halt": In(1),
                "stream": In(stream.Signature(stream_command(cfg))),
                "words": Out(stream.Signature(8 * cfg.word_bytes)),
                "full": Out(1),
                "fetch": In(stream.Signature(fetch_command(cfg))),
                "beats": Out(stream.Signature(fetch_beat(cfg))),
                "kv": Out(stream.Signature(kv_beat(cfg))).array(cfg.ports),
                "kv_turns": Out(stream.Signature(range(cfg.ports))),
                "quiet": Out(1),
                "error_window": Out(cfg.ports),
                "error_axi": Out(cfg.ports),
                "beat": Out(cfg.ports),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.weights = weights = WeightStream(self.cfg)
        m.submodules.fetch = fetch = Fetch(self.cfg)
        connect(m, flipped(self.stream), weights.start)
        connect(m, weights.words, flipped(self.words))
        connect(m, flipped(self.fetch), fetch.cmd)
        connect(m, fetch.out, flipped(self.beats))
        connect(m, fetch.kv_turns, flipped(self.kv_turns))
        ports = [ReadPort(self.cfg) for _ in self.axi]
        for p, port in enumerate(ports):
            m.submodules[f"port_{p}"] = port
            connect(m, port.axi, flipped(self.axi[p]))
            connect(m, weights.ports[p], port.weights)
            connect(m, fetch.ports[p], port.fetch)
            connect(m, fetch.kv[p], flipped(self.kv[p]))
            m.d.comb += [port.windows.eq(self.windows), port.halt.eq(self.halt)]
        m.d.comb += [
            self.full.eq(weights.full),
            self.quiet.eq(Cat(port.quiet for port in ports).all()),
            self.error_window.eq(Cat(port.error_window for port in ports)),
            self.error_axi.eq(Cat(port.error_axi for port in ports)),
            self.beat.eq(Cat(port.beat for port in ports)),
        ]
        return m

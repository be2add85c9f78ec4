"""Bursts: what a port is asked for, how memory is cut into them, the window they keep to."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.rtl.layouts import ADDRESS_BITS, BeatTag, fetch_command, windows

__all__ = [
    "Splitter",
    "WindowCheck",
    "beat_bits",
    "burst",
    "bus_burst",
    "read_client",
    "tagged_burst",
]

BLOCK_BITS = (BURST_BEATS - 1).bit_length()  # of the beat's number within an aligned block
LEN_BITS = BURST_BEATS.bit_length()  # 1 .. BURST_BEATS


def beat_bits(cfg: FabricConfig) -> int:
    """Low address bits within a beat."""
    return (cfg.port_bytes - 1).bit_length()


def burst(cfg: FabricConfig) -> data.StructLayout:
    """``beats`` (1 .. 16) from device address ``addr``, within one aligned block of 16 beats."""
    return data.StructLayout({"addr": unsigned(ADDRESS_BITS), "beats": unsigned(LEN_BITS)})


def tagged_burst(cfg: FabricConfig) -> data.StructLayout:
    """A burst of a fetch; ``last`` marks the last one of its command."""
    return data.StructLayout({"burst": burst(cfg), "tag": BeatTag, "last": unsigned(1)})


def bus_burst(cfg: FabricConfig) -> data.StructLayout:
    """A burst as AXI wants it: bus address and beats - 1; ``ok`` if it lies in the window."""
    return data.StructLayout(
        {
            "addr": unsigned(ADDRESS_BITS),
            "len": unsigned(BLOCK_BITS),
            "fetch": unsigned(1),
            "ok": unsigned(1),
        }
    )


def read_client(cfg: FabricConfig) -> wiring.Signature:
    """A unit that reads through a port, from the unit's side.

    Data come in the order of the bursts, without ``ready``: a client asks for no more beats than it
    has room for.
    """
    return wiring.Signature(
        {
            "burst": Out(stream.Signature(burst(cfg))),
            "valid": In(1),
            "data": In(8 * cfg.port_bytes),
        }
    )


class Splitter(wiring.Component):
    """Cuts commands into bursts that do not cross blocks of 16 beats (128 bytes, so never 4 KB).

    First burst one cycle after the command, one burst per cycle; the next command is taken in the
    cycle after the last burst. Low address bits within a beat are
    ignored. ``beats`` of a command must not be 0.

    Members
    -------
    i : stream of fetch_command, in
    o : stream of tagged_burst, out
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(fetch_command(cfg))),
                "o": Out(stream.Signature(tagged_burst(cfg))),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i, o = self.i, self.o
        low = beat_bits(self.cfg)
        within = Signal(BLOCK_BITS)  # the next beat's number in its block
        block = Signal(ADDRESS_BITS - low - BLOCK_BITS)
        left = Signal.like(i.payload.beats)
        room = Signal(LEN_BITS)
        m.d.comb += [
            room.eq(BURST_BEATS - within),
            o.payload.last.eq(left <= room),
            o.payload.burst.beats.eq(Mux(o.payload.last, left, room)),
            o.payload.burst.addr.eq(Cat(Const(0, low), within, block)),
            i.ready.eq(~o.valid),  # so that no path leads from the ports to who commands
        ]
        with m.If(o.valid & o.ready):
            m.d.sync += [
                block.eq(block + 1),
                within.eq(0),
                left.eq(left - room),
                o.valid.eq(~o.payload.last),
            ]
        with m.If(i.ready):
            m.d.sync += [
                o.valid.eq(i.valid),
                Cat(within, block).eq(i.payload.offset >> low),
                left.eq(i.payload.beats),
                o.payload.tag.eq(i.payload.tag),
            ]
        return m


class WindowCheck(wiring.Component):
    """Adds the base of its window to a burst and says whether it ends within the window.

    The top bit of a device address chooses the window (``isa.JOB``). ``offset + beats * port_bytes
    <= size`` in 32 bits for offsets of 31, so an address that wraps is outside.
    Latency 2 cycles, one burst per cycle.

    Members
    -------
    i : stream of burst, in; ``fetch`` is handed on beside it
    o : stream of bus_burst, out
    windows : in, steady
    """

    LATENCY = 2

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "i": In(stream.Signature(burst(cfg))),
                "fetch": In(1),
                "o": Out(stream.Signature(bus_burst(cfg))),
                "windows": In(windows()),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i, o = self.i, self.o
        s1_valid = Signal()
        s1_addr = Signal(ADDRESS_BITS, reset_less=True)
        s1_end = Signal(ADDRESS_BITS, reset_less=True)
        s1_size = Signal(ADDRESS_BITS, reset_less=True)
        s1_len = Signal(BLOCK_BITS, reset_less=True)
        s1_fetch = Signal(reset_less=True)
        step = Signal()
        offset, job = i.payload.addr[:-1], i.payload.addr[-1]
        windows = self.windows
        m.d.comb += [step.eq(~o.valid | o.ready), i.ready.eq(step)]
        with m.If(step):
            m.d.sync += [s1_valid.eq(i.valid), o.valid.eq(s1_valid)]
        with m.If(step & i.valid):
            m.d.sync += [
                s1_addr.eq(Mux(job, windows.job_base, windows.window_base) + offset),
                s1_end.eq(offset + (i.payload.beats << beat_bits(self.cfg))),
                s1_size.eq(Mux(job, windows.job_size, windows.window_size)),
                s1_len.eq(i.payload.beats - 1),
                s1_fetch.eq(self.fetch),
            ]
        with m.If(step & s1_valid):
            m.d.sync += [
                o.payload.addr.eq(s1_addr),
                o.payload.len.eq(s1_len),
                o.payload.fetch.eq(s1_fetch),
                o.payload.ok.eq(s1_end <= s1_size),
            ]
        return m

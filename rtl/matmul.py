"""MatmulEngine: products of a few rows with weights that stream by.

Four parts in a row: :class:`TileLoader` brings tiles to the array, :class:`ActivationIssue` the
activations, SystolicArray and Accumulators do the sums, :class:`Drain` takes the complete ones to
Requantize.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, MULT_BITS
from tokenfabric.rtl.accumulate import Accumulators
from tokenfabric.rtl.activationissue import ActivationIssue, issue_latency
from tokenfabric.rtl.drain import Drain
from tokenfabric.rtl.layouts import (
    CHUNK_BITS,
    MatmulKind,
    embed_chunk,
    index_shape,
    matmul_command,
    matmul_result,
    row_scale,
    table_entry,
)
from tokenfabric.rtl.memory import Fifo, Ram, read_port, write_port
from tokenfabric.rtl.pipeline import delays
from tokenfabric.rtl.systolic import SystolicArray, array_latency
from tokenfabric.rtl.tileloader import TileLoader
from tokenfabric.rtl.tileloops import address_bits

__all__ = ["MatmulEngine", "RowTables", "result_latency"]

MULTIPLIER_WORDS = 8  # waiting for their sums: each column-block takes at least four cycles


def row_scale_port(cfg: FabricConfig) -> wiring.Signature:
    """Who writes the multipliers of rows: ``en`` and ``payload``, which says for which row."""
    return wiring.Signature({"en": Out(1), "payload": Out(row_scale(cfg))})


class RowTables(wiring.Component):
    """Of each row of a command: where it comes from, where it goes, and what multiplies it.

    One write per cycle into each of the two tables; look-ups are combinational (LUT RAM). They see
    a write in the next cycle. ActivationIssue looks up one row while Drain looks up another.

    Members
    -------
    table_w : in, write port of ``table_entry``; row_scale_w : in, ``row_scale_port``
    src_index : in, a row; src : out, 16 bits, its source in chunks
    index : in, a row; dst, limit, scale : out, 16 bits, 16 bits, ``row_scale``: the rest about it
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "table_w": In(write_port(address_bits(cfg.max_rows), table_entry(cfg))),
                "row_scale_w": In(row_scale_port(cfg)),
                "src_index": In(index_shape(cfg)),
                "src": Out(CHUNK_BITS),
                "index": In(index_shape(cfg)),
                "dst": Out(CHUNK_BITS),
                "limit": Out(16),
                "scale": Out(row_scale(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        rows, entry, scale = self.cfg.max_rows, self.table_w.data, self.row_scale_w.payload
        m.submodules.source = source = Ram(rows, len(entry.src), comb=True)
        m.submodules.target = target = Ram(rows, len(entry.dst) + len(entry.limit), comb=True)
        m.submodules.scales = scales = Ram(rows, len(scale.as_value()), comb=True)
        for ram, value in ((source, entry.src), (target, Cat(entry.dst, entry.limit))):
            m.d.comb += [
                ram.w.en.eq(self.table_w.en),
                ram.w.addr.eq(self.table_w.addr),
                ram.w.data.eq(value),
            ]
        m.d.comb += [
            scales.w.en.eq(self.row_scale_w.en),
            scales.w.addr.eq(scale.index),
            scales.w.data.eq(scale),
            source.r.addr.eq(self.src_index),
            self.src.eq(source.r.data),
            target.r.addr.eq(self.index),
            Cat(self.dst, self.limit).eq(target.r.data),
            scales.r.addr.eq(self.index),
            self.scale.as_value().eq(scales.r.data),
        ]
        return m


def result_latency(cfg: FabricConfig) -> int:
    """Cycles from the last of a row's activations entering (``going``) to its ``result_valid``."""
    in_array = array_latency(cfg) - 1  # a psum comes one cycle after it was announced
    return issue_latency(cfg) + in_array + Accumulators.LATENCY + Drain.LATENCY


class MatmulEngine(wiring.Component):
    """Runs the commands of docs/microarchitecture.md, one at a time.

    A tile takes ``max(m, cfg.tile_cycles)`` cycles when its words are there; each group of
    ``cfg.scale_channels`` channels costs one more, unless m hides it. ``busy`` falls DRAIN cycles
    after the last activation was read.

    Members
    -------
    cmd : in, stream of ``matmul_command``; taken when not busy
    busy : out, 1 bit: from the command's acceptance to its last result (LOAD: to its last write),
        inclusive
    table_w : in, write port of the row table; only while not busy
    row_scale_w : in, ``en`` and ``payload``: the multipliers of rows for V; before the command
    words, kv_words : in, streams of words; kv_scales : in, stream of C times uint16
    in_r, score_r : out, read ports of row-blocks
    param_w : out, write port of words
    room : in, 1 bit: LOGITS may begin another column-block
    embed_valid : in, 1 bit; embed : in, ``embed_chunk``: for Requantize; only while not busy
    result_valid : out, 1 bit; result : out, ``matmul_result``, always taken
    count_busy, wait_weights, wait_kv, wait_room, idle : out, 1 bit each: an activation enters the
        array; none does because the next tile is not complete or there is no room; there is no
        command
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.DRAIN = result_latency(cfg)
        word = stream.Signature(unsigned(8 * cfg.word_bytes))
        block = cfg.rows * ACT_BITS
        super().__init__(
            {
                "cmd": In(stream.Signature(matmul_command(cfg))),
                "busy": Out(1),
                "table_w": In(write_port(address_bits(cfg.max_rows), table_entry(cfg))),
                "row_scale_w": In(row_scale_port(cfg)),
                "words": In(word),
                "kv_words": In(word),
                "kv_scales": In(stream.Signature(unsigned(cfg.cols * MULT_BITS))),
                "in_r": Out(read_port(address_bits(cfg.in_chunks), block)),
                "score_r": Out(read_port(address_bits(cfg.score_chunks), block)),
                "param_w": Out(write_port(address_bits(cfg.param_chunks), 8 * cfg.word_bytes)),
                "room": In(1),
                "embed_valid": In(1),
                "embed": In(embed_chunk(cfg)),
                "result_valid": Out(1),
                "result": Out(matmul_result(cfg)),
                "count_busy": Out(1),
                "wait_weights": Out(1),
                "wait_kv": Out(1),
                "wait_room": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.loader = loader = TileLoader(cfg)
        m.submodules.issue = issue = ActivationIssue(cfg)
        m.submodules.drain = drain = Drain(cfg)
        m.submodules.tables = tables = RowTables(cfg)
        for port in ("words", "kv_words", "kv_scales", "param_w"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(loader, port))
        for port in ("table_w", "row_scale_w"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(tables, port))
        for port in ("in_r", "score_r"):
            wiring.connect(m, getattr(issue, port), wiring.flipped(getattr(self, port)))
        command, start = Signal(matmul_command(cfg)), Signal()
        m.d.comb += self.cmd.ready.eq(~self.busy)
        m.d.sync += start.eq(self.cmd.valid & self.cmd.ready)
        with m.If(self.cmd.valid & self.cmd.ready):
            m.d.sync += [command.eq(self.cmd.payload), self.busy.eq(1)]
        with m.If(loader.load_done | (self.result_valid & self.result.last)):
            m.d.sync += self.busy.eq(0)
        for part in (loader, issue, drain):
            m.d.comb += [part.cmd.eq(command), part.start.eq(start)]
        m.d.comb += [
            loader.take.eq(issue.take),
            issue.loaded.eq(loader.loaded),
            issue.room.eq(self.room),
            drain.embed_valid.eq(self.embed_valid),
            drain.embed.eq(self.embed),
            self.result_valid.eq(drain.result_valid),
            self.result.eq(drain.result),
            tables.src_index.eq(issue.index),
            issue.src.eq(tables.src),
            tables.index.eq(drain.index),
            drain.dst.eq(tables.dst),
            drain.limit.eq(tables.limit),
            drain.scale.eq(tables.scale),
        ]
        self._sums(m, loader, issue, drain)
        self._counters(m, command, issue)
        return m

    def _sums(self, m: Module, loader: TileLoader, issue: ActivationIssue, drain: Drain):
        """Words wait as long as activations, so both count time from the moment they are taken."""
        cfg = self.cfg
        m.submodules.array = array = SystolicArray(cfg)
        m.submodules.accumulators = accumulators = Accumulators(cfg)
        m.submodules.multipliers = queue = Fifo(unsigned(8 * cfg.word_bytes), MULTIPLIER_WORDS)
        wiring.connect(m, loader.multipliers, queue.i)
        wiring.connect(m, queue.o, drain.multipliers)
        wait = issue_latency(cfg) - TileLoader.LATENCY
        load = delays(m, loader.load, wait, name="load", reset_less=False)
        about = Cat(loader.load_index, loader.load_rows, loader.word)
        about = delays(m, about, wait, name="word")
        about_sum = Cat(issue.first, issue.last, issue.addr)
        about_sum = delays(m, about_sum, array.LATENCY - 1, name="about_sum")
        sum_valid = delays(m, issue.valid, array.LATENCY - 1, name="sum_valid", reset_less=False)
        m.d.comb += [
            array.load.eq(load[-1]),
            Cat(array.load_index, array.load_rows, array.word).eq(about[-1]),
            array.valid.eq(issue.valid),
            array.swap.eq(issue.swap),
            array.x.eq(issue.x),
            accumulators.valid.eq(sum_valid[-1]),
            Cat(accumulators.first, accumulators.last, accumulators.addr).eq(about_sum[-1]),
            accumulators.psum.eq(array.psum),
            drain.valid.eq(accumulators.out_valid),
            drain.sums.eq(accumulators.sums),
        ]

    def _counters(self, m: Module, command: data.View, issue: ActivationIssue):
        """What this cycle was, for the performance counters."""
        from_stream = command.kind == MatmulKind.STREAM
        loading = self.busy & (command.kind == MatmulKind.LOAD) & ~self.words.valid
        m.d.sync += [
            self.count_busy.eq(issue.going),
            self.wait_weights.eq((issue.waiting & from_stream) | loading),
            self.wait_kv.eq(issue.waiting & ~from_stream),
            self.wait_room.eq(issue.waiting_room),
            self.idle.eq(~self.busy),
        ]

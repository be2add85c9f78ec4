"""MatmulEngine: products of a few rows with weights that stream by.

Four parts in a row: :class:`Loader` brings tiles to the array, :class:`Issue` the activations,
SystolicArray and Accumulators do the sums, :class:`Drain` takes the complete ones to Requantize.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS, MULT_BITS
from tokenfabric.rtl.accumulate import Accumulators, sums_layout
from tokenfabric.rtl.layouts import (
    CHUNK_BITS,
    MatmulDest,
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
from tokenfabric.rtl.requantize import Requantize
from tokenfabric.rtl.systolic import SystolicArray, array_latency

__all__ = ["Drain", "Issue", "Loader", "MatmulEngine"]

COUNT_BITS = 16
MULTIPLIER_WORDS = 8  # waiting for their sums: each column-block takes at least four cycles


def address_bits(chunks: int) -> int:
    """Address width of a memory of ``chunks`` units."""
    return max(1, (chunks - 1).bit_length())


class _Loops(wiring.Component):
    """The two loops over the tiles of a command: K and STREAM n outer, k inner; V the other way.

    ``start`` begins anew (``cmd`` must stay until the end), ``step`` goes to the next tile.
    ``running`` falls after the last. ``first_inner``, ``last_inner`` and ``last_outer`` mark the
    ends of the loops.
    """

    def __init__(self, cfg: FabricConfig):
        super().__init__(
            {
                "start": In(1),
                "step": In(1),
                "cmd": In(matmul_command(cfg)),
                "running": Out(1),
                "inner": Out(COUNT_BITS),
                "outer": Out(COUNT_BITS),
                "first_inner": Out(1),
                "last_inner": Out(1),
                "last_outer": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cmd = self.cmd
        is_v = cmd.kind == MatmulKind.V
        is_load = cmd.kind == MatmulKind.LOAD
        inners, outers = Signal(COUNT_BITS), Signal(COUNT_BITS)
        before_inner, before_outer = Signal(COUNT_BITS), Signal(COUNT_BITS)  # the last but one
        one_inner = Signal()
        m.d.comb += [
            inners.eq(Mux(is_load, 1, Mux(is_v, cmd.n, cmd.k))),
            outers.eq(Mux(is_v, cmd.k, cmd.n)),
        ]
        with m.If(self.start):
            m.d.sync += [
                self.running.eq(1),
                self.inner.eq(0),
                self.outer.eq(0),
                before_inner.eq(inners - 2),
                before_outer.eq(outers - 2),
                one_inner.eq(inners == 1),
                self.first_inner.eq(1),
                self.last_inner.eq(inners == 1),
                self.last_outer.eq(outers == 1),
            ]
        with m.Elif(self.step):
            m.d.sync += [
                self.inner.eq(self.inner + 1),
                self.first_inner.eq(self.last_inner),
                self.last_inner.eq(self.inner == before_inner),
            ]
            with m.If(self.last_inner):
                m.d.sync += [
                    self.inner.eq(0),
                    self.last_inner.eq(one_inner),
                    self.outer.eq(self.outer + 1),
                    self.last_outer.eq(self.outer == before_outer),
                ]
                with m.If(self.last_outer):
                    m.d.sync += self.running.eq(0)
        return m


class Loader(wiring.Component):
    """Takes the words of a command apart: tiles for the array, multipliers, parameters.

    Runs ahead of Issue by one tile: ``loaded`` says that the shadow holds a complete one, ``take``
    that it is used from this cycle on, in which the next tile's first word may already follow. A
    word of multipliers is taken as soon as it is next, so while the array is still busy with m > 4
    rows. For LOAD each word counts as a tile.

    Members
    -------
    start, cmd : a command; cmd stays until the end
    words, kv_words, kv_scales : In, streams
    take, loaded : handshake with Issue
    load, load_index, load_rows, word : to the array, LATENCY cycles after the word was taken
    multipliers : Out, stream of words of uint16: one per group (STREAM) or column-block (K)
    param_w : Out, write port of PARAM
    load_done : the last parameter is being written
    """

    LATENCY = 1

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        word = unsigned(8 * cfg.word_bytes)
        super().__init__(
            {
                "start": In(1),
                "cmd": In(matmul_command(cfg)),
                "words": In(stream.Signature(word)),
                "kv_words": In(stream.Signature(word)),
                "kv_scales": In(stream.Signature(unsigned(cfg.cols * MULT_BITS))),
                "take": In(1),
                "loaded": Out(1),
                "load": Out(1),
                "load_index": Out(range(cfg.tile_cycles)),
                "load_rows": Out(1),
                "word": Out(word),
                "multipliers": Out(stream.Signature(word)),
                "param_w": Out(write_port(address_bits(cfg.param_chunks), 8 * cfg.word_bytes)),
                "load_done": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, cmd = self.cfg, self.cmd
        m.submodules.loops = loops = _Loops(cfg)
        is_stream = cmd.kind == MatmulKind.STREAM
        is_load = cmd.kind == MatmulKind.LOAD
        is_k = cmd.kind == MatmulKind.K
        from_words = is_stream | is_load
        scale_due = Signal()  # the multipliers of this column-block are still to come
        scale_go = self.multipliers.valid & self.multipliers.ready
        index = Signal(range(cfg.tile_cycles))
        room, go = Signal(), Signal()
        complete = is_load | (index == cfg.tile_cycles - 1)
        # K's multipliers come beside its tiles: only the end of the column-block waits for them.
        blocked = scale_due & (is_stream | (complete & loops.last_inner))
        m.d.comb += [
            room.eq(loops.running & ~blocked & (is_load | ~self.loaded | self.take)),
            self.words.ready.eq(Mux(scale_due, self.multipliers.ready, room) & from_words),
            self.kv_words.ready.eq(~from_words & room),
            self.kv_scales.ready.eq(is_k & scale_due & self.multipliers.ready),
            self.multipliers.valid.eq(
                scale_due & Mux(is_k, self.kv_scales.valid, self.words.valid)
            ),
            self.multipliers.payload.eq(Mux(is_k, self.kv_scales.payload, self.words.payload)),
            go.eq(room & Mux(from_words, self.words.valid, self.kv_words.valid)),
            loops.start.eq(self.start),
            loops.cmd.eq(cmd),
            loops.step.eq(go & complete),
        ]
        group = (cfg.scale_channels // cfg.cols - 1).bit_length()
        group_ends = is_k | (is_stream & loops.outer[:group].all() if group else is_stream)
        with m.If(self.start):
            m.d.sync += [scale_due.eq(is_stream | is_k), index.eq(0)]
        with m.Else():
            with m.If(go):
                m.d.sync += index.eq(Mux(complete, 0, index + 1))
            with m.If(loops.step & loops.last_inner & ~loops.last_outer & group_ends):
                m.d.sync += scale_due.eq(1)
            with m.Elif(scale_go):
                m.d.sync += scale_due.eq(0)
        with m.If(go & complete & ~is_load):
            m.d.sync += self.loaded.eq(1)
        with m.Elif(self.take):
            m.d.sync += self.loaded.eq(0)
        self._tile(m, go & ~is_load, index)
        self._parameters(m, go & is_load, loops)
        return m

    def _tile(self, m: Module, go, index):
        m.d.sync += self.load.eq(go)
        with m.If(go):
            m.d.sync += [
                self.load_index.eq(index),
                self.load_rows.eq(self.cmd.kind == MatmulKind.V),
                self.word.eq(
                    Mux(
                        self.cmd.kind == MatmulKind.STREAM,
                        self.words.payload,
                        self.kv_words.payload,
                    )
                ),
            ]

    def _parameters(self, m: Module, go, loops):
        w = self.param_w
        m.d.sync += w.en.eq(go)
        m.d.comb += self.load_done.eq(w.en & ~loops.running)
        with m.If(self.start):
            m.d.sync += w.addr.eq(self.cmd.param - self.cfg.scale_channels // self.cfg.cols)
        with m.If(go):
            m.d.sync += [
                w.addr.eq(w.addr + self.cfg.scale_channels // self.cfg.cols),
                w.data.eq(self.words.payload),
            ]


class Issue(wiring.Component):
    """One row of activations per cycle to the array: for each tile in turn, rows 0..m-1.

    A tile begins when it is loaded; if its sums go to LOGITS, a column-block begins when there is
    ``room``. What belongs to an x stands at the array LATENCY cycles after ``take``.

    Members
    -------
    start, cmd : a command; cmd stays until the end
    src : In, source of row ``index`` (Out), in chunks
    take, loaded : handshake with Loader
    room : In
    in_r, score_r : Out, read ports; SCORES for V, IN for all others
    valid, swap, x : to the array
    addr, first, last : for the accumulators
    waiting, waiting_room, going : what this cycle was
    """

    LATENCY = 3

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        block = cfg.rows * ACT_BITS
        super().__init__(
            {
                "start": In(1),
                "cmd": In(matmul_command(cfg)),
                "index": Out(index_shape(cfg)),
                "src": In(CHUNK_BITS),
                "loaded": In(1),
                "take": Out(1),
                "room": In(1),
                "in_r": Out(read_port(address_bits(cfg.in_chunks), block)),
                "score_r": Out(read_port(address_bits(cfg.score_chunks), block)),
                "valid": Out(1),
                "swap": Out(1),
                "x": Out(block),
                "addr": Out(range(cfg.acc_words)),
                "first": Out(1),
                "last": Out(1),
                "going": Out(1),
                "waiting": Out(1),
                "waiting_room": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, cmd = self.cfg, self.cmd
        m.submodules.loops = loops = _Loops(cfg)
        is_v = cmd.kind == MatmulKind.V
        new_tile = Signal(init=1)  # index == 0
        new_block = new_tile & loops.first_inner
        full, no_room = Signal(), Signal()  # for logits; no_room is late by a cycle
        end_row = Signal.like(self.index)
        last_row = self.index == end_row
        offset = Signal(CHUNK_BITS)  # of the row-block in the row, in chunks
        m.d.comb += [
            self.going.eq(loops.running & ~(new_tile & (~self.loaded | full))),
            self.waiting.eq(loops.running & new_tile & ~self.loaded),
            self.waiting_room.eq(loops.running & new_tile & self.loaded & full),
            self.take.eq(self.going & new_tile),
            loops.start.eq(self.start & (cmd.kind != MatmulKind.LOAD)),
            loops.cmd.eq(cmd),
            loops.step.eq(self.going & last_row),
        ]
        m.d.comb += full.eq(new_block & no_room)
        m.d.sync += [
            end_row.eq(cmd.m - 1),
            no_room.eq((cmd.dest == MatmulDest.LOGITS) & ~self.room),
        ]
        with m.If(self.going):
            m.d.sync += [self.index.eq(Mux(last_row, 0, self.index + 1)), new_tile.eq(last_row)]
        with m.If(self.start):
            m.d.sync += offset.eq(0)
        with m.Elif(loops.step & (~is_v | loops.last_inner)):
            m.d.sync += offset.eq(Mux(loops.last_inner & ~is_v, 0, offset + cfg.k_chunks))
        self._read(m, loops, offset, is_v)
        return m

    def _read(self, m: Module, loops, offset, is_v):
        """Stage 1 addresses the memory, 2 sees its data, 3 stands at the array."""
        cfg = self.cfg
        going = delays(m, self.going, 3, name="going", reset_less=False)
        take = delays(m, self.take, 3, name="take")
        row_block = Mux(is_v, loops.outer, loops.inner)
        first = row_block == 0
        last = Mux(is_v, loops.last_outer, loops.last_inner)
        block_bits = (cfg.max_head_chunks - 1).bit_length()
        block = Mux(is_v, loops.inner[:block_bits], 0)
        row = self.index[: (cfg.max_rows - 1).bit_length()]
        about = delays(m, Cat(first, last, row, block), 3, name="about")

        s1_addr = Signal(CHUNK_BITS, reset_less=True)
        with m.If(self.going):
            m.d.sync += s1_addr.eq(self.src + offset)
        m.d.comb += [
            self.in_r.addr.eq(s1_addr),
            self.score_r.addr.eq(s1_addr),
            self.in_r.en.eq(going[1] & ~is_v),
            self.score_r.en.eq(going[1] & is_v),
        ]
        chunk_bits = cfg.cols * ACT_BITS
        s2_last = about[2][1]
        s2_mask = Cat(
            (~s2_last | (chunk < self.cmd.tail)).replicate(chunk_bits)
            for chunk in range(cfg.k_chunks)
        )
        with m.If(going[2]):
            m.d.sync += self.x.eq(Mux(is_v, self.score_r.data, self.in_r.data) & s2_mask)
        m.d.comb += [
            self.valid.eq(going[3]),
            self.swap.eq(take[3] & going[3]),
            Cat(self.first, self.last, self.addr).eq(about[3]),
        ]


class Drain(wiring.Component):
    """Complete sums, in order of column-blocks and of rows in them, through Requantize.

    Their multiplier is that of the channel, from the word at the head of ``multipliers``, or for V
    that of the row. Between commands, chunks of embedding rows take the same way.

    Members
    -------
    start, cmd : a command; cmd stays until the end
    valid, sums : In
    multipliers : In, stream of words
    index : Out, row of the table; ``dst``, ``limit``, ``scale`` : In, its entry
    embed_valid, embed : In, while no command runs
    result_valid, result : Out, LATENCY cycles after the sums; always taken
    """

    LATENCY = Requantize.LATENCY

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(1),
                "cmd": In(matmul_command(cfg)),
                "valid": In(1),
                "sums": In(sums_layout(cfg)),
                "multipliers": In(stream.Signature(unsigned(8 * cfg.word_bytes))),
                "index": Out(index_shape(cfg)),
                "dst": In(CHUNK_BITS),
                "limit": In(16),
                "scale": In(row_scale(cfg)),
                "embed_valid": In(1),
                "embed": In(embed_chunk(cfg)),
                "result_valid": Out(1),
                "result": Out(matmul_result(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, cmd = self.cfg, self.cmd
        tag = data.StructLayout(
            {k: v.shape for k, v in matmul_result(cfg) if k not in ("y", "saturated")}
        )
        m.submodules.requantize = requantize = Requantize(cfg, tag)
        is_v, is_stream = cmd.kind == MatmulKind.V, cmd.kind == MatmulKind.STREAM
        block = Signal(COUNT_BITS)
        end_row, end_block = Signal.like(self.index), Signal.like(block)
        last_row, last_block = self.index == end_row, Signal()
        m.d.sync += [
            end_row.eq(cmd.m - 1),
            end_block.eq(cmd.n - 1),
            last_block.eq(block == end_block),  # late by a cycle; a block takes at least four
        ]
        group = (cfg.scale_channels // cfg.cols - 1).bit_length()
        part = block[:group] & is_stream.replicate(group)
        group_ends = ~is_stream | block[:group].all() if group else 1
        m.d.comb += self.multipliers.ready.eq(
            self.valid & last_row & ~is_v & (group_ends | last_block)
        )
        with m.If(self.start):
            m.d.sync += [self.index.eq(0), block.eq(0)]
        with m.Elif(self.valid):
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(last_row):
                m.d.sync += [self.index.eq(0), block.eq(block + 1)]

        chunk = self.multipliers.payload.word_select(part, cfg.cols * MULT_BITS)
        of_row = self.scale.mult.replicate(cfg.cols)
        shift = Mux(is_v, self.scale.shift, Mux(is_stream & block[0], cmd.shift_odd, cmd.shift))
        m.d.comb += [
            requantize.valid.eq(self.valid),
            requantize.acc.eq(self.sums),
            requantize.mult.eq(Mux(is_v, of_row, chunk)),
            requantize.shift.eq(shift),
            requantize.bits.eq(cmd.bits),
            requantize.tag.dst.eq(self.dst + block),
            requantize.tag.index.eq(self.index),
            requantize.tag.block.eq(block),
            requantize.tag.limit.eq(self.limit),
            requantize.tag.dest.eq(cmd.dest),
            requantize.tag.sat.eq(cmd.sat),
            requantize.tag.last.eq(last_row & last_block),
        ]
        with m.If(self.embed_valid):
            self._embed(m, requantize)
        m.d.comb += [
            self.result_valid.eq(requantize.out_valid),
            self.result.y.eq(requantize.y),
            self.result.saturated.eq(requantize.saturated),
            *(self.result[key].eq(requantize.out_tag[key]) for key, _ in tag),
        ]
        return m

    def _embed(self, m: Module, requantize):
        m.d.comb += [
            requantize.valid.eq(1),
            *(requantize.acc[c].eq(self.embed.lanes[c]) for c in range(self.cfg.cols)),
            requantize.mult.eq(self.embed.mult.replicate(self.cfg.cols)),
            requantize.shift.eq(self.embed.shift),
            requantize.bits.eq(2),
            requantize.tag.eq(0),
            requantize.tag.dst.eq(self.embed.dst),
            requantize.tag.dest.eq(MatmulDest.EMBED),
            requantize.tag.sat.eq(self.embed.sat),
        ]


class MatmulEngine(wiring.Component):
    """Runs the commands of docs/microarchitecture.md, one at a time.

    A tile takes ``max(m, cfg.tile_cycles)`` cycles when its words are there; each group of
    ``cfg.scale_channels`` channels costs one more, unless m hides it. ``busy`` falls DRAIN cycles
    after the last activation was read.

    Members
    -------
    cmd : In, stream; taken when not busy
    busy : from the command's acceptance to its last result (LOAD: to its last write), inclusive
    table_w : In, write port of the row table; only while not busy
    row_scale_w : In, ``en`` and ``payload``: the multipliers of rows for V; before the command
    words, kv_words, kv_scales : In, streams
    in_r, score_r : Out, read ports of row-blocks
    param_w : Out, write port of words
    room : In, LOGITS may begin another column-block
    embed_valid, embed : In, a chunk for Requantize; only while not busy
    result_valid, result : Out, always taken
    count_busy, wait_weights, wait_kv, wait_room, idle : an activation enters the array; none does
        because the next tile is not complete or there is no room; there is no command
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        in_array = Issue.LATENCY - 1 + array_latency(cfg) - 1
        self.DRAIN = in_array + Accumulators.LATENCY + Drain.LATENCY + 1
        word = stream.Signature(unsigned(8 * cfg.word_bytes))
        block = cfg.rows * ACT_BITS
        scale_w = wiring.Signature({"en": Out(1), "payload": Out(row_scale(cfg))})
        super().__init__(
            {
                "cmd": In(stream.Signature(matmul_command(cfg))),
                "busy": Out(1),
                "table_w": In(write_port(address_bits(cfg.max_rows), table_entry(cfg))),
                "row_scale_w": In(scale_w),
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
        m.submodules.loader = loader = Loader(cfg)
        m.submodules.issue = issue = Issue(cfg)
        m.submodules.drain = drain = Drain(cfg)
        for port in ("words", "kv_words", "kv_scales", "param_w"):
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(loader, port))
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
        ]
        self._tables(m, issue, drain)
        self._sums(m, loader, issue, drain)
        self._counters(m, command, issue)
        return m

    def _tables(self, m: Module, issue, drain):
        """Issue wants the source of a row, Drain the rest of another: two LUT RAMs, both comb."""
        cfg = self.cfg
        entry, scale = self.table_w.data, self.row_scale_w.payload
        m.submodules.source = source = Ram(cfg.max_rows, len(entry.src), comb=True)
        m.submodules.target = target = Ram(cfg.max_rows, 32, comb=True)
        m.submodules.scales = scales = Ram(cfg.max_rows, len(scale.as_value()), comb=True)
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
            source.r.addr.eq(issue.index),
            target.r.addr.eq(drain.index),
            scales.r.addr.eq(drain.index),
            issue.src.eq(source.r.data),
            Cat(drain.dst, drain.limit).eq(target.r.data),
            drain.scale.as_value().eq(scales.r.data),
        ]

    def _sums(self, m: Module, loader, issue, drain):
        """Words wait as long as activations, so both count time from the moment they are taken."""
        cfg = self.cfg
        m.submodules.array = array = SystolicArray(cfg)
        m.submodules.accumulators = accumulators = Accumulators(cfg)
        m.submodules.multipliers = queue = Fifo(unsigned(8 * cfg.word_bytes), MULTIPLIER_WORDS)
        wiring.connect(m, loader.multipliers, queue.i)
        wiring.connect(m, queue.o, drain.multipliers)
        wait = Issue.LATENCY - Loader.LATENCY
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

    def _counters(self, m: Module, command, issue):
        from_stream = command.kind == MatmulKind.STREAM
        loading = self.busy & (command.kind == MatmulKind.LOAD) & ~self.words.valid
        m.d.sync += [
            self.count_busy.eq(issue.going),
            self.wait_weights.eq((issue.waiting & from_stream) | loading),
            self.wait_kv.eq(issue.waiting & ~from_stream),
            self.wait_room.eq(issue.waiting_room),
            self.idle.eq(~self.busy),
        ]

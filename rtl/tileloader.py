"""Matrix product: the words of a command taken apart into tiles, multipliers and parameters."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, unsigned
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import MULT_BITS
from tokenfabric.rtl.layouts import MatmulKind, matmul_command
from tokenfabric.rtl.memory import write_port
from tokenfabric.rtl.pipeline import register
from tokenfabric.rtl.tileloops import COUNT_BITS, TileLoops, address_bits, group_bits

__all__ = ["MultiplierLoader", "ParameterLoader", "TileLoader"]


class MultiplierLoader(wiring.Component):
    """Brings the multipliers of a column-block or group when they are next: state is ``due``.

    STREAM: one word of ``words`` at the start and before each group of column-blocks but the first.
    K: one of ``kv_scales`` for each column-block. V, LOAD: none. Combinational from stream to
    stream, one word per cycle.

    Members
    -------
    start : in, 1 bit: a command begins; kind : in, :class:`MatmulKind`, stays until the end
    words : in, stream of words, taken while ``due`` (STREAM)
    kv_scales : in, stream of C times uint16, taken while ``due`` (K)
    block : in, 16 bits: the column-block that tiles are loaded for
    next_block : in, 1 bit: its last tile is complete in this cycle, and another block follows
    due : out, 1 bit: multipliers must be taken before the block may end
    multipliers : out, stream of words of uint16
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        word = unsigned(8 * cfg.word_bytes)
        super().__init__(
            {
                "start": In(1),
                "kind": In(MatmulKind),
                "words": In(stream.Signature(word)),
                "kv_scales": In(stream.Signature(unsigned(cfg.cols * MULT_BITS))),
                "block": In(COUNT_BITS),
                "next_block": In(1),
                "due": Out(1),
                "multipliers": Out(stream.Signature(word)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        is_stream, is_k = self.kind == MatmulKind.STREAM, self.kind == MatmulKind.K
        out, words, scales = self.multipliers, self.words, self.kv_scales
        m.d.comb += [
            words.ready.eq(is_stream & self.due & out.ready),
            scales.ready.eq(is_k & self.due & out.ready),
            out.valid.eq(self.due & Mux(is_k, scales.valid, words.valid)),
            out.payload.eq(Mux(is_k, scales.payload, words.payload)),
        ]
        group = group_bits(self.cfg)
        group_ends = is_k | (is_stream & self.block[:group].all() if group else is_stream)
        with m.If(self.start):
            m.d.sync += self.due.eq(is_stream | is_k)
        with m.Elif(self.next_block & group_ends):
            m.d.sync += self.due.eq(1)
        with m.Elif(out.valid & out.ready):
            m.d.sync += self.due.eq(0)
        return m


class ParameterLoader(wiring.Component):
    """Writes the words of LOAD to PARAM, one after another: each a cycle after it came.

    One word per cycle.

    Members
    -------
    start : in, 1 bit; param : in, 12 bits: a command begins, its first word belongs to this chunk
    valid : in, 1 bit; word : in: the next word
    w : out, write port of PARAM, in chunks
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(1),
                "param": In(12),
                "valid": In(1),
                "word": In(8 * cfg.word_bytes),
                "w": Out(write_port(address_bits(cfg.param_chunks), 8 * cfg.word_bytes)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        chunks = self.cfg.scale_channels // self.cfg.cols  # int16 values of a word, in chunks
        word = register(m, self.w.data)
        m.d.sync += self.w.en.eq(self.valid)
        with m.If(self.start):
            m.d.sync += self.w.addr.eq(self.param - chunks)
        with m.If(self.valid):
            m.d.sync += [self.w.addr.eq(self.w.addr + chunks), word.eq(self.word)]
        return m


class TileLoader(wiring.Component):
    """Takes the words of a command apart: tiles for the array, multipliers, parameters.

    Runs ahead of ActivationIssue by one tile: ``loaded`` says that the shadow holds a complete one,
    ``take`` that it is used from this cycle on, in which the next tile's first word may already
    follow. A word of multipliers is taken as soon as it is next, so while the array is still busy
    with m > 4 rows. For LOAD each word counts as a tile. One word per cycle.

    Members
    -------
    start : in, 1 bit; cmd : in, ``matmul_command``: a command; cmd stays until the end
    words, kv_words : in, streams of words; kv_scales : in, stream of C times uint16
    take : in, 1 bit; loaded : out, 1 bit: handshake with ActivationIssue
    load, load_index, load_rows, word : out, to the array (:class:`SystolicArray`), LATENCY cycles
        after the word was taken
    multipliers : out, stream of words of uint16: one per group (STREAM) or column-block (K)
    param_w : out, write port of PARAM, in chunks, LATENCY cycles after the word was taken
    load_done : out, 1 bit: the last parameter is being written
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
        m.submodules.loops = loops = TileLoops(cfg)
        m.submodules.scales = scales = MultiplierLoader(cfg)
        m.submodules.params = params = ParameterLoader(cfg)
        wiring.connect(m, wiring.flipped(self.kv_scales), scales.kv_scales)
        wiring.connect(m, scales.multipliers, wiring.flipped(self.multipliers))
        wiring.connect(m, params.w, wiring.flipped(self.param_w))
        is_load, is_v = cmd.kind == MatmulKind.LOAD, cmd.kind == MatmulKind.V
        from_words = (cmd.kind == MatmulKind.STREAM) | is_load
        index = Signal(range(cfg.tile_cycles))
        room, go = Signal(), Signal()
        complete = is_load | (index == cfg.tile_cycles - 1)
        # K's multipliers come beside its tiles: only the end of the column-block waits for them.
        blocked = scales.due & (from_words | (complete & loops.last_inner))
        m.d.comb += [
            room.eq(loops.running & ~blocked & (is_load | ~self.loaded | self.take)),
            self.words.ready.eq(Mux(scales.due, scales.words.ready, room & from_words)),
            self.kv_words.ready.eq(~from_words & room),
            go.eq(room & Mux(from_words, self.words.valid, self.kv_words.valid)),
            loops.start.eq(self.start),
            loops.cmd.eq(cmd),
            loops.step.eq(go & complete),
            scales.start.eq(self.start),
            scales.kind.eq(cmd.kind),
            scales.words.valid.eq(self.words.valid),
            scales.words.payload.eq(self.words.payload),
            scales.block.eq(loops.outer),
            scales.next_block.eq(loops.step & loops.last_inner & ~loops.last_outer),
            params.start.eq(self.start),
            params.param.eq(cmd.param),
            params.valid.eq(go & is_load),
            params.word.eq(self.words.payload),
            self.load_done.eq(self.param_w.en & ~loops.running),
        ]
        with m.If(self.start):
            m.d.sync += index.eq(0)
        with m.Elif(go):
            m.d.sync += index.eq(Mux(complete, 0, index + 1))
        with m.If(go & complete & ~is_load):
            m.d.sync += self.loaded.eq(1)
        with m.Elif(self.take):
            m.d.sync += self.loaded.eq(0)
        word = register(m, self.word)
        m.d.sync += self.load.eq(go & ~is_load)
        with m.If(go & ~is_load):
            m.d.sync += [self.load_index.eq(index), self.load_rows.eq(is_v)]
            m.d.sync += word.eq(Mux(from_words, self.words.payload, self.kv_words.payload))
        return m

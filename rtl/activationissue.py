"""Matrix product: activations on their way into the array."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.ops import ACT_BITS
from tokenfabric.rtl.layouts import (
    CHUNK_BITS,
    MatmulDest,
    MatmulKind,
    index_shape,
    matmul_command,
)
from tokenfabric.rtl.memory import output_registers, read_port
from tokenfabric.rtl.pipeline import delays, register
from tokenfabric.rtl.tileloops import TileLoops, address_bits

__all__ = ["ActivationIssue", "issue_latency"]


def issue_latency(cfg: FabricConfig) -> int:
    """From the cycle in which a row goes to the one in which its activations are at the array."""
    return 3 + output_registers(cfg, "in", "scores")


class ActivationIssue(wiring.Component):
    """One row of activations per cycle to the array: for each tile in turn, rows 0..m-1.

    A tile begins when it is loaded; if its sums go to LOGITS, a column-block begins when there is
    ``room``. What belongs to an x stands at the array ``issue_latency`` cycles after ``take``.

    Members
    -------
    start : in, 1 bit; cmd : in, ``matmul_command``: a command; cmd stays until the end
    index : out, a row of the command; src : in, 16 bits, where it begins, in chunks; combinational
    loaded : in, 1 bit; take : out, 1 bit: handshake with TileLoader
    room : in, 1 bit: LOGITS may begin another column-block
    in_r, score_r : out, read ports of row-blocks; SCORES for V, IN for all others
    valid, swap, x : out, to the array: 1 bit, 1 bit, R times int16
    addr, first, last : out, for the accumulators (:class:`Accumulators`)
    going, waiting, waiting_room : out, 1 bit each, what this cycle was: a row goes; none does
        because the next tile is not complete; none does because there is no room
    """

    ROOM_LATENCY = 1  # from ``room`` to a column-block that begins by it

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
        m.submodules.loops = loops = TileLoops(cfg)
        is_v = cmd.kind == MatmulKind.V
        new_tile = Signal(init=1)  # index == 0
        new_block = new_tile & loops.first_inner
        full, no_room = Signal(), Signal()  # for logits; no_room is late by ROOM_LATENCY
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

    def _read(self, m: Module, loops: TileLoops, offset: Signal, is_v: Value):
        """Stage 1 addresses the memory, 2 sees its data, the last one stands at the array."""
        cfg, end = self.cfg, issue_latency(self.cfg)
        going = delays(m, self.going, end, name="going", reset_less=False)
        take = delays(m, self.take, end, name="take")
        row_block = Mux(is_v, loops.outer, loops.inner)
        first = row_block == 0
        last = Mux(is_v, loops.last_outer, loops.last_inner)
        block_bits = (cfg.max_head_chunks - 1).bit_length()
        block = Mux(is_v, loops.inner[:block_bits], 0)
        row = self.index[: (cfg.max_rows - 1).bit_length()]
        about = delays(m, Cat(first, last, row, block), end, name="about")

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
        inputs, scores = self.in_r.data, self.score_r.data
        if output_registers(cfg, "in", "scores"):
            inputs = Signal.like(inputs, name="inputs", reset_less=True)
            scores = Signal.like(scores, name="scores", reset_less=True)
            with m.If(going[2]):
                m.d.sync += [inputs.eq(self.in_r.data), scores.eq(self.score_r.data)]
        is_last = about[end - 1][1]
        mask = Cat(
            (~is_last | (chunk < self.cmd.tail)).replicate(chunk_bits)
            for chunk in range(cfg.k_chunks)
        )
        x = register(m, self.x)
        with m.If(going[end - 1]):
            m.d.sync += x.eq(Mux(is_v, scores, inputs) & mask)
        m.d.comb += [
            self.valid.eq(going[end]),
            self.swap.eq(take[end] & going[end]),
            Cat(self.first, self.last, self.addr).eq(about[end]),
        ]

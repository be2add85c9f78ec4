"""Which chunk of a vector instruction enters the pipeline in which cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.isa import Op
from tokenfabric.rtl.lanes import Lanes
from tokenfabric.rtl.layouts import CHUNK_BITS, count_shape, index_shape, instruction_layout
from tokenfabric.rtl.walker import Part, Walker

__all__ = ["BEATS", "DATA", "ITEMS", "MEAN", "OPERANDS", "PRODUCT", "READ", "RESULT"]
__all__ += ["Issue", "tag_layout"]

# Stages of the pipeline, in cycles after a chunk was issued.
READ = 1  # addresses at the memories
DATA = 2  # data there
OPERANDS = 11  # at the lanes' multipliers
PRODUCT = OPERANDS + Lanes.PRODUCT_LATENCY
RESULT = OPERANDS + Lanes.LATENCY
MEAN = RESULT - 1  # the mean of K is read so that it meets the rotated K

ITEMS = 4  # rows (NORM) or heads (APPEND) between their first and second pass
BEATS = 32  # covers the pipeline, so that beats can leave every cycle


def tag_layout(cfg: FabricConfig) -> data.StructLayout:
    """What accompanies a chunk. ``second``: the pass that writes results; ``slot``: of its item."""
    return data.StructLayout(
        {
            "second": 1,
            "part": Part,
            "first": 1,
            "last": 1,
            "slot": range(ITEMS),
            "row": index_shape(cfg),
            "chunk": range(max(2, cfg.max_head_chunks)),
            "high": 1,
            "dst": CHUNK_BITS,
            "param": 12,
        }
    )


class Issue(wiring.Component):
    """Takes commands and says in each cycle which chunk enters the pipeline (stage 0).

    NORM and APPEND pass twice over an item (row, head): a first pass may run up to ITEMS items
    ahead, and go before the second, which begins when the item's ``result`` is there. Chunks that
    become beats are issued only while there is room for them.

    Members
    -------
    command, norm, rope, append, swiglu : out, the instruction that runs
    valid, tag, src : out, the chunk issued in this cycle and where its operand is
    row : out, the row of the second pass
    head_end, row_end : out, it is the last one of a second pass over a head, of a row
    result : in, pulse: the next item's factor is known
    beat_taken, beats_left : in, a beat was handed to the Writer, there are more
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "rows": In(count_shape(cfg)),
                "want_count": In(count_shape(cfg)),
                "want_index": Out(index_shape(cfg)),
                "want_row": In(index_shape(cfg)),
                "command": Out(instruction_layout()),
                **{name: Out(1) for name in ("norm", "rope", "append", "swiglu", "busy", "valid")},
                "tag": Out(tag_layout(cfg)),
                "src": Out(CHUNK_BITS),
                "row": Out(index_shape(cfg)),
                "head_end": Out(1),
                "row_end": Out(1),
                "result": In(1),
                "beat_taken": In(1),
                "beats_left": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.first = first = Walker(self.cfg)
        m.submodules.second = second = Walker(self.cfg)
        start = self._commands(m, second)
        two_pass = self.norm | self.append
        for walker in (first, second):
            self._walk(m, walker)
        m.d.comb += [
            first.start.eq(start & two_pass),
            second.start.eq(start),
            first.src.eq(self.command.src),
            second.append.eq(self.append),
            second.look.eq(1),
            first.look.eq(~second.seek),
            self.want_index.eq(Mux(second.seek, second.visit, first.visit)),
        ]

        ahead, known = Signal(range(ITEMS + 1)), Signal(range(ITEMS + 1))
        room, has_room = Signal(range(BEATS + 1), init=BEATS), Signal()
        beat, end1, end2 = Signal(), Signal(), Signal()
        m.d.comb += [
            first.step.eq(two_pass & first.valid & (ahead != ITEMS)),
            second.step.eq(
                second.valid & ~first.step & (~self.append | has_room) & (~two_pass | (known != 0))
            ),
            beat.eq(second.step & self.append),
            end1.eq(first.step & first.head_last),
            end2.eq(second.step & second.head_last),
        ]
        m.d.sync += room.eq(room + self.beat_taken - beat)
        m.d.sync += has_room.eq(room > 1)  # also after the beat that may be issued meanwhile
        with m.If(two_pass):
            m.d.sync += [
                ahead.eq(ahead + end1 - end2),
                known.eq(known + self.result - end2),
            ]
        self._tags(m, first, second, end1, end2)
        return m

    def _commands(self, m: Module, second: Walker):
        """From the command to the start of the walkers, and from their end to the next command."""
        start = Signal()
        command, heads = self.command, Signal(8)
        drain = Signal(range(RESULT + 3))
        m.d.comb += self.busy.eq(~self.cmd.ready)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                op = self.cmd.payload.op
                with m.If(self.cmd.valid):
                    m.d.sync += [
                        command.eq(self.cmd.payload),
                        self.norm.eq(op == Op.NORM),
                        self.rope.eq(op == Op.ROPE),
                        self.append.eq(op == Op.APPEND),
                        self.swiglu.eq(op == Op.SWIGLU),
                        second.src.eq(self.cmd.payload.src),
                        heads.eq(Mux(op == Op.APPEND, self.cmd.payload.heads, 0)),
                    ]
                    m.next = "SETUP"
            with m.State("SETUP"):  # V's heads stand behind K's
                with m.If(heads != 0):
                    m.d.sync += [
                        second.src.eq(second.src + command.head_chunks),
                        heads.eq(heads - 1),
                    ]
                with m.Else():
                    m.d.comb += start.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.sync += drain.eq(RESULT + 2)
                with m.If(second.done):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(drain != 0):
                    m.d.sync += drain.eq(drain - 1)
                with m.Elif(~self.beats_left):
                    m.next = "IDLE"
        return start

    def _walk(self, m: Module, walker: Walker):
        """What both walkers take from the instruction; unused fields are 0."""
        command, per_block = self.command, self.cfg.k_chunks
        heads = self.rope | self.append  # else a row is one
        m.d.comb += [
            walker.pair.eq(self.swiglu),
            walker.src_stride.eq(command.src_stride),
            walker.dst.eq(command.dst),
            walker.dst_stride.eq(command.dst_stride),
            walker.head_step.eq((command.head_chunks + per_block - 1) & -per_block),
            walker.param.eq(command.param),
            walker.heads.eq(Mux(heads, command.heads, 1)),
            walker.chunks.eq(
                Mux(self.swiglu, command.n, Mux(self.norm, command.k, command.head_chunks))
            ),
            walker.rows.eq(Mux(command.want, self.want_count, self.rows)),
            walker.target.eq(Mux(command.want, self.want_row, walker.visit)),
        ]

    def _tags(self, m: Module, first: Walker, second: Walker, end1, end2):
        slot1, slot2 = (Signal(range(ITEMS), name=f"slot{i}") for i in (1, 2))
        with m.If(end1):
            m.d.sync += slot1.eq(slot1 + 1)
        with m.If(end2 & (self.norm | self.append)):
            m.d.sync += slot2.eq(slot2 + 1)

        def either(name):
            return Mux(first.step, getattr(first, name), getattr(second, name))

        m.d.comb += [
            self.valid.eq(first.step | second.step),
            self.src.eq(either("src_at")),
            self.row.eq(second.row),
            self.head_end.eq(end2),
            self.row_end.eq(second.step & second.row_last),
            self.tag.second.eq(~first.step),
            self.tag.part.eq(second.part),
            self.tag.first.eq(either("first")),
            self.tag.last.eq(either("last")),
            self.tag.slot.eq(Mux(first.step, slot1, slot2)),
            self.tag.row.eq(either("row")),
            self.tag.chunk.eq(either("chunk")),
            self.tag.high.eq(self.src[0]),
            self.tag.dst.eq(second.dst_at),
            self.tag.param.eq(either("param_at")),
        ]

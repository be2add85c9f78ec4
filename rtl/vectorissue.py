"""Which chunk of a vector instruction enters the pipeline in which cycle."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.isa import Op
from tokenfabric.rtl.chunkwalk import ChunkWalk, Part
from tokenfabric.rtl.lanes import Lanes
from tokenfabric.rtl.layouts import CHUNK_BITS, count_shape, index_shape, instruction_layout
from tokenfabric.rtl.pipeline import delay

__all__ = ["BEATS", "DATA", "ITEMS", "MEAN", "OPERANDS", "PRODUCT", "READ", "RESULT"]
__all__ += ["Stages", "VectorCommand", "VectorIssue", "issued_layout", "tag_layout"]

# Stages of the pipeline, in cycles after a chunk was issued.
READ = 1  # addresses at the memories
DATA = 2  # data there
OPERANDS = 11  # at the lanes' multipliers
PRODUCT = OPERANDS + Lanes.PRODUCT_LATENCY
RESULT = OPERANDS + Lanes.LATENCY
MEAN = RESULT - 1  # the mean of K is read so that it meets the rotated K
STAGES = {"read": READ, "data": DATA, "product": PRODUCT, "mean": MEAN, "result": RESULT}

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


def issued_layout(cfg: FabricConfig) -> data.StructLayout:
    """A stage of the pipeline: whether a chunk stands there, and what accompanies it."""
    return data.StructLayout({"valid": 1, "tag": tag_layout(cfg)})


OPERATIONS = {"norm": Op.NORM, "rope": Op.ROPE, "append": Op.APPEND, "swiglu": Op.SWIGLU}


class VectorCommand(wiring.Component):
    """Holds the instruction that runs: from its command to the start of the walks, and to the end.

    One instruction at a time. ``start`` comes in the cycle after ``cmd`` was taken, and with APPEND
    one cycle later for each head: V's heads stand behind K's, and counting needs no multiplier. The
    next ``cmd`` is taken DRAIN cycles after ``done``, or in the cycle after the last in which there
    were beats left, if that is later.

    Members
    -------
    cmd : in, stream of instructions
    done : in, 1 bit: the last chunk has been issued
    beats_left : in, 1 bit: the Writer has not taken everything yet
    command : out, the instruction, constant while ``busy``
    norm, rope, append, swiglu : out, 1 bit each: which one it is
    src : out, 16 bits: where the operands of the pass that writes results begin, in chunks
    start : out, 1 bit, pulse: everything above is right, begin
    busy : out, 1 bit: an instruction runs
    """

    DRAIN = RESULT + 4

    def __init__(self):
        super().__init__(
            {
                "cmd": In(stream.Signature(instruction_layout())),
                "done": In(1),
                "beats_left": In(1),
                "command": Out(instruction_layout()),
                **{name: Out(1) for name in OPERATIONS},
                "src": Out(CHUNK_BITS),
                "start": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        given, heads = self.cmd.payload, Signal(8)
        drain = Signal(range(self.DRAIN - 1))
        m.d.comb += self.busy.eq(~self.cmd.ready)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.cmd.ready.eq(1)
                with m.If(self.cmd.valid):
                    m.d.sync += [
                        self.command.eq(given),
                        *(
                            getattr(self, name).eq(given.op == op)
                            for name, op in OPERATIONS.items()
                        ),
                        self.src.eq(given.src),
                        heads.eq(Mux(given.op == Op.APPEND, given.heads, 0)),
                    ]
                    m.next = "SETUP"
            with m.State("SETUP"):
                with m.If(heads != 0):
                    m.d.sync += [
                        self.src.eq(self.src + self.command.head_chunks),
                        heads.eq(heads - 1),
                    ]
                with m.Else():
                    m.d.comb += self.start.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.sync += drain.eq(self.DRAIN - 2)
                with m.If(self.done):
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                with m.If(drain != 0):
                    m.d.sync += drain.eq(drain - 1)
                with m.Elif(~self.beats_left):
                    m.next = "IDLE"
        return m


class VectorIssue(wiring.Component):
    """Takes commands and says in each cycle which chunk enters the pipeline (stage 0).

    NORM and APPEND pass twice over an item (row, head): a first pass may run up to ITEMS items
    ahead, and go before the second, which begins when the item's ``result`` is there. Chunks that
    become beats are issued only while there is room for BEATS of them. At most one chunk per cycle;
    see :class:`ChunkWalk` for the cycles between rows, :class:`VectorCommand` for those before and
    after. ``issued`` and all that belongs to it are combinational from registers of this unit.

    Members
    -------
    cmd : in, stream of instructions
    rows, want_count : in, how many rows the step has, and wants
    want_index : out; want_row : in, looked up combinationally
    command, norm, rope, append, swiglu, busy : out, as of :class:`VectorCommand`
    issued : out, ``issued_layout``: the chunk issued in this cycle
    src : out, 16 bits: where its operand is, in chunks
    row : out, the row of the second pass
    head_end, row_end : out, 1 bit: it is the last one of a second pass over a head, of a row
    result : in, 1 bit, pulse: the next item's factor is known
    beat_taken, beats_left : in, 1 bit: a beat was handed to the Writer, there are more
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
                **{name: Out(1) for name in (*OPERATIONS, "busy")},
                "issued": Out(issued_layout(cfg)),
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
        m.submodules.first = first = ChunkWalk(self.cfg)
        m.submodules.second = second = ChunkWalk(self.cfg)
        m.submodules.runs = runs = VectorCommand()
        wiring.connect(m, wiring.flipped(self.cmd), runs.cmd)
        for name in ("command", *OPERATIONS, "busy"):
            m.d.comb += getattr(self, name).eq(getattr(runs, name))
        two_pass = self.norm | self.append
        for walker in (first, second):
            self._walk(m, walker)
        m.d.comb += [
            runs.done.eq(second.done),
            runs.beats_left.eq(self.beats_left),
            first.start.eq(runs.start & two_pass),
            second.start.eq(runs.start),
            first.src.eq(self.command.src),
            second.src.eq(runs.src),
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

    def _walk(self, m: Module, walker: ChunkWalk):
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

    def _tags(self, m: Module, first: ChunkWalk, second: ChunkWalk, end1, end2):
        """What accompanies the chunk; the slot of an item is its number modulo ITEMS."""
        slot1, slot2 = (Signal(range(ITEMS), name=f"slot{i}") for i in (1, 2))
        with m.If(end1):
            m.d.sync += slot1.eq(slot1 + 1)
        with m.If(end2 & (self.norm | self.append)):
            m.d.sync += slot2.eq(slot2 + 1)

        def either(name):
            return Mux(first.step, getattr(first, name), getattr(second, name))

        tag = self.issued.tag
        m.d.comb += [
            self.issued.valid.eq(first.step | second.step),
            self.src.eq(either("src_at")),
            self.row.eq(second.row),
            self.head_end.eq(end2),
            self.row_end.eq(second.step & second.row_last),
            tag.second.eq(~first.step),
            tag.part.eq(second.part),
            tag.first.eq(either("first")),
            tag.last.eq(either("last")),
            tag.slot.eq(Mux(first.step, slot1, slot2)),
            tag.row.eq(either("row")),
            tag.chunk.eq(either("chunk")),
            tag.high.eq(self.src[0]),
            tag.dst.eq(second.dst_at),
            tag.param.eq(either("param_at")),
        ]


class Stages(wiring.Component):
    """The chunk that was issued, in the stages of the pipeline in which somebody asks for it.

    Members
    -------
    issued : in, ``issued_layout``: stage 0
    src : in, 16 bits: where its operand is
    read, data, product, mean, result : out, ``issued_layout``: READ, DATA ... cycles later
    read_src : out, 16 bits: READ cycles later
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        issued = issued_layout(cfg)
        super().__init__(
            {
                "issued": In(issued),
                "src": In(CHUNK_BITS),
                **{name: Out(issued) for name in STAGES},
                "read_src": Out(CHUNK_BITS),
            }
        )

    def elaborate(self, platform):
        m = Module()
        valid, tag = [self.issued.valid], [self.issued.tag]
        for n in range(1, RESULT + 1):
            valid.append(Signal(name=f"s{n}_valid"))
            tag.append(Signal(tag_layout(self.cfg), name=f"s{n}_tag", reset_less=True))
            m.d.sync += [valid[n].eq(valid[n - 1]), tag[n].eq(tag[n - 1])]
        for name, stage in STAGES.items():
            out = getattr(self, name)
            m.d.comb += [out.valid.eq(valid[stage]), out.tag.eq(tag[stage])]
        m.d.comb += self.read_src.eq(delay(m, self.src, READ, "src"))
        return m

"""The issue of a step's instructions."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import isa
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.isa import Op, Unit
from tokenfabric.rtl.descriptor import descriptor_layout
from tokenfabric.rtl.layouts import (
    MatmulKind,
    count_shape,
    index_shape,
    instruction_layout,
    matmul_command,
    table_entry,
)
from tokenfabric.rtl.memory import read_port
from tokenfabric.rtl.rows import want_entry

__all__ = ["InstructionIssue", "MatmulRows", "matmul_payload"]


def matmul_payload(cfg: FabricConfig, i, count) -> dict:
    """The command of LOAD and MATMUL: values by field, of an instruction and a number of rows."""
    to_out, to_out8 = (i.mode == dest.value for dest in (isa.Dest.OUT, isa.Dest.OUT8))
    return {
        "kind": Mux(i.op == Op.LOAD.value, MatmulKind.LOAD, MatmulKind.STREAM),
        "m": count,
        "k": (i.k + (cfg.k_chunks - 1)) >> (cfg.k_chunks - 1).bit_length(),
        "n": i.n,
        "tail": ((i.k - 1) & (cfg.k_chunks - 1)) + 1,
        "shift": i.shift,
        "shift_odd": i.shift2,
        "bits": Mux(to_out, 1, Mux(to_out8, 0, 2)),
        "dest": i.mode,
        "sat": i.sat,
        "param": i.param,
    }


class MatmulRows(wiring.Component):
    """MATMUL's table of rows: where each row's operand and result begin. One row per cycle.

    Rows ascend, so their addresses are sums: advance by one stride until the row is reached.

    Members: ``walk`` (In: level; low: begin again); ``src``, ``dst`` (In: chunks of row 0),
    ``src_stride``, ``dst_stride`` (In: from row to row), ``wanted_only`` (In: only rows that want
    logits), ``rows``, ``want_count`` (In: how many there are of each); ``want_index`` (Out),
    ``want_row`` (In: number of that wanted row); ``count`` (Out: entries of the table); ``index``,
    ``entry`` (Out: while walking, written again until it is right); ``last`` (Out: with the last).
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        fields = instruction_layout().members
        super().__init__(
            {
                "walk": In(1),
                **{n: In(fields[n]) for n in ("src", "dst", "src_stride", "dst_stride")},
                "wanted_only": In(1),
                "rows": In(32),
                "want_count": In(count_shape(cfg)),
                "want_index": Out(index_shape(cfg)),
                "want_row": In(index_shape(cfg)),
                "count": Out(32),
                "index": Out(index_shape(cfg)),
                "entry": Out(table_entry(cfg)),
                "last": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        row, index = Signal(count_shape(self.cfg)), Signal(count_shape(self.cfg))
        src, dst = Signal(16), Signal(16)
        here = Signal()  # the row is the one that the entry is for
        m.d.comb += [
            self.count.eq(Mux(self.wanted_only, self.want_count, self.rows)),
            self.want_index.eq(index),
            here.eq(row == Mux(self.wanted_only, self.want_row, index)),
            self.index.eq(index),
            self.entry.src.eq(src),
            self.entry.dst.eq(dst),
            self.last.eq(here & (index + 1 == self.count)),
        ]
        with m.If(self.walk):
            m.d.sync += [
                row.eq(row + 1),
                src.eq(src + self.src_stride),
                dst.eq(dst + self.dst_stride),
            ]
            with m.If(here):
                m.d.sync += index.eq(index + 1)
        with m.Else():
            m.d.sync += [row.eq(0), index.eq(0), src.eq(self.src), dst.eq(self.dst)]
        return m


class Clearance(wiring.Component):
    """Whether an instruction may start: every unit that it has to wait for is idle.

    Members: ``op``, ``wait`` (In: of the instruction), ``busy`` (In: bits of ``isa.Unit``);
    ``clear`` (Out: register: it was so in the cycle before).
    """

    def __init__(self):
        fields = instruction_layout().members
        super().__init__(
            {
                "op": In(fields["op"]),
                "wait": In(fields["wait"]),
                "busy": In(len(Unit)),
                "clear": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        shares = Signal(len(Unit))
        with m.Switch(self.op):
            for op in Op:
                with m.Case(op.value):
                    m.d.comb += shares.eq(isa.shares(op).value)
        m.d.sync += self.clear.eq(~(self.busy & (shares | self.wait)).any())
        return m


class InstructionIssue(wiring.Component):
    """Issues the instructions of a step in order.

    An instruction starts when every unit of its wait mask is idle, and every unit that it must not
    meet whatever the program says (``isa.shares``). About six cycles for an instruction that has
    nothing to wait for, and one per row for the table of MATMUL.

    Members: ``start`` (In: pulse), ``done`` (Out: for a cycle: END reached, all units idle), ``pc``
    (Out), ``illegal`` (Out: for a cycle; then nothing more happens); ``busy`` (In: bits of
    ``isa.Unit``); ``program`` (Out: read port); ``job``, ``want_count`` (In); ``want_index`` (Out),
    ``want`` (In: that entry of the want table); commands ``vector``, ``attention``, ``embed`` (Out:
    streams of instructions), ``matmul`` (Out: stream); ``table_en``, ``table_index``, ``table``
    (Out: MatmulEngine's table of rows); ``progress`` (Out: for a cycle, an instruction has
    started).
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        self.pc_bits = (cfg.program_words - 1).bit_length()
        instructions = stream.Signature(instruction_layout())
        super().__init__(
            {
                "start": In(1),
                "done": Out(1),
                "pc": Out(32),
                "illegal": Out(1),
                "busy": In(len(Unit)),
                "program": Out(read_port(self.pc_bits, isa.INSTRUCTION_BITS)),
                "job": In(descriptor_layout()),
                "want_count": In(count_shape(cfg)),
                "want_index": Out(index_shape(cfg)),
                "want": In(want_entry(cfg)),
                "vector": Out(instructions),
                "attention": Out(instructions),
                "embed": Out(instructions),
                "matmul": Out(stream.Signature(matmul_command(cfg))),
                "table_en": Out(1),
                "table_index": Out(index_shape(cfg)),
                "table": Out(table_entry(cfg)),
                "progress": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        i = Signal(instruction_layout())
        pc = Signal(self.pc_bits + 1)
        m.submodules.clearance = clearance = Clearance()
        m.submodules.rows = rows = MatmulRows(self.cfg)
        self._wires(m, i, pc, clearance, rows)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += pc.eq(0)
                with m.If(self.start):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += self.program.en.eq(1)
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.sync += i.eq(self.program.data)
                m.next = "CHECK"
            with m.State("CHECK"):  # ``clear`` is computed from the new instruction
                m.next = "WAIT"
                with m.If((i.op > max(Op).value) | (pc >= self.job.program_words)):
                    m.d.comb += self.illegal.eq(1)
                    m.next = "STUCK"
                with m.Elif(i.want & (self.want_count == 0)):
                    m.next = "NEXT"
            with m.State("WAIT"):
                with m.If(clearance.clear):
                    m.next = "START"
            with m.State("START"):
                for unit, command in (
                    (Unit.ATTENTION, self.attention),
                    (Unit.EMBED, self.embed),
                    (Unit.VECTOR, self.vector),
                ):
                    for op in isa.operations_of(unit):
                        with m.If(i.op == op.value):
                            m.d.comb += command.valid.eq(1)
                            with m.If(command.ready):
                                m.next = "NEXT"
                with m.If(i.op == Op.END.value):
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
                with m.If(i.op == Op.LOAD.value):
                    m.next = "MATMUL"
                with m.If(i.op == Op.MATMUL.value):
                    m.next = "TABLE"
            with m.State("TABLE"):
                m.d.comb += rows.walk.eq(1)
                with m.If(rows.last):
                    m.next = "MATMUL"
            with m.State("MATMUL"):
                m.d.comb += self.matmul.valid.eq(1)
                with m.If(self.matmul.ready):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.comb += self.progress.eq(1)
                m.d.sync += pc.eq(pc + 1)
                m.next = "READ"
            with m.State("STUCK"):
                pass
        return m

    def _wires(self, m, i, pc, clearance, rows):
        command = matmul_payload(self.cfg, i, rows.count)
        m.d.comb += [
            Value.cast(self.matmul.payload[name]).eq(value) for name, value in command.items()
        ]
        m.d.comb += [
            self.pc.eq(pc),
            self.program.addr.eq(pc),
            *[unit.payload.eq(i) for unit in (self.vector, self.attention, self.embed)],
            clearance.op.eq(i.op),
            clearance.wait.eq(i.wait),
            clearance.busy.eq(self.busy),
            *[getattr(rows, n).eq(i[n]) for n in ("src", "dst", "src_stride", "dst_stride")],
            rows.wanted_only.eq(i.want),
            rows.rows.eq(self.job.rows),
            rows.want_count.eq(self.want_count),
            rows.want_row.eq(self.want.row),
            self.want_index.eq(rows.want_index),
            self.table_en.eq(rows.walk),
            self.table_index.eq(rows.index),
            self.table.eq(rows.entry),
        ]

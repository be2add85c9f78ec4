"""A job: its descriptor, rows and program, the steps, and the instructions of each."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.isa import Unit
from tokenfabric.core.registers import Error
from tokenfabric.rtl.array import array_commands
from tokenfabric.rtl.descriptor import Descriptor, ProgramMemory, descriptor_layout
from tokenfabric.rtl.layouts import (
    count_shape,
    fetch_command,
    index_shape,
    instruction_layout,
    row_record,
    stream_command,
    write_beat,
)
from tokenfabric.rtl.memory import Fifo, share_writes
from tokenfabric.rtl.rows import RowTable, WantTable, want_entry
from tokenfabric.rtl.sequencer import InstructionIssue
from tokenfabric.rtl.steps import Steps

__all__ = ["Job"]


class Job(wiring.Component):
    """Runs a job: loads it, goes from step to step, and issues the instructions of each.

    Latency and throughput: see Steps and InstructionIssue; a command for Fetch takes two cycles
    more.

    Parameters
    ----------
    row_readers, want_readers : of the row table, of the table of rows that want logits

    Members
    -------
    start : in, strobe, once after a reset
    stop : in, level: finish after the current step
    cycles : in, 32 bits, counted since the start
    finished : out, level
    error : out, ``registers.Error``, 0 for none; an illegal instruction before those of the steps
    progress : out, strobe; pc : out, 32 bits, the instruction that is being issued
    ring_head : out, 32 bits, steps whose tokens are written
    data : in, a fetched beat; descriptor, program : in, strobes: it is the next of the two
    described, loaded : in, levels: the descriptor, the program has come
    fetch : stream of fetch_command, out
    stream : stream of stream_command, out
    beats : stream of write_beat, out; writer_idle : in
    job : out, the descriptor
    want_count : out, rows of the step that want logits
    best_index : out, whose token is asked for; best_token : in, it, in the same cycle
    busy : in, a bit for each of ``isa.Unit``
    vector, attention, embed : streams of instructions, out
    array : array_commands, out
    step_done : out, strobe, the step's last instruction is through
    row_index : in, row : out, combinational; one pair per reader
    want_index : in, want : out, combinational; one pair per reader
    """

    def __init__(self, cfg: FabricConfig, *, row_readers: int, want_readers: int):
        self.cfg = cfg
        self.row_readers, self.want_readers = row_readers, want_readers
        instructions = Out(stream.Signature(instruction_layout()))
        super().__init__(
            {
                "start": In(1),
                "stop": In(1),
                "cycles": In(32),
                "finished": Out(1),
                "error": Out(8),
                "progress": Out(1),
                "pc": Out(32),
                "ring_head": Out(32),
                "data": In(8 * cfg.port_bytes),
                "descriptor": In(1),
                "program": In(1),
                "described": In(1),
                "loaded": In(1),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "stream": Out(stream.Signature(stream_command(cfg))),
                "beats": Out(stream.Signature(write_beat(cfg))),
                "writer_idle": In(1),
                "job": Out(descriptor_layout()),
                "want_count": Out(count_shape(cfg)),
                "best_index": Out(index_shape(cfg)),
                "best_token": In(32),
                "busy": In(len(Unit)),
                "vector": instructions,
                "attention": instructions,
                "embed": instructions,
                "array": Out(array_commands(cfg)),
                "step_done": Out(1),
                "row_index": In(index_shape(cfg)).array(row_readers),
                "row": Out(row_record(cfg)).array(row_readers),
                "want_index": In(index_shape(cfg)).array(want_readers),
                "want": Out(want_entry(cfg)).array(want_readers),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.descriptor = descriptor = Descriptor(cfg)
        m.submodules.program = program = ProgramMemory(cfg)
        m.submodules.steps = steps = Steps(cfg)
        m.submodules.issue = issue = InstructionIssue(cfg)
        # What the steps ask for depends on much: it waits a little for its turn.
        m.submodules.requests = requests = Fifo(fetch_command(cfg), 2)
        connect(m, steps.fetch, requests.i)
        connect(m, requests.o, flipped(self.fetch))
        connect(m, issue.program, program.r)
        for name in ("stream", "beats"):
            connect(m, getattr(steps, name), flipped(getattr(self, name)))
        for name in ("vector", "attention", "embed"):
            connect(m, getattr(issue, name), flipped(getattr(self, name)))
        connect(m, issue.matmul, flipped(self.array.matmul))
        for name in ("finished", "ring_head", "want_count", "best_index"):
            m.d.comb += getattr(self, name).eq(getattr(steps, name))
        for name in ("start", "stop", "cycles", "described", "loaded", "best_token", "writer_idle"):
            m.d.comb += getattr(steps, name).eq(getattr(self, name))
        m.d.comb += [
            descriptor.valid.eq(self.descriptor),
            descriptor.beat.eq(self.data),
            program.valid.eq(self.program),
            program.beat.eq(self.data),
            self.job.eq(descriptor.job),
            steps.job.eq(descriptor.job),
            steps.issue_done.eq(issue.done),
            issue.job.eq(descriptor.job),
            issue.busy.eq(self.busy),
            issue.want_count.eq(steps.want_count),
            issue.start.eq(steps.issue_start),
            self.array.table_en.eq(issue.table_en),
            self.array.table_index.eq(issue.table_index),
            self.array.table.eq(issue.table),
            self.step_done.eq(issue.done),
            self.progress.eq(issue.progress),
            self.pc.eq(issue.pc),
            self.error.eq(Mux(issue.illegal, Error.ILLEGAL, steps.error)),
        ]
        self._tables(m, descriptor, steps, issue)
        return m

    def _tables(
        self, m: Module, descriptor: Descriptor, steps: Steps, issue: InstructionIssue
    ) -> None:
        m.submodules.rows = rows = RowTable(self.cfg, 1 + self.row_readers)
        m.submodules.wants = wants = WantTable(self.cfg, 1 + self.want_readers)
        share_writes(m, rows.w, descriptor.rows_w, steps.rows_w)
        m.d.comb += [
            wants.en.eq(steps.want_en),
            wants.addr.eq(steps.want_addr),
            wants.entry.eq(steps.want_entry),
        ]
        row_readers = [(steps.row_index, steps.row), *zip(self.row_index, self.row)]
        for reader, (index, row) in enumerate(row_readers):
            m.d.comb += getattr(rows, f"index_{reader}").eq(index)
            m.d.comb += row.eq(getattr(rows, f"row_{reader}"))
        want_readers = [(issue.want_index, issue.want), *zip(self.want_index, self.want)]
        for reader, (index, entry) in enumerate(want_readers):
            m.d.comb += getattr(wants, f"index_{reader}").eq(index)
            m.d.comb += entry.eq(getattr(wants, f"entry_{reader}"))

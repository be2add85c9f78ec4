"""The control of a run: job, steps, instructions."""

from __future__ import annotations

from typing import ClassVar

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import isa
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.fixed import ceil_div
from tokenfabric.core.isa import Op, RowFlag, Unit
from tokenfabric.core.registers import Error
from tokenfabric.rtl.layouts import (
    BeatTag,
    MatmulKind,
    count_shape,
    fetch_command,
    index_shape,
    instruction_layout,
    matmul_command,
    row_record,
    stream_command,
    table_entry,
    write_beat,
)
from tokenfabric.rtl.memory import Ram, read_port
from tokenfabric.rtl.rows import changed_beats, row_beats, row_port, want_entry

__all__ = ["Descriptor", "Issue", "ProgramMemory", "Steps", "descriptor_layout"]

NO_TOKEN = 0xFFFFFFFF
RING_BYTES = 8  # of an entry


def descriptor_layout() -> data.StructLayout:
    """``isa.DESCRIPTOR`` as registers."""
    return data.StructLayout({name: unsigned(32) for name, _ in isa.DESCRIPTOR})


class Descriptor(wiring.Component):
    """Takes the beats of the job descriptor: registers for the job, row-table writes for the rows.

    Members: ``valid``, ``beat`` (In: beats in order since the last reset); ``job`` (Out);
    ``rows_w`` (Out: RowTable's port).
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "valid": In(1),
                "beat": In(8 * cfg.port_bytes),
                "job": Out(descriptor_layout()),
                "rows_w": Out(row_port(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        count = Signal(16)
        words = len(self.beat) // 32
        head = isa.DESCRIPTOR_WORDS // words
        names = [name for name, _ in isa.DESCRIPTOR]
        with m.If(self.valid):
            m.d.sync += count.eq(count + 1)
            with m.Switch(count):
                for i in range(0, len(names), words):
                    with m.Case(i // words):
                        m.d.sync += [
                            self.job[name].eq(self.beat.word_select(at, 32))
                            for at, name in enumerate(names[i : i + words])
                        ]
        # Rows keep 16 bits of their position; what does not fit is beyond every context.
        beat, at = divmod([name for name, _ in isa.ROW].index("position"), words)
        of_row = count[: (row_beats(self.cfg) - 1).bit_length()]
        beyond = (of_row == beat) & self.beat.word_select(at, 32)[16:].any()
        m.d.comb += [
            self.rows_w.en.eq(self.valid & (count >= head)),
            self.rows_w.addr.eq(count - head),
            self.rows_w.data.eq(self.beat | (beyond.replicate(16) << 32 * at)),
        ]
        return m


class ProgramMemory(wiring.Component):
    """Takes the beats of the program; hands out instructions. Members: ``valid``, ``beat`` (In);
    ``r`` (In: read port, one instruction wide, addresses in instructions)."""

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        bits = (cfg.program_words - 1).bit_length()
        super().__init__(
            {
                "valid": In(1),
                "beat": In(8 * cfg.port_bytes),
                "r": In(read_port(bits, isa.INSTRUCTION_BITS)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        beats = isa.INSTRUCTION_BITS // len(self.beat)
        m.submodules.ram = ram = Ram(
            self.cfg.program_words * beats, len(self.beat), read_units=beats
        )
        at = Signal.like(ram.w.addr)
        low = (beats - 1).bit_length()
        with m.If(self.valid):
            m.d.sync += at.eq(at + 1)
        m.d.comb += [
            ram.w.en.eq(self.valid),
            ram.w.addr.eq(at),
            ram.w.data.eq(self.beat),
            ram.r.en.eq(self.r.en),
            ram.r.addr.eq(Cat(Signal(low), self.r.addr)),
            self.r.data.eq(ram.r.data),
        ]
        return m


class Issue(wiring.Component):
    """Issues the instructions of a step in order.

    An instruction starts when its own unit is idle and so is every unit of its wait mask; units
    that share the row table or a memory port with it are waited for in any case (:data:`SHARES`).
    About four cycles per instruction that has nothing to wait for.

    Members: ``start`` (In), ``done`` (Out: END reached, all units idle), ``pc``, ``illegal``;
    ``busy`` (In: bits of ``isa.Unit``); ``program`` (read port); ``job``, ``want_count``,
    ``want_index``/``want`` (look-up); commands ``vector``, ``attention``, ``embed`` (streams of
    instructions), ``matmul``; ``table_en``, ``table_index``, ``table``; ``progress`` (Out).
    """

    # Issued only while none of these is busy, whatever the program says.
    SHARES: ClassVar[dict[Op, Unit]] = {
        Op.LOAD: Unit.ARRAY | Unit.ATTENTION,
        Op.EMBED: Unit.EMBED | Unit.ARRAY | Unit.ATTENTION,
        Op.NORM: Unit.VECTOR,
        Op.MATMUL: Unit.ARRAY | Unit.ATTENTION | Unit.EMBED,
        Op.ROPE: Unit.VECTOR | Unit.ATTENTION,
        Op.APPEND: Unit.VECTOR | Unit.ATTENTION,
        Op.ATTEND: Unit.ATTENTION | Unit.ARRAY | Unit.EMBED | Unit.VECTOR | Unit.WRITER,
        Op.SWIGLU: Unit.VECTOR,
        Op.END: Unit.ARRAY | Unit.VECTOR | Unit.ATTENTION | Unit.EMBED,
    }

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
        shares = Signal(len(Unit))
        clear = Signal()
        with m.Switch(i.op):
            for op, units in self.SHARES.items():
                with m.Case(op.value):
                    m.d.comb += shares.eq(units.value)
        m.d.comb += [
            self.pc.eq(pc),
            self.program.addr.eq(pc),
            self.vector.payload.eq(i),
            self.attention.payload.eq(i),
            self.embed.payload.eq(i),
        ]
        m.d.sync += clear.eq(~(self.busy & (shares | i.wait)).any())
        self._matmul(m, i)
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
                with m.If(clear):
                    m.next = "START"
            with m.State("START"):
                for op, command in (
                    (Op.ATTEND, self.attention),
                    (Op.EMBED, self.embed),
                    *((op, self.vector) for op in (Op.NORM, Op.ROPE, Op.APPEND, Op.SWIGLU)),
                ):
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
                m.d.comb += self.table_en.eq(1)
                with m.If(self.last_row):
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

    def _matmul(self, m, i):
        """The command of LOAD and MATMUL, and MATMUL's row table: one row per cycle."""
        cfg = self.cfg
        count = Mux(i.want, self.want_count, self.job.rows)
        index = Signal(count_shape(cfg))
        # Rows ascend, so their addresses are sums: advance by one stride until the row is reached.
        row, src, dst = Signal(count_shape(cfg)), Signal(16), Signal(16)
        self.last_row = Signal()
        wanted = Mux(i.want, self.want.row, index)
        here = Signal()
        m.d.comb += [
            self.want_index.eq(index),
            here.eq(row == wanted),
            self.table_index.eq(index),
            self.table.src.eq(src),
            self.table.dst.eq(dst),
            self.last_row.eq(here & (index + 1 == count)),
        ]
        with m.If(self.table_en):
            m.d.sync += [row.eq(row + 1), src.eq(src + i.src_stride), dst.eq(dst + i.dst_stride)]
            with m.If(here):
                m.d.sync += index.eq(index + 1)
        with m.Else():
            m.d.sync += [row.eq(0), index.eq(0), src.eq(i.src), dst.eq(i.dst)]
        kc = (cfg.k_chunks - 1).bit_length()
        bits = Signal(2)
        with m.Switch(i.mode):
            with m.Case(isa.Dest.OUT.value):
                m.d.comb += bits.eq(1)
            with m.Case(isa.Dest.OUT8.value):
                m.d.comb += bits.eq(0)
            with m.Default():
                m.d.comb += bits.eq(2)
        out = self.matmul.payload
        m.d.comb += [
            out.kind.eq(Mux(i.op == Op.LOAD.value, MatmulKind.LOAD, MatmulKind.STREAM)),
            out.m.eq(count),
            out.k.eq((i.k + (cfg.k_chunks - 1)) >> kc),
            out.n.eq(i.n),
            out.tail.eq(((i.k - 1) & (cfg.k_chunks - 1)) + 1),
            out.shift.eq(i.shift),
            out.shift_odd.eq(i.shift2),
            out.bits.eq(bits),
            out.dest.as_value().eq(i.mode),
            out.sat.eq(i.sat),
            out.param.eq(i.param),
        ]


class Steps(wiring.Component):
    """A run from start to end: descriptor, program, then step after step.

    Before each step it checks the rows' positions, lists the rows that want logits and sends for
    their RoPE rows; after it, it takes the chosen tokens, writes the ring and advances the rows.

    Members: ``start`` (In: pulse after all units have been reset), ``stop`` (In: level);
    ``finished`` (Out: the run is over, its writes answered), ``error`` (Out: nonzero for one
    cycle), ``job``, ``fetch`` (Out), ``stream`` (Out: WeightStream's command),
    ``row_index``/``row``, ``rows_w`` (row table), ``want_en``/``want_addr``/``want_entry``,
    ``want_count``, ``best_index``/``best_token``,
    ``beats`` (Out: ring entries), ``writer_idle``, ``cycles``, ``ring_head``, ``issue_start``,
    ``issue_done``, ``loaded`` (In: level: the program's last beat is there).
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(1),
                "stop": In(1),
                "finished": Out(1),
                "error": Out(8),
                "job": In(descriptor_layout()),
                "loaded": In(1),
                "described": In(1),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "stream": Out(stream.Signature(stream_command(cfg))),
                "row_index": Out(index_shape(cfg)),
                "row": In(row_record(cfg)),
                "rows_w": Out(row_port(cfg)),
                "want_en": Out(1),
                "want_addr": Out(index_shape(cfg)),
                "want_entry": Out(want_entry(cfg)),
                "want_count": Out(count_shape(cfg)),
                "best_index": Out(index_shape(cfg)),
                "best_token": In(32),
                "beats": Out(stream.Signature(write_beat(cfg))),
                "writer_idle": In(1),
                "cycles": In(32),
                "ring_head": Out(32),
                "issue_start": Out(1),
                "issue_done": In(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, job = self.cfg, self.job
        row, want = Signal(count_shape(cfg)), Signal(count_shape(cfg))
        step, ring_at, logits_at = Signal(32), Signal(32), Signal(32)
        rope_at, streaming = Signal(32), Signal()
        ended = Signal(cfg.max_rows)  # rows that have chosen a stop token
        token, is_stop = Signal(32), Signal()
        changed = changed_beats(cfg)
        part = Signal(range(len(changed)))  # of the ring's entry, then of the row
        wants = (self.row.flags & RowFlag.WANT_LOGITS).any()
        dumps = (self.row.flags & RowFlag.DUMP_LOGITS).any()
        stops = (self.row.flags & RowFlag.STOP).any()
        has_ended = ended.bit_select(row[: len(self.row_index)], 1)
        last_row = row + 1 == job.rows
        beats_of_head = (job.head_bytes * 2 // cfg.port_bytes)[:20]
        m.d.comb += [
            self.row_index.eq(row),
            self.best_index.eq(want),
            self.want_addr.eq(want),
            self.want_entry.row.eq(row),
            self.want_entry.dump.eq(dumps),
            self.want_entry.addr.eq(logits_at),
            self.stream.payload.offset.eq(job.stream),
            self.stream.payload.superblocks.eq(
                Mux(self.want_count == 0, job.stream_body, job.stream_full)
            ),
            self.stream.payload.repeats.eq(job.steps),
        ]
        with m.If(self.writer_idle):
            m.d.sync += self.ring_head.eq(step)
        wrong = Signal(9)  # with the descriptor, in the cycle after it has come
        m.d.sync += wrong.eq(
            Cat(
                job.magic != isa.DESCRIPTOR_MAGIC,
                job.rows == 0,
                job.rows > cfg.max_rows,
                job.steps == 0,
                job.program_words == 0,
                job.program_words > cfg.program_words,
                job.head_bytes[: (cfg.cols - 1).bit_length()] != 0,
                job.head_bytes > cfg.max_head_dim,
                job.context > cfg.max_context,
            )
        )
        fetch = self.fetch.payload
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "DESCRIPTOR"
            with m.State("DESCRIPTOR"):
                words = isa.DESCRIPTOR_WORDS + cfg.max_rows * isa.ROW_WORDS
                m.d.comb += [
                    self.fetch.valid.eq(1),
                    fetch.tag.eq(BeatTag.DESCRIPTOR),
                    fetch.offset.eq(isa.JOB),
                    fetch.beats.eq(words * 4 // cfg.port_bytes),
                ]
                with m.If(self.fetch.ready):
                    m.next = "DESCRIBED"
            with m.State("DESCRIBED"):
                with m.If(self.described):
                    m.next = "CHECKED"
            with m.State("CHECKED"):
                m.next = "PROGRAM"
                with m.If(wrong.any()):
                    m.d.comb += self.error.eq(Error.DESCRIPTOR.value)
                    m.next = "STUCK"
            with m.State("PROGRAM"):
                m.d.comb += [
                    self.fetch.valid.eq(1),
                    fetch.tag.eq(BeatTag.PROGRAM),
                    fetch.offset.eq(job.program),
                    fetch.beats.eq(
                        job.program_words[:16] * (isa.INSTRUCTION_BYTES // cfg.port_bytes)
                    ),
                ]
                with m.If(self.fetch.ready):
                    m.d.sync += [ring_at.eq(job.ring), logits_at.eq(job.logits)]
                    m.next = "STEP"
            with m.State("STEP"):
                m.d.sync += [row.eq(0), want.eq(0)]
                m.next = "ROW"
            with m.State("ROW"):
                # kv_row - kv_slot is position * head_bytes, and the table holds int16.
                m.d.sync += rope_at.eq((self.row.kv_row - self.row.kv_slot) << 1)
                m.next = "ROPE"
                with m.If(self.row.position >= job.context):
                    m.d.comb += self.error.eq(Error.CONTEXT.value)
                    m.next = "STUCK"
            with m.State("ROPE"):
                m.d.comb += [
                    self.fetch.valid.eq(1),
                    fetch.tag.eq(BeatTag.ROPE),
                    fetch.offset.eq(job.rope + rope_at),
                    fetch.beats.eq(beats_of_head),
                ]
                with m.If(self.fetch.ready):
                    m.d.sync += row.eq(row + 1)
                    m.next = "ROW"
                    with m.If(wants):
                        m.d.comb += self.want_en.eq(1)
                        m.d.sync += want.eq(want + 1)
                        with m.If(dumps):
                            m.d.sync += logits_at.eq(logits_at + job.logits_stride)
                    with m.If(last_row):
                        m.d.sync += self.want_count.eq(want + wants)
                        m.next = "STREAM"
            with m.State("STREAM"):
                m.d.comb += self.stream.valid.eq(~streaming)
                with m.If(streaming | self.stream.ready):
                    m.d.sync += streaming.eq(1)
                    m.next = "LOADED"
            with m.State("LOADED"):
                with m.If(self.loaded):
                    m.d.comb += self.issue_start.eq(1)
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.sync += [row.eq(0), want.eq(0)]
                with m.If(self.issue_done):
                    m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += token.eq(Mux(wants & ~has_ended, self.best_token, NO_TOKEN))
                m.next = "COMPARE"
            with m.State("COMPARE"):
                m.d.sync += is_stop.eq(
                    Cat(token == job[f"stop{i}"] for i in range(4)).any() & (token != NO_TOKEN)
                )
                m.next = "RING"
            with m.State("RING"):
                m.d.comb += self.beats.valid.eq(1)
                with m.If(self.beats.ready):
                    m.d.sync += part.eq(part + 1)
                    with m.If(self.beats.payload.last):
                        m.d.sync += [part.eq(0), ring_at.eq(ring_at + RING_BYTES)]
                        m.next = "ADVANCE"
            with m.State("ADVANCE"):
                m.d.comb += self.rows_w.en.eq(1)
                m.d.sync += part.eq(part + 1)
                with m.If(part == len(changed) - 1):
                    m.d.sync += [part.eq(0), row.eq(row + 1), want.eq(want + wants)]
                    with m.If(is_stop & stops):
                        m.d.sync += ended.bit_select(row[: len(self.row_index)], 1).eq(1)
                    m.next = "CHOOSE"
                    with m.If(last_row):
                        m.d.sync += step.eq(step + 1)
                        m.next = "STEPPED"
            with m.State("STEPPED"):
                all_ended = Signal()
                rows_mask = (1 << job.rows[: len(row)]) - 1
                m.d.comb += all_ended.eq((ended & rows_mask) == rows_mask)
                m.next = "STEP"
                with m.If((step == job.steps) | self.stop | all_ended):
                    m.next = "WRITES"
            with m.State("WRITES"):
                with m.If(self.writer_idle & (self.ring_head == step)):
                    m.next = "FINISHED"
            with m.State("FINISHED"):
                m.d.comb += self.finished.eq(1)
            with m.State("STUCK"):
                pass
        self._write(m, row, token, ring_at, part, changed, wants & ~has_ended)
        return m

    def _write(self, m, row, token, ring_at, part, changed, advance):
        """Ring entries {token, cycles}; of the row the beats in which something has changed."""
        beat, size = self.beats.payload, self.cfg.port_bytes
        beat_words = size // 4
        of_entry = ceil_div(RING_BYTES, size)  # beats
        entry = ring_at[3 : max(3, (size - 1).bit_length())]  # of the beat
        entries = ceil_div(size, RING_BYTES)
        words = {
            **{name: self.row[name] for name, _ in self.row.shape()},
            "token": Mux(advance, self.best_token, self.row.token),
            "position": self.row.position + 1,
            "kv_row": self.row.kv_row + self.job.head_bytes,
        }
        names = [name for name, _ in isa.ROW]

        def row_beat(number):
            of_beat = names[number * beat_words : (number + 1) * beat_words]
            return Cat(Cat(words.get(name, 0), Const(0, 32))[:32] for name in of_beat)

        low = (row_beats(self.cfg) - 1).bit_length()
        m.d.comb += [
            beat.first.eq(part == 0),
            beat.last.eq(part == of_entry - 1),
            beat.addr.eq(ring_at),
            beat.data.eq(
                Cat(token, self.cycles).replicate(entries).word_select(part, len(beat.data))
            ),
            beat.strb.eq(0xFF << Cat(Const(0, 3), entry)),
            self.rows_w.addr.eq(Cat(Array(Const(number, low) for number in changed)[part], row)),
            self.rows_w.data.eq(Array(row_beat(number) for number in changed)[part]),
        ]

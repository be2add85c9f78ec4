"""A run, step after step: what happens before, around and after the instructions of a step."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import isa
from tokenfabric.core.config import FETCH_BITS, FabricConfig
from tokenfabric.core.fixed import ceil_div
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.registers import Error
from tokenfabric.rtl.descriptor import JobLoader, descriptor_layout
from tokenfabric.rtl.layouts import (
    BeatTag,
    count_shape,
    fetch_command,
    index_shape,
    row_record,
    stream_command,
    write_beat,
)
from tokenfabric.rtl.rows import changed_beats, row_beats, row_port, want_entry

__all__ = ["RowWalker", "Steps", "TokenChooser"]

NO_TOKEN = 0xFFFFFFFF
RING_BYTES = 8  # of an entry


class RowWalker(wiring.Component):
    """Before a step: row by row, is its position allowed, where does it write logits, its RoPE row.

    Members: ``begin`` (In: pulse before the first step of a run: logits go to the job's address),
    ``start`` (In: pulse; ``row`` is the step's first row in the cycle after); ``job``, ``row`` (In:
    record of the current row), ``number`` (In: its number); ``fetch`` (Out: stream: its RoPE row);
    ``advance`` (Out: for a cycle, the next row please), ``beyond`` (Out: for a cycle: the position
    is beyond the context; nothing more happens); ``want_en`` (Out: for a cycle, with
    ``want_entry``, for a row that wants logits).

    Two cycles for a row, and what ``fetch`` makes it wait.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "begin": In(1),
                "start": In(1),
                "job": In(descriptor_layout()),
                "row": In(row_record(cfg)),
                "number": In(count_shape(cfg)),
                "last": In(1),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "advance": Out(1),
                "beyond": Out(1),
                "want_en": Out(1),
                "want_entry": Out(want_entry(cfg)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        job, fetch = self.job, self.fetch.payload
        logits_at, rope_at = Signal(32), Signal(32)
        wants = (self.row.flags & RowFlag.WANT_LOGITS).any()
        dumps = (self.row.flags & RowFlag.DUMP_LOGITS).any()
        m.d.comb += [
            self.want_entry.row.eq(self.number),
            self.want_entry.dump.eq(dumps),
            self.want_entry.addr.eq(logits_at),
            fetch.tag.eq(BeatTag.ROPE),
            fetch.offset.eq(job.rope + rope_at),
            fetch.beats.eq((job.head_bytes * 2 // self.cfg.port_bytes)[:FETCH_BITS]),
            self.want_en.eq(self.advance & wants),
        ]
        with m.If(self.begin):
            m.d.sync += logits_at.eq(job.logits)
        with m.Elif(self.want_en & dumps):
            m.d.sync += logits_at.eq(logits_at + job.logits_stride)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "ROW"
            with m.State("ROW"):
                # kv_row - kv_slot is position * head_bytes, and the table holds int16.
                m.d.sync += rope_at.eq((self.row.kv_row - self.row.kv_slot) << 1)
                m.next = "ROPE"
                with m.If(self.row.position >= job.context):
                    m.d.comb += self.beyond.eq(1)
                    m.next = "STUCK"
            with m.State("ROPE"):
                m.d.comb += [self.fetch.valid.eq(1), self.advance.eq(self.fetch.ready)]
                with m.If(self.fetch.ready):
                    m.next = "ROW"
                    with m.If(self.last):
                        m.next = "IDLE"
            with m.State("STUCK"):
                pass
        return m


class TokenChooser(wiring.Component):
    """After a step: row by row, the token, its entry in the ring, and the row of the next step.

    Members: ``begin`` (In: pulse before the first step of a run: the ring begins), ``start`` (In:
    pulse; ``row`` is the step's first row in the cycle after); ``job``, ``row`` (In: record of the
    current row), ``number`` (In: its number), ``last`` (In: it is the last), ``best_token`` (In:
    what argmax found for it), ``cycles`` (In: since the start of the run); ``beats`` (Out: stream
    of ring entries {token, cycles}); ``rows_w`` (Out: the beats of the row in which something
    changes); ``advance`` (Out: for a cycle, the next row please); ``all_ended`` (Out: level: every
    row has chosen a stop token).

    Two cycles for a row, the beats of its entry, and those of the row that change.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "begin": In(1),
                "start": In(1),
                "job": In(descriptor_layout()),
                "row": In(row_record(cfg)),
                "number": In(count_shape(cfg)),
                "last": In(1),
                "best_token": In(32),
                "cycles": In(32),
                "beats": Out(stream.Signature(write_beat(cfg))),
                "rows_w": Out(row_port(cfg)),
                "advance": Out(1),
                "all_ended": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, job = self.cfg, self.job
        changed = changed_beats(cfg)
        part = Signal(range(len(changed)))  # of the ring's entry, then of the row
        ended = Signal(cfg.max_rows)  # rows that have chosen a stop token
        token, is_stop, ring_at = Signal(32), Signal(), Signal(32)
        wants = (self.row.flags & RowFlag.WANT_LOGITS).any()
        stops = (self.row.flags & RowFlag.STOP).any()
        index = self.number[: len(Signal(index_shape(cfg)))]
        chooses = wants & ~ended.bit_select(index, 1)
        mask = (1 << job.rows[: len(self.number)]) - 1
        m.d.comb += self.all_ended.eq((ended & mask) == mask)
        self._row(m, part, changed, chooses)
        self._entry(m, part, token, ring_at)
        with m.If(self.begin):
            m.d.sync += ring_at.eq(job.ring)
        with m.FSM():
            with m.State("IDLE"):
                with m.If(self.start):
                    m.next = "CHOOSE"
            with m.State("CHOOSE"):
                m.d.sync += token.eq(Mux(chooses, self.best_token, NO_TOKEN))
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
                    m.d.comb += self.advance.eq(1)
                    m.d.sync += part.eq(0)
                    with m.If(is_stop & stops):
                        m.d.sync += ended.bit_select(index, 1).eq(1)
                    m.next = "CHOOSE"
                    with m.If(self.last):
                        m.next = "IDLE"
        return m

    def _entry(self, m, part, token, ring_at):
        """The ring's entry {token, cycles}, in as many beats as it takes."""
        beat, size = self.beats.payload, self.cfg.port_bytes
        of_entry = ceil_div(RING_BYTES, size)  # beats
        entry = ring_at[3 : max(3, (size - 1).bit_length())]  # of the beat
        entries = ceil_div(size, RING_BYTES)
        m.d.comb += [
            beat.first.eq(part == 0),
            beat.last.eq(part == of_entry - 1),
            beat.addr.eq(ring_at),
            beat.data.eq(
                Cat(token, self.cycles).replicate(entries).word_select(part, len(beat.data))
            ),
            beat.strb.eq(0xFF << Cat(Const(0, 3), entry)),
        ]

    def _row(self, m, part, changed, chooses):
        """Of the row the beats in which something has changed."""
        beat_words = self.cfg.port_bytes // 4
        words = {
            **{name: self.row[name] for name, _ in self.row.shape()},
            "token": Mux(chooses, self.best_token, self.row.token),
            "position": self.row.position + 1,
            "kv_row": self.row.kv_row + self.job.head_bytes,
        }
        names = [name for name, _ in isa.ROW]

        def row_beat(number):
            of_beat = names[number * beat_words : (number + 1) * beat_words]
            return Cat(Cat(words.get(name, 0), Const(0, 32))[:32] for name in of_beat)

        low = (row_beats(self.cfg) - 1).bit_length()
        at = Array(Const(number, low) for number in changed)[part]
        m.d.comb += [
            self.rows_w.addr.eq(Cat(at, self.number)),
            self.rows_w.data.eq(Array(row_beat(number) for number in changed)[part]),
        ]


class Steps(wiring.Component):
    """A run from start to end: descriptor, program, then step after step.

    Members: ``start`` (In: pulse after all units have been reset), ``stop`` (In: level: no further
    step); ``finished`` (Out: level: the run is over, its writes answered), ``error`` (Out: nonzero
    for one cycle; then nothing more happens); ``job`` (In), ``described``, ``loaded`` (In: levels:
    the last beat of the descriptor, of the program is there); ``fetch`` (Out: stream of commands),
    ``stream`` (Out: WeightStream's command); ``row_index`` (Out), ``row`` (In: that row's record),
    ``rows_w`` (Out: port of the row table); ``want_en``, ``want_addr``, ``want_entry`` (Out: port
    of the want table), ``want_count`` (Out: rows that want logits); ``best_index`` (Out),
    ``best_token`` (In: what argmax found for that wanted row); ``beats`` (Out: stream of ring
    entries), ``writer_idle`` (In); ``cycles`` (In: since the start); ``ring_head`` (Out: steps
    whose entries are in memory); ``issue_start`` (Out), ``issue_done`` (In: pulses around the
    instructions).
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
        m.submodules.loader = loader = JobLoader(self.cfg)
        m.submodules.walker = walker = RowWalker(self.cfg)
        m.submodules.chooser = chooser = TokenChooser(self.cfg)
        self._wires(m, loader, walker, chooser)
        clear = self._counts(m, walker, chooser)
        step, streaming = Signal(32), Signal()
        with m.If(self.writer_idle):
            m.d.sync += self.ring_head.eq(step)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += loader.start.eq(self.start)
                with m.If(self.start):
                    m.next = "LOAD"
            with m.State("LOAD"):
                with m.If(loader.done):
                    m.next = "STEP"
            with m.State("STEP"):
                m.d.comb += [walker.start.eq(1), clear.eq(1)]
                m.next = "ROWS"
            with m.State("ROWS"):
                with m.If(walker.advance & walker.last):
                    m.next = "STREAM"
            with m.State("STREAM"):
                m.d.comb += self.stream.valid.eq(~streaming)
                with m.If(streaming | self.stream.ready):
                    m.d.sync += streaming.eq(1)
                    m.next = "LOADED"
            with m.State("LOADED"):
                m.d.comb += self.issue_start.eq(self.loaded)
                with m.If(self.loaded):
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += [clear.eq(1), chooser.start.eq(self.issue_done)]
                with m.If(self.issue_done):
                    m.next = "CHOOSE"
            with m.State("CHOOSE"):
                with m.If(chooser.advance & chooser.last):
                    m.d.sync += step.eq(step + 1)
                    m.next = "STEPPED"
            with m.State("STEPPED"):
                m.next = "STEP"
                with m.If((step == self.job.steps) | self.stop | chooser.all_ended):
                    m.next = "WRITES"
            with m.State("WRITES"):
                with m.If(self.writer_idle & (self.ring_head == step)):
                    m.next = "FINISHED"
            with m.State("FINISHED"):
                m.d.comb += self.finished.eq(1)
        return m

    def _wires(self, m, loader, walker, chooser):
        job = self.job
        with m.If(loader.fetch.valid):  # it is done before the first row
            m.d.comb += [self.fetch.valid.eq(1), self.fetch.payload.eq(loader.fetch.payload)]
        with m.Else():
            m.d.comb += [
                self.fetch.valid.eq(walker.fetch.valid),
                self.fetch.payload.eq(walker.fetch.payload),
            ]
        wiring.connect(m, chooser.beats, wiring.flipped(self.beats))
        wiring.connect(m, chooser.rows_w, wiring.flipped(self.rows_w))
        m.d.comb += [
            loader.job.eq(job),
            loader.described.eq(self.described),
            loader.fetch.ready.eq(self.fetch.ready),
            walker.fetch.ready.eq(self.fetch.ready),
            walker.begin.eq(loader.done),
            chooser.begin.eq(loader.done),
            *[unit.job.eq(job) for unit in (walker, chooser)],
            *[unit.row.eq(self.row) for unit in (walker, chooser)],
            chooser.best_token.eq(self.best_token),
            chooser.cycles.eq(self.cycles),
            self.want_en.eq(walker.want_en),
            self.want_entry.eq(walker.want_entry),
            self.stream.payload.offset.eq(job.stream),
            self.stream.payload.superblocks.eq(
                Mux(self.want_count == 0, job.stream_body, job.stream_full)
            ),
            self.stream.payload.repeats.eq(job.steps),
        ]
        with m.If(loader.bad):
            m.d.comb += self.error.eq(Error.DESCRIPTOR.value)
        with m.If(walker.beyond):
            m.d.comb += self.error.eq(Error.CONTEXT.value)

    def _counts(self, m, walker, chooser):
        """The current row, and how many before it want logits; the signal that clears both."""
        row, want = Signal(count_shape(self.cfg)), Signal(count_shape(self.cfg))
        clear, wants = Signal(), (self.row.flags & RowFlag.WANT_LOGITS).any()
        m.d.comb += [
            self.row_index.eq(row),
            self.best_index.eq(want),
            self.want_addr.eq(want),
            *[unit.number.eq(row) for unit in (walker, chooser)],
            *[unit.last.eq(row + 1 == self.job.rows) for unit in (walker, chooser)],
        ]
        with m.If(walker.advance | chooser.advance):
            m.d.sync += [row.eq(row + 1), want.eq(want + wants)]
        with m.If(walker.advance & walker.last):
            m.d.sync += self.want_count.eq(want + wants)
        with m.If(clear):
            m.d.sync += [row.eq(0), want.eq(0)]
        return clear

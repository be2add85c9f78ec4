"""What a run begins with: the job's descriptor and the program, fetched, checked and kept."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import isa
from tokenfabric.core.config import PROGRAM_BITS, FabricConfig
from tokenfabric.rtl.layouts import BeatTag, fetch_command
from tokenfabric.rtl.memory import Ram, read_port
from tokenfabric.rtl.rows import row_beats, row_port

__all__ = ["Descriptor", "JobLoader", "ProgramMemory", "descriptor_layout"]


def descriptor_layout() -> data.StructLayout:
    """``isa.DESCRIPTOR`` as registers."""
    return data.StructLayout({name: unsigned(32) for name, _ in isa.DESCRIPTOR})


class Descriptor(wiring.Component):
    """Takes the beats of the job descriptor: registers for the job, row-table writes for the rows.

    Members: ``valid``, ``beat`` (In: beats in order since the last reset); ``job`` (Out: registers,
    each from the cycle after its beat); ``rows_w`` (Out: RowTable's port, in the beat's cycle).
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
    """Takes the beats of the program; hands out instructions.

    Members: ``valid``, ``beat`` (In: beats in order since the last reset); ``r`` (In: read port,
    one instruction wide, addresses in instructions; a cycle from ``en`` to ``data``).
    """

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


class JobLoader(wiring.Component):
    """Fetches the descriptor, checks it, and sends for the program.

    Members: ``start`` (In: pulse); ``job`` (In: as the descriptor says, from the cycle after
    ``described``), ``described`` (In: level: its last beat has come); ``fetch`` (Out: stream of
    commands); ``done`` (Out: for a cycle: the program has been sent for), ``bad`` (Out: for a
    cycle: the descriptor cannot be right; nothing more happens).

    Two cycles from ``described`` to the request for the program.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                "start": In(1),
                "job": In(descriptor_layout()),
                "described": In(1),
                "fetch": Out(stream.Signature(fetch_command(cfg))),
                "done": Out(1),
                "bad": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        cfg, job, fetch = self.cfg, self.job, self.fetch.payload
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
                m.d.comb += self.bad.eq(wrong.any())
                m.next = "PROGRAM"
                with m.If(wrong.any()):
                    m.next = "STUCK"
            with m.State("PROGRAM"):
                per_word = isa.INSTRUCTION_BYTES // cfg.port_bytes
                m.d.comb += [
                    self.fetch.valid.eq(1),
                    fetch.tag.eq(BeatTag.PROGRAM),
                    fetch.offset.eq(job.program),
                    fetch.beats.eq(job.program_words[:PROGRAM_BITS] * per_word),
                    self.done.eq(self.fetch.ready),
                ]
                with m.If(self.fetch.ready):
                    m.next = "IDLE"
            with m.State("STUCK"):
                pass
        return m

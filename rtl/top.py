"""The accelerator: nothing but wiring."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from tokenfabric.core import registers
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.isa import Unit
from tokenfabric.rtl.array import ArrayUnit
from tokenfabric.rtl.attend import AttentionUnit
from tokenfabric.rtl.axi import lite, memory_port, read_master, write_master
from tokenfabric.rtl.control import Counters, RegisterPort, Supervisor
from tokenfabric.rtl.embed import Embed
from tokenfabric.rtl.job import Job
from tokenfabric.rtl.layouts import windows
from tokenfabric.rtl.pipeline import delays
from tokenfabric.rtl.ports import MemoryPorts
from tokenfabric.rtl.registers import COMMANDS, Registers
from tokenfabric.rtl.router import Router
from tokenfabric.rtl.vector import VectorUnit
from tokenfabric.rtl.writeback import SaturationCounter

__all__ = ["RESETS", "Datapath", "Top"]

# Units that share a reset, so that no reset drives more than a part of the flip-flops.
RESETS = (
    ("memory", "router"),
    ("job", "embed"),
    ("attention",),
    ("array", "saturated"),
    ("vector",),
)


class Datapath(wiring.Component):
    """All that a start resets: the units between the control registers and the memory ports.

    What it does in which time: see its units. ``events``, ``progress``, ``error`` and
    ``error_port`` come a cycle after what they tell of.

    Members
    -------
    reset : in, a bit for each of RESETS
    axi_0 .. : read_masters, out, one per port
    axi_w : write_master, out
    start : in, strobe, once after a reset
    stop : in, level: finish after the current step
    halt : in, level: announce no burst any more
    windows : in, steady
    cycles : in, 32 bits, counted since the start
    finished : out, level
    quiet : out, no transaction is in flight
    error : out, ``registers.Error``
    error_port : out, 4 bits
    progress : out, strobe, something went on
    pc : out, 32 bits, the instruction that is being issued
    ring_base, ring_head : out, 32 bits each: RING_BASE, RING_HEAD
    events : out, a bit for each of ``registers.COUNTERS``
    read_beats : out, a bit per port
    write_beat : out
    sat_class : in, a class of values that saturate
    sat_count : out, 32 bits, how many of them did, combinational
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                **{f"axi_{p}": Out(read_master(cfg.port_bytes)) for p in range(cfg.ports)},
                "axi_w": Out(write_master(cfg.port_bytes)),
                "reset": In(len(RESETS)),
                "start": In(1),
                "stop": In(1),
                "halt": In(1),
                "windows": In(windows()),
                "cycles": In(32),
                "finished": Out(1),
                "quiet": Out(1),
                "error": Out(8),
                "error_port": Out(4),
                "progress": Out(1),
                "pc": Out(32),
                "ring_base": Out(32),
                "ring_head": Out(32),
                "events": Out(len(registers.COUNTERS)),
                "read_beats": Out(cfg.ports),
                "write_beat": Out(1),
                "sat_class": In(4),
                "sat_count": Out(32),
            }
        )

    def elaborate(self, platform):
        m, cfg = Module(), self.cfg
        memory, router = MemoryPorts(cfg, fetches=3, writes=3), Router(cfg)
        job, embed = Job(cfg, row_readers=4, want_readers=2), Embed(cfg)
        attention, array, vector = AttentionUnit(cfg), ArrayUnit(cfg), VectorUnit(cfg)
        saturated = SaturationCounter(len(vector.sat_count))
        units = {"memory": memory, "router": router, "job": job, "embed": embed}
        units |= {"attention": attention, "array": array, "saturated": saturated, "vector": vector}
        for reset, names in zip(self.reset, RESETS, strict=True):
            for name in names:
                m.submodules[name] = ResetInserter(reset)(units[name])
        outside = [flipped(getattr(self, f"axi_{p}")) for p in range(cfg.ports)]
        for source, sink in (
            *zip(memory.axi_r, outside, strict=True),
            (memory.axi_w, flipped(self.axi_w)),
            *zip((job.fetch, embed.fetch, attention.fetch), memory.fetch, strict=True),
            *zip((vector.beats, array.beats, job.beats), memory.write, strict=True),
            (memory.beats, router.beats),
            (router.embed, embed.beats),
            (router.scales, array.kv_scales),
            (job.stream, memory.stream),
            (memory.words, array.words),
            (memory.kv_turns, attention.turns),
            *zip(memory.kv, attention.beats, strict=True),
            (attention.words, array.kv_words),
            (job.vector, vector.cmd),
            (job.attention, attention.cmd),
            (job.embed, embed.cmd),
            (job.array, array.issue),
            (attention.array, array.attention),
            (array.score_r, attention.p_r),
            (attention.row_scale_w, array.row_scale_w),
            (vector.rope_r, router.rope_r),
            (vector.in_w, array.vector_in_w),
            (vector.out_r, array.vector_out_r),
            (vector.res_r, array.vector_res_r),
            (vector.param_r, array.vector_param_r),
        ):
            connect(m, source, sink)
        self._job(m, job, router, attention, vector, embed)
        self._array(m, array, job, attention, embed)
        self._status(m, memory, job, array, vector, saturated)
        busy = {
            Unit.ARRAY: array.busy,
            Unit.VECTOR: vector.busy,
            Unit.WRITER: ~memory.writer_idle,
            Unit.ATTENTION: attention.busy,
            Unit.EMBED: embed.busy,
        }
        m.d.comb += job.busy.eq(Cat(busy[unit] for unit in Unit))
        events = {
            "CYCLES": (self.events[0] | self.start) & ~self.reset[0],
            "ARRAY_BUSY": array.count_busy,
            "ARRAY_WAIT_WEIGHTS": array.wait_weights,
            "ARRAY_WAIT_KV": array.wait_kv,
            "ARRAY_WAIT_ROOM": array.wait_room,
            "ARRAY_IDLE": array.idle,
            "VECTOR_BUSY": vector.busy,
            "SOFTMAX_BUSY": attention.softmax_busy,
            "ATTENTION_BUSY": attention.busy,
            "STREAM_FULL": memory.full,
        }
        m.d.sync += self.events.eq(Cat(events[name] for name, _ in registers.COUNTERS))
        return m

    def _job(self, m: Module, job, router, attention, vector, embed) -> None:
        """What the job is made of, and what of it the units want to know."""
        for name in ("data", "descriptor", "program", "described", "loaded"):
            m.d.comb += getattr(job, name).eq(getattr(router, name))
        for name in ("start", "stop", "cycles"):
            m.d.comb += getattr(job, name).eq(getattr(self, name))
        heads = ("v_offset", "kv_head", "scale_head", "rows")
        tables = ("embedding", "embedding_group", "rows")
        for unit, names in ((vector, heads), (attention, heads), (embed, tables)):
            m.d.comb += [getattr(unit, name).eq(job.job[name]) for name in names]
        readers = [(unit.row_index, unit.row) for unit in (vector, attention, embed)]
        readers.append((attention.plan_index, attention.plan_row))
        for number, (index, row) in enumerate(readers):
            m.d.comb += [job.row_index[number].eq(index), row.eq(job.row[number])]
        m.d.comb += [
            router.restart.eq(job.step_done),
            vector.want_count.eq(job.want_count),
            job.want_index[0].eq(vector.want_index),
            vector.want_row.eq(job.want[0].row),
        ]

    def _array(self, m: Module, array, job, attention, embed) -> None:
        """While attention runs it alone commands the array."""
        m.d.comb += [
            array.attends.eq(attention.busy),
            attention.array_busy.eq(array.busy),
            array.embed_valid.eq(embed.chunk_valid),
            array.embed.eq(embed.chunk),
            attention.score_valid.eq(array.score_valid),
            attention.score.eq(array.score),
            array.vocab.eq(job.job.vocab),
            array.best_index.eq(job.best_index),
            job.best_token.eq(array.best_token),
            job.want_index[1].eq(array.dump_index),
            Cat(array.dump, array.dump_addr).eq(Cat(job.want[1].dump, job.want[1].addr)),
        ]

    def _status(self, m: Module, memory, job, array, vector, saturated) -> None:
        m.d.comb += [
            saturated.valid.eq(vector.sat_valid),
            saturated.klass.eq(vector.sat_class),
            saturated.count.eq(vector.sat_count),
            saturated.read_class.eq(self.sat_class),
            array.read_class.eq(self.sat_class),
            self.sat_count.eq(array.read_count + saturated.read_count),
        ]
        m.d.comb += [memory.windows.eq(self.windows), memory.halt.eq(self.halt)]
        for unit, names in (
            (memory, ("quiet", "read_beats", "write_beat")),
            (job, ("finished", "pc", "ring_head")),
        ):
            m.d.comb += [getattr(self, name).eq(getattr(unit, name)) for name in names]
        m.d.comb += [job.writer_idle.eq(memory.writer_idle), self.ring_base.eq(job.job.ring)]
        m.d.sync += [
            self.progress.eq(memory.read_beats.any() | memory.write_beat | job.progress),
            self.error.eq(Mux(memory.error != 0, memory.error, job.error)),
            self.error_port.eq(memory.error_port),
        ]


class Top(wiring.Component):
    """The accelerator.

    ``rst`` resets the control registers and ends a run. What stands on the memory ports goes on,
    for the memory behind them is not reset: the datapath's own reset is the one that each start
    makes when nothing is in flight any more.

    Members
    -------
    rst : in
    s_axi_ctrl : AXI4-Lite slave, the control port
    m_axi_hp0 .. : AXI masters, the memory ports; writes go through port 0
    irq : out, there is something that the host has not seen (see SEEN)
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        ports = {
            f"m_axi_hp{p}": Out(memory_port(cfg.port_bytes, writes=p == 0))
            for p in range(cfg.ports)
        }
        control = {"rst": In(1), "s_axi_ctrl": In(lite(RegisterPort.ADDR_BITS))}
        super().__init__({**control, **ports, "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.registers = regs = Registers(cfg)
        supervisor, counters = Supervisor(), Counters(cfg)
        m.submodules.supervisor = ResetInserter(self.rst)(supervisor)
        m.submodules.counters = ResetInserter(self.rst)(counters)
        m.submodules.datapath = datapath = Datapath(cfg)
        # A register for each, one after the other: synthesis makes no single one of them.
        resets = delays(m, supervisor.unit_reset, len(RESETS), name="unit_reset")
        m.d.comb += datapath.reset.eq(Cat(resets[1:]))
        connect(m, flipped(self.s_axi_ctrl), regs.bus)
        for p in range(cfg.ports):
            sources = [getattr(datapath, f"axi_{p}")] + ([datapath.axi_w] if p == 0 else [])
            for source in sources:
                outside = getattr(self, f"m_axi_hp{p}")
                for name, member in source.signature.members.items():
                    a, b = getattr(source, name), getattr(outside, name)
                    m.d.comb += b.eq(a) if member.flow is Out else a.eq(b)
        head = Signal(32)
        with m.If(supervisor.running):
            m.d.sync += regs.pc.eq(datapath.pc)
        m.d.comb += head.eq(Mux(supervisor.begun, datapath.ring_head, 0))
        live = {
            "STATUS": supervisor.state,
            "ERROR": Cat(supervisor.code, supervisor.code_port),
            "RING_BASE": datapath.ring_base,
            "RING_HEAD": head,
            **counters.value,
        }
        written, ended = regs.written, supervisor.state != registers.State.RUNNING
        m.d.comb += [
            *[getattr(regs, name.lower()).eq(value) for name, value in live.items()],
            *[getattr(supervisor, name).eq(getattr(regs, name)) for name in COMMANDS],
            self.irq.eq((head != written.SEEN[:31]) | (ended & ~written.SEEN[31])),
            regs.rst.eq(self.rst),
            regs.locked.eq(~ended),
            supervisor.touched.eq(regs.touched),
            supervisor.watchdog.eq(written.WATCHDOG),
            supervisor.heartbeat.eq(written.HEARTBEAT),
            supervisor.progress.eq(datapath.progress),
            supervisor.finished.eq(datapath.finished),
            supervisor.error.eq(datapath.error),
            supervisor.port.eq(datapath.error_port),
            supervisor.quiet.eq(datapath.quiet),
            datapath.start.eq(supervisor.unit_start),
            datapath.stop.eq(supervisor.stop_steps),
            datapath.halt.eq(supervisor.halt),
            *[
                datapath.windows[name].eq(getattr(written, name.upper()))
                for name in windows().members
            ],
            datapath.sat_class.eq(regs.sat_class),
            regs.sat_count.eq(datapath.sat_count),
            datapath.cycles.eq(counters.value["CYCLES_LO"]),
            counters.clear.eq(supervisor.unit_reset),
            counters.run.eq(supervisor.running),
            counters.events.eq(datapath.events),
            counters.read_beats.eq(datapath.read_beats),
            counters.write_beat.eq(datapath.write_beat),
        ]
        return m

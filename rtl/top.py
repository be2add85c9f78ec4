"""The accelerator: nothing but wiring."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tokenfabric.core import registers
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.isa import Unit
from tokenfabric.core.ops import ACT_BITS, RES_BITS
from tokenfabric.core.registers import Error
from tokenfabric.rtl.attention import AttentionControl
from tokenfabric.rtl.axi import lite, memory_port, read_master, write_master
from tokenfabric.rtl.control import Counters, RegisterPort, Supervisor, register_values
from tokenfabric.rtl.dma import Fetch, ReadPort, WeightStream
from tokenfabric.rtl.embed import Embed
from tokenfabric.rtl.kvbuffer import KvBuffer
from tokenfabric.rtl.layouts import BeatTag, MatmulDest, fetch_command, windows
from tokenfabric.rtl.matmul import MatmulEngine
from tokenfabric.rtl.memory import Fifo, Ram
from tokenfabric.rtl.rows import RowTable, WantTable
from tokenfabric.rtl.sequencer import Descriptor, Issue, ProgramMemory, Steps
from tokenfabric.rtl.softmax import SoftmaxUnit
from tokenfabric.rtl.vector import VectorUnit
from tokenfabric.rtl.writeback import SaturationCounter, Writeback
from tokenfabric.rtl.writer import Writer

__all__ = ["Datapath", "Top"]

GROUP = 64  # bytes of registers that are read by one multiplexer
ROW_READERS = ("steps", "vector", "attention", "plan", "embed")


def arbitrate(m: Module, name: str, sources: list, sink, shape) -> None:
    """Streams that take turns, the first in the list before the others.

    Whole runs of beats stay together: a source keeps the sink from ``first`` to ``last`` if its
    payload has these fields.
    """
    held = Signal(range(len(sources) + 1), name=f"{name}_held")  # 0: nobody
    runs = hasattr(shape, "members") and "first" in shape.members
    taken = Const(0, 1)
    for number, source in enumerate(sources, 1):
        mine = source.valid & ((held == number) | ((held == 0) & ~taken))
        with m.If(mine):
            m.d.comb += [
                sink.valid.eq(1),
                sink.payload.eq(source.payload),
                source.ready.eq(sink.ready),
            ]
            if runs:
                m.d.sync += held.eq(Mux(sink.ready & source.payload.last, 0, number))
            else:  # a payload must not change while it waits
                m.d.sync += held.eq(Mux(sink.ready, 0, number))
        taken = taken | source.valid


class Datapath(wiring.Component):
    """All that a start resets: the units between the control registers and the memory ports.

    Members: ``axi_0 ..`` (Out: read masters), ``axi_w``; ``start``, ``stop``, ``halt``,
    ``windows``, ``cycles`` (In); ``finished``, ``quiet``, ``error``,
    ``error_port``, ``progress``, ``pc``, ``ring_base``, ``ring_head``; ``events`` (in the order of
    ``registers.COUNTERS``), ``read_beats``, ``write_beat``; ``sat_class`` (In), ``sat_count``.
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        super().__init__(
            {
                **{f"axi_{p}": Out(read_master(cfg.port_bytes)) for p in range(cfg.ports)},
                "axi_w": Out(write_master(cfg.port_bytes)),
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
        m = Module()
        cfg = self.cfg
        m.submodules.weights = self.weights = WeightStream(cfg)
        m.submodules.fetch = self.fetch = Fetch(cfg)
        m.submodules.writer = self.writer = Writer(cfg)
        m.submodules.kv = self.kv = KvBuffer(cfg)
        m.submodules.matmul = self.matmul = MatmulEngine(cfg)
        m.submodules.softmax = self.softmax = SoftmaxUnit(cfg)
        m.submodules.vector = self.vector = VectorUnit(cfg)
        m.submodules.attention = self.attention = AttentionControl(cfg)
        m.submodules.embed = self.embed = Embed(cfg)
        m.submodules.writeback = self.writeback = Writeback(cfg)
        m.submodules.descriptor = self.descriptor = Descriptor(cfg)
        m.submodules.program = self.program = ProgramMemory(cfg)
        m.submodules.rows = self.rows = RowTable(cfg, len(ROW_READERS))
        m.submodules.wants = self.wants = WantTable(cfg, 3)
        m.submodules.steps = self.steps = Steps(cfg)
        m.submodules.issue = self.issue = Issue(cfg)
        self._ports(m)
        self._fetched(m)
        self._memories(m)
        self._rows(m)
        self._commands(m)
        self._results(m)
        self._writes(m)
        self._status(m)
        return m

    def _ports(self, m):
        cfg, clients = self.cfg, (self.weights, self.fetch)
        self.ports = [ReadPort(cfg) for _ in range(cfg.ports)]
        for p, port in enumerate(self.ports):
            m.submodules[f"port_{p}"] = port
            wiring.connect(m, port.axi, wiring.flipped(getattr(self, f"axi_{p}")))
            for client, side in zip(clients, (port.weights, port.fetch)):
                wiring.connect(m, client.ports[p], side)
        wiring.connect(m, self.writer.axi, wiring.flipped(self.axi_w))
        for port in (*self.ports, self.writer):
            m.d.comb += [
                port.windows.eq(self.windows),
                port.halt.eq(self.halt),
            ]
        # What the sequencer asks for depends on much: it waits a little for its turn.
        m.submodules.requests = requests = Fifo(fetch_command(cfg), 2)
        wiring.connect(m, self.steps.fetch, requests.i)
        commands = [requests.o, self.embed.fetch, self.attention.fetch]
        arbitrate(m, "fetch", commands, self.fetch.cmd, None)
        wiring.connect(m, self.steps.stream, self.weights.start)

    def _fetched(self, m):
        """Each beat to whom it is for; only the scales may make it wait."""
        cfg, beat = self.cfg, self.fetch.out.payload
        out, embed = self.fetch.out, self.embed.beats
        chunk = cfg.cols * ACT_BITS
        beats = chunk // (8 * cfg.port_bytes)  # of a chunk of 16-bit values
        m.submodules.scales = scales = Fifo(chunk, 2 * cfg.max_context // cfg.cols)
        wiring.connect(m, scales.o, self.matmul.kv_scales)
        first, part = Signal(8 * cfg.port_bytes), Signal(range(beats))
        is_last = part == beats - 1
        described, loaded = Signal(), Signal()
        m.submodules.rope = rope = Ram(cfg.max_rows * cfg.max_head_chunks, chunk)
        self.rope = rope
        row, at = Signal(range(cfg.max_rows)), Signal(range(cfg.max_head_chunks))
        pair = Cat(first, beat.data)
        m.d.comb += [
            rope.w.addr.eq(Cat(at, row) if cfg.max_head_chunks > 1 else row),
            rope.w.data.eq(pair),
            scales.i.payload.eq(pair),
            embed.payload.eq(beat),
            self.descriptor.beat.eq(beat.data),
            self.program.beat.eq(beat.data),
            self.steps.described.eq(described),
            self.steps.loaded.eq(loaded),
        ]
        halves = (beat.tag == BeatTag.ROPE) | (beat.tag == BeatTag.SCALE)
        taken = out.valid & out.ready
        with m.If(taken & halves):
            m.d.sync += [first.eq(beat.data), part.eq(Mux(is_last, 0, part + 1))]
        with m.Switch(beat.tag):
            with m.Case(BeatTag.DESCRIPTOR):
                m.d.comb += [out.ready.eq(1), self.descriptor.valid.eq(out.valid)]
                with m.If(taken & beat.last):
                    m.d.sync += described.eq(1)
            with m.Case(BeatTag.PROGRAM):
                m.d.comb += [out.ready.eq(1), self.program.valid.eq(out.valid)]
                with m.If(taken & beat.last):
                    m.d.sync += loaded.eq(1)
            with m.Case(BeatTag.ROPE):
                m.d.comb += [out.ready.eq(1), rope.w.en.eq(out.valid & is_last)]
                with m.If(taken & is_last):
                    m.d.sync += at.eq(at + 1)
                with m.If(taken & beat.last):
                    m.d.sync += [at.eq(0), row.eq(row + 1)]
            with m.Case(BeatTag.EMBED):
                m.d.comb += [out.ready.eq(embed.ready), embed.valid.eq(out.valid)]
            with m.Case(BeatTag.SCALE):
                m.d.comb += [
                    out.ready.eq(~is_last | scales.i.ready),
                    scales.i.valid.eq(out.valid & is_last),
                ]
        with m.If(self.issue.done):  # the rows of the next step come in order again
            m.d.sync += row.eq(0)
        wiring.connect(m, self.fetch.kv_turns, self.kv.turns)
        for beats, sink in zip(self.fetch.kv, self.kv.beats, strict=True):
            wiring.connect(m, beats, sink)
        wiring.connect(m, self.kv.words, self.matmul.kv_words)
        wiring.connect(m, self.attention.kv, self.kv.cmd)
        wiring.connect(m, self.weights.words, self.matmul.words)

    def _memories(self, m):
        cfg, vector, writeback = self.cfg, self.vector, self.writeback
        act, res = cfg.cols * ACT_BITS, cfg.cols * RES_BITS
        m.submodules.in_ = in_ = Ram(
            cfg.in_chunks, act, read_units=cfg.k_chunks, ultra="in" in cfg.ultra
        )
        m.submodules.out = out = Ram(cfg.out_chunks, act, read_units=2, ultra="out" in cfg.ultra)
        m.submodules.res = res_ = Ram(cfg.res_chunks, res, ultra="res" in cfg.ultra)
        param_units = cfg.word_bytes // (2 * cfg.cols)
        m.submodules.param = param = Ram(cfg.param_chunks, act, write_units=param_units)

        def join(memory, *ports):
            """One of the ports at a time: the first that is enabled."""
            for number, port in enumerate(ports):
                with m.If(port.en) if number == 0 else m.Elif(port.en):
                    m.d.comb += [memory.en.eq(1), memory.addr.eq(port.addr)]
                    if (
                        "data" in port.signature.members
                        and port.signature.members["data"].flow is Out
                    ):
                        m.d.comb += memory.data.eq(port.data)

        def read(memory, *ports):
            join(memory, *ports)
            m.d.comb += [port.data.eq(memory.data) for port in ports]

        join(in_.w, writeback.in_w, vector.in_w)
        read(in_.r, self.matmul.in_r)
        join(out.w, writeback.out_w)
        read(out.r, vector.out_r)
        join(res_.w, writeback.res_w)
        read(res_.r, writeback.res_r, vector.res_r)
        join(param.w, self.matmul.param_w)
        read(param.r, vector.param_r)
        read(self.rope.r, vector.rope_r)
        p_r = self.softmax.p_r
        m.d.comb += [
            p_r.en.eq(self.matmul.score_r.en),
            p_r.addr.eq(self.matmul.score_r.addr),
            self.matmul.score_r.data.eq(p_r.data),
        ]

    def _rows(self, m):
        units = {
            "steps": (self.steps.row_index, self.steps.row),
            "vector": (self.vector.row_index, self.vector.row),
            "attention": (self.attention.row_index, self.attention.row),
            "plan": (self.attention.plan_index, self.attention.plan_row),
            "embed": (self.embed.row_index, self.embed.row),
        }
        for reader, name in enumerate(ROW_READERS):
            index, row = units[name]
            m.d.comb += [
                getattr(self.rows, f"index_{reader}").eq(index),
                row.eq(getattr(self.rows, f"row_{reader}")),
            ]
        loading = self.descriptor.rows_w.en
        m.d.comb += [
            self.rows.w.en.eq(loading | self.steps.rows_w.en),
            self.rows.w.addr.eq(Mux(loading, self.descriptor.rows_w.addr, self.steps.rows_w.addr)),
            self.rows.w.data.eq(Mux(loading, self.descriptor.rows_w.data, self.steps.rows_w.data)),
        ]
        # Three look wanted rows up: the sequencer, the norms of the vector unit, the logits.
        wants, steps, vector = self.wants, self.steps, self.vector
        m.d.comb += [
            wants.en.eq(steps.want_en),
            wants.addr.eq(steps.want_addr),
            wants.entry.eq(steps.want_entry),
            wants.index_0.eq(self.issue.want_index),
            self.issue.want.eq(wants.entry_0),
            wants.index_1.eq(self.writeback.dump_index),
            self.writeback.dump.eq(wants.entry_1.dump),
            self.writeback.dump_addr.eq(wants.entry_1.addr),
            wants.index_2.eq(vector.want_index),
            vector.want_row.eq(wants.entry_2.row),
        ]

    def _commands(self, m):
        job = self.descriptor.job
        issue, attention, vector, embed = self.issue, self.attention, self.vector, self.embed
        matmul, softmax = self.matmul, self.softmax
        wiring.connect(m, issue.vector, vector.cmd)
        wiring.connect(m, issue.attention, attention.cmd)
        wiring.connect(m, issue.embed, embed.cmd)
        wiring.connect(m, issue.program, self.program.r)
        wiring.connect(m, attention.softmax, softmax.cmd)
        busy = matmul.busy | self.writeback.busy
        units = {
            Unit.ARRAY: busy,
            Unit.VECTOR: vector.busy,
            Unit.WRITER: ~self.writer.idle,
            Unit.ATTENTION: attention.busy,
            Unit.EMBED: embed.busy,
        }
        m.d.comb += [
            issue.busy.eq(Cat(units[unit] for unit in Unit)),
            issue.job.eq(job),
            issue.want_count.eq(self.steps.want_count),
            issue.start.eq(self.steps.issue_start),
            self.steps.issue_done.eq(issue.done),
            self.steps.job.eq(job),
            attention.matmul_busy.eq(busy),
            attention.softmax_busy.eq(softmax.busy),
            vector.want_count.eq(self.steps.want_count),
            embed.embedding.eq(job.embedding),
            embed.embedding_group.eq(job.embedding_group),
            self.steps.start.eq(self.start),
            self.steps.stop.eq(self.stop),
            self.steps.cycles.eq(self.cycles),
            self.finished.eq(self.steps.finished),
        ]
        for unit in (vector, attention):
            m.d.comb += [
                unit.v_offset.eq(job.v_offset),
                unit.kv_head.eq(job.kv_head),
                unit.scale_head.eq(job.scale_head),
            ]
        for unit in (vector, attention, embed):
            m.d.comb += unit.rows.eq(job.rows)
        # While attention runs it alone commands the array.
        source = attention.matmul
        with m.If(attention.busy):
            m.d.comb += [
                matmul.cmd.valid.eq(source.valid),
                matmul.cmd.payload.eq(source.payload),
                matmul.table_w.en.eq(attention.table_en),
                matmul.table_w.addr.eq(attention.table_index),
                matmul.table_w.data.eq(attention.table),
            ]
        with m.Else():
            m.d.comb += [
                matmul.cmd.valid.eq(issue.matmul.valid),
                matmul.cmd.payload.eq(issue.matmul.payload),
                matmul.table_w.en.eq(issue.table_en),
                matmul.table_w.addr.eq(issue.table_index),
                matmul.table_w.data.eq(issue.table),
            ]
        m.d.comb += [
            source.ready.eq(attention.busy & matmul.cmd.ready),
            issue.matmul.ready.eq(~attention.busy & matmul.cmd.ready),
            matmul.embed_valid.eq(embed.chunk_valid),
            matmul.embed.eq(embed.chunk),
            matmul.row_scale_w.en.eq(softmax.row_scale_valid),
            matmul.row_scale_w.payload.eq(softmax.row_scale),
        ]

    def _results(self, m):
        matmul, writeback, softmax = self.matmul, self.writeback, self.softmax
        m.d.comb += [
            writeback.valid.eq(matmul.result_valid),
            writeback.result.eq(matmul.result),
            writeback.vocab.eq(self.descriptor.job.vocab),
            writeback.best_index.eq(self.steps.best_index),
            self.steps.best_token.eq(writeback.best_token),
            matmul.room.eq(writeback.room),
            softmax.score_valid.eq(matmul.result_valid & (matmul.result.dest == MatmulDest.SCORES)),
            softmax.score.eq(matmul.result),
        ]
        counters = {
            "matmul": (writeback.sat_valid, writeback.sat_class, writeback.sat_count),
            "adds": (writeback.add_valid, 0, writeback.add_count),
            "vector": (self.vector.sat_valid, self.vector.sat_class, self.vector.sat_count),
        }
        total = 0
        for name, (valid, klass, count) in counters.items():
            counter = SaturationCounter(len(count))
            m.submodules[f"saturated_{name}"] = counter
            m.d.comb += [
                counter.valid.eq(valid),
                counter.klass.eq(klass),
                counter.count.eq(count),
                counter.read_class.eq(self.sat_class),
            ]
            total = total + counter.read_count
        m.d.comb += self.sat_count.eq(total)

    def _writes(self, m):
        sources = [self.vector.beats, self.writeback.beats, self.steps.beats]
        arbitrate(m, "writes", sources, self.writer.beats, sources[0].payload.shape())
        m.d.comb += self.steps.writer_idle.eq(self.writer.idle)

    def _status(self, m):
        port_errors = [(p.error_window, p.error_axi) for p in self.ports]
        strobes = {
            "CYCLES": 1,
            "ARRAY_BUSY": self.matmul.count_busy,
            "ARRAY_WAIT_WEIGHTS": self.matmul.wait_weights,
            "ARRAY_WAIT_KV": self.matmul.wait_kv,
            "ARRAY_WAIT_ROOM": self.matmul.wait_room,
            "ARRAY_IDLE": self.matmul.idle,
            "VECTOR_BUSY": self.vector.busy,
            "SOFTMAX_BUSY": self.softmax.busy,
            "ATTENTION_BUSY": self.attention.busy,
            "STREAM_FULL": self.weights.full,
        }
        beats = Cat(port.beat for port in self.ports)
        m.d.comb += [
            self.quiet.eq(Cat(p.quiet for p in (*self.ports, self.writer)).all()),
            self.pc.eq(self.issue.pc),
            self.ring_base.eq(self.descriptor.job.ring),
            self.ring_head.eq(self.steps.ring_head),
            self.read_beats.eq(beats),
            self.write_beat.eq(self.writer.beat),
        ]
        m.d.sync += [
            self.events.eq(Cat(strobes[name] for name, _ in registers.COUNTERS)),
            self.progress.eq(beats.any() | self.writer.beat | self.issue.progress),
        ]
        m.d.sync += [self.error.eq(self.steps.error), self.error_port.eq(0)]
        with m.If(self.issue.illegal):
            m.d.sync += self.error.eq(Error.ILLEGAL)
        with m.If(self.writer.error_axi):
            m.d.sync += self.error.eq(Error.AXI_WRITE)
        with m.If(self.writer.error_window):
            m.d.sync += self.error.eq(Error.WINDOW)
        for number, (window, axi) in enumerate(port_errors):
            with m.If(axi):
                m.d.sync += [self.error.eq(Error.AXI_READ), self.error_port.eq(number)]
            with m.If(window):
                m.d.sync += [self.error.eq(Error.WINDOW), self.error_port.eq(number)]


class Top(wiring.Component):
    """The accelerator: AXI4-Lite control port, AXI memory ports, interrupt.

    Members: ``s_axi_ctrl`` (In), ``m_axi_hp0 ..`` (Out; writes on port 0), ``irq`` (Out: there is
    something that the host has not seen, see SEEN).
    """

    def __init__(self, cfg: FabricConfig):
        self.cfg = cfg
        ports = {
            f"m_axi_hp{p}": Out(memory_port(cfg.port_bytes, writes=p == 0))
            for p in range(cfg.ports)
        }
        super().__init__({"s_axi_ctrl": In(lite(RegisterPort.ADDR_BITS)), **ports, "irq": Out(1)})

    def elaborate(self, platform):
        m = Module()
        cfg = self.cfg
        m.submodules.bus = bus = RegisterPort()
        m.submodules.supervisor = supervisor = Supervisor()
        m.submodules.counters = counters = Counters(cfg)
        datapath = Datapath(cfg)
        m.submodules.datapath = ResetInserter(supervisor.unit_reset)(datapath)
        wiring.connect(m, wiring.flipped(self.s_axi_ctrl), bus.bus)
        for p in range(cfg.ports):
            sources = [getattr(datapath, f"axi_{p}")] + ([datapath.axi_w] if p == 0 else [])
            for source in sources:
                outside = getattr(self, f"m_axi_hp{p}")
                for name, member in source.signature.members.items():
                    a, b = getattr(source, name), getattr(outside, name)
                    m.d.comb += b.eq(a) if member.flow is Out else a.eq(b)
        written = {
            **{name.upper(): Signal(32, name=name) for name in windows().members},
            "WATCHDOG": Signal(32, name="watchdog", init=1 << 20),
            "SEEN": Signal(32, name="seen", init=1 << 31),  # nothing has ended yet
        }
        head = Signal(32)
        m.d.comb += head.eq(Mux(supervisor.begun, datapath.ring_head, 0))
        self._registers(m, bus, supervisor, counters, datapath, written, head)
        ended, seen = supervisor.state != registers.State.RUNNING, written["SEEN"]
        m.d.comb += [
            self.irq.eq((head != seen[:31]) | (ended & ~seen[31])),
            supervisor.watchdog.eq(written["WATCHDOG"]),
            supervisor.progress.eq(datapath.progress),
            supervisor.finished.eq(datapath.finished),
            supervisor.error.eq(datapath.error),
            supervisor.port.eq(datapath.error_port),
            supervisor.quiet.eq(datapath.quiet),
            datapath.start.eq(supervisor.unit_start),
            datapath.stop.eq(supervisor.stop_steps),
            datapath.halt.eq(supervisor.halt),
            *[datapath.windows[name].eq(written[name.upper()]) for name in windows().members],
            datapath.cycles.eq(counters.value["CYCLES_LO"]),
            counters.clear.eq(supervisor.unit_reset),
            counters.run.eq(supervisor.running),
            counters.events.eq(datapath.events),
            counters.read_beats.eq(datapath.read_beats),
            counters.write_beat.eq(datapath.write_beat),
        ]
        return m

    def _registers(self, m, bus, supervisor, counters, datapath, written, head):
        pc = Signal(32)
        with m.If(supervisor.running):
            m.d.sync += pc.eq(datapath.pc)
        live = {
            "STATUS": supervisor.state,
            "ERROR": Cat(supervisor.code, supervisor.code_port),
            "PC": pc,
            **written,
            "RING_BASE": datapath.ring_base,
            "RING_HEAD": head,
            **counters.value,
        }
        fingerprint = int(self.cfg.fingerprint, 16)
        fixed = {
            "IDENT": registers.IDENT,
            "ABI": registers.ABI_VERSION,
            "FINGERPRINT_LO": fingerprint & 0xFFFFFFFF,
            "FINGERPRINT_HI": fingerprint >> 32,
        }
        first_sat = registers.offset("SATURATED_0")
        m.d.comb += datapath.sat_class.eq((bus.read_addr - first_sat) >> 2)
        # The register within each group of GROUP bytes, then the group.
        groups: dict[int, list] = {}
        for offset, value in register_values(fixed, live):
            groups.setdefault(offset // GROUP, []).append((offset % GROUP, value))
        m.d.sync += bus.read_data.eq(0)
        for number, values in groups.items():
            chosen = Signal(32, name=f"group_{number}")
            m.d.sync += chosen.eq(0)
            with m.Switch(bus.read_addr[: (GROUP - 1).bit_length()]):
                for within, value in values:
                    with m.Case(within):
                        m.d.sync += chosen.eq(value)
            with m.If(bus.read_addr[(GROUP - 1).bit_length() :] == number):
                m.d.sync += bus.read_data.eq(chosen)
        saturated = Signal(32)
        m.d.sync += saturated.eq(datapath.sat_count)
        with m.If(bus.read_addr >= first_sat):
            m.d.sync += bus.read_data.eq(saturated)
        commands = supervisor.start, supervisor.stop, supervisor.reset
        m.d.sync += [command.eq(0) for command in commands]
        with m.If(bus.write_en):
            with m.Switch(bus.write_addr):
                with m.Case(registers.offset("CONTROL")):
                    m.d.sync += [command.eq(bit) for command, bit in zip(commands, bus.write_data)]
                for name, signal in written.items():
                    with m.Case(registers.offset(name)):
                        m.d.sync += signal.eq(bus.write_data)

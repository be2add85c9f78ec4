"""How long a step takes, computed from the program instead of simulated: a model of the timing.

What costs time is taken from the config: words of the weight stream, the rate of the memory, the
depth of the FIFO between them, tiles through the array, chunks through the vector unit, beats of K
and V. The few constants are lengths of pipelines, in cycles. ``tests/test_model.py`` holds the
result to cycles of the simulated hardware: within ERROR.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenfabric.compiler.compile import program_of
from tokenfabric.compiler.program import stream_words
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import ceil_div
from tokenfabric.core.isa import INSTRUCTION_BYTES, OPERATIONS, Instruction, Op, Unit, shares
from tokenfabric.core.shape import ModelShape
from tokenfabric.core.work import decode_rates, work_of

__all__ = ["ERROR", "estimate_decode", "estimate_prefill"]

ERROR = 0.05  # of the cycles, at most

ISSUE = 6  # the sequencer, from instruction to instruction
ARRAY = 24  # loader, accumulators, requantize, writeback: what does not depend on the array's size
VECTOR = 30  # the vector unit's pipeline
NORM = 20  # mean square and root of a row, while there is no other row to go on with
SOFTMAX = 33
BLOCK = 2.5  # of a block of K or V, besides its beats
BURST_WRITE = 5  # of a burst, besides its beats
MEMORY = 48  # from a request to its first beat
EMBED = 80  # the address of a token's row, the way of its values through Requantize
EMBED_CHUNK = 2.5
START = 190  # descriptor, reset
ROW = 8  # choosing a row's token, sending for its RoPE row


def _array_latency(cfg: FabricConfig) -> int:
    """From the first word of a MATMUL to its last result, beyond the words themselves."""
    return ARRAY + 2 * cfg.tile_cycles + (cfg.word_rows - 1).bit_length()


class _Stream:
    """The weight stream: memory fills a FIFO of words, the array empties it."""

    def __init__(self, cfg: FabricConfig):
        rate = cfg.peak_bytes_per_cycle * cfg.dram.reachable / cfg.word_bytes
        self.cfg, self.rate = cfg, min(1.0, rate)
        self.at, self.level = 0.0, 0.0

    def fill(self, until: float, taken: float = 0.0) -> None:
        """Time passes; other readers have ``taken`` so many words of the memory's time."""
        if until > self.at:
            more = max(0.0, (until - self.at) * self.rate - taken)
            self.at, self.level = until, min(self.cfg.weight_fifo_beats, self.level + more)

    @property
    def full(self) -> bool:
        return self.level >= self.cfg.weight_fifo_beats

    @property
    def latency(self) -> float:
        """Cycles from the request of another reader to its first beat: it waits for the bursts
        that are in flight, as many as there may be unless the FIFO is full."""
        in_flight = self.cfg.outstanding * BURST_BEATS / self.rate
        return MEMORY if self.full else max(MEMORY, in_flight)

    def take(self, start: float, words: int, cycles: float) -> float:
        """End of an instruction that takes ``words`` in at least ``cycles``."""
        self.fill(start)
        took = max(cycles, (words - self.level) / self.rate)
        self.at = start + took
        self.level = min(self.cfg.weight_fifo_beats, self.level + took * self.rate - words)
        return start + took


class _Step:
    """A step of ``rows`` rows of one sequence, the last of them at position ``positions - 1``, with
    logits for ``want`` of them. ``time``: cycles of the step by what set the pace."""

    def __init__(self, cfg: FabricConfig, stream: _Stream, rows: int, positions: int, want: int):
        self.cfg, self.stream = cfg, stream
        self.rows, self.positions, self.want = rows, positions, want
        self.time = {"memory": 0.0, "array": 0.0, "attention": 0.0}

    def run(self, code: list[Instruction], now: float) -> float:
        """When a step that begins at ``now`` ends."""
        idle = dict.fromkeys(Unit, now)  # since when
        for i in code:
            if i.want and not self.want:
                continue
            unit = OPERATIONS[i.op].unit
            rows = self.want if i.want else self.rows
            waits = Unit(i.wait) | shares(i.op)
            now = max(now + ISSUE, *(idle[u] for u in Unit if u in waits))
            if i.op in (Op.MATMUL, Op.LOAD):
                now += rows if i.op is Op.MATMUL else 0  # the row table
                idle[unit] = self._matmul(i, now, rows)
            elif i.op is Op.ATTEND:
                idle[unit] = self._attend(i, now)
            elif i.op is Op.EMBED:
                self.stream.fill(now)
                row = MEMORY + EMBED + EMBED_CHUNK * i.k
                idle[unit] = now + self.stream.latency - MEMORY + rows * row
            elif i.op is not Op.END:
                idle[unit] = now + VECTOR + self._vector(i, rows)
                if OPERATIONS[i.op].through is Unit.WRITER:
                    idle[Unit.WRITER] = idle[unit] + MEMORY
        return now + ROW * self.rows

    def _matmul(self, i: Instruction, start: float, rows: int) -> float:
        cfg, words = self.cfg, stream_words(self.cfg, i)
        tiles = i.n * ceil_div(i.k, cfg.k_chunks) if i.op is Op.MATMUL else 0
        cycles = max(words, tiles * max(rows, cfg.tile_cycles))
        end = self.stream.take(start, words, cycles)
        self.time["memory" if end - start > cycles else "array"] += end - start
        return end + (_array_latency(cfg) if tiles else 0)

    def _vector(self, i: Instruction, rows: int) -> float:
        if i.op is Op.NORM:  # two passes
            return 2 * rows * i.k + max(0, NORM - (rows - 1) * i.k)
        if i.op is Op.ROPE:
            return rows * (i.heads * i.head_chunks + 1)
        if i.op is Op.APPEND:  # K, scale and V of a head, a burst each
            return rows * i.heads * (2 * i.head_chunks + 1 + 3 * BURST_WRITE)
        return rows * (i.n + 1)  # SWIGLU

    def _attend(self, i: Instruction, start: float) -> float:
        together = self.rows * i.group <= self.cfg.max_rows
        jobs = i.heads * (1 if together else i.group)
        pairs = self.rows * (i.group if together else 1)
        self.stream.fill(start)
        latency = self.stream.latency
        took = _attention(self.cfg, i.head_chunks, jobs, pairs, self.positions, latency)
        beats = jobs * (2 * self.positions * i.head_chunks + _scale_beats(self.cfg, self.positions))
        self.stream.fill(start + took, beats / self.cfg.ports)
        self.time["attention"] += took
        return start + took


def _scale_beats(cfg: FabricConfig, positions: int) -> int:
    return 2 * ceil_div(positions, cfg.cols)


@lru_cache(maxsize=4096)
def _attention(
    cfg: FabricConfig, head_chunks: int, jobs: int, pairs: int, positions: int, latency: float
) -> float:
    """Cycles of an ATTEND: K and V come block by block, at the rate of the memory, as far ahead as
    the buffer has room; of a job scores, softmax and the product with V follow one another."""
    block = max(cfg.rows, BURST_BEATS)  # positions
    room = max(1, cfg.kv_chunks // (block * head_chunks))  # blocks in the buffer
    beats = cfg.ports * _Stream(cfg).rate  # per cycle
    tile = max(cfg.tile_cycles, pairs)
    k_tiles = cfg.k_chunks * ceil_div(head_chunks, cfg.k_chunks) * tile  # of a row-block
    phases = (
        (
            k_tiles,
            pairs * ceil_div(positions, cfg.rows) * cfg.k_chunks + SOFTMAX,
        ),  # scores, then their softmax
        (head_chunks * tile, 0),
    )
    read = [0.0] * room  # when the last blocks had been read
    came, done, number = latency, 0.0, 0
    for _ in range(jobs):
        came += _scale_beats(cfg, positions)
        done += ISSUE + pairs  # the row table
        for product, after in phases:
            for first in range(0, positions, block):
                left = min(block, positions - first)
                came = max(came, read[number % room]) + BLOCK + left * head_chunks / beats
                done = max(done, came) + product * ceil_div(left, cfg.rows)
                read[number % room] = done
                number += 1
            done += _array_latency(cfg) + after
    return done


def _run_job(cfg: FabricConfig, code: list[Instruction], step: _Step) -> float:
    """Cycles of a job of one step, from its start."""
    step.stream.at = START / 2  # words come while the program is still fetched
    return step.run(code, START + len(code) * INSTRUCTION_BYTES / cfg.port_bytes)


def _check(cfg: FabricConfig, shape: ModelShape, what: str, count: int) -> None:
    most = min(shape.context, cfg.max_context)
    if not 0 < count <= most:
        raise UserError(
            f"{what} {count} does not fit: the model has {shape.context} positions, {cfg.name} has "
            f"room for {cfg.max_context}; choose from 1 to {most}"
        )


def estimate_decode(cfg: FabricConfig, shape: ModelShape, context: int) -> dict[str, Any]:
    """What :func:`tokenfabric.host.perf.measure_decode` measures, and ``time``: shares of what sets
    the pace. UserError where the model does not fit."""
    _check(cfg, shape, "a context of", context)
    _, code = program_of(shape, cfg)
    stream, now = _Stream(cfg), 0.0
    for _ in range(2):  # the first one starts with an empty FIFO
        step = _Step(cfg, stream, 1, context, 1)
        began, now = now, step.run(code, now)
    cycles, work = now - began, work_of(shape)
    macs = work.layer_macs + work.attention_macs_per_position * context
    return {
        "rows": 1,
        "context": context,
        "cycles_per_step": cycles,
        "mac_fraction": macs / (cycles * cfg.macs),
        "time": {name: value / cycles for name, value in step.time.items()},
        **decode_rates(cfg, work, cycles, context),
    }


def estimate_prefill(cfg: FabricConfig, shape: ModelShape, count: int) -> dict[str, Any]:
    """What :func:`tokenfabric.host.perf.measure_prefill` measures, and ``time``: shares of what
    sets the pace. UserError where the model does not fit."""
    _check(cfg, shape, "a prefill of", count)
    most, code = program_of(shape, cfg)
    layers, time = 0.0, dict.fromkeys(("memory", "array", "attention"), 0.0)
    for at in range(0, count, most):
        rows = min(most, count - at)
        step = _Step(cfg, _Stream(cfg), rows, at + rows, 0)
        cycles = _run_job(cfg, code, step)
        layers += cycles
        time = {name: value + step.time[name] for name, value in time.items()}
    with_logits = _run_job(cfg, code, _Step(cfg, _Stream(cfg), rows, count, 1))
    steps, work = ceil_div(count, most), work_of(shape)
    seconds = (layers + with_logits - cycles) / (cfg.clock_mhz * 1e6)
    attention = work.attention_macs_per_position * count * (count + 1) // 2
    return {
        "rows": count,
        "steps": steps,
        "cycles_per_step": layers / steps,
        "classifier_cycles": with_logits - cycles,
        "mac_fraction": (work.layer_macs * count + attention) / (layers * cfg.macs),
        "time": {name: value / layers for name, value in time.items()},
        "tokens_per_second": count / seconds,
    }

"""Where the cycles of the DRAM's data bus go: a recording of the simulation, explained.

Every moment of a step has one cause: data of some kind, refresh, or the reason why the bus is idle,
and then also the unit that the fabric is waiting for. What the bus does is known to 2**-16 of a
cycle (``sim/dram.h``), so the parts of a step add up to its cycles exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tokenfabric.core import isa
from tokenfabric.core.image import PAGE, Image
from tokenfabric.core.isa import Instruction, Op, Unit, operations_of
from tokenfabric.core.registers import COUNTERS
from tokenfabric.sim.verilator import READ, REFRESH, TURN, WRITE, Recording

__all__ = ["DATA", "LOST", "Bar", "Trace", "account", "trace", "traces"]

ONE = 1 << 16  # a cycle in the times of the bus
Span = tuple[int, int, int]  # a step: its job, its first cycle and its end in the job

DATA = (
    "weights",
    "embedding",
    "K and V",
    "K scales",
    "RoPE",
    "program and job",
    "K and V written",
    "results written",
)
LOST = {
    "refresh": "the DRAM refreshes itself",
    "turnaround": "from reading to writing and back",
    "rows": "requested data wait for a row to be opened",
    "ports full": "requested data have no room in the ports' buffers",
    "fabric full": "the weight stream has no room: the array does not take weights",
    "latency": "requests or data are on their way, and nothing else is",
    "not requested": "nothing has been asked for",
}
CAUSES = (*DATA, *LOST)
BLAMED = CAUSES.index("fabric full")  # from here on a unit is to blame

WHO = ("attend", "attend: softmax", "attend: K or V", "attend: array", "matmul", "load", "norm",
       "rope", "append", "swiglu", "embed", "writes", "issue", "between steps")  # fmt: skip

UNITS: dict[str, tuple[Op, ...]] = {
    "array": operations_of(Unit.ARRAY),
    "attention": operations_of(Unit.ATTENTION),
    "softmax": (),  # part of ATTEND
    "vector": operations_of(Unit.VECTOR),
}
"""Units whose work is recorded, and the instructions that are theirs."""


@dataclass(frozen=True)
class Bar:
    """A unit is busy with an instruction, in cycles since the start of the job."""

    begin: int
    end: int
    label: str


@dataclass(frozen=True)
class Trace:
    """One job. Segment i lasts from ``edges[i]`` to ``edges[i + 1]`` (cycles << 16 since its start)
    and has the cause ``CAUSES[cause[i]]`` and, from BLAMED on, the culprit ``WHO[who[i]]``."""

    edges: np.ndarray
    cause: np.ndarray
    who: np.ndarray
    bars: dict[str, list[Bar]]
    counters: dict[str, int]
    """The hardware counters, counted once more from the recording."""


def trace(recording: Recording, image: Image, bases: Sequence[int], job: int, cycles: int) -> Trace:
    """Of the ``job``-th job of a recording, which took so many ``cycles``.

    ``bases``: bus addresses of the bulk window and of the job window.
    """
    probes = recording.probes
    # The probes are registers that show the cycle before.
    at, pc, events = probes[:, 0] - 1, probes[:, 1], probes[:, 2]
    counting = events & 1
    start = at[np.flatnonzero(counting[1:] > counting[:-1])[job] + 1]
    inside = slice(np.searchsorted(at, start), np.searchsorted(at, start + cycles))
    at, pc, events = at[inside] - start, pc[inside], events[inside]
    bits = {name: (events >> i & 1).astype(bool) for i, (name, _) in enumerate(COUNTERS)}
    lasts = np.diff(at, append=cycles)
    program = _program(image)
    bars = {unit: _bars(unit, at, pc, bits, cycles, program) for unit in UNITS}
    bars["writer"] = _writes(recording.bus, start, cycles)
    who = _who(at, pc, bits, bars, program)
    edges, cause, state = _causes(recording.bus, image, bases, start, cycles, at, bits)
    return Trace(
        edges=edges,
        cause=cause,
        who=who[state],
        bars=bars,
        counters={name: int(lasts[bits[name]].sum()) for name, _ in COUNTERS},
    )


def traces(
    recording: Recording, image: Image, bases: Sequence[int], spans: Sequence[Span]
) -> list[Trace]:
    """Of the jobs that a measurement of ``host/perf.py`` counts, up to their last span's end."""
    ends = {job: end for job, _, end in spans}
    return [trace(recording, image, bases, job, end) for job, end in ends.items()]


def account(traces: Sequence[Trace], spans: Sequence[Span]) -> dict[str, Any]:
    """Mean cycles per span: ``data`` by kind, ``lost`` by cause, and by culprit where there is one.

    The sum of data and lost is that of the spans' cycles, divided by their number.
    """
    total = np.zeros((len(CAUSES), len(WHO)), np.int64)
    for job, begin, end in spans:
        t = traces[job]
        low, high = (np.clip(e, begin * ONE, end * ONE) for e in (t.edges[:-1], t.edges[1:]))
        np.add.at(total, (t.cause, t.who), high - low)
    cycles = total / (ONE * len(spans))
    lost: dict[str, Any] = {}
    for number, cause in enumerate(CAUSES):
        if cause not in LOST:
            continue
        lost[cause] = {"cycles": float(cycles[number].sum())}
        if number >= BLAMED:
            order = np.argsort(-cycles[number], kind="stable")
            blamed = {WHO[i]: float(cycles[number, i]) for i in order if cycles[number, i]}
            lost[cause]["waiting_for"] = blamed
    return {
        "cycles": int(total.sum()) / (ONE * len(spans)),
        "data": {name: float(cycles[i].sum()) for i, name in enumerate(DATA)},
        "lost": lost,
    }


def _program(image: Image) -> list[Instruction]:
    at, size = image.map.program - PAGE, isa.INSTRUCTION_BYTES
    text = image.payload[at : at + image.map.program_words * size].tobytes()
    return [isa.decode(text[i : i + size]) for i in range(0, len(text), size)]


def _bars(
    unit: str,
    at: np.ndarray,
    pc: np.ndarray,
    bits: dict[str, np.ndarray],
    cycles: int,
    program: list[Instruction],
) -> list[Bar]:
    """When the unit is busy, which is once for each of its instructions, in their order.

    While ATTEND runs, it has the array and the softmax unit to itself.
    """
    busy = ~bits["ARRAY_IDLE"] if unit == "array" else bits[unit.upper() + "_BUSY"]
    change = np.diff(busy.astype(np.int8), prepend=0, append=0)
    step = np.cumsum(np.diff(pc, prepend=0) < 0)
    ends = np.append(at, cycles)
    mine = [p.op.name.lower() for p in program if p.op in UNITS[unit]]
    bars: list[Bar] = []
    now, count = -1, 0
    for i, j in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1)):
        if at[i] == 0:
            continue  # a register after the start
        if step[i] != now:
            now, count = step[i], 0
        label = "attend"
        if unit != "softmax" and not (unit == "array" and bits["ATTENTION_BUSY"][i]):
            label, count = mine[count], count + 1
        bars.append(Bar(int(at[i]), int(ends[j]), label))
    return bars


def _writes(bus: np.ndarray, start: int, cycles: int) -> list[Bar]:
    """When writes are under way: from the port to the response."""
    bus = bus[bus["use"] == WRITE]
    bars: list[Bar] = []
    for begin, end in zip(bus["accepted"] - start, bus["done"] - start):
        if begin < 0 or begin >= cycles:
            continue
        if bars and begin <= bars[-1].end:
            bars[-1] = replace(bars[-1], end=int(max(end, bars[-1].end)))
        else:
            bars.append(Bar(int(begin), int(end), "write"))
    return bars


def _who(
    at: np.ndarray,
    pc: np.ndarray,
    bits: dict[str, np.ndarray],
    bars: dict[str, list[Bar]],
    program: list[Instruction],
) -> np.ndarray:
    """Per state of the fabric: whom the array, and so the weight stream, is waiting for."""

    def running(unit: str) -> np.ndarray:
        """Number in WHO of the instruction that the unit runs or ran last."""
        names = np.array([WHO.index("issue"), *(WHO.index(bar.label) for bar in bars[unit])])
        return names[np.searchsorted([bar.begin for bar in bars[unit]], at, "right")]

    embedded = next(i for i, p in enumerate(program) if p.wait & Unit.EMBED)
    waiting = np.array([p.op is Op.ATTEND for p in program])
    last = np.array([p.op is Op.END for p in program])
    pc = np.minimum(pc, len(program) - 1)
    return np.select(
        [
            bits["SOFTMAX_BUSY"],
            bits["ARRAY_WAIT_KV"],
            bits["ATTENTION_BUSY"] & ~bits["ARRAY_IDLE"],
            bits["ATTENTION_BUSY"],
            ~bits["ARRAY_IDLE"],
            bits["VECTOR_BUSY"],
            (pc == 0) | last[pc],
            pc <= embedded,
            waiting[pc],
        ],
        [
            WHO.index("attend: softmax"),
            WHO.index("attend: K or V"),
            WHO.index("attend: array"),
            WHO.index("attend"),
            running("array"),
            running("vector"),
            WHO.index("between steps"),
            WHO.index("embed"),
            WHO.index("writes"),
        ],
        WHO.index("issue"),
    )


def _causes(
    bus: np.ndarray,
    image: Image,
    bases: Sequence[int],
    start: int,
    cycles: int,
    at: np.ndarray,
    bits: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, the cause between two of them, and the number of the fabric's state there."""
    bus = bus[(bus["end"] > start * ONE) & (bus["accepted"] < start + cycles)]
    begin, end = bus["start"] - start * ONE, bus["end"] - start * ONE
    burst = bus["use"] <= WRITE
    accepted, arrival, enter, done = (
        (bus[name][burst] - start) * ONE for name in ("accepted", "arrival", "enter", "done")
    )
    whole = cycles * ONE
    edges = np.unique(np.clip(np.concatenate([
        [0, whole], begin, end, accepted, arrival, enter, done, at * ONE
    ]), 0, whole))  # fmt: skip
    here = edges[:-1]

    def number(opened: np.ndarray, closed: np.ndarray) -> np.ndarray:
        """How many of the intervals hold each segment."""
        return sum(
            sign * np.searchsorted(np.sort(times), here, "right")
            for sign, times in ((1, opened), (-1, closed))
        )  # type: ignore[return-value]

    def held(use: int) -> np.ndarray:
        return number(begin[bus["use"] == use], end[bus["use"] == use]) > 0

    state = np.searchsorted(at * ONE, here, "right") - 1
    moving = held(READ) | held(WRITE)
    kind = _kinds(bus[burst], image, bases)[
        np.maximum(np.searchsorted(begin[burst], here, "right") - 1, 0)
    ]
    waiting = number(enter, begin[burst]) > 0
    cause = np.select(
        [
            moving,
            held(REFRESH),
            waiting & held(TURN),
            waiting,
            number(arrival, enter) > 0,
            bits["STREAM_FULL"][state],
            number(accepted, done) > 0,
        ],
        [kind, *(CAUSES.index(name) for name in ("refresh", "turnaround", "rows", "ports full",
                                                 "fabric full", "latency"))],
        CAUSES.index("not requested"),
    )  # fmt: skip
    return edges, cause, state


def _kinds(bursts: np.ndarray, image: Image, bases: Sequence[int]) -> np.ndarray:
    """Which of DATA each burst moves, by its address; the stream reads whole bursts only."""
    m = image.map
    address = bursts["address"].astype(np.int64)
    in_job = address >= bases[1]
    at = address - bases[0]
    write = bursts["use"] == WRITE
    program = (m.program <= at) & (at < m.program + m.program_words * isa.INSTRUCTION_BYTES)
    names = [
        (write & in_job, "results written"),
        (write, "K and V written"),
        (in_job | program, "program and job"),
        (at >= image.kv.scales, "K scales"),
        (at >= m.kv, "K and V"),
        (at >= m.rope, "RoPE"),
        (bursts["bytes"] < bursts["bytes"].max(initial=0), "embedding"),
    ]
    return np.select(
        [where for where, _ in names],
        [DATA.index(name) for _, name in names],
        DATA.index("weights"),
    )

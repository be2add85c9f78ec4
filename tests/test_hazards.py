"""What instructions touch, which of them conflict, and the proof that programs keep them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from presets import TINY16
from small_models import ODD, SMALL, golden
from tokenfabric.compiler.check import HazardError, check_program
from tokenfabric.compiler.compile import compile_model, program_of
from tokenfabric.core import isa
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.hazards import InFlight, conflict, overlap
from tokenfabric.core.isa import (
    OPERATIONS,
    Access,
    Dest,
    Instruction,
    Memory,
    Op,
    Part,
    RowFlag,
    Unit,
)
from tokenfabric.core.shape import NAMED_SHAPES
from tokenfabric.host.device import load, put_job, run
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.golden import GoldenDevice

SHAPES = {
    "small": SMALL,
    "odd": ODD,
    "many pieces": replace(SMALL, hidden=1500, context=16),
    "wide heads": replace(ODD, heads=4, kv_heads=2, head_dim=44),
}

# --- what the rows say, against what the golden device does ---------------------------------------


class Watched(np.ndarray):
    """A memory of the golden device that notes which chunks are read and written."""

    def __new__(cls, array: np.ndarray, notes: dict[str, set[int]]):
        found = np.asarray(array).view(cls)
        found.notes = notes
        return found

    def _chunks(self, key) -> set[int]:
        assert isinstance(key, slice) and key.step is None, key
        return set(range(*key.indices(len(self))))

    def __getitem__(self, key):
        self.notes["reads"] |= self._chunks(key)
        return np.asarray(self)[key]

    def __setitem__(self, key, value):
        self.notes["writes"] |= self._chunks(key)
        np.asarray(self)[key] = value


MEMORIES = {Memory.IN: "in_", Memory.OUT: "out", Memory.RES: "res", Memory.PARAM: "param"}


def told(accesses: tuple[Access, ...], memory: Memory, rows: list[int]) -> set[int]:
    """The chunks of ``memory`` that the table names for these rows, counted out one by one."""
    found = set()
    for a in accesses:
        if a.memory is memory:
            for row in rows if a.stride else [0]:
                for piece in range(a.pieces):
                    at = a.at + row * a.stride + piece * a.pitch
                    found |= set(range(at, at + a.chunks))
    return found


@pytest.mark.parametrize("name", ["tiny", "pynq-z2", "kv260", "ulx3s"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_table_names_exactly_the_chunks_that_the_golden_device_touches(shape, name):
    _, cfg, image, device = golden(SHAPES[shape], name)
    want = RowFlag.WANT_LOGITS
    count = min(3, image.rows)
    rows = [
        {"token": t, "position": t, "slot": 0, "flags": want if t != 1 else 0} for t in range(count)
    ]
    seen = []

    def watched(op: Op, handler):
        def run(i: Instruction) -> None:
            kept = {m: getattr(device, attribute) for m, attribute in MEMORIES.items()}
            notes = {m: {"reads": set(), "writes": set()} for m in MEMORIES}
            for m, attribute in MEMORIES.items():
                setattr(device, attribute, Watched(kept[m], notes[m]))
            handler(i)
            for m, attribute in MEMORIES.items():
                setattr(device, attribute, kept[m])
            row = OPERATIONS[op]
            those = [t for t in range(count) if t != 1 or not i.want]
            for m in MEMORIES:
                for kind, accesses in (("reads", row.reads), ("writes", row.writes)):
                    assert notes[m][kind] == told(accesses(i, cfg), m, those), (op, m, kind)
            seen.append(op)

        return run

    load(device, image)
    for op in Op:
        if op is not Op.END:
            handler = getattr(device, f"_{op.name.lower()}")
            setattr(device, f"_{op.name.lower()}", watched(op, handler))
    put_job(device, image.descriptor(rows))
    run(device, 60)
    assert set(seen) == set(Op) - {Op.END}


def test_only_append_and_attend_touch_the_cache():
    """Its row says which layer, by its address; the golden device's windows are its memory."""
    for op, row in OPERATIONS.items():
        i = Instruction(op=op, imm=0x5000, heads=1, head_chunks=1, n=1, k=1, group=1)
        touched = [a for a in (*row.reads(i, preset("tiny")), *row.writes(i, preset("tiny")))]
        cache = [a.at for a in touched if a.memory is Memory.CACHE]
        assert cache == ([0x5000] if op in (Op.APPEND, Op.ATTEND) else [])


# --- conflicts ------------------------------------------------------------------------------------


def matmul(**fields) -> Instruction:
    return Instruction(op=Op.MATMUL, **{"k": 4, "n": 4, "src_stride": 8, "dst_stride": 8, **fields})


def swiglu(**fields) -> Instruction:
    base = {"n": 2, "src_stride": 8, "dst_stride": 8, "dst": 300}
    return Instruction(op=Op.SWIGLU, **{**base, **fields})


CFG = preset("tiny")


@pytest.mark.parametrize(
    ("first", "then", "wanted"),
    [
        # read after write, at the first and the last chunk, and just not
        (matmul(dst=0), swiglu(src=0), Unit.ARRAY),
        (matmul(dst=3), swiglu(src=0), Unit.ARRAY),
        (matmul(dst=4), swiglu(src=0), Unit(0)),
        # the row after wraps into the stride of the one before
        (matmul(dst=4, n=5), swiglu(src=0), Unit.ARRAY),
        # write after read
        (swiglu(src=0), matmul(dst=3), Unit.VECTOR),
        (swiglu(src=0), matmul(dst=4), Unit(0)),
        # write after write
        (swiglu(dst=0, src=50), swiglu(dst=1, src=100), Unit.VECTOR),
        # IN and OUT are two memories
        (swiglu(dst=0), matmul(src=1, dst=100), Unit.VECTOR),
        (swiglu(src=40, dst=0), matmul(src=32, dst=0), Unit(0)),
        # both only read RES, but it has one read port
        (
            matmul(mode=Dest.RES, dst=0),
            Instruction(op=Op.NORM, k=4, src=64, src_stride=8, dst=99, dst_stride=8),
            Unit.ARRAY,
        ),
        # K of the same layer, and of another
        (
            Instruction(op=Op.APPEND, imm=64, heads=1, head_chunks=1),
            Instruction(op=Op.ATTEND, imm=64, heads=1, head_chunks=1, group=1),
            Unit.VECTOR | Unit.WRITER,
        ),
        (
            Instruction(op=Op.APPEND, imm=64, heads=1, head_chunks=1, src=9, param=3),
            Instruction(op=Op.ATTEND, imm=128, heads=1, head_chunks=1, group=1),
            Unit(0),
        ),
        # gains while they are read
        (
            Instruction(op=Op.NORM, k=4, param=8, src=0, dst=64, src_stride=8, dst_stride=8),
            Instruction(op=Op.LOAD, n=16, param=0),
            Unit.VECTOR,
        ),
        (
            Instruction(op=Op.NORM, k=4, param=60, src=0, dst=64, src_stride=8, dst_stride=8),
            Instruction(op=Op.LOAD, n=16, param=0),
            Unit(0),
        ),
    ],
)
def test_conflicts(first, then, wanted):
    assert conflict(CFG, 4, first, then) == wanted


def test_fewer_rows_touch_less():
    first, then = matmul(dst=0, dst_stride=10), swiglu(src=30)
    assert conflict(CFG, 4, first, then) == Unit.ARRAY and conflict(CFG, 3, first, then) == 0


def test_overlap_counts_pieces():
    heads = Access(Memory.IN, 0, 0, 2, pieces=3, pitch=4)
    for at, wanted in ((0, True), (2, False), (3, False), (4, True), (9, True), (10, False)):
        assert overlap(heads, Access(Memory.IN, at, 0, 1), 1) is wanted
    assert not overlap(heads, Access(Memory.OUT, 0, 0, 1), 1)


# --- what is waited for ---------------------------------------------------------------------------


def test_a_write_on_its_way_is_waited_for_behind_its_unit():
    """The writer is idle before the vector unit has sent it anything: that is no proof."""
    append = Instruction(op=Op.APPEND, imm=64, heads=1, head_chunks=1, src=9)
    norm = Instruction(op=Op.NORM, k=1, dst=500, wait=Unit.WRITER)
    flight = InFlight(CFG, 4)
    flight.start(append)
    flight.start(Instruction(op=Op.EMBED, wait=Unit.WRITER, dst=100))
    left = dict(flight._running)[append]
    assert left == Unit.VECTOR | Unit.WRITER
    flight.start(norm)  # its own unit, and the writer with it
    assert append not in dict(flight._running)


def test_waiting_names_what_conflicts_and_no_more():
    flight = InFlight(CFG, 4)
    flight.start(swiglu(src=0, dst=0))
    assert flight.wait_for(matmul(src=0, dst=64)) == Unit.VECTOR
    assert flight.wait_for(matmul(src=32, dst=64)) == 0
    flight.start(matmul(src=0, dst=64, wait=Unit.VECTOR))
    assert flight.wait_for(matmul(src=0, dst=64)) == 0  # the array is its own unit
    assert flight.wait_for(swiglu(src=64, dst=100)) == Unit.ARRAY


# --- programs -------------------------------------------------------------------------------------

PROGRAMS = [
    (shape, cfg)
    for shape in (*SHAPES.values(), NAMED_SHAPES["stories260k"], NAMED_SHAPES["stories15m"])
    for cfg in (*PRESETS.values(), TINY16)
]


def compiled(shape, cfg):
    """Rows and program of a model, with the addresses of its layers; None if it does not fit."""
    try:
        program_of(shape, cfg)
    except UserError:
        return None
    image = compile_model(QModel.random(replace(shape, vocab=64)), cfg, slots=2)
    at, size = image.map.program - 4096, isa.INSTRUCTION_BYTES
    text = image.payload[at : at + image.map.program_words * size].tobytes()
    return image.rows, [isa.decode(text[i : i + size]) for i in range(0, len(text), size)]


@pytest.mark.parametrize(("shape", "cfg"), PROGRAMS, ids=lambda x: getattr(x, "name", None))
def test_every_wait_of_a_program_is_needed(shape, cfg):
    """Take away one unit of one wait: the checker finds the pair that it kept apart."""
    found = compiled(shape, cfg)
    if found is None:
        pytest.skip("does not fit")
    rows, code = found
    check_program(cfg, rows, code)
    waits = 0
    per_layer = next(n for n, i in enumerate(code[2:], 2) if i.op is Op.LOAD and n > 2)
    for number, i in enumerate(code[: 2 * per_layer + 2] + code[-6:]):
        at = number if number < 2 * per_layer + 2 else len(code) - 6 + number - 2 * per_layer - 2
        for unit in Unit:
            if i.wait & unit:
                broken = list(code)
                broken[at] = replace(i, wait=i.wait & ~unit)
                with pytest.raises(HazardError, match=f"does not wait for .*{unit.name}"):
                    check_program(cfg, rows, broken)
                waits += 1
    assert waits >= 8


def test_steps_without_logits_are_checked_too():
    """An instruction that is skipped waits for nobody."""
    between = matmul(src=200, dst=200, wait=Unit.VECTOR)
    code = [swiglu(src=100, dst=0), between, matmul(src=0, dst=220)]
    end = [Instruction(op=Op.END)]
    check_program(CFG, 4, [*code, *end])
    code[1] = replace(between, want=1)
    with pytest.raises(HazardError, match=r"instruction 1 .*wait for .*VECTOR"):
        check_program(CFG, 4, [*code, *end])


def test_the_next_step_is_checked_with_the_one_before():
    """END waits for every unit of an operation, but not for writes that are on their way."""
    append = Instruction(op=Op.APPEND, imm=64, heads=1, head_chunks=1, src=9)
    attend = Instruction(op=Op.ATTEND, imm=64, heads=1, head_chunks=1, group=1, src=99, dst=50)
    check_program(CFG, 4, [attend, append, Instruction(op=Op.END)])
    load = Instruction(op=Op.LOAD, n=8, param=0)
    norm = Instruction(op=Op.NORM, k=1, param=1, src_stride=1, dst_stride=1)
    with pytest.raises(HazardError, match=r"instruction 1 .*norm.*before instruction 0"):
        check_program(CFG, 4, [load, norm, Instruction(op=Op.END)])
    check_program(CFG, 4, [norm, load, replace(norm, wait=Unit.ARRAY), Instruction(op=Op.END)][2:])


def test_the_golden_device_of_the_watch_is_the_real_one():
    """The watch hooks the handlers by name: a renamed one must not go unwatched."""
    for op in Op:
        assert op is Op.END or callable(getattr(GoldenDevice, f"_{op.name.lower()}"))


# --- what the sequencer keeps apart, whatever a program says --------------------------------------

ARRAY, VECTOR, WRITER, ATTENTION, EMBED = Unit
# Written out by hand from the hardware, with the reason, so that a part that is left out of the
# table of operations is missed here.
SHARED = {
    Op.LOAD: ARRAY | ATTENTION,  # attention commands the same engine
    Op.EMBED: EMBED | ARRAY | ATTENTION,  # all three send chunks through Requantize
    Op.NORM: VECTOR | ATTENTION,  # both write IN through its one port
    Op.MATMUL: ARRAY | ATTENTION | EMBED,  # the engine, and Requantize behind it
    Op.ROPE: VECTOR | ATTENTION,  # the port of IN
    Op.APPEND: VECTOR | ATTENTION,  # the cache that attention reads
    Op.ATTEND: ATTENTION | ARRAY | EMBED | VECTOR | WRITER,  # all of these, and writes on their way
    Op.SWIGLU: VECTOR | ATTENTION,  # the port of IN
    Op.END: ARRAY | VECTOR | ATTENTION | EMBED,  # rows change: nobody may still look at them
}


@pytest.mark.parametrize("op", Op)
def test_operations_that_share_hardware_wait_for_each_other(op):
    assert isa.shares(op) == SHARED[op]


# Whoever shares this one with it shares another one, too.
TWICE = {(Op.MATMUL, Part.ENGINE)}
PARTS = [(op, part) for op in Op for part in sorted(OPERATIONS[op].parts, key=lambda p: p.name)]


@pytest.mark.parametrize(("op", "part"), PARTS)
def test_a_part_left_out_of_the_table_is_missed(op, part, monkeypatch):
    """Each part of each row, taken away by itself, changes what somebody waits for."""
    whole = OPERATIONS[op]
    monkeypatch.setitem(OPERATIONS, op, replace(whole, parts=whole.parts - {part}))
    missed = any(isa.shares(other) != SHARED[other] for other in Op)
    assert missed == ((op, part) not in TWICE)


def test_units_are_those_that_the_hardware_has_for_them():
    assert {unit: set(isa.operations_of(unit)) for unit in Unit} == {
        ARRAY: {Op.LOAD, Op.MATMUL},
        VECTOR: {Op.NORM, Op.ROPE, Op.APPEND, Op.SWIGLU},
        WRITER: set(),
        ATTENTION: {Op.ATTEND},
        EMBED: {Op.EMBED},
    }


def test_writes_on_their_way_left_out_of_the_table_are_missed(monkeypatch):
    monkeypatch.setitem(OPERATIONS, Op.APPEND, replace(OPERATIONS[Op.APPEND], through=Unit(0)))
    assert isa.shares(Op.ATTEND) != SHARED[Op.ATTEND]

"""The instruction set: one table from which encoder, decoder, RTL layout and docs derive.

An instruction is 256 bits, fields packed from bit 0 upward in the order of :data:`FIELDS`. Every
operation uses the same layout; :data:`OPERATIONS` says which fields it reads. Addresses of
activations are in chunks (``config.cols`` values), addresses of memory in bytes from the start of
the window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import Enum, IntEnum, IntFlag
from typing import Protocol

__all__ = [
    "DESCRIPTOR",
    "FIELDS",
    "INSTRUCTION_BITS",
    "INSTRUCTION_BYTES",
    "OPERATIONS",
    "Access",
    "Dest",
    "Instruction",
    "Memory",
    "Op",
    "Operation",
    "Part",
    "RowFlag",
    "Unit",
    "decode",
    "describe",
    "disassemble",
    "encode",
    "operations_of",
    "shares",
]

INSTRUCTION_BITS = 256
INSTRUCTION_BYTES = INSTRUCTION_BITS // 8


class Op(IntEnum):
    """Operations. Numbers are part of the ABI."""

    END = 0
    LOAD = 1
    EMBED = 2
    NORM = 3
    MATMUL = 4
    ROPE = 5
    APPEND = 6
    ATTEND = 7
    SWIGLU = 8


class Unit(IntFlag):
    """What an instruction can wait for: the bits of its ``wait`` field.

    OPERATIONS says which unit an operation belongs to.
    """

    ARRAY = 1  # idle when the last result has been written
    VECTOR = 2
    WRITER = 4  # of no operation: idle when every write to DRAM has been answered
    ATTENTION = 8
    EMBED = 16


NO_UNIT = Unit(0)


class Dest(IntEnum):
    """Where MATMUL's requantized results go."""

    OUT = 0  # int16 to the output activations
    OUT8 = 1  # saturated to int8, stored as int16 (V)
    RES = 2  # added to the residual stream
    LOGITS = 3  # argmax; to memory for rows that ask for it


class RowFlag(IntFlag):
    """Flags of a row of the row table."""

    WANT_LOGITS = 1  # the classifier runs for this row and chooses its next token
    DUMP_LOGITS = 2  # and its logits are written to memory
    STOP = 4  # the row ends when it chooses a stop token


FIELDS: tuple[tuple[str, int], ...] = (
    ("op", 4),
    ("wait", 8),
    ("sat", 4),
    ("want", 1),
    ("mode", 3),
    ("shift", 6),
    ("shift2", 6),
    ("src", 16),
    ("src_stride", 12),
    ("dst", 16),
    ("dst_stride", 12),
    ("k", 12),
    ("n", 16),
    ("param", 12),
    ("heads", 8),
    ("group", 8),
    ("head_chunks", 8),
    ("imm", 32),
    ("imm2", 32),
)

FIELD_DOC = {
    "op": "operation",
    "wait": "units that must be idle before this instruction starts",
    "sat": "saturation counter that its results count in",
    "want": "1: only rows that want logits; skipped in a step that has none",
    "mode": "MATMUL: destination",
    "shift": "right shift after the (last) multiplication",
    "shift2": "NORM: right shift of the residual stream; MATMUL: right shift of odd column-blocks; "
    "SWIGLU, ATTEND: left shift (align)",
    "src": "first chunk of row 0 of the operand",
    "src_stride": "chunks from row to row of the operand",
    "dst": "first chunk of row 0 of the result",
    "dst_stride": "chunks from row to row of the result",
    "k": "NORM, MATMUL, EMBED: chunks of a row",
    "n": "MATMUL: column-blocks; LOAD: words; SWIGLU: result chunks of a row",
    "param": "first chunk of the parameters",
    "heads": "KV heads (ROPE: query heads)",
    "group": "query heads per KV head",
    "head_chunks": "chunks of a head",
    "imm": "NORM: eps; APPEND, ATTEND: memory address of the layer's K of slot 0, head 0",
    "imm2": "APPEND, ATTEND: memory address of the layer's K scales of slot 0, head 0",
}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """One decoded instruction; unused fields are 0."""

    op: Op
    wait: int = 0
    sat: int = 0
    want: int = 0
    mode: int = 0
    shift: int = 0
    shift2: int = 0
    src: int = 0
    src_stride: int = 0
    dst: int = 0
    dst_stride: int = 0
    k: int = 0
    n: int = 0
    param: int = 0
    heads: int = 0
    group: int = 0
    head_chunks: int = 0
    imm: int = 0
    imm2: int = 0


class Memory(Enum):
    """What instructions read and write. Chunks on chip, but for CACHE: see :class:`Access`."""

    IN = "activations that the array and the attention read"
    OUT = "activations that the vector unit reads"
    RES = "the residual stream"
    PARAM = "gains of the norms, means of K"
    CACHE = "K and V of a layer in DRAM, with their scales"

    @property
    def one_reader(self) -> bool:
        """Two units cannot read it at a time: they share its read port."""
        return self is Memory.RES


class Part(Enum):
    """Hardware that operations of different units use, and that serves one unit at a time.

    What keeps them apart is the sequencer, whatever the program's waits say: see :func:`shares`.
    """

    ENGINE = "array, loader and accumulators, with the table of rows that they work on"
    REQUANTIZE = "Requantize and Writeback, behind the array"
    IN_PORT = "the write port of IN: two writes in a cycle would lose one"
    CACHE = "K and V in DRAM, whose addresses only the units know"


@dataclass(frozen=True)
class Access:
    """Chunks of a memory that an instruction reads or writes.

    For each row of the step, ``pieces`` runs of ``chunks``, ``pitch`` apart; the first row's first
    run begins at ``at``, those of the next row ``stride`` chunks further on. ``stride`` 0: the same
    for all rows. CACHE: one "chunk" per layer, its number the layer's address.
    """

    memory: Memory
    at: int
    stride: int
    chunks: int
    pieces: int = 1
    pitch: int = 0


class Sizes(Protocol):
    """What the ranges of operands depend on besides the instruction: of a FabricConfig."""

    @property
    def k_chunks(self) -> int: ...

    @property
    def load_chunks(self) -> int: ...


Accesses = Callable[["Instruction", Sizes], tuple[Access, ...]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A row of the table.

    fields: those that it reads besides ``op`` and ``wait``. doc: what it does. unit: busy from its
    start until it is done; none for END. parts: shared hardware that it uses. reads, writes: the
    chunks. through: a unit that still works on its writes when ``unit`` is idle again.
    """

    fields: str
    doc: str
    unit: Unit = NO_UNIT
    parts: frozenset[Part] = frozenset()
    reads: Accesses = lambda i, c: ()
    writes: Accesses = lambda i, c: ()
    through: Unit = NO_UNIT


def _src(memory: Memory, i: Instruction, chunks: int, pieces: int = 1, pitch: int = 0) -> Access:
    return Access(memory, i.src, i.src_stride, chunks, pieces, pitch)


def _dst(memory: Memory, i: Instruction, chunks: int, pieces: int = 1, pitch: int = 0) -> Access:
    return Access(memory, i.dst, i.dst_stride, chunks, pieces, pitch)


def _param(i: Instruction, chunks: int) -> Access:
    return Access(Memory.PARAM, i.param, 0, chunks)


def _cache(i: Instruction) -> Access:
    return Access(Memory.CACHE, i.imm, 0, 1)


def _head_pitch(i: Instruction, c: Sizes) -> int:
    """Chunks from head to head of q in IN: whole row-blocks."""
    return -(-i.head_chunks // c.k_chunks) * c.k_chunks


OPERATIONS: dict[Op, Operation] = {
    Op.END: Operation(
        fields="",
        doc="The step is over: choose tokens, write the ring, next step or stop.",
    ),
    Op.LOAD: Operation(
        fields="n param want",
        doc="param from chunk `param` on = the next n words of the weight stream (int16).",
        unit=Unit.ARRAY,
        parts=frozenset({Part.ENGINE}),
        writes=lambda i, c: (_param(i, i.n * c.load_chunks),),
    ),
    Op.EMBED: Operation(
        fields="dst dst_stride k shift sat",
        doc="res[row] = embed(embedding[token[row]]): k chunks per row.",
        unit=Unit.EMBED,
        parts=frozenset({Part.REQUANTIZE}),
        writes=lambda i, c: (_dst(Memory.RES, i, i.k),),
    ),
    Op.NORM: Operation(
        fields="src src_stride dst dst_stride k param shift shift2 imm sat want",
        doc="in[row] = rmsnorm(res[row], shift2, imm, param, shift).",
        unit=Unit.VECTOR,
        parts=frozenset({Part.IN_PORT}),
        reads=lambda i, c: (_src(Memory.RES, i, i.k), _param(i, i.k)),
        writes=lambda i, c: (_dst(Memory.IN, i, i.k),),
    ),
    Op.MATMUL: Operation(
        fields="src src_stride dst dst_stride k n mode shift shift2 sat want",
        doc="dest[row] = requantize(in[row] @ weights, multipliers, shift or, odd blocks, shift2).",
        unit=Unit.ARRAY,
        parts=frozenset({Part.ENGINE, Part.REQUANTIZE}),
        reads=lambda i, c: (
            _src(Memory.IN, i, i.k),
            *((_dst(Memory.RES, i, i.n),) if i.mode == Dest.RES else ()),
        ),
        writes=lambda i, c: {
            Dest.OUT: (_dst(Memory.OUT, i, i.n),),
            Dest.OUT8: (_dst(Memory.OUT, i, i.n),),
            Dest.RES: (_dst(Memory.RES, i, i.n),),
            Dest.LOGITS: (),  # to the job window, which no instruction reads
        }[Dest(i.mode)],
    ),
    Op.ROPE: Operation(
        fields="src src_stride dst dst_stride heads head_chunks sat",
        doc=(
            "in[row, head] = rope(out[row, head], table[row]); heads start on row-blocks of the "
            "array."
        ),
        unit=Unit.VECTOR,
        parts=frozenset({Part.IN_PORT}),
        reads=lambda i, c: (_src(Memory.OUT, i, i.heads * i.head_chunks),),
        writes=lambda i, c: (_dst(Memory.IN, i, i.head_chunks, i.heads, _head_pitch(i, c)),),
    ),
    Op.APPEND: Operation(
        fields="src src_stride heads head_chunks param imm imm2 sat",
        doc=(
            "K cache[row] = quantize_k(rope(out[row, K head]), param), its scale, V cache[row] = "
            "out[row, V head]; K heads, then V heads, from src."
        ),
        unit=Unit.VECTOR,
        parts=frozenset({Part.CACHE}),
        reads=lambda i, c: (
            _src(Memory.OUT, i, 2 * i.heads * i.head_chunks),
            _param(i, i.heads * i.head_chunks),
        ),
        writes=lambda i, c: (_cache(i),),
        through=Unit.WRITER,
    ),
    Op.ATTEND: Operation(
        fields="src src_stride dst dst_stride heads group head_chunks shift shift2 imm imm2 sat",
        doc=(
            "in[row, head] = softmax(requantize(q @ K, K scales, shift), shift2) @ V / total, "
            "causal."
        ),
        unit=Unit.ATTENTION,
        parts=frozenset({Part.ENGINE, Part.REQUANTIZE, Part.IN_PORT, Part.CACHE}),
        reads=lambda i, c: (
            _src(Memory.IN, i, i.head_chunks, i.heads * i.group, _head_pitch(i, c)),
            _cache(i),
        ),
        writes=lambda i, c: (_dst(Memory.IN, i, i.heads * i.group * i.head_chunks),),
    ),
    Op.SWIGLU: Operation(
        fields="src src_stride dst dst_stride n shift shift2 sat",
        doc="in[row] = swiglu(out[row, even chunks], out[row, odd chunks], shift2, shift).",
        unit=Unit.VECTOR,
        parts=frozenset({Part.IN_PORT}),
        reads=lambda i, c: (_src(Memory.OUT, i, 2 * i.n),),
        writes=lambda i, c: (_dst(Memory.IN, i, i.n),),
    ),
}


def operations_of(unit: Unit) -> tuple[Op, ...]:
    """The operations that ``unit`` works on."""
    return tuple(op for op, row in OPERATIONS.items() if row.unit == unit)


def shares(op: Op) -> Unit:
    """Units that must be idle before ``op`` starts, whatever the program says.

    Its own, which takes one instruction at a time, and those whose operations use a part of the
    hardware that it uses, until their writes are done. END waits for every operation.
    """
    mine = OPERATIONS[op]
    units = mine.unit
    for other in OPERATIONS.values():
        if op is Op.END or (other.unit != mine.unit and mine.parts & other.parts):
            units |= other.unit | (NO_UNIT if op is Op.END else other.through)
    return units


def encode(instruction: Instruction) -> bytes:
    """32 bytes, little endian. Raises ValueError naming a field whose value does not fit."""
    word = at = 0
    for name, width in FIELDS:
        value = int(getattr(instruction, name))
        if not 0 <= value < 1 << width:
            raise ValueError(
                f"{instruction.op.name}.{name} = {value} does not fit in {width} unsigned bits"
            )
        word |= value << at
        at += width
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(data: bytes) -> Instruction:
    """The inverse of :func:`encode`. Raises ValueError for an unknown operation."""
    word = int.from_bytes(data, "little")
    values = {}
    for name, width in FIELDS:
        values[name] = word & ((1 << width) - 1)
        word >>= width
    values["op"] = Op(values["op"])
    return Instruction(**values)  # type: ignore[arg-type]


def disassemble(instruction: Instruction) -> str:
    """One line of text: the operation, then the fields it reads."""
    text = instruction.op.name.lower().ljust(7)
    names = OPERATIONS[instruction.op].fields.split()
    parts = [f"{name}={getattr(instruction, name)}" for name in names]
    if instruction.op is Op.MATMUL:
        parts = [
            p if not p.startswith("mode=") else f"to={Dest(instruction.mode).name}" for p in parts
        ]
    if instruction.wait:
        parts.append(
            "wait=" + "|".join(unit.name or "" for unit in Unit if instruction.wait & unit)
        )
    return text + " " + " ".join(parts)


# Device addresses below JOB lie in the bulk window (weights, KV cache), those from JOB on in the
# job window (descriptor, token ring, dumped logits): two stretches of memory, each with its own
# base, so that a host can keep the small one in step without touching the large one.
JOB = 1 << 31

# The job descriptor: 32-bit little-endian words at device address JOB, then the row table.
DESCRIPTOR_MAGIC = 0x31464B54  # "TKF1"
DESCRIPTOR: tuple[tuple[str, str], ...] = (
    ("magic", "0x31464b54"),
    ("program", "address of the program"),
    ("program_words", "instructions in it"),
    ("stream", "address of the weight stream"),
    ("stream_body", "superblocks of the stream in a step that wants no logits"),
    ("stream_full", "superblocks of the stream in a step that does"),
    ("embedding", "address of the embedding, laid out as a classifier"),
    ("embedding_group", "bytes of the embedding per word of multipliers"),
    ("rope", "address of the RoPE table, one row of head_dim int16 per position"),
    ("head_bytes", "bytes of one head at one position: head_dim, padded to whole chunks"),
    ("v_offset", "bytes from K to V of the same layer, slot, head and position"),
    ("kv_head", "bytes from KV head to KV head of K (and V)"),
    ("scale_head", "bytes from KV head to KV head of the K scales"),
    ("logits", "address of the logits of the first row that dumps them"),
    ("logits_stride", "bytes from one dumped row of logits (int32) to the next"),
    ("ring", "address of the token ring: 8 bytes {token, cycles since start} per row and step"),
    ("rows", "rows of a step, at most max_rows"),
    ("steps", "steps to run; more than one only if every row wants logits"),
    ("vocab", "tokens that argmax may choose"),
    ("context", "positions a slot has room for"),
    ("stop0", "stop tokens; 0xffffffff: none"),
    ("stop1", ""),
    ("stop2", ""),
    ("stop3", ""),
)
DESCRIPTOR_WORDS = 32  # the row table begins here
ROW_WORDS = 8
ROW: tuple[tuple[str, str], ...] = (
    ("token", "input token"),
    ("position", "its position in its slot"),
    ("flags", "RowFlag"),
    ("slot", "number of the slot; rows of one slot stand together, positions ascending"),
    ("kv_slot", "bytes from slot 0 to this slot in K (and V)"),
    ("scale_slot", "bytes from slot 0 to this slot in the K scales"),
    ("kv_row", "kv_slot + position * head_bytes"),
    ("reserved", "0"),
)


def describe() -> list:
    """The tables as plain lists, for the fingerprint and the documentation."""
    return [
        [[op.name, op.value, OPERATIONS[op].fields] for op in Op],
        [list(field) for field in FIELDS],
        [name for name, _ in DESCRIPTOR],
        [name for name, _ in ROW],
        [[d.name, d.value] for d in Dest],
        [[f.name, f.value] for f in (*RowFlag, *Unit)],
        [["JOB", JOB]],
    ]


assert [f.name for f in fields(Instruction)] == [name for name, _ in FIELDS]
assert sum(width for _, width in FIELDS) <= INSTRUCTION_BITS
assert len(DESCRIPTOR) <= DESCRIPTOR_WORDS and len(ROW) == ROW_WORDS

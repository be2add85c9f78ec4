"""The instruction set: one table from which encoder, decoder, RTL layout and docs derive.

An instruction is 256 bits, fields packed from bit 0 upward in the order of :data:`FIELDS`. Every
operation uses the same layout; :data:`OPERATIONS` says which fields it reads. Addresses of
activations are in chunks (``config.cols`` values), addresses of memory in bytes from the start of
the window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag

__all__ = [
    "DESCRIPTOR",
    "FIELDS",
    "INSTRUCTION_BITS",
    "INSTRUCTION_BYTES",
    "OPERATIONS",
    "Dest",
    "Instruction",
    "Op",
    "RowFlag",
    "Unit",
    "decode",
    "describe",
    "disassemble",
    "encode",
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
    """What an instruction can wait for: the bits of its ``wait`` field."""

    ARRAY = 1  # MATMUL, LOAD: idle when the last result has been written
    VECTOR = 2  # NORM, ROPE, APPEND, SWIGLU
    WRITER = 4  # every write to memory has been answered
    ATTENTION = 8  # ATTEND
    EMBED = 16


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

OPERATIONS: dict[Op, tuple[str, str]] = {
    Op.END: ("", "The step is over: choose tokens, write the ring, next step or stop."),
    Op.LOAD: (
        "n param want",
        "param from chunk `param` on = the next n words of the weight stream (int16).",
    ),
    Op.EMBED: (
        "dst dst_stride k shift sat",
        "res[row] = embed(embedding[token[row]]): k chunks per row.",
    ),
    Op.NORM: (
        "src src_stride dst dst_stride k param shift shift2 imm sat want",
        "in[row] = rmsnorm(res[row], shift2, imm, param, shift).",
    ),
    Op.MATMUL: (
        "src src_stride dst dst_stride k n mode shift shift2 sat want",
        "dest[row] = requantize(in[row] @ weights, multipliers, shift or, odd blocks, shift2).",
    ),
    Op.ROPE: (
        "src src_stride dst dst_stride heads head_chunks sat",
        "in[row, head] = rope(out[row, head], table[row]); heads start on row-blocks of the array.",
    ),
    Op.APPEND: (
        "src src_stride heads head_chunks param imm imm2 sat",
        (
            "K cache[row] = quantize_k(rope(out[row, K head]), param), its scale, V cache[row] = "
            "out[row, V head]; K heads, then V heads, from src."
        ),
    ),
    Op.ATTEND: (
        "src src_stride dst dst_stride heads group head_chunks shift shift2 imm imm2 sat",
        "in[row, head] = softmax(requantize(q @ K, K scales, shift), shift2) @ V / total, causal.",
    ),
    Op.SWIGLU: (
        "src src_stride dst dst_stride n shift shift2 sat",
        "in[row] = swiglu(out[row, even chunks], out[row, odd chunks], shift2, shift).",
    ),
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
    names = OPERATIONS[instruction.op][0].split()
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
        [[op.name, op.value, OPERATIONS[op][0]] for op in Op],
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

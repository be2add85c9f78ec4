"""What passes between the units: payload layouts of the streams, all derived from the config."""

from __future__ import annotations

from amaranth.hdl import signed, unsigned
from amaranth.lib import data, enum
from tokenfabric.core import isa
from tokenfabric.core.config import FETCH_BITS, FabricConfig
from tokenfabric.core.ops import ACT_BITS, MULT_BITS, RES_BITS, WEIGHT_BITS

__all__ = [
    "ADDRESS_BITS",
    "BeatTag",
    "MatmulDest",
    "MatmulKind",
    "embed_chunk",
    "fetch_beat",
    "fetch_command",
    "instruction_layout",
    "kv_beat",
    "kv_command",
    "matmul_command",
    "matmul_result",
    "row_record",
    "row_scale",
    "softmax_command",
    "stream_command",
    "table_entry",
    "windows",
    "write_beat",
]

ADDRESS_BITS = 32  # device addresses, bytes
CHUNK_BITS = 16  # chunk addresses and counts


class MatmulKind(enum.Enum, shape=unsigned(2)):
    """Where MatmulEngine's weights come from."""

    STREAM = 0
    K = 1
    V = 2
    LOAD = 3


class MatmulDest(enum.Enum, shape=unsigned(3)):
    """The first four equal ``isa.Dest``, then AttentionControl's; EMBED: to RES without adding."""

    OUT = 0
    OUT8 = 1
    RES = 2
    LOGITS = 3
    SCORES = 4
    ATT = 5
    EMBED = 6


class BeatTag(enum.Enum, shape=unsigned(3)):
    """Whom a fetched beat is for."""

    DESCRIPTOR = 0
    PROGRAM = 1
    ROPE = 2
    EMBED = 3
    SCALE = 4
    KV = 5


def index_shape(cfg: FabricConfig):
    """An index of a row of a command: 0 .. max_rows - 1."""
    return unsigned(max(1, (cfg.max_rows - 1).bit_length()))


def count_shape(cfg: FabricConfig):
    """A number of rows: 0 .. max_rows."""
    return unsigned(cfg.max_rows.bit_length())


def instruction_layout() -> data.StructLayout:
    """A decoded instruction: ``isa.FIELDS``. ``op`` holds values of ``isa.Op``."""
    return data.StructLayout({name: unsigned(width) for name, width in isa.FIELDS})


def matmul_command(cfg: FabricConfig) -> data.StructLayout:
    """``shift_odd``: of STREAM's odd column-blocks. ``bits``: 0 saturates to 8, 1 to 16, 2 to 32.
    LOAD uses n (words) and param (chunk)."""
    return data.StructLayout(
        {
            "kind": MatmulKind,
            "m": count_shape(cfg),
            "k": unsigned(12),
            "n": unsigned(16),
            "tail": unsigned(8),
            "shift": unsigned(6),
            "shift_odd": unsigned(6),
            "bits": unsigned(2),
            "dest": MatmulDest,
            "sat": unsigned(4),
            "param": unsigned(12),
        }
    )


def table_entry(cfg: FabricConfig) -> data.StructLayout:
    """One entry of MatmulEngine's row table."""
    return data.StructLayout(
        {"src": unsigned(CHUNK_BITS), "dst": unsigned(CHUNK_BITS), "limit": unsigned(16)}
    )


def matmul_result(cfg: FabricConfig) -> data.StructLayout:
    """One requantized chunk. ``last`` marks the last result of a command."""
    return data.StructLayout(
        {
            "y": data.ArrayLayout(signed(RES_BITS), cfg.cols),
            "saturated": unsigned(cfg.cols),
            "dst": unsigned(CHUNK_BITS),
            "index": index_shape(cfg),
            "block": unsigned(16),
            "limit": unsigned(16),
            "dest": MatmulDest,
            "sat": unsigned(4),
            "last": unsigned(1),
        }
    )


def embed_chunk(cfg: FabricConfig) -> data.StructLayout:
    """A chunk of an embedding row on its way through Requantize into the residual stream."""
    return data.StructLayout(
        {
            "lanes": data.ArrayLayout(signed(WEIGHT_BITS), cfg.cols),
            "mult": unsigned(MULT_BITS),
            "shift": unsigned(6),
            "dst": unsigned(CHUNK_BITS),
            "sat": unsigned(4),
        }
    )


def row_scale(cfg: FabricConfig) -> data.StructLayout:
    """The multiplier that finishes a row's softmax."""
    return data.StructLayout(
        {"index": index_shape(cfg), "mult": unsigned(MULT_BITS), "shift": unsigned(6)}
    )


def softmax_command(cfg: FabricConfig) -> data.StructLayout:
    """``m`` rows of ``blocks`` row-blocks (R scores) each."""
    return data.StructLayout({"m": count_shape(cfg), "blocks": unsigned(16), "align": unsigned(6)})


def stream_command(cfg: FabricConfig) -> data.StructLayout:
    """Read ``superblocks`` from ``offset``, ``repeats`` times in a row."""
    return data.StructLayout(
        {
            "offset": unsigned(ADDRESS_BITS),
            "superblocks": unsigned(32),
            "repeats": unsigned(32),
        }
    )


def fetch_command(cfg: FabricConfig) -> data.StructLayout:
    """``beats`` beats from device address ``offset`` (a multiple of port_bytes)."""
    return data.StructLayout(
        {"offset": unsigned(ADDRESS_BITS), "beats": unsigned(FETCH_BITS), "tag": BeatTag}
    )


def fetch_beat(cfg: FabricConfig) -> data.StructLayout:
    """``last`` marks the last beat of its command."""
    return data.StructLayout(
        {"data": unsigned(8 * cfg.port_bytes), "tag": BeatTag, "last": unsigned(1)}
    )


def kv_beat(cfg: FabricConfig) -> data.StructLayout:
    """``last`` marks the last beat of its burst."""
    return data.StructLayout({"data": unsigned(8 * cfg.port_bytes), "last": unsigned(1)})


def kv_command(cfg: FabricConfig) -> data.StructLayout:
    """One stream of K or V: ``positions`` positions of ``head_chunks`` beats, from a whole burst
    on."""
    return data.StructLayout(
        {"is_v": unsigned(1), "positions": unsigned(16), "head_chunks": unsigned(8)}
    )


def write_beat(cfg: FabricConfig) -> data.StructLayout:
    """One beat for the Writer; ``addr`` (device address) counts with ``first``."""
    return data.StructLayout(
        {
            "first": unsigned(1),
            "last": unsigned(1),
            "addr": unsigned(ADDRESS_BITS),
            "data": unsigned(8 * cfg.port_bytes),
            "strb": unsigned(cfg.port_bytes),
        }
    )


def windows() -> data.StructLayout:
    """Bases (bus addresses) and sizes (bytes) of the bulk window and of the job window."""
    names = ("window_base", "window_size", "job_base", "job_size")
    return data.StructLayout({name: unsigned(ADDRESS_BITS) for name in names})


def row_record(cfg: FabricConfig) -> data.StructLayout:
    """A row of the row table, as the units see it (``isa.ROW``)."""
    return data.StructLayout(
        {
            "token": unsigned(32),
            "position": unsigned(16),
            "flags": unsigned(8),
            "slot": unsigned(8),
            "kv_slot": unsigned(ADDRESS_BITS),
            "scale_slot": unsigned(ADDRESS_BITS),
            "kv_row": unsigned(ADDRESS_BITS),
        }
    )


assert ACT_BITS == 16

"""How weights lie in the weight stream: one object per format, the only place that knows.

The stream is what the array takes in, word by word (``config.word_bytes``: a beat of every port),
in the order of the program. A matrix [outputs, inputs] is cut into column-blocks of ``cols`` output
channels and row-blocks of ``rows`` inputs; channels and inputs that are missing are zeros.

A new format is a class like :class:`Int8` and a line in FORMATS, besides the unit that expands it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.fixed import ceil_div, round_up
from tokenfabric.core.isa import Instruction

__all__ = [
    "FORMATS",
    "INT8",
    "Int8",
    "WeightFormat",
    "format_of",
    "from_superblocks",
    "memory_offsets",
    "superblocks",
    "to_superblocks",
]

Array = npt.NDArray[Any]
MULT_BYTES = 2  # of a channel's multiplier


class WeightFormat(Protocol):
    """What is asked of a format; shapes and sizes as in :class:`Int8`."""

    @property
    def name(self) -> str:
        """As in FORMATS."""

    def stored_bytes(self, outputs: int, inputs: int) -> int:
        """Useful bytes of a matrix with its multipliers: what any accelerator must read."""

    def words(self, cfg: FabricConfig, blocks: int, inputs: int) -> int:
        """Words of the stream that ``blocks`` column-blocks of a matrix take."""

    def pack(self, cfg: FabricConfig, weight: Array, mult: Array) -> Array:
        """The words of a matrix."""

    def unpack(
        self, cfg: FabricConfig, words: Array, blocks: int, inputs: int
    ) -> tuple[Array, Array]:
        """The inverse of :meth:`pack`, padding included."""

    def group_bytes(self, cfg: FabricConfig, inputs: int) -> int:
        """Bytes of the stream from a word of multipliers to the next."""

    def channel(self, cfg: FabricConfig, inputs: int, number: int) -> tuple[int, Array]:
        """Where a channel stands: byte of its multiplier, bytes of its weights in order."""


@dataclass(frozen=True)
class Int8:
    """int8 weights with a uint16 multiplier per output channel.

    For each group of ``config.scale_channels`` channels: a word of multipliers; then for each of
    its column-blocks, for each row-block, a tile of ``config.tile_cycles`` words: column after
    column, each ``rows`` inputs in order. The last group may have fewer column-blocks.
    """

    name: str = "int8"

    def stored_bytes(self, outputs: int, inputs: int) -> int:
        """outputs * inputs weights and ``outputs`` multipliers."""
        return outputs * inputs + MULT_BYTES * outputs

    def words(self, cfg: FabricConfig, blocks: int, inputs: int) -> int:
        """Of ``blocks`` column-blocks with so many inputs (at least 1)."""
        mults = ceil_div(blocks * cfg.cols, cfg.scale_channels)
        return mults + blocks * ceil_div(inputs, cfg.rows) * cfg.tile_cycles

    def pack(self, cfg: FabricConfig, weight: Array, mult: Array) -> Array:
        """uint8 [words, word_bytes] of weight int8 [n, k] and mult uint16 [n]; cols divides n."""
        n, k = weight.shape
        k_blocks = ceil_div(k, cfg.rows)
        padded = np.zeros((n, k_blocks * cfg.rows), np.int8)
        padded[:, :k] = weight
        tiles = padded.reshape(n // cfg.cols, cfg.cols, k_blocks, cfg.rows).transpose(0, 2, 1, 3)
        tiles = tiles.reshape(n // cfg.cols, -1, cfg.word_bytes).view(np.uint8)
        per_group = cfg.scale_channels // cfg.cols
        scales = np.zeros(round_up(n, cfg.scale_channels), "<u2")
        scales[:n] = mult
        mults = scales.view(np.uint8).reshape(-1, 1, cfg.word_bytes)
        full = len(tiles) // per_group
        group_words = per_group * k_blocks * cfg.tile_cycles
        words = tiles[: full * per_group].reshape(full, group_words, cfg.word_bytes)
        words = np.concatenate([mults[:full], words], axis=1).reshape(-1, cfg.word_bytes)
        rest = tiles[full * per_group :].reshape(-1, cfg.word_bytes)
        return np.concatenate([words, *mults[full:], rest])

    def unpack(
        self, cfg: FabricConfig, words: Array, blocks: int, inputs: int
    ) -> tuple[Array, Array]:
        """int8 [blocks * cols, inputs padded to row-blocks], uint16 [blocks * cols]."""
        k_blocks = ceil_div(inputs, cfg.rows)
        group = cfg.scale_channels // cfg.cols  # column-blocks that share a word of multipliers
        weights, mults, at = [], [], 0
        for first in range(0, blocks, group):
            count = min(group, blocks - first)
            mults.append(words[at].view("<u2")[: count * cfg.cols])
            size = count * k_blocks * cfg.tile_cycles
            tiles = words[at + 1 : at + 1 + size].view(np.int8)
            tiles = tiles.reshape(count, k_blocks, cfg.cols, cfg.rows)
            weights.append(tiles.transpose(0, 2, 1, 3).reshape(count * cfg.cols, -1))
            at += 1 + size
        return np.concatenate(weights), np.concatenate(mults)

    def group_bytes(self, cfg: FabricConfig, inputs: int) -> int:
        """Of a whole group: its word of multipliers and its column-blocks."""
        return self.words(cfg, cfg.scale_channels // cfg.cols, inputs) * cfg.word_bytes

    def channel(self, cfg: FabricConfig, inputs: int, number: int) -> tuple[int, Array]:
        """In the stream's order of bytes, counted from the matrix's first word.

        The multiplier's first byte; the bytes of ``inputs`` weights, int64 [inputs].
        """
        group, within = divmod(number, cfg.scale_channels)
        block, column = divmod(within, cfg.cols)
        base = group * self.group_bytes(cfg, inputs)
        tile = base + cfg.word_bytes + block * ceil_div(inputs, cfg.rows) * cfg.macs
        row_block, row = np.divmod(np.arange(inputs), cfg.rows)
        return base + MULT_BYTES * within, tile + row_block * cfg.macs + column * cfg.rows + row


INT8 = Int8()
FORMATS: Mapping[str, WeightFormat] = MappingProxyType({INT8.name: INT8})


def format_of(instruction: Instruction) -> WeightFormat:
    """Of the matrix that a MATMUL takes from the stream.

    There is one format, so nothing in an instruction says which. A second one adds that field to
    the instruction set, and is looked up by it here.
    """
    return INT8


# --- the stream in memory: superblocks -----------------------------------------------------------
#
# A superblock is BURST_BEATS words: in memory a burst of every port in turn, so that each port
# reads whole bursts at ascending addresses.


def superblocks(words: int) -> int:
    """Superblocks that so many words take; zeros fill the last one."""
    return ceil_div(words, BURST_BEATS)


def to_superblocks(cfg: FabricConfig, words: Array) -> Array:
    """uint8 [bytes]: words of the stream, padded to whole superblocks, in the order of memory."""
    padded = np.zeros((superblocks(len(words)) * BURST_BEATS, cfg.word_bytes), np.uint8)
    padded[: len(words)] = words
    beats = padded.reshape(-1, BURST_BEATS, cfg.ports, cfg.port_bytes)
    return np.ascontiguousarray(beats.transpose(0, 2, 1, 3)).reshape(-1)


def from_superblocks(cfg: FabricConfig, data: Array) -> Array:
    """uint8 [words, word_bytes]: the words of whole superblocks as they lie in memory."""
    beats = data.reshape(-1, cfg.ports, BURST_BEATS, cfg.port_bytes)
    return beats.transpose(0, 2, 1, 3).reshape(-1, cfg.word_bytes)


def memory_offsets(cfg: FabricConfig, at: Array) -> Array:
    """Where in memory the bytes ``at`` of the stream stand, both counted from its begin."""
    block, rest = at // cfg.superblock_bytes, at % cfg.superblock_bytes
    word, port = rest // cfg.word_bytes, rest // cfg.port_bytes % cfg.ports
    beat = port * BURST_BEATS + word
    return block * cfg.superblock_bytes + beat * cfg.port_bytes + rest % cfg.port_bytes

"""A program under construction: instructions, and the words of the weight stream that they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.fixed import round_up
from tokenfabric.core.hazards import InFlight
from tokenfabric.core.isa import Instruction, Op
from tokenfabric.core.weights import format_of

__all__ = ["Item", "Program", "chunks_of", "stream_words"]

Array = npt.NDArray[Any]


def stream_words(cfg: FabricConfig, instruction: Instruction) -> int:
    """Words of the weight stream that an instruction takes."""
    if instruction.op is Op.LOAD:
        return instruction.n
    if instruction.op is not Op.MATMUL:
        return 0
    return format_of(instruction).words(cfg, instruction.n, instruction.k * cfg.cols)


def chunks_of(vectors: list[Array], cols: int) -> Array:
    """int64: the vectors, each padded with zeros to whole chunks, one after the other."""
    padded = [np.zeros(round_up(v.size, cols), np.int64) for v in vectors]
    for room, vector in zip(padded, vectors, strict=True):
        room[: vector.size] = vector.ravel()
    return np.concatenate(padded)


@dataclass(frozen=True)
class Item:
    """An instruction, and what makes the words that it takes, uint8 [words, word_bytes]."""

    instruction: Instruction
    words: Callable[[], Array] | None = None


class Program:
    """The instructions of a step of up to ``rows`` rows, in order.

    Each waits for what it conflicts with and nothing else. Words are made when they are asked for,
    so that a program can be looked at without weights.
    """

    def __init__(self, cfg: FabricConfig, rows: int):
        self.cfg = cfg
        self.items: list[Item] = []
        self._in_flight = InFlight(cfg, rows)

    @property
    def code(self) -> list[Instruction]:
        return [item.instruction for item in self.items]

    def stream_words(self, want: int) -> int:
        """Words of the stream's part that only steps with logits take, or (0) of the other part."""
        return sum(stream_words(self.cfg, i) for i in self.code if i.want == want)

    def stream(self, want: int) -> Array:
        """Those words, uint8 [words, word_bytes]."""
        made = [item.words() for item in self.items if item.words and item.instruction.want == want]
        return np.concatenate(made)

    def add(self, op: Op, words: Callable[[], Array] | None = None, **fields: int) -> None:
        """Append an instruction; ``words`` makes as many as :func:`stream_words` says."""
        instruction = Instruction(op=op, **fields)
        instruction = replace(instruction, wait=int(self._in_flight.wait_for(instruction)))
        self._in_flight.start(instruction)
        self.items.append(Item(instruction, words))

    def load(self, values: Array, words: int | None = None, want: int = 0) -> None:
        """LOAD of int16 ``values`` to PARAM from chunk 0 on, padded with zeros to ``words`` words
        of the stream (by default as many as they need)."""
        lanes = self.cfg.word_bytes // 2
        count = round_up(values.size, lanes) // lanes if words is None else words

        def made() -> Array:
            padded = np.zeros(count * lanes, "<i2")
            padded[: values.size] = values
            return padded.view(np.uint8).reshape(-1, self.cfg.word_bytes)

        self.add(Op.LOAD, made, n=count, want=want)

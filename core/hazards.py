"""Which instructions must not run at the same time, and what one must wait for.

Instructions start in order, each when its own unit and every unit of its ``wait`` is idle; units
work on their own from there. So two instructions conflict if one writes a chunk that the other
reads or writes, or if they need the same read port. What they touch is said by the rows of
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from tokenfabric.core.isa import NO_UNIT, OPERATIONS, Access, Instruction, Sizes, Unit, shares

__all__ = ["InFlight", "conflict", "overlap"]


@lru_cache(maxsize=4096)
def _chunks(access: Access, rows: int) -> frozenset[int]:
    """Every chunk of an access in a step of so many rows."""
    starts = (
        access.at + row * access.stride + piece * access.pitch
        for row in range(rows if access.stride else 1)
        for piece in range(access.pieces)
    )
    return frozenset(chunk for start in starts for chunk in range(start, start + access.chunks))


@lru_cache(maxsize=4096)
def overlap(a: Access, b: Access, rows: int) -> bool:
    """Whether two accesses have a chunk in common in a step of so many rows."""
    return a.memory is b.memory and not _chunks(a, rows).isdisjoint(_chunks(b, rows))


def conflict(sizes: Sizes, rows: int, first: Instruction, then: Instruction) -> Unit:
    """Units that must be idle after ``first`` has started before ``then`` may; none: NO_UNIT.

    ``rows``: of a step; the most there can be, for fewer touch a part of the same chunks.
    """
    row, other = OPERATIONS[first.op], OPERATIONS[then.op]
    reads, writes = row.reads(first, sizes), row.writes(first, sizes)
    later_reads, later_writes = other.reads(then, sizes), other.writes(then, sizes)

    def touch(some: Iterable[Access], others: Iterable[Access]) -> bool:
        return any(overlap(a, b, rows) for a in some for b in others)

    if touch(writes, (*later_reads, *later_writes)):
        return row.unit | row.through
    port = {a.memory for a in reads if a.memory.one_reader}
    shared = row.unit != other.unit and any(a.memory in port for a in later_reads)
    return row.unit if shared or touch(reads, later_writes) else NO_UNIT


class InFlight:
    """The instructions that may still be running, while a program is written or walked.

    ``rows``: the most rows of a step. An instruction is over for good once its unit has been waited
    for; what it writes, once the unit that still works on it has been, at the same time or later.
    """

    def __init__(self, sizes: Sizes, rows: int):
        self.sizes, self.rows = sizes, rows
        self._running: list[tuple[Instruction, Unit]] = []  # and what it has to be waited for

    def wait_for(self, instruction: Instruction) -> Unit:
        """What ``instruction`` must name in its ``wait`` if it comes next, and nothing more.

        Units that the sequencer waits for in any case are left out.
        """
        wait = NO_UNIT
        for earlier, left in self._running:
            wait |= conflict(self.sizes, self.rows, earlier, instruction) & left
        return wait & ~shares(instruction.op)

    def start(self, instruction: Instruction) -> None:
        """``instruction``, with its ``wait``, comes next."""
        idle = Unit(instruction.wait) | shares(instruction.op)
        running = []
        for earlier, left in self._running:
            row = OPERATIONS[earlier.op]
            # The unit that follows may be idle only because nothing has reached it yet.
            done = idle if idle & row.unit or not left & row.unit else NO_UNIT
            if left & ~done:
                running.append((earlier, left & ~done))
        self._running = running
        row = OPERATIONS[instruction.op]
        if row.unit:
            self._running.append((instruction, row.unit | row.through))

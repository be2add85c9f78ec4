"""The proof that no instruction of a program starts while one that it conflicts with may run."""

from __future__ import annotations

from collections.abc import Sequence

from tokenfabric.core.config import FabricConfig
from tokenfabric.core.hazards import conflict
from tokenfabric.core.isa import NO_UNIT, OPERATIONS, Instruction, Unit, disassemble, shares

__all__ = ["HazardError", "check_program"]

ALL = NO_UNIT
for _unit in Unit:
    ALL |= _unit


class HazardError(RuntimeError):
    """A program in which two instructions may run at the same time that must not: a fault of the
    compiler, never of a model."""


def check_program(cfg: FabricConfig, rows: int, code: Sequence[Instruction]) -> None:
    """Check a program of steps with up to ``rows`` rows, pair by pair.

    A step is followed by another one, and its instructions for rows that want logits may be
    skipped: every pair is looked at in each of these orders. HazardError names the first pair.
    """
    for skipped in (False, True):
        step = [i for i in code if not (skipped and i.want)]
        _check_order(cfg, rows, [*step, *step])


def _check_order(cfg: FabricConfig, rows: int, order: Sequence[Instruction]) -> None:
    waits = [Unit(i.wait) | shares(i.op) for i in order]
    for number, then in enumerate(order):
        for at in range(number - 1, -1, -1):
            first = order[at]
            needed = conflict(cfg, rows, first, then)
            left = _not_waited_for(needed, first, waits[at + 1 : number + 1])
            if left:
                raise HazardError(
                    f"instruction {number} ({disassemble(then)}) may start before instruction {at} "
                    f"({disassemble(first)}) is done: it does not wait for {left!r}"
                )
            if waits[at] == ALL:  # whatever came before was done when this one started
                break


def _not_waited_for(needed: Unit, first: Instruction, waits: Sequence[Unit]) -> Unit:
    """Of the units ``needed`` after ``first``, those that nothing since then has waited for.

    A unit that works on its writes counts from when its own unit was idle: before, it may have been
    idle only because nothing had reached it.
    """
    left, own = needed, OPERATIONS[first.op].unit
    for idle in waits:
        left &= ~(idle if idle & own or not left & own else NO_UNIT)
    return left

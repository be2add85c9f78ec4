"""How many cells hang on one enable or one reset, from a netlist that yosys has mapped."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

__all__ = ["control_fan_out"]

SHOWN = 3  # nets of each kind
CLOCKED = (
    "FD", "SRL", "DSP48", "RAMB", "URAM", "TRELLIS_FF", "MULT18", "DP16KD", "PDPW", "$_DFFE",
)  # fmt: skip
PINS = {
    "enable": re.compile(r"CE|OCE|REGCE|EN|E$"),
    "reset": re.compile(r"RST|LSR$|CLR$|PRE$|R$|S$"),
}


def control_fan_out(
    module: dict[str, Any], names: dict[int, str]
) -> dict[str, list[dict[str, Any]]]:
    """The enables and the resets that most cells hang on: ``signal``, ``cells``, ``register``.

    Cells are flip-flops, shift registers, multipliers and memories, each counted once per net:
    what is inside a DSP slice is one load. ``register``: a flip-flop drives the net, not a LUT.
    ``names``: of the bits (:func:`tokenfabric.flow.synth.net_names`).
    """
    counts: dict[str, Counter[int]] = {kind: Counter() for kind in PINS}
    registers: set[int] = set()
    for cell in module["cells"].values():
        if not cell["type"].startswith(CLOCKED):
            continue
        pins = cell["connections"]
        registers.update(bit for bit in pins.get("Q", ()) if isinstance(bit, int))
        for kind, pattern in PINS.items():
            nets = {
                bit
                for pin, bits in pins.items()
                if pattern.match(pin)
                for bit in bits
                if isinstance(bit, int)
            }
            counts[kind].update(nets)
    return {
        kind: [
            {"signal": names.get(bit, "?"), "cells": count, "register": bit in registers}
            for bit, count in found.most_common(SHOWN)
        ]
        for kind, found in counts.items()
    }

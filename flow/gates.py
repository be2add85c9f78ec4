"""What an accelerator takes of a chip: gate equivalents of every unit, and its memories as macros.

yosys maps the logic of each unit to two-input gates and flip-flops; the weights turn them into
areas of a NAND gate, as in an open 45 nm library. Memories stay whole: each is made in
:mod:`tokenfabric.rtl.memory`, and on a chip it is a macro there.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amaranth.lib import wiring
from tokenfabric.core.config import FabricConfig, preset
from tokenfabric.flow.verilog import run_yosys, to_rtlil

__all__ = ["gate_equivalents", "librelane_config"]

DEADLINE = 4 * 3600  # seconds
# Area in NAND gates.
GATES = {
    "$_NAND_": 1.0, "$_NOR_": 1.0, "$_NOT_": 0.67, "$_AND_": 1.33, "$_OR_": 1.33, "$_XOR_": 2.0,
    "$_XNOR_": 2.0, "$_MUX_": 2.33, "$_DFF_P_": 5.67, "$_DFFE_PP_": 8.0,
}  # fmt: skip
SCRIPT = (
    "read_rtlil top.il; proc; opt; wreduce; peepopt; opt_clean; memory -nomap; opt_clean; "
    "dump -m -o memories.txt t:$mem_v2; chtype -set MEMORY t:$mem_v2; techmap; opt; "
    "dfflegalize -cell $_DFF_P_ 01 -cell $_DFFE_PP_ 01; opt_clean; "
    "abc -g NAND,NOR,AND,OR,XOR,XNOR,MUX; opt_clean; tee -q -o stat.json stat -json"
)


def gate_equivalents(
    component: wiring.Component, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """``units``: per unit, by its path, {gates, flip_flops, macros, memory_bits} of it and of the
    units in it; ``macros``: {words, bits, count}, the largest first. The top is unit "top"."""
    if progress is not None:
        progress("counting gates, unit by unit")
    text = to_rtlil(component)
    with tempfile.TemporaryDirectory(prefix="tokenfabric-") as directory:
        (Path(directory) / "top.il").write_text(text)
        run_yosys(SCRIPT, Path(directory), DEADLINE)
        stat = json.loads((Path(directory) / "stat.json").read_text())
        memories = (Path(directory) / "memories.txt").read_text()
    return _by_unit(stat["modules"], memories)


def _by_unit(modules: dict[str, Any], memories: str) -> dict[str, Any]:
    units: dict[str, dict[str, Any]] = {}

    def add(module: str, **amounts: float) -> None:
        """To a module, called by its path from the top, and to all that it is part of."""
        parts = module.lstrip("\\").split(".")
        for depth in range(len(parts)):
            empty = {"gates": 0.0, "flip_flops": 0, "macros": 0, "memory_bits": 0}
            unit = units.setdefault(".".join(parts[: depth + 1]), empty)
            for name, amount in amounts.items():
                unit[name] += amount

    for module, stat in modules.items():
        cells = stat["num_cells_by_type"]
        unknown = {kind for kind in cells if kind.startswith("$")} - set(GATES)
        if unknown:
            raise ValueError(f"{module}: no areas of {', '.join(sorted(unknown))}")
        gates = sum(GATES.get(kind, 0) * count for kind, count in cells.items())
        flops = sum(count for kind, count in cells.items() if kind.startswith("$_DFF"))
        add(module, gates=gates, flip_flops=flops)
    sizes: dict[tuple[int, int], int] = {}
    for module, body in re.findall(r"module (\S+)\n(.*?)\nend\n", memories, re.DOTALL):
        for cell in body.split("cell $mem_v2 ")[1:]:
            size = tuple(int(re.search(rf"{p} (\d+)\n", cell)[1]) for p in (r"\\SIZE", r"\\WIDTH"))
            words, bits = size
            sizes[words, bits] = sizes.get((words, bits), 0) + 1
            add(module, macros=1, memory_bits=words * bits)
    units = {path: units[path] | {"gates": round(units[path]["gates"])} for path in sorted(units)}
    ordered = sorted(sizes.items(), key=lambda item: (-item[0][0] * item[0][1] * item[1], item))
    return {
        "units": units,
        "macros": [{"words": w, "bits": b, "count": n} for (w, b), n in ordered],
    }


def librelane_config(cfg: FabricConfig) -> dict[str, Any]:
    """What LibreLane's flow must know of an accelerator, beside its Verilog in ``top.v``."""
    return {
        "DESIGN_NAME": "top",
        "VERILOG_FILES": "dir::top.v",
        "CLOCK_PORT": "clk",
        "CLOCK_PERIOD": 1e3 / cfg.clock_mhz,
    }


if __name__ == "__main__":
    print(json.dumps(librelane_config(preset("pynq-z2")), indent=2))

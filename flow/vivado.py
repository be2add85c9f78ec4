"""What Vivado needs for a bitstream, as texts: Verilog, the IP's component.xml, a build script.

Only text is made; everything in it follows from a BoardSpec, its FabricConfig and the register map.
The IP is ``tokenfabric``: the accelerator ``top`` in a shell that gives each memory port all the
signals of the processor's port, constants where the accelerator has none, so that the two can be
wired directly. IEEE 1685-2009 (IP-XACT); Xilinx UG1118, UG585 (AXI_HP), UG1085 (S_AXI_HP).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from amaranth.hdl import Shape
from amaranth.lib.wiring import Out
from tokenfabric.core.boards import INSTANCE, VLNV, BoardSpec
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.registers import REGISTERS
from tokenfabric.rtl.axi import lite, memory_port
from tokenfabric.rtl.control import RegisterPort

__all__ = ["Port", "build_files", "ip_ports", "stem"]

CONTROL = "s_axi_ctrl"
MODIFIABLE_BUFFERABLE = 0b0011
ID_BITS = 6  # of the S_AXI_HP ports of both families
IP_FOLDER = f"ip/{VLNV.split(':')[2]}"


@dataclass(frozen=True)
class _Slave:
    """A memory port of a processor."""

    interface: str
    clock: str
    segment: str  # of addresses
    use: str  # settings
    width: str


@dataclass(frozen=True, kw_only=True)
class _Processor:
    """The processor's IP as the script meets it: names, and how its memory ports differ."""

    family: str  # Vivado's name
    protocol: str
    data_bits: tuple[int, ...]  # widths of a memory port
    address_bits: int
    len_bits: int
    lock_bits: int
    automation: str  # of the block automation
    clock: str  # pins and interfaces
    reset: str
    interrupt: str
    master: str
    master_clock: str
    clock_setting: str  # MHz
    settings: dict[str, str]
    slaves: dict[str, _Slave]  # by their names in FabricConfig.ps_ports


def _ultrascale(name: str, number: int) -> _Slave:
    return _Slave(
        f"S_AXI_{name.upper()}_FPD",
        f"saxi{name}_fpd_aclk",
        f"SAXIGP{number}/{name.upper()}_DDR_LOW",
        f"PSU__USE__S_AXI_GP{number}",
        f"PSU__SAXIGP{number}__DATA_WIDTH",
    )


PROCESSORS = {
    "processing_system7": _Processor(
        family="zynq",
        protocol="AXI3",
        data_bits=(32, 64),
        address_bits=32,
        len_bits=4,
        lock_bits=2,
        automation='make_external "FIXED_IO, DDR" Master Disable Slave Disable',
        clock="FCLK_CLK0",
        reset="FCLK_RESET0_N",
        interrupt="IRQ_F2P",
        master="M_AXI_GP0",
        master_clock="M_AXI_GP0_ACLK",
        clock_setting="PCW_FPGA0_PERIPHERAL_FREQMHZ",
        settings={
            "PCW_USE_M_AXI_GP0": "1",
            "PCW_USE_M_AXI_GP1": "0",
            "PCW_EN_CLK0_PORT": "1",
            "PCW_EN_RST0_PORT": "1",
            "PCW_USE_FABRIC_INTERRUPT": "1",
            "PCW_IRQ_F2P_INTR": "1",
        },
        slaves={
            f"hp{i}": _Slave(
                f"S_AXI_HP{i}",
                f"S_AXI_HP{i}_ACLK",
                f"S_AXI_HP{i}/HP{i}_DDR_LOWOCM",
                f"PCW_USE_S_AXI_HP{i}",
                f"PCW_S_AXI_HP{i}_DATA_WIDTH",
            )
            for i in range(4)
        },
    ),
    "zynq_ultra_ps_e": _Processor(
        family="zynquplus",
        protocol="AXI4",
        data_bits=(32, 64, 128),
        address_bits=49,
        len_bits=8,
        lock_bits=1,
        automation="",
        clock="pl_clk0",
        reset="pl_resetn0",
        interrupt="pl_ps_irq0",
        master="M_AXI_HPM0_FPD",
        master_clock="maxihpm0_fpd_aclk",
        clock_setting="PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
        settings={
            "PSU__USE__M_AXI_GP0": "1",  # M_AXI_HPM0_FPD, as wide as after a reset
            "PSU__MAXIGP0__DATA_WIDTH": "128",
            "PSU__USE__M_AXI_GP1": "0",
            "PSU__USE__M_AXI_GP2": "0",
            "PSU__FPGA_PL0_ENABLE": "1",
            "PSU__CRL_APB__PL0_REF_CTRL__SRCSEL": "IOPLL",  # the only source that PYNQ sets
            "PSU__USE__IRQ0": "1",
        },
        slaves={
            **{f"hpc{i}": _ultrascale(f"hpc{i}", i) for i in range(2)},
            **{f"hp{i}": _ultrascale(f"hp{i}", i + 2) for i in range(4)},
        },
    ),
}


def _slaves(cfg: FabricConfig, spec: BoardSpec) -> list[_Slave]:
    """The processor's ports for the accelerator's. UserError if there are no such ports."""
    processor, bits = PROCESSORS[spec.ps], 8 * cfg.port_bytes
    names = cfg.ps_ports or tuple(f"hp{number}" for number in range(cfg.ports))
    for what, wanted, there in (
        ("memory ports", names, processor.slaves),
        ("widths of memory ports", (bits,), processor.data_bits),
    ):
        if not set(wanted) <= set(there):
            raise UserError(
                f"board {spec.name}: the {what} are {', '.join(map(str, there))}, config "
                f"{cfg.name} needs {', '.join(map(str, wanted))}; use another config"
            )
    return [processor.slaves[name] for name in names]


def _settings(cfg: FabricConfig, spec: BoardSpec) -> dict[str, str]:
    """Of the processor's IP: one master, the memory ports, a clock, an interrupt; no more."""
    processor = PROCESSORS[spec.ps]
    settings = {**processor.settings, processor.clock_setting: f"{spec.ps_clock_mhz:g}"}
    for slave in _slaves(cfg, spec):
        settings |= {slave.use: "1", slave.width: str(8 * cfg.port_bytes)}
    return {**settings, **dict(spec.ps_settings)}


# --- the shell around the accelerator ------------------------------------------------------------


@dataclass(frozen=True)
class Port:
    """A port of the IP. ``core``: bits of the accelerator's port of the same name, 0 if it has
    none; then an output is the constant ``value``."""

    name: str
    out: bool
    bits: int
    core: int = 0
    value: int = 0
    bus: str = ""  # the interface that it belongs to
    logical: str = ""  # its name there


def ip_ports(cfg: FabricConfig, spec: BoardSpec) -> list[Port]:
    """All ports of the IP, clock, reset and interrupt first."""
    ports = [
        Port("clk", False, 1, bus="clk", logical="CLK"),
        Port("resetn", False, 1, bus="resetn", logical="RST"),
        Port("irq", True, 1, core=1, bus="irq", logical="INTERRUPT"),
    ]
    for name, member in lite(RegisterPort.ADDR_BITS).members.items():
        bits = Shape.cast(member.shape).width
        out = member.flow is not Out  # the signature is the master's, we are the slave
        ports.append(Port(f"{CONTROL}_{name}", out, bits, bits, 0, CONTROL, name.upper()))
    for number in range(cfg.ports):
        ports += _memory_ports(cfg, PROCESSORS[spec.ps], number)
    return ports


def _memory_ports(cfg: FabricConfig, processor: _Processor, number: int) -> list[Port]:
    bus = f"m_axi_hp{number}"
    own = memory_port(cfg.port_bytes, writes=number == 0).members
    ports = []

    def add(name: str, out: bool, bits: int, core: int = 0, value: int = 0) -> None:
        ports.append(Port(f"{bus}_{name}", out, bits, core, value, bus, name.upper()))

    for name, member in memory_port(cfg.port_bytes, writes=True).members.items():
        core = Shape.cast(member.shape).width
        wide = {"addr": processor.address_bits, "len": processor.len_bits}
        bits = wide.get(name[2:], core) if name[0] == "a" else core
        add(name, member.flow is Out, bits, core if name in own else 0)
    for channel in "rw":
        add(f"a{channel}id", True, ID_BITS)
        add(f"a{channel}lock", True, processor.lock_bits)
        add(f"a{channel}cache", True, 4, value=MODIFIABLE_BUFFERABLE)
        add(f"a{channel}prot", True, 3)
        add(f"a{channel}qos", True, 4)
        add("rid" if channel == "r" else "bid", False, ID_BITS)
    if processor.protocol == "AXI3":
        add("wid", True, ID_BITS)
    return ports


def _range(bits: int) -> str:
    return f"[{bits - 1}:0] " if bits > 1 else ""


def _shell(ports: list[Port]) -> str:
    """Verilog of the IP's top module, around ``top``."""
    declared = [f"  {'output' if p.out else 'input'} wire {_range(p.bits)}{p.name}" for p in ports]
    body, pins = [], ["    .clk(clk)", "    .rst(rst)"]
    for port in ports:
        net = port.name
        if not port.core and port.out:
            body.append(f"  assign {port.name} = {port.bits}'d{port.value};")
        elif port.core and port.core != port.bits:  # only outputs: addresses and lengths
            net = f"core_{port.name}"
            body.append(f"  wire {_range(port.core)}{net};")
            missing = port.bits - port.core
            value = f"{{{missing}'d0, {net}}}" if missing > 0 else f"{net}{_range(port.bits)}"
            body.append(f"  assign {port.name} = {value.strip()};")
        if port.core:
            pins.append(f"    .{port.name}({net})")
    name = VLNV.split(":")[2]
    return "\n".join(
        [
            "`default_nettype none",
            f"module {name} (",
            ",\n".join(declared),
            ");",
            "  reg rst = 1'b1;",
            "  always @(posedge clk) rst <= ~resetn;",
            *body,
            "  top core (",
            ",\n".join(pins),
            "  );",
            "endmodule",
            "`default_nettype wire",
            "",
        ]
    )


# --- component.xml -------------------------------------------------------------------------------

SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
XILINX = "http://www.xilinx.com"
ACCESS = {"ro": "read-only", "rw": "read-write", "wo": "write-only"}
VIEWS = {
    "xilinx_anylanguagesynthesis": ":vivado.xilinx.com:synthesis",
    "xilinx_anylanguagebehavioralsimulation": ":vivado.xilinx.com:simulation",
}
FILES = ("hdl/top.v", f"hdl/{VLNV.split(':')[2]}.v")


def _add(parent: ET.Element, tag: str, text: object = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(
        parent, f"{{{SPIRIT}}}{tag}", {f"{{{SPIRIT}}}{k}": v for k, v in attributes.items()}
    )
    if text is not None:
        child.text = str(text)
    return child


def _component(cfg: FabricConfig, spec: BoardSpec, ports: list[Port]) -> bytes:
    ET.register_namespace("spirit", SPIRIT)
    ET.register_namespace("xilinx", XILINX)
    root = ET.Element(f"{{{SPIRIT}}}component")
    vendor, library, name, version = VLNV.split(":")
    for tag, text in zip(
        ("vendor", "library", "name", "version"), (vendor, library, name, version)
    ):
        _add(root, tag, text)
    _interfaces(_add(root, "busInterfaces"), cfg, spec, ports)
    spaces = _add(root, "addressSpaces")
    for number in range(cfg.ports):
        space = _add(spaces, "addressSpace")
        _add(space, "name", f"m_axi_hp{number}")
        _add(space, "range", "4G")
        _add(space, "width", 8 * cfg.port_bytes)
    _memory_map(_add(_add(root, "memoryMaps"), "memoryMap"))
    model = _add(root, "model")
    views = _add(model, "views")
    for view, identifier in VIEWS.items():
        element = _add(views, "view")
        _add(element, "name", view)
        _add(element, "envIdentifier", identifier)
        _add(element, "language", "Verilog")
        _add(element, "modelName", name)
        _add(_add(element, "fileSetRef"), "localName", f"{view}_view_fileset")
    elements = _add(model, "ports")
    for port in ports:
        _port(_add(elements, "port"), port)
    sets = _add(root, "fileSets")
    for view in VIEWS:
        files = _add(sets, "fileSet")
        _add(files, "name", f"{view}_view_fileset")
        for path in FILES:
            file = _add(files, "file")
            _add(file, "name", path)
            _add(file, "fileType", "verilogSource")
    _add(root, "description", f"Decoder of language models, config {cfg.name} {cfg.fingerprint}")
    parameter = _add(_add(root, "parameters"), "parameter")
    _add(parameter, "name", "Component_Name")
    value = {"resolve": "user", "id": "PARAM_VALUE.Component_Name", "order": "1"}
    _add(parameter, "value", f"{name}_v{version.replace('.', '_')}", **value)
    extensions = ET.SubElement(_add(root, "vendorExtensions"), f"{{{XILINX}}}coreExtensions")
    families = ET.SubElement(extensions, f"{{{XILINX}}}supportedFamilies")
    family = ET.SubElement(
        families, f"{{{XILINX}}}family", {f"{{{XILINX}}}lifeCycle": "Production"}
    )
    family.text = PROCESSORS[spec.ps].family
    taxonomies = ET.SubElement(extensions, f"{{{XILINX}}}taxonomies")
    ET.SubElement(taxonomies, f"{{{XILINX}}}taxonomy").text = "/UserIP"
    ET.SubElement(extensions, f"{{{XILINX}}}displayName").text = name
    ET.SubElement(extensions, f"{{{XILINX}}}coreRevision").text = "1"
    ET.indent(root)
    return ET.tostring(root, encoding="UTF-8", xml_declaration=True) + b"\n"


def _interfaces(parent: ET.Element, cfg: FabricConfig, spec: BoardSpec, ports: list[Port]) -> None:
    processor = PROCESSORS[spec.ps]
    memory = [f"m_axi_hp{number}" for number in range(cfg.ports)]
    axi = {
        "PROTOCOL": processor.protocol,
        "DATA_WIDTH": str(8 * cfg.port_bytes),
        "ADDR_WIDTH": str(processor.address_bits),
        "ID_WIDTH": str(ID_BITS),
        "MAX_BURST_LENGTH": str(BURST_BEATS),
        "SUPPORTS_NARROW_BURST": "0",
    }
    busses: dict[str, tuple[str, str, str, dict[str, str]]] = {
        "clk": (
            "signal:clock",
            "slave",
            "",
            {"ASSOCIATED_BUSIF": ":".join([CONTROL, *memory]), "ASSOCIATED_RESET": "resetn"},
        ),
        "resetn": ("signal:reset", "slave", "", {"POLARITY": "ACTIVE_LOW"}),
        "irq": ("signal:interrupt", "master", "", {"SENSITIVITY": "LEVEL_HIGH"}),
        CONTROL: (
            "interface:aximm",
            "slave",
            "memoryMapRef",
            {
                "PROTOCOL": "AXI4LITE",
                "DATA_WIDTH": "32",
                "ADDR_WIDTH": str(RegisterPort.ADDR_BITS),
            },
        ),
        **{name: ("interface:aximm", "master", "addressSpaceRef", axi) for name in memory},
    }
    for bus, (kind, mode, reference, parameters) in busses.items():
        library, name = kind.split(":")
        interface = _add(parent, "busInterface")
        _add(interface, "name", bus)
        vlnv = {"vendor": "xilinx.com", "library": library, "version": "1.0"}
        _add(interface, "busType", name=name, **vlnv)
        _add(interface, "abstractionType", name=f"{name}_rtl", **vlnv)
        side = _add(interface, mode)
        if reference:
            _add(side, reference, **{reference: bus})
        maps = _add(interface, "portMaps")
        for port in ports:
            if port.bus == bus:
                entry = _add(maps, "portMap")
                _add(_add(entry, "logicalPort"), "name", port.logical)
                _add(_add(entry, "physicalPort"), "name", port.name)
        values = _add(interface, "parameters")
        for key, text in parameters.items():
            parameter = _add(values, "parameter")
            _add(parameter, "name", key)
            _add(parameter, "value", text, id=f"BUSIFPARAM_VALUE.{bus.upper()}.{key}")


def _memory_map(memory_map: ET.Element) -> None:
    _add(memory_map, "name", CONTROL)
    block = _add(memory_map, "addressBlock")
    _add(block, "name", "reg0")
    _add(block, "baseAddress", "0x0")
    _add(block, "range", 1 << RegisterPort.ADDR_BITS)
    _add(block, "width", 32)
    _add(block, "usage", "register")
    _add(block, "access", "read-write")
    for register in REGISTERS:
        element = _add(block, "register")
        _add(element, "name", register.name)
        _add(element, "description", register.doc)
        _add(element, "addressOffset", f"{register.offset:#x}")
        _add(element, "size", 32)
        if register.access == "ro":
            _add(element, "volatile", "true")
        _add(element, "access", ACCESS[register.access])
        for name, (lsb, bits) in register.fields.items():
            field = _add(element, "field")
            _add(field, "name", name)
            _add(field, "bitOffset", lsb)
            _add(field, "bitWidth", bits)
            _add(field, "access", ACCESS[register.access])


def _port(element: ET.Element, port: Port) -> None:
    _add(element, "name", port.name)
    wire = _add(element, "wire")
    _add(wire, "direction", "out" if port.out else "in")
    if port.bits > 1:
        vector = _add(wire, "vector")
        _add(vector, "left", port.bits - 1, format="long")
        _add(vector, "right", 0, format="long")
    definition = _add(_add(wire, "wireTypeDefs"), "wireTypeDef")
    _add(definition, "typeName", "wire")
    for view in VIEWS:
        _add(definition, "viewNameRef", view)


# --- the script ----------------------------------------------------------------------------------


def _script(cfg: FabricConfig, spec: BoardSpec, name: str, digest: str) -> str:
    processor = PROCESSORS[spec.ps]
    ports = []
    for number, slave in enumerate(_slaves(cfg, spec)):
        ports += [f"m_axi_hp{number}", slave.interface, slave.clock, slave.segment]
    settings = [x for k, v in _settings(cfg, spec).items() for x in (f"CONFIG.{k}", v)]
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
        "ps_settings": _lines(settings, 2),
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


# --- all of it -----------------------------------------------------------------------------------


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
    contents = (verilog, _shell(ports))
    files = {f"{IP_FOLDER}/{path}": text.encode() for path, text in zip(FILES, contents)}
    files[f"{IP_FOLDER}/component.xml"] = _component(cfg, spec, ports)
    script = _script(cfg, spec, "", "")
    digest = sha256(b"\0".join([*files.values(), script.encode()])).hexdigest()
    name = stem(spec, cfg, digest)
    files["build.tcl"] = _script(cfg, spec, name, digest).encode()
    return name, files

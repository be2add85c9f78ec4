"""The IP's component.xml: its ports, interfaces and registers for Vivado.

IEEE 1685-2009 (IP-XACT); Xilinx UG1118.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from tokenfabric.core.boards import VLNV, BoardSpec
from tokenfabric.core.config import BURST_BEATS, FabricConfig
from tokenfabric.core.registers import REGISTERS
from tokenfabric.flow.ip import CONTROL, FILES, Port
from tokenfabric.flow.zynq import ID_BITS, PROCESSORS
from tokenfabric.rtl.control import RegisterPort

__all__ = ["component"]

SPIRIT = "http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009"
XILINX = "http://www.xilinx.com"
ACCESS = {"ro": "read-only", "rw": "read-write", "wo": "write-only"}
VIEWS = {
    "xilinx_anylanguagesynthesis": ":vivado.xilinx.com:synthesis",
    "xilinx_anylanguagebehavioralsimulation": ":vivado.xilinx.com:simulation",
}


def _add(parent: ET.Element, tag: str, text: object = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(
        parent, f"{{{SPIRIT}}}{tag}", {f"{{{SPIRIT}}}{k}": v for k, v in attributes.items()}
    )
    if text is not None:
        child.text = str(text)
    return child


def component(cfg: FabricConfig, spec: BoardSpec, ports: list[Port]) -> bytes:
    """The file for an IP with these ports, :func:`tokenfabric.flow.ip.ip_ports`."""
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

# amaranth: UnusedElaboratable=no
"""What is written for Vivado: the IP, the block design that the script builds, its end."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from amaranth.hdl import Value
from amaranth.lib.wiring import Out
from tokenfabric.core.boards import BOARDS, INSTANCE, VLNV
from tokenfabric.core.config import PRESETS
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import write_folder
from tokenfabric.core.registers import REGISTERS
from tokenfabric.flow.verilog import run_yosys
from tokenfabric.flow.vivado import build_files
from tokenfabric.host.handoff import handoff
from tokenfabric.rtl.top import Top
from vivado_model import SPIRIT, OwnCell, Vivado, VivadoError, elements, text_of

PYNQ = PRESETS["pynq-z2"]
WIDE = PRESETS["kv260"]
TWO = PRESETS["tiny"]
CASES = [
    ("pynq-z2", PYNQ),
    ("pynq-z2", TWO),
    ("kv260", WIDE),
    ("zcu104", WIDE),
    ("kv260", TWO),
]
IDS = [f"{name}-{cfg.name}" for name, cfg in CASES]


def header(cfg) -> str:
    """The accelerator's ports as a Verilog module without a body."""
    ports = {"clk": ("input", 1), "rst": ("input", 1)}
    top = Top(cfg)
    for path, member, value in top.signature.flatten(top):
        way = "output" if member.flow is Out else "input"
        ports["_".join(map(str, path))] = (way, len(Value.cast(value)))
    lines = [f"{way} [{bits - 1}:0] {name}" for name, (way, bits) in ports.items()]
    return "(* blackbox *) module top(" + ", ".join(lines) + "); endmodule\n"


def built(board, cfg, tmp_path, change=lambda name, text: text):
    """The written folder; ``change`` breaks a text."""
    name, files = build_files(BOARDS[board], header(cfg), cfg)
    files = {path: change(path, data.decode()).encode() for path, data in files.items()}
    write_folder(tmp_path / "out", files)
    return name, tmp_path / "out"


def netlist(folder, tmp_path) -> dict:
    hdl = folder.relative_to(tmp_path) / "ip/tokenfabric/hdl"
    script = f"read_verilog {hdl}/top.v {hdl}/tokenfabric.v; proc; opt_clean; write_json net.json"
    run_yosys(script, tmp_path, 120)
    return json.loads((tmp_path / "net.json").read_text())["modules"]


def component(folder) -> ET.Element:
    return ET.parse(folder / "ip/tokenfabric/component.xml").getroot()


@pytest.fixture
def vivado():
    """Makes a model of Vivado; needs Tcl."""
    pytest.importorskip("tkinter", reason="the script needs a Tcl, Python's tkinter is missing")
    return Vivado


# --- the shell -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("board", "cfg"), CASES, ids=IDS)
def test_the_shell_hands_on_every_port_of_the_accelerator(board, cfg, tmp_path):
    _, folder = built(board, cfg, tmp_path)
    modules = netlist(folder, tmp_path)
    shell, top = modules["tokenfabric"], modules["top"]
    (core,) = (cell for cell in shell["cells"].values() if cell["type"] == "top")
    assert core["connections"].keys() == top["ports"].keys()
    for name, port in top["ports"].items():
        inside = core["connections"][name]
        assert len(inside) == len(port["bits"]), name
        if name == "rst":
            continue
        outside = shell["ports"][name]
        assert outside["direction"] == port["direction"]
        common = min(len(inside), len(outside["bits"]))
        assert inside[:common] == outside["bits"][:common], name
        assert all(isinstance(bit, int) for bit in inside[:common])
        assert set(outside["bits"][common:]) <= {"0"}, name  # addresses: the rest is 0
        if common < len(inside):  # lengths: at most 16 beats, 4 bits
            assert name.endswith("len") and common == 4


@pytest.mark.parametrize(("board", "cfg"), [CASES[0], CASES[2]], ids=[IDS[0], IDS[2]])
def test_what_the_accelerator_does_not_drive_is_constant(board, cfg, tmp_path):
    _, folder = built(board, cfg, tmp_path)
    modules = netlist(folder, tmp_path)
    shell, top = modules["tokenfabric"]["ports"], modules["top"]["ports"]
    constant = {
        name: int("".join(reversed(port["bits"])), 2)
        for name, port in shell.items()
        if port["direction"] == "output" and name not in top
    }
    for number in range(cfg.ports):
        for way in "rw":
            prefix = f"m_axi_hp{number}_a{way}"
            assert constant[prefix + "cache"] == 0b0011
            assert constant[prefix + "prot"] == constant[prefix + "id"] == 0
        if number:
            assert constant[f"m_axi_hp{number}_awvalid"] == 0
            assert constant[f"m_axi_hp{number}_wvalid"] == 0
    bits = {name: len(port["bits"]) for name, port in shell.items()}
    axi3 = board == "pynq-z2"
    assert bits["m_axi_hp0_arlen"] == (4 if axi3 else 8)
    assert bits["m_axi_hp0_arlock"] == (2 if axi3 else 1)
    assert bits["m_axi_hp0_araddr"] == (32 if axi3 else 49)
    assert ("m_axi_hp0_wid" in bits) == axi3


# --- component.xml -------------------------------------------------------------------------------

# IEEE 1685-2009: the children of an element in their order; * any number, + at least one, ? may be
# missing. Only those that we use.
ORDER = {
    "component": "vendor library name version busInterfaces? addressSpaces? memoryMaps? model? "
    "fileSets? description? parameters? vendorExtensions?",
    "busInterfaces": "busInterface+",
    "busInterface": "name busType abstractionType? master? slave? portMaps? parameters?",
    "portMaps": "portMap+",
    "portMap": "logicalPort physicalPort",
    "logicalPort": "name",
    "physicalPort": "name",
    "master": "addressSpaceRef?",
    "slave": "memoryMapRef?",
    "addressSpaces": "addressSpace+",
    "addressSpace": "name range width",
    "memoryMaps": "memoryMap+",
    "memoryMap": "name addressBlock*",
    "addressBlock": "name baseAddress range width usage? access? register*",
    "register": "name description? addressOffset size volatile? access? field*",
    "field": "name description? bitOffset bitWidth access?",
    "model": "views? ports?",
    "views": "view+",
    "view": "name envIdentifier+ language? modelName? fileSetRef*",
    "fileSetRef": "localName",
    "ports": "port+",
    "port": "name wire",
    "wire": "direction vector? wireTypeDefs?",
    "vector": "left right",
    "wireTypeDefs": "wireTypeDef+",
    "wireTypeDef": "typeName viewNameRef+",
    "fileSets": "fileSet+",
    "fileSet": "name file*",
    "file": "name fileType",
    "parameters": "parameter+",
    "parameter": "name value",
}
NAMED = ("busInterface", "addressSpace", "memoryMap", "addressBlock", "register", "field", "port")
UNIQUE = (*NAMED, "view", "fileSet", "file", "parameter")


def check_structure(element: ET.Element) -> None:
    """The element and all below it are made as the standard says; AssertionError if not."""
    tag = element.tag.removeprefix(SPIRIT)
    if tag == "vendorExtensions":
        return
    children = [child.tag.removeprefix(SPIRIT) for child in element]
    if tag in ORDER:
        pattern = "".join(
            f"(?:{word.rstrip('?*+')} ){word[-1] if word[-1] in '?*+' else ''}"
            for word in ORDER[tag].split()
        )
        assert re.fullmatch(pattern, "".join(child + " " for child in children)), (tag, children)
    else:
        assert not children, f"{tag} has children"
    for kind in UNIQUE:
        names = [text_of(child, "name") for child in elements(element, kind)]
        assert len(names) == len(set(names)), (tag, kind)
    for child in element:
        check_structure(child)


@pytest.mark.parametrize(("board", "cfg"), CASES, ids=IDS)
def test_the_component_is_ip_xact(board, cfg, tmp_path):
    _, folder = built(board, cfg, tmp_path)
    root = component(folder)
    check_structure(root)
    assert OwnCell(root).vlnv == VLNV
    ids = [e.get(SPIRIT + "id") for e in root.iter() if e.get(SPIRIT + "id")]
    assert len(ids) == len(set(ids))
    for file in elements(root, "fileSets/fileSet/file"):
        assert (folder / "ip/tokenfabric" / text_of(file, "name")).is_file()
    sets = {text_of(s, "name") for s in elements(root, "fileSets/fileSet")}
    for view in elements(root, "model/views/view"):
        assert text_of(view, "fileSetRef/localName") in sets


@pytest.mark.parametrize("wrong", ["order", "twice", "unknown"])
def test_the_structure_check_can_fail(wrong, tmp_path):
    _, folder = built("pynq-z2", TWO, tmp_path)
    root = component(folder)
    port = elements(root, "model/ports/port")[0]
    if wrong == "order":
        port.insert(0, port[1])
    elif wrong == "twice":
        elements(root, "model/ports")[0].append(port)
    else:
        ET.SubElement(port, SPIRIT + "colour")
    with pytest.raises(AssertionError):
        check_structure(root)


@pytest.mark.parametrize(("board", "cfg"), CASES, ids=IDS)
def test_the_components_ports_are_those_of_the_verilog(board, cfg, tmp_path):
    _, folder = built(board, cfg, tmp_path)
    root = component(folder)
    real = {
        name: (port["direction"], len(port["bits"]))
        for name, port in netlist(folder, tmp_path)["tokenfabric"]["ports"].items()
    }
    told = {}
    for port in elements(root, "model/ports/port"):
        left = port.findtext(f"{SPIRIT}wire/{SPIRIT}vector/{SPIRIT}left")
        bits = 1 if left is None else int(left) + 1
        told[text_of(port, "name")] = (text_of(port, "wire/direction") + "put", bits)
    assert told == real
    mapped = {}
    for bus in elements(root, "busInterfaces/busInterface"):
        for entry in elements(bus, "portMaps/portMap"):
            physical = text_of(entry, "physicalPort/name")
            assert physical not in mapped
            mapped[physical] = text_of(bus, "name")
            if "_" in physical:  # s_axi_ctrl_awaddr is AWADDR of s_axi_ctrl
                name = physical.removeprefix(text_of(bus, "name") + "_").upper()
                assert name == text_of(entry, "logicalPort/name")
    assert mapped.keys() == real.keys()
    for name, (_, _, bits) in OwnCell(root).interfaces().items():
        assert real[f"{name}_rdata"][1] == bits
    for bus in elements(root, "busInterfaces/busInterface"):
        values = {text_of(p, "name"): text_of(p, "value") for p in bus.iter(SPIRIT + "parameter")}
        if "ADDR_WIDTH" in values:
            assert real[text_of(bus, "name") + "_araddr"][1] == int(values["ADDR_WIDTH"])


def test_the_components_registers_are_the_register_map(tmp_path):
    _, folder = built("pynq-z2", TWO, tmp_path)
    block = elements(component(folder), "memoryMaps/memoryMap/addressBlock")[0]
    access = {"read-only": "ro", "read-write": "rw", "write-only": "wo"}
    found = [
        (
            text_of(r, "name"),
            int(text_of(r, "addressOffset"), 0),
            access[text_of(r, "access")],
            {
                text_of(f, "name"): (int(text_of(f, "bitOffset")), int(text_of(f, "bitWidth")))
                for f in elements(r, "field")
            },
        )
        for r in elements(block, "register")
    ]
    assert found == [(r.name, r.offset, r.access, r.fields) for r in REGISTERS]
    assert int(text_of(block, "range")) > REGISTERS[-1].offset
    for previous, register in pairwise(REGISTERS):
        assert register.offset >= previous.offset + 4


# --- the script ----------------------------------------------------------------------------------


@pytest.mark.parametrize("board_files", [True, False])
@pytest.mark.parametrize(("board", "cfg"), CASES, ids=IDS)
def test_the_script_builds_the_design(board, cfg, board_files, tmp_path, vivado, capfd):
    name, folder = built(board, cfg, tmp_path)
    model, spec = vivado(board_files=board_files), BOARDS[board]
    assert model.run(folder / "build.tcl") == 0
    assert model.part == spec.part
    for number, wanted in enumerate(cfg.ps_ports or ("hp0", "hp1", "hp2", "hp3")[: cfg.ports]):
        port = f"{INSTANCE}/m_axi_hp{number}"
        (slave,) = (b for a, b in model.links if a == port)
        assert slave.removesuffix("_FPD") == f"ps/S_AXI_{wanted.upper()}"
        (segment,) = (s for space, s in model.addresses if space == port)
        assert f"/{wanted.upper()}_DDR_LOW" in segment
    offsets = {s: offset for (_, s), offset in model.addresses.items() if offset is not None}
    assert offsets == {
        f"{INSTANCE}/s_axi_ctrl/reg0": spec.control_base,
        "axi_intc_0/S_AXI/Reg": spec.interrupt_base,
    }
    assert model.driver["axi_intc_0/intr"] == f"{INSTANCE}/irq"
    clock = model.driver[f"{INSTANCE}/clk"]
    assert model.mhz(clock) == cfg.clock_mhz
    for pin, source in model.driver.items():
        if pin.lower().endswith("clk"):
            assert source == clock, pin
    assert model.runs == ["synth_1 end", "impl_1 route_design", "impl_1 write_bitstream"]
    assert (folder / f"{name}.bit").read_text() == "bits"
    assert (folder / f"{name}.hwh").read_text() == "handoff"
    report = json.loads((folder / f"{name}.json").read_text())
    assert (report["met"], report["wns_ns"], report["fingerprint"]) == (True, 0.1, cfg.fingerprint)
    assert (report["lut"], report["ff"], report["bram36"]) == (31001, 24002, 94.5)
    assert (report["dsp"], report["uram"], report["vivado"]) == (174, None, "2024.2")
    assert report["clock_mhz"] == cfg.clock_mhz
    assert "tokenfabric:" in capfd.readouterr().out


@pytest.mark.parametrize(("board", "cfg"), CASES, ids=IDS)
def test_the_virtual_boards_handoff_shows_the_same_design(board, cfg, tmp_path, vivado):
    """Name, type, address, range, interface, registers, clock: what drivers go by."""
    _, folder = built(board, cfg, tmp_path)
    model, spec = vivado(), BOARDS[board]
    model.run(folder / "build.tcl")
    root = ET.fromstring(handoff(spec, cfg))
    own = root.find(f".//MODULE[@VLNV='{VLNV}']")
    place = root.find(f".//MEMRANGE[@INSTANCE='{own.get('INSTANCE')}']")
    cell = model.cells[own.get("INSTANCE")]
    assert cell.vlnv == VLNV
    segment = f"{place.get('SLAVEBUSINTERFACE')}/{own.find('.//ADDRESSBLOCK').get('NAME')}"
    assert [segment] == cell.segments
    segment = f"{own.get('INSTANCE')}/{segment}"
    low, high = (int(place.get(key), 0) for key in ("BASEVALUE", "HIGHVALUE"))
    assert model.addresses["ps/Data", segment] == low
    assert model.ranges[segment] == f"{(high + 1 - low) // 1024}K"
    processor = root.find(f".//MODULE[@MODTYPE='{model.cells['ps'].kind}']")
    clocks = [p for p in processor.iter("PARAMETER") if "ACT_F" in p.get("NAME")]
    given = model.cells["ps"].settings
    (wanted,) = (v for k, v in given.items() if k.endswith("0_PERIPHERAL_FREQMHZ")
                 or k.endswith("PL0_REF_CTRL__FREQMHZ"))  # fmt: skip
    assert float(clocks[0].get("VALUE")) == float(wanted)

    def told(element, key):
        return element.find(f"PROPERTY[@NAME='{key}']").get("VALUE")

    shown = [
        (r.get("NAME"), int(told(r, "ADDRESS_OFFSET"), 0), told(r, "ACCESS"),
         [(f.get("NAME"), told(f, "BIT_OFFSET"), told(f, "BIT_WIDTH")) for f in r.iter("FIELD")])
        for r in own.iter("REGISTER")
    ]  # fmt: skip
    described = [
        (text_of(r, "name"), int(text_of(r, "addressOffset"), 0), text_of(r, "access"),
         [(text_of(f, "name"), text_of(f, "bitOffset"), text_of(f, "bitWidth"))
          for f in elements(r, "field")])
        for r in elements(component(folder), "memoryMaps/memoryMap/addressBlock/register")
    ]  # fmt: skip
    assert shown == described


@pytest.mark.parametrize("reached", [{"slack": -0.01}, {"unrouted": 3}])
def test_a_design_that_is_too_slow_is_no_bitstream(reached, tmp_path, vivado, capfd):
    name, folder = built("pynq-z2", TWO, tmp_path)
    model = vivado(**reached)
    assert model.run(folder / "build.tcl") == 1
    assert "impl_1 write_bitstream" not in model.runs
    assert not list(folder.glob("*.bit"))
    assert json.loads((folder / f"{name}.json").read_text())["met"] is False
    assert "not met at 100.0 MHz" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("HP1_DATA_WIDTH 64", "HP1_DATA_WIDTH 32", "does not fit"),
        ("m_axi_hp1 S_AXI_HP1", "m_axi_hp1 S_AXI_HP0", "connected twice"),
        ("PCW_USE_M_AXI_GP1 0", "PCW_USE_M_AXI_GP1 1", "M_AXI_GP1"),
        ("HP1_ACLK S_AXI", "HP0_ACLK S_AXI", "driven twice"),
        ("set ps_interrupt {IRQ_F2P}", "set ps_interrupt {IRQ_P2F}", "does not exist"),
    ],
)
def test_the_model_of_vivado_can_fail(old, new, complaint, tmp_path, vivado):
    def change(path, text):
        if path == "build.tcl":
            assert old in text
            text = text.replace(old, new)
        return text

    _, folder = built("pynq-z2", TWO, tmp_path, change)
    with pytest.raises(VivadoError, match=complaint):
        vivado().run(folder / "build.tcl")


def test_another_clock_than_the_configs_is_refused(tmp_path, vivado, capfd):
    def change(path, text):
        return text.replace("set clock_mhz {100}", "set clock_mhz {120}")

    _, folder = built("pynq-z2", TWO, tmp_path, change)
    assert vivado().run(folder / "build.tcl") == 1
    assert "100.0 MHz instead of 120 MHz" in capfd.readouterr().err


# --- names, refusals, the command ----------------------------------------------------------------


def test_the_name_changes_with_the_sources():
    spec, text = BOARDS["pynq-z2"], header(TWO)
    name, files = build_files(spec, text, TWO)
    assert build_files(spec, text, TWO) == (name, files)
    assert name.startswith(f"tokenfabric_pynq-z2_{TWO.fingerprint}_")
    assert build_files(spec, text + "\n", TWO)[0] != name


def test_ports_that_a_board_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"ports are hp0, .* needs hp0, .*, hpc0; use"):
        build_files(BOARDS["pynq-z2"], "", WIDE)
    with pytest.raises(UserError, match=r"are 32, 64, config kv260 needs 128; use another"):
        build_files(BOARDS["pynq-z2"], "", WIDE.replace(ps_ports=()))


def test_the_command_writes_a_folder_or_nothing(tmp_path, monkeypatch, capsys):
    from tokenfabric.core import config
    from tokenfabric.flow import verilog

    from tokenfabric import cli

    monkeypatch.setitem(config.PRESETS, "pynq-z2", TWO)
    monkeypatch.setattr(verilog, "cached_verilog", lambda cfg, progress: header(cfg))
    out = tmp_path / "z2"
    assert cli.main(["bitstream", "pynq-z2", "-o", str(out), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert written == set(told["files"]) and told["fingerprint"] == TWO.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["z2"]
    assert cli.main(["bitstream", "pynq-z2", "-o", str(out)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert cli.main(["bitstream", "zedboard", "-o", str(tmp_path / "x")]) == 2
    assert "no board 'zedboard'; there are: pynq-z2" in capsys.readouterr().err
    assert cli.main(["bitstream", "pynq-z2", "-o", str(tmp_path / "a/b")]) == 2
    assert "there is no folder" in capsys.readouterr().err

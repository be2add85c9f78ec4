"""A model of Vivado for build scripts: Tcl with the commands they use, and a block design.

It knows what the processors' IPs show for which settings (PG082, PG201) and refuses what Vivado
would refuse: a pin that is not there, an interface connected twice or to another width or protocol,
a clock or an interface left open, a slave without an address. Unknown commands are errors of Tcl.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

SPIRIT = "{http://www.spiritconsortium.org/XMLSchema/SPIRIT/1685-2009}"
UTILIZATION = """
| Site Type       | Used  | Fixed | Prohibited | Available | Util% |
| {logic} LUTs*   | 31001 |     0 |          0 |     53200 | 58.27 |
|   LUT as Logic  | 28000 |     0 |          0 |     53200 | 52.63 |
| {logic} Registers | 24002 |   0 |          0 |    106400 | 22.56 |
| Block RAM Tile  |  94.5 |     0 |          0 |       140 | 67.50 |
| DSPs            |   174 |     0 |          0 |       220 | 79.09 |
"""
CLOCKS = ("aclk", "clk", "CLK")


class VivadoError(Exception):
    """Vivado would have said no."""


class Exit(Exception):
    """The script called exit."""


def text_of(element: ET.Element, path: str) -> str:
    return str(element.findtext("/".join(SPIRIT + step for step in path.split("/"))))


def elements(root: ET.Element, path: str) -> list[ET.Element]:
    return root.findall("/".join(SPIRIT + step for step in path.split("/")))


class Cell:
    """Pins (name -> "in" or "out") and interfaces (name -> (mode, protocol, bits))."""

    def __init__(self, vlnv: str):
        self.vlnv, self.settings = vlnv, {}

    @property
    def kind(self) -> str:
        return self.vlnv.split(":")[2]

    def on(self, name: str, default: str = "0") -> bool:
        return self.settings.get(name, default) == "1"

    def pins(self) -> dict[str, str]:
        return getattr(self, "_pins_" + self.kind)()

    def interfaces(self) -> dict[str, tuple[str, str, int]]:
        return getattr(self, "_interfaces_" + self.kind, dict)()

    def _pins_processing_system7(self):
        pins = {}
        if self.on("PCW_EN_CLK0_PORT"):
            pins["FCLK_CLK0"] = "out"
        if self.on("PCW_EN_RST0_PORT"):
            pins["FCLK_RESET0_N"] = "out"
        if self.on("PCW_USE_FABRIC_INTERRUPT") and self.on("PCW_IRQ_F2P_INTR"):
            pins["IRQ_F2P"] = "in"
        return pins | {name + "_ACLK": "in" for name in self.interfaces()}

    def _interfaces_processing_system7(self):
        found = {}
        for i in range(2):
            if self.on(f"PCW_USE_M_AXI_GP{i}", "10"[i]):
                found[f"M_AXI_GP{i}"] = ("master", "AXI3", 32)
        for i in range(4):
            if self.on(f"PCW_USE_S_AXI_HP{i}"):
                bits = int(self.settings.get(f"PCW_S_AXI_HP{i}_DATA_WIDTH", 64))
                found[f"S_AXI_HP{i}"] = ("slave", "AXI3", bits)
        return found

    def _pins_zynq_ultra_ps_e(self):
        pins = {"pl_resetn0": "out"}
        if self.on("PSU__FPGA_PL0_ENABLE"):
            pins["pl_clk0"] = "out"
        if self.on("PSU__USE__IRQ0"):
            pins["pl_ps_irq0"] = "in"
        names = [name.lower().replace("_", "", 2) for name in self.interfaces()]
        return pins | {name + "_aclk": "in" for name in names}

    def _interfaces_zynq_ultra_ps_e(self):
        found = {}
        for i, name in enumerate(("M_AXI_HPM0_FPD", "M_AXI_HPM1_FPD", "M_AXI_HPM0_LPD")):
            if self.on(f"PSU__USE__M_AXI_GP{i}", "110"[i]):
                found[name] = ("master", "AXI4", 128)
        for i, name in enumerate(("HPC0", "HPC1", "HP0", "HP1", "HP2", "HP3")):
            if self.on(f"PSU__USE__S_AXI_GP{i}"):
                bits = int(self.settings.get(f"PSU__SAXIGP{i}__DATA_WIDTH", 128))
                found[f"S_AXI_{name}_FPD"] = ("slave", "AXI4", bits)
        return found

    def _pins_proc_sys_reset(self):
        return {"slowest_sync_clk": "in", "ext_reset_in": "in", "peripheral_aresetn": "out"} | (
            {"dcm_locked": "optional"}
        )

    def _pins_clk_wiz(self):
        pins = {"clk_in1": "in", "clk_out1": "out"}
        if self.settings.get("USE_LOCKED") == "true":
            pins["locked"] = "out"
        if self.settings.get("USE_RESET", "true") == "true":
            pins["reset"] = "in"
        return pins

    def _pins_axi_intc(self):
        pins = {"s_axi_aclk": "in", "s_axi_aresetn": "in", "intr": "in"}
        return pins | ({"irq": "out"} if self.on("C_IRQ_CONNECTION") else {})

    def _interfaces_axi_intc(self):
        return {"s_axi": ("slave", "AXI4LITE", 32)}

    def _pins_smartconnect(self):
        return {"aclk": "in", "aresetn": "in"}

    def _interfaces_smartconnect(self):
        masters = int(self.settings.get("NUM_MI", 1))
        slaves = int(self.settings.get("NUM_SI", 1))
        return {f"M{i:02}_AXI": ("master", "any", 0) for i in range(masters)} | {
            f"S{i:02}_AXI": ("slave", "any", 0) for i in range(slaves)
        }


class OwnCell(Cell):
    """What a component.xml describes."""

    def __init__(self, root: ET.Element):
        super().__init__(
            ":".join(text_of(root, k) for k in ("vendor", "library", "name", "version"))
        )
        self.root = root
        self.segments = [
            f"{text_of(m, 'name')}/{text_of(block, 'name')}"
            for m in elements(root, "memoryMaps/memoryMap")
            for block in elements(m, "addressBlock")
        ]
        self.spaces = [text_of(s, "name") for s in elements(root, "addressSpaces/addressSpace")]

    def _split(self):
        for bus in elements(self.root, "busInterfaces/busInterface"):
            kind = bus.find(SPIRIT + "busType").get(SPIRIT + "name")
            mode = "slave" if bus.find(SPIRIT + "slave") is not None else "master"
            values = {
                text_of(p, "name"): text_of(p, "value")
                for p in elements(bus, "parameters/parameter")
            }
            yield text_of(bus, "name"), kind, mode, values

    def pins(self):
        return {
            name: "in" if mode == "slave" else "out"
            for name, kind, mode, _ in self._split()
            if kind != "aximm"
        }

    def interfaces(self):
        return {
            name: (mode, values["PROTOCOL"], int(values["DATA_WIDTH"]))
            for name, kind, mode, values in self._split()
            if kind == "aximm"
        }


class Vivado:
    """Runs a script; ``slack`` and ``unrouted`` are what place and route will have reached."""

    def __init__(self, *, slack: float = 0.1, unrouted: int = 0, board_files: bool = True):
        import tkinter

        self.slack, self.unrouted, self.board_files = slack, unrouted, board_files
        self.cells: dict[str, Cell] = {}
        self.links: list[tuple[str, str]] = []  # interfaces
        self.driver: dict[str, str] = {}  # of a pin
        self.addresses: dict[tuple[str, str], int | None] = {}
        self.ranges: dict[str, str | None] = {}
        self.catalog: dict[str, ET.Element] = {}
        self.properties: dict[tuple[str, str], str] = {}
        self.runs: list[str] = []
        self.called: list[str] = []
        self.valid = False
        self.error: Exception | None = None
        self.tcl = tkinter.Tcl()
        for name in dir(self):
            if name.startswith("tcl_"):
                self.tcl.createcommand(name[4:], self._guard(name[4:], getattr(self, name)))
        for name in ("update_ip_catalog", "save_bd_design", "update_compile_order", "close_design"):
            self.tcl.createcommand(name, self._guard(name, lambda *_: ""))

    def _guard(self, name, function):
        def call(*args):
            self.called.append(name)
            try:
                result = function(*map(str, args))
            except Exception as error:  # Tcl hands on that there was one, not which
                self.error = error
                raise
            return "" if result is None else str(result)

        return call

    def run(self, script: Path) -> int:
        """The exit code."""
        self.folder = script.parent
        try:
            self.tcl.call("source", str(script))
        except Exception as failure:
            if isinstance(self.error, Exit):
                return int(str(self.error))
            raise (self.error or failure) from None
        return 0

    # --- project

    def tcl_exit(self, code):
        raise Exit(code)

    def tcl_version(self, *_):
        return "2024.2"

    def tcl_create_project(self, *args):
        self.part = args[args.index("-part") + 1]
        (self.folder / "project").mkdir()

    def tcl_current_project(self):
        return "project"

    def tcl_current_fileset(self):
        return "sources_1"

    def tcl_get_board_parts(self, *args):
        return args[-1].replace("*", "part0:1.0") if self.board_files else ""

    def tcl_get_ipdefs(self, *args):
        return args[-1] if args[-1] in self.catalog else ""

    def tcl_get_files(self, name):
        return name

    def tcl_get_runs(self, name):
        return name

    def tcl_set_property(self, *args):
        if args[0] == "-dict":
            words, where = self.tcl.splitlist(args[1]), args[2]
            pairs = list(zip(words[::2], words[1::2]))
        else:
            pairs, where = [(args[0], args[1])], args[2]
        for name, value in pairs:
            self.properties[where, name] = value
            if name == "ip_repo_paths":
                for path in Path(value).glob("*/component.xml"):
                    root = ET.parse(path).getroot()
                    self.catalog[OwnCell(root).vlnv] = root
            if name.startswith("CONFIG."):
                self.cells[where].settings[name[7:]] = value

    # --- block design

    def tcl_create_bd_design(self, name):
        self.design = name

    def tcl_create_bd_cell(self, *args):
        vlnv, name = args[args.index("-vlnv") + 1], args[-1]
        if name in self.cells:
            raise VivadoError(f"two cells {name}")
        own = vlnv in self.catalog
        self.cells[name] = OwnCell(self.catalog[vlnv]) if own else Cell(vlnv)
        self.cells[name].pins()
        return name

    def tcl_apply_bd_automation(self, *args):
        config = self.tcl.splitlist(args[args.index("-config") + 1])
        self.automation = dict(zip(config[::2], config[1::2]))

    def tcl_get_bd_cells(self, name):
        return name if name in self.cells else ""

    def tcl_get_bd_pins(self, name):
        cell, pin = name.split("/")
        return name if pin in self.cells[cell].pins() else ""

    def tcl_get_bd_intf_pins(self, name):
        cell, pin = name.split("/")
        return name if pin in self.cells[cell].interfaces() else ""

    def _pin(self, name):
        cell, pin = name.split("/")
        return self.cells[cell].pins()[pin]

    def _interface(self, name):
        cell, pin = name.split("/")
        return self.cells[cell].interfaces()[pin]

    def tcl_connect_bd_net(self, *pins):
        if "" in pins:
            raise VivadoError(f"a pin that does not exist, beside {pins}")
        sources = [p for p in pins if self._pin(p) == "out"]
        if len(sources) != 1:
            raise VivadoError(f"{len(sources)} drivers in {pins}")
        for pin in pins:
            if pin != sources[0]:
                if pin in self.driver:
                    raise VivadoError(f"{pin} is driven twice")
                self.driver[pin] = sources[0]

    def tcl_connect_bd_intf_net(self, *pins):
        if "" in pins:
            raise VivadoError(f"an interface that does not exist, beside {pins}")
        master, slave = sorted(pins, key=lambda p: self._interface(p)[0])
        (mode_a, *a), (mode_b, *b) = self._interface(master), self._interface(slave)
        if (mode_a, mode_b) != ("master", "slave") or ("any" not in (*a, *b) and a != b):
            raise VivadoError(f"{master} {a} does not fit {slave} {b}")
        if any(pin in link for pin in pins for link in self.links):
            raise VivadoError(f"{pins}: connected twice")
        self.links.append((master, slave))

    def tcl_get_bd_addr_spaces(self, name):
        cell, space = name.split("/")
        own = getattr(self.cells[cell], "spaces", ["Data"] if cell == "ps" else [])
        return name if space in own else ""

    def tcl_get_bd_addr_segs(self, name):
        cell, segment = name.split("/", 1)
        kind = self.cells[cell].kind
        if kind == "axi_intc":
            found = ["S_AXI/Reg"]
        elif kind == "processing_system7":
            found = [f"S_AXI_HP{i}/HP{i}_DDR_LOWOCM" for i in range(4)]
        elif kind == "zynq_ultra_ps_e":
            found = [f"SAXIGP{i + 2}/HP{i}_DDR_LOW" for i in range(4)]
            found += [f"SAXIGP{i}/HPC{i}_DDR_LOW" for i in range(2)]
        else:
            found = self.cells[cell].segments
        return name if segment in found else ""

    def tcl_assign_bd_address(self, *args):
        options = dict(zip(args[:-1:2], args[1:-1:2]))
        space, segment = options["-target_address_space"], args[-1]
        if not space or not segment or (space, segment) in self.addresses:
            raise VivadoError(f"cannot assign {args}")
        offset = options.get("-offset")
        self.addresses[space, segment] = None if offset is None else int(offset, 0)
        self.ranges[segment] = options.get("-range")

    def tcl_validate_bd_design(self):
        for name, cell in self.cells.items():
            for pin, direction in cell.pins().items():
                if direction == "in" and f"{name}/{pin}" not in self.driver:
                    raise VivadoError(f"{name}/{pin} is open")
            for interface in cell.interfaces():
                if not any(f"{name}/{interface}" in link for link in self.links):
                    raise VivadoError(f"{name}/{interface} is open")
        self.valid = True

    def mhz(self, pin: str) -> float:
        """Frequency of a clock pin, from the settings of what drives it."""
        source = self.driver.get(pin, pin)
        settings = self.cells[source.split("/")[0]].settings
        for name in (
            "PCW_FPGA0_PERIPHERAL_FREQMHZ",
            "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ",
            "CLKOUT1_REQUESTED_OUT_FREQ",
        ):
            if name in settings:
                return float(settings[name])
        raise VivadoError(f"{pin} has no clock")

    # --- runs

    def tcl_generate_target(self, *_):
        if not self.valid:
            raise VivadoError("not validated")
        folder = self.folder / "project/system.gen/sources_1/bd/system/hw_handoff"
        folder.mkdir(parents=True)
        (folder / "system.hwh").write_text("handoff")

    def tcl_make_wrapper(self, *_):
        return "system_wrapper.v"

    def tcl_add_files(self, *_):
        pass

    def tcl_launch_runs(self, run, *args):
        step = args[args.index("-to_step") + 1] if "-to_step" in args else "end"
        self.runs.append(f"{run} {step}")
        if step == "write_bitstream":
            folder = self.folder / "run"
            folder.mkdir()
            (folder / "system_wrapper.bit").write_text("bits")

    def tcl_wait_on_run(self, _):
        pass

    def tcl_open_run(self, _):
        pass

    def tcl_report_utilization(self, *_):
        return UTILIZATION.format(logic="Slice" if self.part.startswith("xc7") else "CLB")

    def tcl_get_property(self, name, where):
        if name == "CONFIG.FREQ_HZ":
            return round(self.mhz(where) * 1e6)
        return {
            "PROGRESS": "100%",
            "DIRECTORY": str(self.folder / "run"),
            "STATS.WNS": self.slack,
            "STATS.TNS": min(0, self.slack),
            "STATS.WHS": 0.02,
            "STATS.THS": 0,
            "STATS.TPWS": 0,
            "STATS.FAILED_NETS": self.unrouted,
        }[name]

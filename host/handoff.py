"""What PYNQ loads: the hardware handoff (``.hwh``) and the bitstream file of a virtual board.

Vivado writes both for a real one. Here the ``.hwh`` has what PYNQ reads of it: the processor with
its clocks, the accelerator with its registers, and where it stands. The ``.bit`` has the usual
header and, where a real one has the configuration of the fabric, the name of our design, by which a
virtual board knows it. Layout of the header: Xilinx' .bit format, fields a to e.
"""

from __future__ import annotations

from array import array
from hashlib import sha256
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from tokenfabric.core import registers
from tokenfabric.core.boards import INSTANCE, VLNV, BoardSpec
from tokenfabric.core.config import FabricConfig

__all__ = ["CONTROL_BYTES", "GPIO_BASE", "GPIO_BYTES", "bitfile", "design", "design_of", "handoff"]

CONTROL_BYTES = 0x1000
GPIO_BASE = 0x2_0000  # after the control port; AMD's self-test wants a register to write to
GPIO_BYTES = 0x1000
SYNC = b"TOKENFABRIC DESIGN "
SOURCE_MHZ = 1000.0  # the I/O PLL, from which the fabric's clock is divided


def divisors(mhz: float) -> tuple[int, int]:
    """Two divisors, each below 64, that make ``mhz`` of the I/O PLL."""
    total = round(SOURCE_MHZ / mhz)
    return next((a, total // a) for a in range(1, 64) if total % a == 0 and total // a < 64)


def handoff(spec: BoardSpec, cfg: FabricConfig) -> str:
    """The ``.hwh``: the processor, the accelerator and an AXI GPIO."""
    root = Element("EDKSYSTEM", EDWVERSION="1.2", VIVADOVERSION="none")
    SubElement(root, "SYSTEMINFO", NAME="system", DEVICE=spec.part)
    SubElement(root, "EXTERNALPORTS")
    modules = SubElement(root, "MODULES")
    processor = _module(modules, "ps_0", f"xilinx.com:ip:{spec.ps}:5.5", spec.ps)
    parameters = SubElement(processor, "PARAMETERS")
    for name, value in _clocks(spec).items():
        SubElement(parameters, "PARAMETER", NAME=name, VALUE=value)
    _bus(processor, "M_AXI_CONTROL", "MASTER")
    ranges = SubElement(processor, "MEMORYMAP")
    gpio = spec.control_base + GPIO_BASE
    slaves = (
        (INSTANCE, VLNV, "s_axi_ctrl", spec.control_base, CONTROL_BYTES),
        ("leds_gpio", "xilinx.com:ip:axi_gpio:2.0", "S_AXI", gpio, GPIO_BYTES),
    )
    for name, vlnv, port, base, size in slaves:
        SubElement(
            ranges, "MEMRANGE", INSTANCE=name, MEMTYPE="REGISTER",
            MASTERBUSINTERFACE="M_AXI_CONTROL", SLAVEBUSINTERFACE=port,
            BASEVALUE=f"0x{base:08X}", HIGHVALUE=f"0x{base + size - 1:08X}",
        )  # fmt: skip
        module = _module(modules, name, vlnv, vlnv.split(":")[2])
        if name == INSTANCE:
            SubElement(
                SubElement(module, "PARAMETERS"),
                "PARAMETER", NAME="FINGERPRINT", VALUE=cfg.fingerprint,
            )  # fmt: skip
            _registers(module, port)
        _bus(module, port, "SLAVE")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _module(modules: Element, name: str, vlnv: str, kind: str) -> Element:
    return SubElement(
        modules, "MODULE", INSTANCE=name, FULLNAME=f"/{name}", MODTYPE=kind, VLNV=vlnv,
        HWVERSION=vlnv.rpartition(":")[2], MODCLASS="PERIPHERAL",
    )  # fmt: skip


def _bus(module: Element, name: str, kind: str) -> None:
    SubElement(
        SubElement(module, "BUSINTERFACES"), "BUSINTERFACE",
        NAME=name, TYPE=kind, VLNV="xilinx.com:interface:aximm:1.0",
    )  # fmt: skip


def _clocks(spec: BoardSpec) -> dict[str, str]:
    """The processor's fabric clocks: the first runs, PYNQ wants to know of all four."""
    first, second = divisors(spec.ps_clock_mhz)
    found: dict[str, str] = {}
    for i in range(4):
        on = i == 0
        if spec.ps == "zynq_ultra_ps_e":
            control = f"PSU__CRL_APB__PL{i}_REF_CTRL__"
            found[f"PSU__FPGA_PL{i}_ENABLE"] = str(int(on))
            found[control + "SRCSEL"] = "IOPLL"
            found[control + "DIVISOR0"], found[control + "DIVISOR1"] = str(first), str(second)
            found[control + "ACT_FREQMHZ"] = f"{spec.ps_clock_mhz:.6f}"
        else:
            found[f"PCW_FPGA_FCLK{i}_ENABLE"] = str(int(on))
            found[f"PCW_FCLK{i}_PERIPHERAL_CLKSRC"] = "IO PLL"
            found[f"PCW_FCLK{i}_PERIPHERAL_DIVISOR0"] = str(first)
            found[f"PCW_FCLK{i}_PERIPHERAL_DIVISOR1"] = str(second)
            found[f"PCW_ACT_FPGA{i}_PERIPHERAL_FREQMHZ"] = f"{spec.ps_clock_mhz:.6f}"
    return found


ACCESS = {"ro": "read-only", "rw": "read-write", "wo": "write-only"}


def _registers(module: Element, port: str) -> None:
    block = SubElement(
        SubElement(module, "ADDRESSBLOCKS"), "ADDRESSBLOCK",
        ACCESS="", INTERFACE=port, NAME="reg0", RANGE=str(CONTROL_BYTES), USAGE="register",
    )  # fmt: skip
    parent = SubElement(block, "REGISTERS")
    for register in registers.REGISTERS:
        node = SubElement(parent, "REGISTER", NAME=register.name)
        _properties(
            node,
            DESCRIPTION=register.doc,
            ADDRESS_OFFSET=f"{register.offset:#x}",
            ACCESS=ACCESS[register.access],
            SIZE="32",
            RESET_VALUE="0x0",
        )
        fields = SubElement(node, "FIELDS")
        for name, (low, bits) in register.fields.items():
            _properties(
                SubElement(fields, "FIELD", NAME=name),
                DESCRIPTION=name,
                BIT_OFFSET=str(low),
                BIT_WIDTH=str(bits),
                ACCESS=ACCESS[register.access],
            )


def _properties(node: Element, **values: str) -> None:
    for name, value in values.items():
        SubElement(node, "PROPERTY", NAME=name, VALUE=value)


def design(cfg: FabricConfig, hwh: str) -> str:
    """The name of a design: the accelerator's fingerprint and the hash of the ``.hwh``.

    The latter because PYNQ keeps what it has read of a ``.hwh`` under the hash of the ``.bit``: a
    new map beside an unchanged ``.bit`` would not be seen.
    """
    return f"{cfg.fingerprint} {sha256(hwh.encode()).hexdigest()}"


def bitfile(spec: BoardSpec, cfg: FabricConfig, hwh: str) -> bytes:
    """A ``.bit`` that PYNQ takes and that only a virtual board with this design answers to."""
    data = b"\xff" * 32 + SYNC + design(cfg, hwh).encode() + b"\n"
    data += b"\xff" * (-len(data) % 4)
    fields = (f"{INSTANCE};virtual", spec.part, "2000/01/01", "00:00:00")
    head = b"\x00\x09\x0f\xf0\x0f\xf0\x0f\xf0\x0f\xf0\x00\x00\x01"
    for tag, text in zip(b"abcd", fields):
        value = text.encode() + b"\0"
        head += bytes([tag]) + len(value).to_bytes(2, "big") + value
    return head + b"e" + len(data).to_bytes(4, "big") + data


def design_of(data: bytes) -> str | None:
    """The :func:`design` in a ``.bit``, or in the ``.bin`` that PYNQ makes of it; None without one.

    In a ``.bin`` the bytes of every word are the other way round.
    """
    words = array("I", data[: len(data) // 4 * 4])
    words.byteswap()
    for text in (data, words.tobytes()):
        _, found, rest = text.partition(SYNC)
        if found:
            return rest.partition(b"\n")[0].decode("ascii", "replace")
    return None

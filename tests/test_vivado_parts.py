# amaranth: UnusedElaboratable=no
"""The parts of what is written for Vivado: the processor's settings, the IP's ports, its shell."""

from __future__ import annotations

import re

import pytest
from tokenfabric.core.boards import BOARDS
from tokenfabric.core.config import PRESETS
from tokenfabric.core.errors import UserError
from tokenfabric.flow import ip, zynq

PYNQ, KV260 = PRESETS["pynq-z2"], PRESETS["kv260"]


def test_memory_ports_are_taken_in_order():
    names = [slave.interface for slave in zynq.slaves(PYNQ, BOARDS["pynq-z2"])]
    assert names == ["S_AXI_HP0", "S_AXI_HP1", "S_AXI_HP2", "S_AXI_HP3"]
    names = [slave.interface for slave in zynq.slaves(KV260, BOARDS["kv260"])]
    assert names == ["S_AXI_HP0_FPD", "S_AXI_HP1_FPD", "S_AXI_HP3_FPD", "S_AXI_HPC0_FPD"]


def test_only_the_ports_in_use_are_switched_on():
    two = zynq.settings(PRESETS["tiny"], BOARDS["pynq-z2"])
    on = [name for name in two if name.startswith("PCW_USE_S_AXI_HP")]
    assert on == ["PCW_USE_S_AXI_HP0", "PCW_USE_S_AXI_HP1"]
    assert two["PCW_S_AXI_HP1_DATA_WIDTH"] == "64"
    wide = zynq.settings(KV260, BOARDS["kv260"])
    assert wide["PSU__USE__S_AXI_GP0"] == "1"  # HPC0
    assert "PSU__USE__S_AXI_GP4" not in wide  # HP2
    assert wide["PSU__SAXIGP3__DATA_WIDTH"] == "128"  # HP1


def test_the_clock_is_the_boards():
    spec = BOARDS["pynq-z2"]
    assert zynq.settings(PYNQ, spec)["PCW_FPGA0_PERIPHERAL_FREQMHZ"] == f"{spec.ps_clock_mhz:g}"


def test_a_port_that_no_processor_has_is_refused():
    with pytest.raises(UserError, match="config pynq-z2 needs hp0, hp1, hp9, hpc0; use another"):
        zynq.slaves(PYNQ.replace(ps_ports=("hp0", "hp1", "hp9", "hpc0")), BOARDS["kv260"])


def test_every_port_of_the_ip_has_its_place_on_an_interface():
    ports = ip.ip_ports(PYNQ, BOARDS["pynq-z2"])
    assert [port.name for port in ports[:3]] == ["clk", "resetn", "irq"]
    assert len({port.name for port in ports}) == len(ports)
    busses = {port.bus for port in ports}
    memory = {f"m_axi_hp{number}" for number in range(PYNQ.ports)}
    assert busses == {"clk", "resetn", "irq", ip.CONTROL, *memory}
    for bus in busses:
        logical = [port.logical for port in ports if port.bus == bus]
        assert len(set(logical)) == len(logical) and all(logical), bus
    writes = {port.bus for port in ports if port.logical == "WDATA" and port.core}
    assert writes == {ip.CONTROL, "m_axi_hp0"}  # the others only read


def statements(*ports: ip.Port) -> str:
    return re.sub(r"\s+", " ", ip.shell(list(ports)))


def test_the_shell_fills_up_an_address_that_is_too_short():
    text = statements(ip.Port("araddr", True, 49, 32))
    assert "output wire [48:0] araddr" in text
    assert "assign araddr = {17'd0, core_araddr};" in text and ".araddr(core_araddr)" in text


def test_the_shell_cuts_a_length_that_is_too_long():
    text = statements(ip.Port("arlen", True, 4, 8))
    assert "wire [7:0] core_arlen;" in text and "assign arlen = core_arlen[3:0];" in text


def test_the_shell_drives_constants_and_leaves_foreign_inputs_open():
    text = statements(ip.Port("arcache", True, 4, value=3), ip.Port("rid", False, 6))
    assert "assign arcache = 4'd3;" in text and "input wire [5:0] rid" in text
    assert ".arcache(" not in text and ".rid(" not in text


def test_the_shell_hands_on_what_fits():
    text = statements(ip.Port("rvalid", False, 1, 1))
    assert "input wire rvalid" in text and ".rvalid(rvalid)" in text and "assign" not in text

"""What synthesis made for the ULX3S, gate by gate, from bytes on its pins to tokens.

LUTs, flip-flops, carries and LUT memories are yosys's models; block RAM, multipliers and the PLL
are those of ecp5_cells.v, so this holds as far as these do. There are no delays.
"""

from __future__ import annotations

import json

import pytest
from rigs.netlist import board
from rigs.serial_line import SimulatedLine
from small_models import golden, prompt
from tokenfabric.core.link import BAUD, SILENCE
from tokenfabric.core.shape import ModelShape
from tokenfabric.flow.nextpnr import routable
from tokenfabric.flow.verilog import cached_verilog
from tokenfabric.host.driver import RegisterDevice
from tokenfabric.host.session import Session
from tokenfabric.host.uart import UartBus

SHAPE = ModelShape(
    dim=16, hidden=24, layers=1, heads=2, kv_heads=1, head_dim=8, vocab=32, context=16, tied=False
)
TOKENS = 5


@pytest.mark.verilator
def test_the_netlist_generates_the_tokens_of_the_golden_device():
    _, cfg, image, device = golden(SHAPE, "ulx3s", seed=15, context=16)
    expected = list(Session(device, image).generate(prompt(3, SHAPE.vocab), TOKENS))
    assert len(set(expected)) == TOKENS  # no two alike
    _, path = routable(cached_verilog(cfg, board=True))
    module = json.loads(path.read_text())["modules"]["top"]
    line = SimulatedLine(board(module), hz=cfg.clock_mhz * 1e6, baud=BAUD, silence=SILENCE)
    bus = UartBus(line, image.memory(), pause=line.pause)
    session = Session(RegisterDevice(bus), image)
    assert list(session.generate(prompt(3, SHAPE.vocab), TOKENS)) == expected
    print(f"{line.cycles:,} cycles")
    line.close()

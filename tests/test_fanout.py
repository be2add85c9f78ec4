"""How many cells hang on an enable and on a reset, in netlists written here and in yosys' own."""

from __future__ import annotations

import pytest
from tokenfabric.flow.fanout import control_fan_out
from tokenfabric.flow.synth import synthesize

from tokenfabric.commands.synth import MAX_FAN_OUT, _over

NAMES = {1: "busy", 2: "rst", 3: "step"}


def cell(kind, **pins):
    return {"type": kind, "connections": {pin: [bit] for pin, bit in pins.items()}}


def test_cells_are_counted_once_per_net():
    """A DSP slice with five enables of one net is one load; constants are none."""
    cells = {
        "q": cell("FDRE", CE="1", R=2, Q=1),
        **{f"f{n}": cell("FDRE", CE=1, R=2) for n in range(5)},
        "s": cell("FDSE", CE=3, S=2),
        "shift": cell("SRL16E", CE=1),
        "mac": cell("DSP48E1", CEA1=1, CEA2=1, CEB2=1, CEM=3, CEP=1, RSTP="0", RSTM=2),
        "ram": cell("RAMB36E1", ENARDEN=3, REGCEB=3, RSTRAMB="0"),
        "carry": cell("CARRY4", S=2),
        "lut": cell("LUT2", I0=1, I1=3, O=3),
    }
    found = control_fan_out({"cells": cells}, NAMES)
    assert found["enable"] == [
        {"signal": "busy", "cells": 7, "register": True},
        {"signal": "step", "cells": 3, "register": False},
    ]
    assert found["reset"] == [{"signal": "rst", "cells": 8, "register": False}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "enabled", "cleared"), [("xc7", 41, 40), ("xcup", 41, 40), ("ecp5", 40, 40)]
)
def test_what_yosys_makes_is_understood(target, enabled, cleared):
    """40 bits with enable and reset, and a product that a DSP slice keeps under the same enable."""
    verilog = """
module top(input clk, rst, en, input [39:0] d, output reg [39:0] q,
           input [15:0] x, y, output reg [31:0] p);
  always @(posedge clk) if (rst) q <= 0; else if (en) q <= d ^ q;
  always @(posedge clk) if (en) p <= x * y;
endmodule
"""
    found = synthesize(verilog, target)["fan_out"]
    assert found["enable"][0]["signal"] == "en" and found["enable"][0]["cells"] >= enabled
    assert found["reset"][0] == {"signal": "rst", "cells": cleared, "register": False}


@pytest.mark.parametrize("kind", ["enable", "reset"])
def test_a_limit_is_part_of_the_verdict(kind):
    def verdict(cells, **more):
        nets = {"enable": [], "reset": []} | {kind: [{"signal": "x", "cells": cells}]}
        report = {"share": {}, "lut_levels": 1, "cell_delay_ns": None, "fan_out": nets}
        return _over(report | more)

    assert verdict(MAX_FAN_OUT) == []
    assert verdict(MAX_FAN_OUT + 1) == [f"fan_out of {kind}s"]
    assert verdict(MAX_FAN_OUT + 1, global_controls={"$x": 2001}) == []

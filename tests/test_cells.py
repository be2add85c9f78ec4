"""What synthesis makes of the presets, exactly as their folder in bitstreams/ says."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from conftest import ROOT
from tokenfabric.core.config import preset
from tokenfabric.flow.nextpnr import routable
from tokenfabric.flow.synth import synthesize
from tokenfabric.flow.verilog import cached_verilog

COUNTED = ("lut", "lutram", "ff", "dsp", "bram36", "uram", "lut_levels", "cell_delay_ns", "cells")
SOURCE = ("fingerprint", "verilog_sha256")
REMEDY = "if that is what you wanted, synthesize again as CONTRIBUTING.md says"


CASES = {
    "pynq-z2": (False, lambda verilog: synthesize(verilog, "xc7")),
    "kv260": (False, None),  # ten minutes: the same Verilog has the same cells
    "ulx3s": (True, lambda verilog: routable(verilog)[0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_cells_are_those_of_the_baseline(name):
    known = json.loads((ROOT / "bitstreams" / name / "synth.json").read_text())
    board, report_on = CASES[name]
    verilog = cached_verilog(preset(name), board=board)
    found = report_on(verilog) if report_on else {}
    found |= {
        "fingerprint": preset(name).fingerprint,
        "verilog_sha256": sha256(verilog.encode()).hexdigest(),
    }
    keys = (*COUNTED, *SOURCE) if report_on else SOURCE
    differ = [f"{key}: {known[key]} -> {found[key]}" for key in keys if found[key] != known[key]]
    assert not differ, "\n".join([*differ, REMEDY])

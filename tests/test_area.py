"""The model of the area against what yosys counts."""

from __future__ import annotations

import json

import pytest
from conftest import ROOT
from tokenfabric.compiler.area import ERROR, area, shares
from tokenfabric.core.boards import BOARDS, CAPACITY
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.flow.synth import TARGETS

# tokenfabric synth --preset tiny: what the base was fitted to
TINY = {"lut": 27_158, "ff": 23_886, "dsp": 110, "bram36": 24}


def counted_of(name):
    """Of a preset that nothing was fitted to."""
    return json.loads((ROOT / "bitstreams" / name / "synth.json").read_text())


@pytest.mark.parametrize(
    ("name", "counted"),
    [("tiny", TINY), *((name, counted_of(name)) for name in ("pynq-z2", "kv260"))],
)
def test_the_sum_is_near_what_yosys_counts(name, counted):
    found = area(preset(name))
    assert found["dsp"] == counted["dsp"]
    for resource in ("lut", "ff", "bram36"):
        assert found[resource] == pytest.approx(counted[resource], rel=ERROR), resource


@pytest.mark.parametrize("field", ["ports", "rows", "cols", "fabric_rows"])
def test_more_of_anything_takes_more(field):
    cfg = preset("tiny").replace(rows=32, cols=8, ports=4, kv_chunks=2048, max_head_dim=64)
    changes = {"ports": 8, "rows": 64, "cols": 16, "fabric_rows": 8}
    if field == "rows":
        cfg = cfg.replace(ports=8)
    more = cfg.replace(**{field: changes[field]})
    for resource in ("lut", "ff"):
        assert area(more)[resource] > area(cfg)[resource]
    if field == "fabric_rows":
        assert area(more)["dsp"] == area(cfg)["dsp"] - 8 * cfg.cols


def test_every_board_has_a_part_and_its_preset_fits():
    for spec in BOARDS.values():
        parts = shares(spec.config, spec.fpga)
        assert set(parts) <= set(CAPACITY[spec.fpga]) and max(parts.values()) < 0.8
        assert spec.part.startswith(spec.fpga)
    assert TARGETS["xc7"].capacity is CAPACITY["xc7z020"]
    assert len(PRESETS) >= 3

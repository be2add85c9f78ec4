"""The cycles of small models, exactly as the baseline has them; ``make bench`` compares more."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))
import bench

pytestmark = pytest.mark.verilator

KNOWN = json.loads(bench.CYCLES.read_text())


def test_cycles_are_those_of_the_baseline():
    found = bench.differences(bench.FAST, KNOWN)
    assert not found, "\n".join([*found, bench.UPDATE])


def test_every_difference_is_told():
    case = bench.FAST[0]
    figures = KNOWN[case.name]
    changed = {**figures, "cycles_per_step": figures["cycles_per_step"] + 1}
    (line,) = bench.differences((case,), {case.name: changed})
    assert line.startswith(f"{case.name}: cycles_per_step ")
    assert len(bench.differences((case,), {})) == len(figures)
    assert "make bench-update" in bench.UPDATE


def test_the_baseline_has_no_other_measurements():
    assert list(KNOWN) == [case.name for case in (*bench.FAST, *bench.SLOW)]

"""The account of the DRAM's data bus: complete, and what the hardware counts, too."""

import json

import numpy as np
import pytest
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.core.registers import COUNTERS
from tokenfabric.core.shape import shape_from
from tokenfabric.host.perf import STEPS, measure_decode, measure_prefill
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.account import DATA, LOST, ONE, account, trace, traces
from tokenfabric.sim.devices import make_device
from tokenfabric.sim.dram import DDR3_1050_X16, IDEAL

from tokenfabric.cli import main

pytestmark = pytest.mark.verilator

CFG = preset("tiny")
IMAGE = compile_model(QModel.random(shape_from("stories260k"), 0), CFG)
PREFILL = 10


def measure(dram, rows=None, context=64):
    """(result of a measurement, the recording of it, the bases of the windows)"""
    device = make_device("verilator", CFG, IMAGE.memory(), dram=dram)
    device.bus.top.record(True)
    if rows is None:
        result = measure_decode(device, CFG, IMAGE, context)
    else:
        result = measure_prefill(device, CFG, IMAGE, rows)
    return result, device.bus.top.recording(), device.bus.bases


@pytest.fixture(scope="module", params=[None, PREFILL], ids=["decode", "prefill"])
def measured(request):
    return measure(DDR3_1050_X16, request.param)


def explain(measured):
    result, recording, bases = measured
    return account(traces(recording, IMAGE, bases, result["spans"]), result["spans"])


def parts(told) -> np.ndarray:
    return np.array([*told["data"].values(), *(lost["cycles"] for lost in told["lost"].values())])


def test_every_cycle_of_every_step_has_one_cause(measured):
    result, recording, bases = measured
    explained = traces(recording, IMAGE, bases, result["spans"])
    for span in result["spans"]:
        told = account(explained, [span])
        units = parts(told) * ONE  # integers: the model's time has 16 bits after the point
        assert np.array_equal(units, units.astype(np.int64))
        assert units.sum() == (span[2] - span[1]) * ONE
        for lost in told["lost"].values():
            if "waiting_for" in lost:
                assert sum(lost["waiting_for"].values()) == pytest.approx(lost["cycles"])
    assert account(explained, result["spans"])["cycles"] == result["cycles_per_step"]


def test_nothing_holds_the_bus_twice(measured):
    bus = measured[1].bus
    assert np.all(bus["start"][1:] >= bus["end"][:-1])
    assert np.all(bus["start"] <= bus["end"])


def test_the_recording_counts_what_the_hardware_counts():
    result, recording, bases = measure(DDR3_1050_X16)
    counted = result["counters"]
    whole = trace(recording, IMAGE, bases, 0, counted["cycles"])
    assert whole.counters == {name: counted[name.lower()] for name, _ in COUNTERS}


def test_data_take_the_time_of_their_bytes():
    """IDEAL moves 16 bytes per cycle and nothing else: here time is bytes."""
    result, recording, bases = measure(IDEAL)
    cycles = result["counters"]["cycles"]
    told = account([trace(recording, IMAGE, bases, 0, cycles)], [(0, 0, cycles)])
    m = IMAGE.map
    assert told["data"]["weights"] == STEPS * m.stream_full * CFG.superblock_bytes / 16
    assert sum(told["data"].values()) >= result["bytes_per_step"] * STEPS / 16
    assert told["data"]["RoPE"] == STEPS * 2 * IMAGE.head_bytes / 16
    assert told["lost"]["refresh"]["cycles"] == told["lost"]["rows"]["cycles"] == 0


def test_refresh_takes_its_share(measured):
    told = explain(measured)
    dram = DDR3_1050_X16
    share = (dram.refresh_ns + dram.precharge_ns) / dram.refresh_interval_ns
    assert told["lost"]["refresh"]["cycles"] / told["cycles"] == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        ("refresh", {"refresh_interval_ns": 3000, "refresh_ns": 300}),
        ("rows", {"activate_ns": 100, "precharge_ns": 100, "read_window": 1}),
        ("turnaround", {"write_to_read_ns": 3000}),
        ("latency", {"latency_cycles": 400}),
        ("ports full", {"read_fifo_beats": 16}),
    ],
)
def test_what_is_made_worse_is_blamed(cause, changes):
    before, after = explain(measure(IDEAL)), explain(measure(IDEAL.replace(**changes)))
    more = {name: after["lost"][name]["cycles"] - before["lost"][name]["cycles"] for name in LOST}
    slower = after["cycles"] - before["cycles"]
    assert more[cause] > 0.02 * before["cycles"]
    if slower > 0.02 * before["cycles"]:
        assert max(more, key=more.__getitem__) == cause


def test_more_positions_are_more_attention():
    def attention(context):
        lost = explain(measure(IDEAL, context=context))["lost"]["fabric full"]
        return sum(cycles for who, cycles in lost["waiting_for"].items() if "attend" in who)

    assert attention(500) > 1.5 * attention(64)


def test_bars_are_the_program(measured):
    result, recording, bases = measured
    shape = shape_from("stories260k")
    first = traces(recording, IMAGE, bases, result["spans"])[0]
    steps = STEPS if "context" in result else 1
    labels = [bar.label for bar in first.bars["vector"]]
    assert labels.count("rope") == labels.count("append") == steps * shape.layers
    assert len(first.bars["attention"]) == steps * shape.layers
    for bars in first.bars.values():
        ends = [edge for bar in bars for edge in (bar.begin, bar.end)]
        assert ends == sorted(ends)


def test_perf_prints_and_draws(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture, told = tmp_path / "step.svg", tmp_path / "step.json"
    arguments = "perf --shape stories260k --preset tiny --account --timeline".split()
    assert main([*arguments, str(picture), "--json", str(told)]) == 0
    assert {"the DRAM's data bus", "weights", "latency"} <= {
        line.split("  ")[0] or line.strip().split("  ")[0]
        for line in capsys.readouterr().out.splitlines()
    }
    result = json.loads(told.read_text())
    assert set(result["account"]["data"]) == set(DATA)
    assert parts(result["account"]).sum() == result["cycles_per_step"]
    text = picture.read_text()
    assert text.startswith("<?xml") and "matmul" in text


def test_a_picture_needs_a_known_ending(capsys):
    assert main("perf --shape stories260k --timeline step.gif".split()) == 2
    assert "must end in .png or .svg" in capsys.readouterr().err

"""The model of the timing against cycles of the simulated hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest
from presets import TINY16
from small_models import ODD, SMALL
from tokenfabric.compiler.timing import ERROR, estimate_decode, estimate_prefill
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import shape_from
from tokenfabric.sim.measure import measure_on, simulated

# tokenfabric perf --preset P --shape S --context T
DECODE = [
    ("tiny", "stories260k", 8, 21_954),
    ("tiny", "stories260k", 64, 23_441),
    ("tiny", "stories260k", 500, 34_872),
    ("pynq-z2", "stories260k", 8, 15_228),
    ("pynq-z2", "stories260k", 64, 16_439),
    ("pynq-z2", "stories260k", 500, 27_519),
    ("pynq-z2", "stories15m", 64, 845_993),
    ("pynq-z2", "stories15m", 254, 882_418),
    ("kv260", "smollm2-135m", 64, 2_565_453),
]
# tokenfabric perf --preset P --shape S --rows M: cycles per step, of the classifier
PREFILL = [
    ("tiny", "stories260k", 10, 22_870, 2_220),
    ("tiny", "stories260k", 100, 26_634, 2_226),
    ("pynq-z2", "stories260k", 10, 34_557, 1_222),
    ("pynq-z2", "stories260k", 100, 53_512, 1_165),
]


@pytest.mark.parametrize(("name", "shape", "context", "cycles"), DECODE)
def test_decode_takes_the_cycles_that_were_measured(name, shape, context, cycles):
    found = estimate_decode(preset(name), shape_from(shape), context)
    assert found["cycles_per_step"] == pytest.approx(cycles, rel=ERROR)


@pytest.mark.parametrize(("name", "shape", "rows", "cycles", "classifier"), PREFILL)
def test_prefill_takes_the_cycles_that_were_measured(name, shape, rows, cycles, classifier):
    found = estimate_prefill(preset(name), shape_from(shape), rows)
    assert found["cycles_per_step"] == pytest.approx(cycles, rel=ERROR)
    assert found["classifier_cycles"] == pytest.approx(classifier, rel=2 * ERROR)


@pytest.mark.verilator
@pytest.mark.parametrize("cfg", [preset("tiny"), TINY16, preset("pynq-z2")], ids=lambda c: c.name)
@pytest.mark.parametrize("shape", [SMALL, replace(ODD, hidden=300, layers=3)], ids=["even", "odd"])
def test_the_hardware_of_today_is_as_fast_as_the_model_says(cfg, shape):
    device, image = simulated(cfg, shape)
    decode = measure_on(device, cfg, image, context=40)
    prefill = measure_on(device, cfg, image, rows=21)
    for measured, found in (
        (decode, estimate_decode(cfg, shape, 40)),
        (prefill, estimate_prefill(cfg, shape, 21)),
    ):
        for key in ("cycles_per_step", "tokens_per_second", "mac_fraction"):
            assert found[key] == pytest.approx(measured[key], rel=2 * ERROR), key


def test_what_takes_the_time_is_told():
    cfg, small = preset("pynq-z2"), shape_from("stories260k")
    big = shape_from("stories110m")
    assert estimate_decode(cfg, big, 64)["time"]["memory"] > 0.9
    assert estimate_decode(cfg, small, 500)["time"]["attention"] > 0.5
    prefill = estimate_prefill(cfg, big, 64)["time"]
    assert prefill["array"] > 0.9 and prefill["memory"] < 0.05


def test_a_faster_memory_a_deeper_fifo_and_a_shorter_context_never_cost_time():
    cfg, shape = preset("pynq-z2"), shape_from("stories15m")
    now = estimate_decode(cfg, shape, 128)["cycles_per_step"]
    slower = cfg.replace(dram=replace(cfg.dram, peak_bytes_per_s=1.05e9))
    assert estimate_decode(slower, shape, 128)["cycles_per_step"] > 1.8 * now
    assert estimate_decode(cfg.replace(weight_fifo_beats=256), shape, 128)["cycles_per_step"] > now
    assert estimate_decode(cfg, shape, 32)["cycles_per_step"] < now


@pytest.mark.parametrize(
    ("estimate", "count", "text"),
    [
        (estimate_decode, 0, "a context of 0 does not fit: the model has 256 positions"),
        (estimate_decode, 257, "a context of 257 does not fit: .* choose from 1 to 256"),
        (estimate_prefill, 300, "a prefill of 300 does not fit"),
    ],
)
def test_what_does_not_fit_is_refused(estimate, count, text):
    with pytest.raises(UserError, match=text):
        estimate(preset("pynq-z2"), shape_from("stories15m"), count)

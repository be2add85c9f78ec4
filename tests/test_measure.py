"""Measuring an accelerator with a random model, in one line."""

from __future__ import annotations

import pytest
from small_models import SMALL
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.host.perf import STEPS
from tokenfabric.sim import measure as module
from tokenfabric.sim.golden import GoldenDevice
from tokenfabric.sim.measure import measure, measure_on, random_image

TINY = preset("tiny")


def test_the_random_model_is_always_the_same():
    first, second = (random_image(TINY, SMALL) for _ in range(2))
    assert first.payload.tobytes() == second.payload.tobytes()


def test_progress_is_told_in_order():
    told = []
    random_image(TINY, SMALL, lambda what, *how_far: told.append((what, how_far)))
    assert told[0] == ("making a random model", ())
    assert {what for what, _ in told[1:]} == {"compiling"}
    done, total = told[-1][1]
    assert done == total > 0


@pytest.mark.verilator
def test_one_line_gives_what_the_steps_give():
    told = []
    decode = measure(TINY, SMALL, context=20, progress=lambda what, *_: told.append(what))
    assert told[-1] == "simulating"
    device, image = module.simulated(TINY, SMALL)
    assert decode == measure_on(device, TINY, image, context=20)
    assert decode["context"] == 20 and len(decode["spans"]) == STEPS - 1
    prefill = measure(TINY, SMALL, rows=6)
    assert prefill["rows"] == 6 and prefill["steps"] == 2  # of at most four rows
    assert prefill == measure_on(device, TINY, image, rows=6)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"context": SMALL.context + 1}, "context 65 is not between 5 and the 64 positions"),
        ({"context": 1}, "context 1 is not between 5"),
        ({"rows": 0}, "a prefill of 0 tokens does not fit"),
        ({"rows": SMALL.context + 1}, "a prefill of 65 tokens does not fit the context of 64"),
    ],
)
def test_what_does_not_fit_is_refused(wanted, text):
    image = random_image(TINY, SMALL)
    with pytest.raises(UserError, match=text):
        measure_on(GoldenDevice(TINY, image.memory()), TINY, image, **wanted)

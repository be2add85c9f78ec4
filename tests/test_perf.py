"""Cycles per token from the stamps in the ring, which are the low half of a counter."""

from __future__ import annotations

import numpy as np
import pytest
from tokenfabric.core.isa import DESCRIPTOR_WORDS, ROW_WORDS
from tokenfabric.host.perf import session_cycles, unwrapped
from tokenfabric.host.session import Job, Step


@pytest.mark.parametrize("per_step", [1, 55_000_000, (1 << 32) - 1])
def test_stamps_wrap(per_step):
    true = [per_step * (number + 1) for number in range(300)]
    assert unwrapped(np.array(true).astype(np.uint32)) == true


def test_a_job_of_more_than_39_seconds():
    """Two tokens a second at 110 MHz, a hundred of them."""
    per_step = 55_000_000
    steps = [Step([1], per_step * (number + 1) % (1 << 32)) for number in range(100)]
    job = Job(np.zeros(DESCRIPTOR_WORDS + ROW_WORDS, np.uint32), 1, steps)
    cycles, _ = session_cycles([job])
    assert cycles == per_step

"""Arbiter against a plain Python model: order of preference, runs, what waits does not change."""

import numpy as np
import pytest
from amaranth.hdl import unsigned
from amaranth.lib import data
from streams import receiver, sender, simulate
from tokenfabric.rtl.arbiter import Arbiter

BEAT = data.StructLayout({"last": unsigned(1), "value": unsigned(16)})
SOURCES = 3


def payloads(rng, source, count):
    """Runs of 1 to 5 payloads; the last one ends its run."""
    ends = [bool(rng.integers(3) == 0) for _ in range(count - 1)] + [True]
    return [BEAT.const({"last": e, "value": source << 12 | n}) for n, e in enumerate(ends)]


class Model:
    """Who goes, cycle by cycle, and checks it against the arbiter."""

    def __init__(self, dut, runs):
        self.dut, self.runs, self.cycles = dut, runs, 0

    async def run(self, ctx):
        dut, held = self.dut, None
        valids, readies = ([getattr(i, n) for i in dut.i] for n in ("valid", "ready"))
        payloads = [i.payload for i in dut.i]
        trigger = ctx.tick().sample(dut.o.valid, dut.o.ready, dut.o.payload, *valids, *readies)
        async for _, _, valid, taken, payload, *rest in trigger.sample(*payloads):
            asking, ready, offered = (rest[n * SOURCES : (n + 1) * SOURCES] for n in range(3))
            first = next((n for n, asks in enumerate(asking) if asks), None)
            goes = first if held is None else held if asking[held] else None
            assert valid == (goes is not None)
            assert ready == [int(taken and n == goes) for n in range(SOURCES)]
            if goes is not None:
                assert payload == offered[goes]
                done = taken and (payload.last or not self.runs)
                held = None if done else goes
                self.cycles += 1


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("stalls", [(0, 0), (0.6, 0), (0, 0.6), (0.5, 0.5)])
def test_arbiter(runs, stalls):
    rng, count = np.random.default_rng(len(stalls) + runs), 60
    dut = Arbiter(BEAT, SOURCES, runs=runs)
    sent, got = [payloads(rng, source, count) for source in range(SOURCES)], []
    model = Model(dut, runs)
    senders = [sender(i, s, rng, stalls[0]) for i, s in zip(dut.i, sent, strict=True)]
    receive = receiver(dut.o, SOURCES * count, got, rng, stalls[1])
    simulate(dut, [*senders, receive], background=[model])
    assert model.cycles >= SOURCES * count
    for source, beats in enumerate(sent):
        assert [b.value for b in got if b.value >> 12 == source] == [b.value for b in beats]
    if runs:
        owner = None
        for beat in got:
            assert owner in (None, beat.value >> 12), "another in the middle of a run"
            owner = None if beat.last else beat.value >> 12

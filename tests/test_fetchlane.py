# amaranth: UnusedElaboratable=no
"""A lane of Fetch: what a port asks for, and which of its beats are K and V."""

import random
from collections import deque

import pytest
from streams import receiver, sender, simulate
from tokenfabric.core.config import BURST_BEATS, preset
from tokenfabric.rtl.dma import FetchLane

TINY = preset("tiny")
ROOM = 64  # beats


@pytest.mark.parametrize("stall", [0.0, 0.6])
def test_beats_leave_by_their_kind(stall):
    """Bursts of any length; each beat once, in order on its side, ``last`` with its burst's."""
    rng = random.Random(f"lane {stall}")
    unit = FetchLane(TINY)
    bursts = [(rng.getrandbits(32), rng.randrange(1, BURST_BEATS + 1)) for _ in range(60)]
    kinds = [rng.getrandbits(1) for _ in bursts]
    asked, queue, want, got = [], deque(), {0: [], 1: []}, {0: [], 1: []}
    for (_, beats), kind in zip(bursts, kinds):
        values = [rng.getrandbits(64) for _ in range(beats)]
        queue.append(values)
        want[kind] += [(value, n == beats - 1) for n, value in enumerate(values)]

    async def ask(ctx):
        for (addr, beats), kind in zip(bursts, kinds):
            ctx.set(unit.is_kv, kind)
            await sender(unit.i, [{"addr": addr, "beats": beats}], rng, stall)(ctx)

    async def memory(ctx):
        """The port: bursts when it likes, their beats some time later, never more than there is
        room for."""
        coming, here = deque(), 0
        sampled = (unit.port.burst.valid, unit.port.burst.ready, unit.port.burst.payload)
        kv, other = unit.kv.valid & unit.kv.ready, unit.o.valid & unit.o.ready
        async for _, _, valid, ready, burst, left, also in ctx.tick().sample(*sampled, kv, other):
            assert not (left and also)
            here -= left + also
            if valid and ready:
                asked.append((burst.addr, burst.beats))
                coming.extend(queue.popleft())
                here += burst.beats
                assert here <= ROOM
            ctx.set(unit.port.burst.ready, int(rng.random() >= stall))
            answer = coming and rng.random() >= stall
            ctx.set(unit.port.valid, int(bool(answer)))
            ctx.set(unit.port.data, coming.popleft() if answer else rng.getrandbits(64))

    sides = [
        receiver(port, len(want[kind]), got[kind], random.Random(kind), stall)
        for kind, port in enumerate((unit.o, unit.kv))
    ]
    simulate(unit, [ask, *sides], [memory])
    assert asked == bursts
    for kind in (0, 1):
        assert [(beat.data, bool(beat.last)) for beat in got[kind]] == want[kind]


@pytest.mark.parametrize("beats", [1, 7, BURST_BEATS])
def test_no_more_is_asked_for_than_there_is_room_for(beats):
    """Nobody takes a beat: it stops when a whole burst has no room, or with 16 bursts waiting."""
    unit, taken = FetchLane(TINY), []

    async def ask(ctx):
        ctx.set(unit.port.burst.ready, 1)
        ctx.set(unit.i.payload, {"beats": beats})
        ctx.set(unit.i.valid, 1)
        left = 0
        for _ in range(120):
            left += beats if ctx.get(unit.i.ready) else 0
            if ctx.get(unit.i.ready):
                taken.append(beats)
            ctx.set(unit.port.valid, int(left > 0))
            left -= left > 0
            await ctx.tick()

    simulate(unit, [ask])
    # Of 16 short ones in the queue one more is at its end: the queue holds 16 and what it offers.
    assert len(taken) == min((ROOM - BURST_BEATS) // beats + 1, 17)

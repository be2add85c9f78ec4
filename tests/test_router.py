"""Router against a plain Python model: every beat to whom it is for, whatever waits."""

import numpy as np
import pytest
from streams import receiver, sender, simulate
from tokenfabric.core.config import preset
from tokenfabric.rtl.layouts import BeatTag
from tokenfabric.rtl.router import RopeRows, Router

CFG = preset("tiny")
BITS = 8 * CFG.port_bytes
CHUNKS = CFG.max_head_chunks


def number(rng):
    return int.from_bytes(rng.bytes(CFG.port_bytes), "little")


def commands(rng):
    """Beats of commands in random order: what a fetch of each tag brings."""
    tags = [BeatTag.ROPE] * CFG.max_rows + [BeatTag.DESCRIPTOR, BeatTag.PROGRAM]
    tags += [BeatTag.SCALE, BeatTag.EMBED] * 6
    beats = []
    for tag in (tags[i] for i in rng.permutation(len(tags))):
        count = {BeatTag.ROPE: 2 * CHUNKS, BeatTag.SCALE: 2 * int(rng.integers(1, 4))}.get(tag, 3)
        beats += [{"data": number(rng), "tag": tag, "last": n == count - 1} for n in range(count)]
    return beats


@pytest.mark.parametrize("stalls", [(0, 0), (0.5, 0), (0, 0.8), (0.4, 0.4)])
def test_router(stalls):
    rng = np.random.default_rng(5)
    beats, dut = commands(rng), Router(CFG)
    by_tag = {t: [b["data"] for b in beats if b["tag"] == t] for t in BeatTag}
    pairs = {t: [a | b << BITS for a, b in zip(d[::2], d[1::2])] for t, d in by_tag.items()}
    single = {BeatTag.DESCRIPTOR: [], BeatTag.PROGRAM: []}
    embedded, scales, rope = [], [], []

    async def taker(ctx):
        flags = {BeatTag.DESCRIPTOR: 0, BeatTag.PROGRAM: 0}
        signals = (dut.descriptor, dut.program, dut.described, dut.loaded, dut.data)
        about = (dut.beats.valid, dut.beats.ready, dut.beats.payload)
        async for _, _, *strobes, value, valid, ready, beat in ctx.tick().sample(*signals, *about):
            for n, (tag, taken) in enumerate(single.items()):
                assert strobes[2 + n] == flags[tag], "told that all has come: not when it had"
                if strobes[n]:
                    taken.append(value)
                if valid and ready and beat.tag == tag and beat.last:
                    flags[tag] = 1

    async def rope_reader(ctx):
        while len(embedded) < len(by_tag[BeatTag.EMBED]) or not all_sent:
            await ctx.tick()
        for address in range(CFG.max_rows * CHUNKS):
            ctx.set(dut.rope_r.addr, address)
            ctx.set(dut.rope_r.en, 1)
            await ctx.tick()
            rope.append(ctx.get(dut.rope_r.data))

    all_sent = []
    send = sender(dut.beats, beats, rng, stalls[0])

    async def send_all(ctx):
        await send(ctx)
        all_sent.append(True)

    simulate(
        dut,
        [
            send_all,
            receiver(dut.embed, len(by_tag[BeatTag.EMBED]), embedded, rng, stalls[1]),
            receiver(dut.scales, len(pairs[BeatTag.SCALE]), scales, rng, stalls[1]),
            rope_reader,
        ],
        background=[taker],
    )
    assert [b.data for b in embedded] == by_tag[BeatTag.EMBED]
    assert scales == pairs[BeatTag.SCALE] and rope == pairs[BeatTag.ROPE]
    assert all(values == by_tag[tag] for tag, values in single.items())


def test_a_full_queue_of_scales_waits():
    rng = np.random.default_rng(6)
    dut, got, chunks = Router(CFG), [], 2 * CFG.max_context // CFG.cols + 8
    data = [number(rng) for _ in range(2 * chunks)]
    beats = [{"data": d, "tag": BeatTag.SCALE, "last": 0} for d in data]
    receive = receiver(dut.scales, chunks, got)

    async def late(ctx):
        await ctx.tick().repeat(2 * chunks + 50)
        assert not ctx.get(dut.beats.ready), "taken without room"
        await receive(ctx)

    simulate(dut, [sender(dut.beats, beats), late])
    assert got == [a | b << BITS for a, b in zip(data[::2], data[1::2])]


def test_rope_rows_start_again():
    rng, dut, model = np.random.default_rng(7), RopeRows(CFG), {}

    async def bench(ctx):
        for _ in range(4):
            for row in range(int(rng.integers(1, CFG.max_rows + 1))):
                used = int(rng.integers(1, CHUNKS + 1))
                for at in range(used):
                    await ctx.tick().repeat(int(rng.integers(1, 3)))
                    model[row * CHUNKS + at] = chunk = number(rng) | number(rng) << BITS
                    ctx.set(dut.chunk, chunk)
                    ctx.set(dut.last, at == used - 1)
                    ctx.set(dut.en, 1)
                    await ctx.tick()
                    ctx.set(dut.en, 0)
            ctx.set(dut.restart, 1)
            await ctx.tick()
            ctx.set(dut.restart, 0)
        for address, chunk in model.items():
            ctx.set(dut.r.addr, address)
            ctx.set(dut.r.en, 1)
            await ctx.tick()
            assert ctx.get(dut.r.data) == chunk

    simulate(dut, [bench])

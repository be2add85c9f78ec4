# amaranth: UnusedElaboratable=no
"""The units of the embedding look-up, each against a plain model with random stalls."""

from __future__ import annotations

import numpy as np
import pytest
from amaranth.sim import Simulator
from presets import TINY16
from tokenfabric.core.config import preset
from tokenfabric.core.weights import INT8, memory_offsets
from tokenfabric.rtl.embed import EmbedAnswers, EmbedRequests, stream_to_memory
from tokenfabric.rtl.layouts import BeatTag

CONFIGS = [preset("tiny"), TINY16, preset("pynq-z2"), preset("ulx3s")]
DEADLINE = 4_000


def simulate(dut, bench) -> None:
    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: cfg.name)
def test_a_beat_of_the_stream_is_found_in_memory(cfg):
    """The hardware's cut of the address against the layout's arithmetic."""
    from amaranth.hdl import Module, Signal
    from amaranth.lib import wiring
    from amaranth.lib.wiring import In, Out

    class Probe(wiring.Component):
        def __init__(self):
            super().__init__({"at": In(24), "found": Out(24)})

        def elaborate(self, platform):
            m = Module()
            m.d.comb += self.found.eq(stream_to_memory(cfg, self.at))
            m.d.sync += Signal().eq(1)  # a clock for the simulator
            return m

    dut = Probe()
    rng = np.random.default_rng(0)
    places = [int(at) * cfg.port_bytes for at in rng.integers(0, 1 << 16, 60)]

    async def bench(ctx):
        for at in places:
            ctx.set(dut.at, at)
            assert ctx.get(dut.found) == memory_offsets(cfg, np.array([at]))[0]

    simulate(dut, bench)


def beats_of(cfg, chunks: int, token: int, embedding: int) -> list[int]:
    """Addresses of the beats of a token's row: its multiplier's, then each chunk's."""
    mult_at, at = INT8.channel(cfg, chunks * cfg.cols, token)
    places = [mult_at // cfg.port_bytes * cfg.port_bytes, *at[:: cfg.cols].tolist()]
    return [embedding + int(memory_offsets(cfg, np.array([place]))[0]) for place in places]


@pytest.mark.parametrize("cfg", CONFIGS, ids=lambda cfg: cfg.name)
@pytest.mark.parametrize("stalls", [0.0, 0.6])
def test_requests_are_those_of_the_tokens_row(cfg, stalls):
    rng = np.random.default_rng(int(stalls * 10))
    dut = EmbedRequests(cfg)
    rows = [(int(rng.integers(0, 40_000)), int(rng.integers(1, 20))) for _ in range(6)]
    rows += [(0, 1), (cfg.scale_channels - 1, 3), (cfg.scale_channels, 2)]

    async def bench(ctx):
        for token, chunks in rows:
            embedding = int(rng.integers(0, 256)) * cfg.superblock_bytes
            ctx.set(dut.embedding, embedding)
            ctx.set(dut.embedding_group, INT8.group_bytes(cfg, chunks * cfg.cols))
            ctx.set(dut.k, chunks)
            ctx.set(dut.token, token)
            ctx.set(dut.start, 1)
            ctx.set(dut.fetch.ready, 0)
            await ctx.tick()
            ctx.set(dut.start, 0)
            ctx.set(dut.token, 12_345)  # looked at once
            found, cycles = [], 0
            while len(found) <= chunks:
                ready = rng.random() >= stalls
                ctx.set(dut.fetch.ready, int(ready))
                if ctx.get(dut.fetch.valid) and ready:
                    request = ctx.get(dut.fetch.payload)
                    assert (request.tag, request.beats) == (BeatTag.EMBED, 1)
                    found.append(request.offset)
                    assert ctx.get(dut.done) == (len(found) > chunks)
                else:
                    assert not ctx.get(dut.done)
                await ctx.tick()
                cycles += 1
                assert cycles < DEADLINE
            assert found == beats_of(cfg, chunks, token, embedding)
            assert ctx.get(dut.within) == token % cfg.scale_channels
            for _ in range(3):  # and nothing more
                assert not ctx.get(dut.fetch.valid)
                await ctx.tick()

    simulate(dut, bench)


@pytest.mark.parametrize("cfg", CONFIGS[:3], ids=lambda cfg: cfg.name)
def test_answers_are_chunks_with_their_rows_multiplier(cfg):
    rng = np.random.default_rng(2)
    dut = EmbedAnswers(cfg)
    lanes = cfg.port_bytes // 2

    async def bench(ctx):
        for row in range(12):
            chunks, within = int(rng.integers(1, 9)), int(rng.integers(0, cfg.scale_channels))
            ctx.set(dut.within, within)
            for name, value in (("k", chunks), ("shift", 5 + row), ("sat", row % 14)):
                ctx.set(getattr(dut, name), value)
            ctx.set(dut.dst, 100 * row)
            mults = rng.integers(0, 1 << 16, lanes)
            words = [int.from_bytes(mults.astype("<u2").tobytes(), "little")]
            words += [int.from_bytes(rng.bytes(cfg.port_bytes), "little") for _ in range(chunks)]
            for number, word in enumerate(words):
                while rng.random() < 0.4:
                    ctx.set(dut.beats.valid, 0)
                    assert not ctx.get(dut.valid)
                    await ctx.tick()
                ctx.set(dut.beats.valid, 1)
                ctx.set(dut.beats.payload.data, word)
                assert ctx.get(dut.beats.ready) and ctx.get(dut.valid) == (number > 0)
                if number:
                    chunk = ctx.get(dut.chunk)
                    lane_bits = int(ctx.get(dut.chunk.lanes.as_value()))
                    assert (chunk.mult, chunk.shift) == (mults[within % lanes], 5 + row)
                    assert (lane_bits, chunk.dst) == (word, 100 * row + number - 1)
                    assert ctx.get(dut.row_done) == (number == chunks)
                await ctx.tick()
            ctx.set(dut.beats.valid, 0)

    simulate(dut, bench)

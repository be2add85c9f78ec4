"""KvBuffer: any K and V streams come out as the tiles that the array wants."""

import numpy as np
import pytest
from kv_tiles import check, tiles
from streams import receiver, sender, simulate
from tokenfabric.core.config import BURST_BEATS, preset
from tokenfabric.rtl.kvbuffer import KvBuffer

# rows, cols, ports, max_head_dim: words of 2 and 1 columns, of 1, 2 and 4 chunks per column
SHAPES = {
    "tiny": (8, 8, 2, 64),
    "pynq-z2": (16, 8, 4, 128),
    "one-column": (16, 8, 2, 64),
    "four-chunks": (32, 8, 4, 64),
    "wide": (32, 8, 8, 64),
    "kv260": (64, 16, 4, 128),
    "long heads": (8, 8, 2, 256),
    "longest heads": (8, 4, 2, 256),
}
STALLS = {"none": (0, 0), "slow source": (0.5, 0), "slow consumer": (0, 0.7), "both": (0.3, 0.3)}


def config(name, blocks=4, extra=0):
    rows, cols, ports, head_dim = SHAPES[name]
    chunks = blocks * max(rows, BURST_BEATS) * head_dim // cols + extra
    return preset("tiny").replace(
        name=name, rows=rows, cols=cols, ports=ports, max_head_dim=head_dim, kv_chunks=chunks
    )


def streams(cfg, rng, shapes):
    """Commands, turns, beats of each port and expected words of streams of (is_v, positions,
    head_chunks). Bursts are dealt to the ports in turn; others than K's and V's come between."""
    commands, turns, beats, words = [], [], [[] for _ in range(cfg.ports)], []
    turn = 0
    for is_v, positions, chunks in shapes:
        values = rng.integers(0, 256, (positions, chunks * cfg.cols), np.uint8)
        commands.append({"is_v": is_v, "positions": positions, "head_chunks": chunks})
        data = [int.from_bytes(beat.tobytes(), "little") for beat in values.reshape(-1, cfg.cols)]
        for at in range(0, len(data), 16):
            burst = data[at : at + 16]
            beats[turn] += [
                {"data": beat, "last": int(i == len(burst) - 1)} for i, beat in enumerate(burst)
            ]
            turns.append(turn)
            turn = (turn + 1) % cfg.ports
        turn = int(rng.integers(cfg.ports))
        words += tiles(cfg, is_v, values)
    return commands, turns, beats, words


def feeders(dut, turns, beats, stall=0.0, times=None):
    """Senders of turns and of each port's beats."""
    return [
        sender(dut.turns, turns),
        *(
            sender(dut.beats[port], each, np.random.default_rng([2, port]), stall, times=times)
            for port, each in enumerate(beats)
        ),
    ]


def run(cfg, shapes, stall, seed):
    rng = np.random.default_rng(seed)
    dut = KvBuffer(cfg)
    commands, turns, beats, words = streams(cfg, rng, shapes)
    slow_source, slow_consumer = STALLS[stall]
    got = []
    simulate(
        dut,
        [
            sender(dut.cmd, commands, np.random.default_rng(1), slow_source),
            *feeders(dut, turns, beats, slow_source),
            receiver(dut.words, len(words), got, np.random.default_rng(3), slow_consumer),
        ],
    )
    check(cfg, got, words)


@pytest.mark.parametrize("stall", STALLS)
@pytest.mark.parametrize("name", ["tiny", "pynq-z2", "kv260"])
def test_every_head_size(name, stall):
    """K and V in turn, head sizes in turn, every remainder of the positions, the largest block."""
    cfg = config(name, extra=3 * SHAPES[name][2])  # banks that blocks do not fill evenly
    rng = np.random.default_rng(7)
    rows = cfg.rows
    sizes = [1, 2, 3, 6, 8, cfg.max_head_chunks]
    counts = [1, rows, rows + 1, 2 * rows - 1, 2 * rows, int(rng.integers(1, 71))]
    shapes = [(i % 2, counts[(i + i // 6) % 6], sizes[i % 6]) for i in range(12)]
    shapes += [(1, 2 * rows, cfg.max_head_chunks)]
    run(cfg, shapes, stall, len(stall))


@pytest.mark.parametrize("name", SHAPES)
def test_every_number_of_positions(name):
    """1 .. 70 positions in small heads, a stream of each kind."""
    cfg = config(name)
    rng = np.random.default_rng(8)
    counts = [*range(1, 19), 31, 32, 33, 70]
    shapes = [(int(rng.integers(2)), count, int(rng.integers(1, 4))) for count in counts]
    run(cfg, shapes, "both", 9)


@pytest.mark.parametrize("name", ["long heads", "longest heads"])
def test_heads_longer_than_a_burst(name):
    """A position is more than a burst, of whole ones or not."""
    cfg = config(name)
    most = cfg.max_head_chunks
    shapes = [(0, 1, most), (1, 3, most), (0, 17, 17), (1, 5, most - 1), (0, 4, 16), (1, 9, 25)]
    run(cfg, shapes, "both", 15)


@pytest.mark.parametrize("name", ["one-column", "four-chunks", "wide"])
def test_other_shapes_of_the_array(name):
    cfg = config(name)
    shapes = [(0, 33, 8), (1, 33, 8), (0, 20, 3), (1, 7, 6), (0, 40, 5), (1, 40, 7)]
    run(cfg, shapes, "both", 10)


@pytest.mark.parametrize(
    "head_chunks,slower", [(3, 1.45), (4, 1.1), (6, 1.1), (8, 1.1), (16, 1.45)]
)
def test_a_word_per_cycle_in_and_out(head_chunks, slower):
    """What is buffered comes out without a pause; with most heads the ports hardly ever meet."""
    cfg = config("pynq-z2", blocks=8)
    rng = np.random.default_rng(11)
    dut = KvBuffer(cfg)
    shapes = [(0, 48, head_chunks), (1, 48, head_chunks), (0, 5, 3), (1, 5, 3)]
    commands, turns, beats, words = streams(cfg, rng, shapes)
    got, sent, times = [], [], []

    async def drain(ctx):
        while len(sent) < sum(map(len, beats)):
            await ctx.tick()
        await ctx.tick().repeat(20)
        await receiver(dut.words, len(words), got, times=times)(ctx)

    fill = feeders(dut, turns, beats, times=sent)
    simulate(dut, [sender(dut.cmd, commands), *fill, drain])
    check(cfg, got, words)
    assert times[-1] - times[0] == len(words) - 1
    assert max(sent) - min(sent) <= slower * max(map(len, beats)) + 30


def test_two_large_blocks_at_a_time():
    """With the smallest buffer the fetch of a block goes on while another one waits."""
    cfg = config("tiny")
    rng = np.random.default_rng(12)
    dut = KvBuffer(cfg)
    block = BURST_BEATS * cfg.max_head_chunks
    shapes = [(0, 10 * BURST_BEATS, cfg.max_head_chunks)]
    commands, turns, beats, words = streams(cfg, rng, shapes)
    sent, got = [], []

    async def late(ctx):
        await ctx.tick().repeat(6 * block)
        # The banks are full, each lane holds three more: nothing is written over.
        assert len(sent) == 4 * block + 3 * cfg.ports
        await receiver(dut.words, len(words), got)(ctx)

    simulate(dut, [sender(dut.cmd, commands), *feeders(dut, turns, beats, times=sent), late])
    check(cfg, got, words)


@pytest.mark.parametrize("is_v", [0, 1])
def test_nothing_is_written_over_before_it_has_been_read(is_v):
    """The array stops at each of a block's last words until the free places are filled again."""
    cfg = config("tiny")
    dut = KvBuffer(cfg)
    beats_per_block = BURST_BEATS * cfg.max_head_chunks
    words_per_block = beats_per_block // cfg.ports
    shapes = [(is_v, 12 * BURST_BEATS, cfg.max_head_chunks)]
    commands, turns, beats, words = streams(cfg, np.random.default_rng(13), shapes)
    got = []

    async def stop_and_go(ctx):
        while len(got) < len(words):
            await ctx.tick().repeat(beats_per_block + 20)
            count = min(len(got) + words_per_block - 1, len(words))
            await receiver(dut.words, count, got)(ctx)

    simulate(dut, [sender(dut.cmd, commands), *feeders(dut, turns, beats), stop_and_go])
    check(cfg, got, words)


def test_many_small_blocks():
    """There are more of them than the queue of blocks holds before the array takes the first."""
    cfg = config("tiny", blocks=8)
    dut = KvBuffer(cfg)
    shapes = [(0, 1, 1), (1, 2, 1)] * 30
    commands, turns, beats, words = streams(cfg, np.random.default_rng(14), shapes)
    sent, got = [], []

    async def late(ctx):
        await ctx.tick().repeat(500)
        assert 33 <= len(sent) < sum(map(len, beats))
        await receiver(dut.words, len(words), got)(ctx)

    simulate(dut, [sender(dut.cmd, commands), *feeders(dut, turns, beats, times=sent), late])
    check(cfg, got, words)

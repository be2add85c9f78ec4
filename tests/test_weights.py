"""How weights and the KV cache lie in memory, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from presets import TINY16
from small_models import ODD, SMALL, golden
from tokenfabric.core import isa
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.core.kv import POSITION_STEP, KvLayout, useful_bytes_per_position
from tokenfabric.core.weights import (
    FORMATS,
    INT8,
    from_superblocks,
    memory_offsets,
    superblocks,
    to_superblocks,
)

CONFIGS = [*PRESETS.values(), TINY16]
ids = {"ids": lambda value: getattr(value, "name", None)}


def matrix(cfg, blocks: int, inputs: int, seed: int = 0):
    rng = np.random.default_rng([seed, blocks, inputs])
    n = blocks * cfg.cols
    weight = rng.integers(-127, 128, (n, inputs), np.int8)
    return weight, rng.integers(0, 1 << 16, n).astype(np.uint16)


def spelled_out(cfg, weight, mult) -> list[int]:
    """The stream's bytes, written with loops as the docstring of Int8 says it."""
    (n, k), group = weight.shape, cfg.scale_channels
    out: list[int] = []
    for first in range(0, n, group):
        channels = range(first, min(first + group, n))
        mults = [int(mult[c]) if c < n else 0 for c in range(first, first + group)]
        out += [byte for m in mults for byte in (m & 255, m >> 8)]
        for block in range(first, channels[-1] + 1, cfg.cols):
            for row in range(0, k, cfg.rows):
                for column in range(block, block + cfg.cols):
                    for i in range(row, row + cfg.rows):
                        out.append(int(weight[column, i]) & 255 if i < k else 0)
    return out


@pytest.mark.parametrize("cfg", CONFIGS, **ids)
@pytest.mark.parametrize(("blocks", "inputs"), [(1, 1), (3, 7), (4, 64), (5, 130), (9, 65)])
def test_int8_lies_as_its_docstring_says(cfg, blocks, inputs):
    weight, mult = matrix(cfg, blocks, inputs)
    words = INT8.pack(cfg, weight, mult)
    assert words.dtype == np.uint8 and words.shape == (
        INT8.words(cfg, blocks, inputs), cfg.word_bytes,
    )  # fmt: skip
    assert words.ravel().tolist() == spelled_out(cfg, weight, mult)
    found, mults = INT8.unpack(cfg, words, blocks, inputs)
    assert np.array_equal(found[:, :inputs], weight) and np.array_equal(mults, mult)
    assert not found[:, inputs:].any() and found.shape[1] % cfg.rows == 0


@pytest.mark.parametrize("cfg", CONFIGS, **ids)
def test_a_channel_is_found_where_it_was_put(cfg):
    blocks, inputs = 7, cfg.rows + 3
    weight, mult = matrix(cfg, blocks, inputs)
    stream = INT8.pack(cfg, weight, mult).ravel()
    memory = to_superblocks(cfg, stream.reshape(-1, cfg.word_bytes))
    for number in range(blocks * cfg.cols):
        mult_at, at = INT8.channel(cfg, inputs, number)
        assert stream[mult_at : mult_at + 2].view("<u2")[0] == mult[number]
        assert np.array_equal(stream[at].view(np.int8), weight[number])
        assert np.array_equal(memory[memory_offsets(cfg, at)].view(np.int8), weight[number])
    groups = INT8.group_bytes(cfg, inputs)
    assert INT8.channel(cfg, inputs, cfg.scale_channels)[0] == groups
    assert groups % cfg.word_bytes == 0


@pytest.mark.parametrize("cfg", CONFIGS, **ids)
@pytest.mark.parametrize("words", [1, 15, 16, 17, 48])
def test_each_port_reads_whole_bursts(cfg, words):
    """Word i of a superblock is beat i of every port's burst."""
    rng = np.random.default_rng(words)
    stream = rng.integers(0, 256, (words, cfg.word_bytes)).astype(np.uint8)
    memory = to_superblocks(cfg, stream)
    assert memory.size == superblocks(words) * cfg.superblock_bytes
    bursts = memory.reshape(-1, cfg.ports, 16, cfg.port_bytes)
    for word in range(words):
        beats = [bursts[word // 16, port, word % 16] for port in range(cfg.ports)]
        assert np.array_equal(np.concatenate(beats), stream[word])
    back = from_superblocks(cfg, memory)
    assert np.array_equal(back[:words], stream) and not back[words:].any()
    everywhere = memory_offsets(cfg, np.arange(memory.size))
    assert sorted(everywhere) == list(range(memory.size))
    assert np.array_equal(memory[everywhere], back.ravel())


def test_formats_have_their_own_names():
    assert FORMATS["int8"] is INT8 and all(name == f.name for name, f in FORMATS.items())
    assert INT8.stored_bytes(10, 30) == 320  # a multiplier of two bytes for each output


# --- the KV cache ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", CONFIGS, **ids)
def test_the_cache_is_an_array_of_six_dimensions(cfg):
    shape = replace(SMALL, layers=3, heads=6, kv_heads=3, head_dim=10)
    kv = KvLayout.of(cfg, shape, 65, 2, 4096)
    head = -(-10 // cfg.cols) * cfg.cols
    dims = (3, 2, 2, 3, 128, head)  # layer, K or V, slot, head, position, channel

    def at(*index: int) -> int:
        return 4096 + int(np.ravel_multi_index((*index, 0), dims))

    assert (kv.positions, kv.head_bytes) == (2 * POSITION_STEP, head)
    assert kv.k_of(2) == at(2, 0, 0, 0, 0)
    assert kv.v_offset == at(0, 1, 0, 0, 0) - 4096
    assert kv.row(1, 7) == {
        "kv_slot": at(0, 0, 1, 0, 0) - 4096,
        "kv_row": at(0, 0, 1, 0, 7) - 4096,
        "scale_slot": 2 * 3 * 128,
    }
    assert kv.scales == 4096 + int(np.prod(dims)) and kv.scales_of(1) - kv.scales == 2 * 2 * 3 * 128
    assert kv.end == kv.scales + 2 * 3 * 2 * 3 * 128
    tensors = list(kv.tensors(slot=1))
    assert len(tensors) == 3 * 3 * 3
    assert tensors[0] == ("K", 0, 0, at(0, 0, 1, 0, 0), head)
    assert tensors[-2] == ("V", 2, 2, at(2, 1, 1, 2, 0), head)
    assert tensors[-1] == ("K scale", 2, 2, kv.end - 2 * 128, 2)


def test_tensors_of_all_slots_fill_the_cache_without_a_gap():
    kv = KvLayout(base=1 << 20, layers=2, slots=3, kv_heads=2, positions=64, head_bytes=16)
    spans = sorted(
        (at, at + size * kv.positions)
        for slot in range(kv.slots)
        for _, _, _, at, size in kv.tensors(slot)
    )
    assert spans[0][0] == kv.base and spans[-1][1] == kv.end
    assert all(end == begin for (_, end), (begin, _) in pairwise(spans))


def test_useful_bytes_have_no_padding():
    assert useful_bytes_per_position(SMALL) == 2 * 2 * (16 + 16 + 2)
    assert useful_bytes_per_position(ODD) == 2 * 1 * (20 + 20 + 2)


@pytest.mark.parametrize("name", ["tiny", "pynq-z2", "kv260", "ulx3s"])
@pytest.mark.parametrize("shape", [SMALL, ODD], ids=["small", "odd"])
def test_an_image_knows_its_cache(shape, name):
    _, cfg, image, _ = golden(shape, name, context=20)
    kv = image.kv
    assert kv == KvLayout.of(cfg, shape, 20, 1, image.map.kv)
    assert kv.end <= image.map.end < kv.end + 4096
    row = {"token": 5, "position": 3, "slot": 0, "flags": 0}
    words = image.descriptor([row])
    entry = dict(zip((n for n, _ in isa.ROW), words[isa.DESCRIPTOR_WORDS :].tolist()))
    assert entry["kv_row"] == 3 * kv.head_bytes and entry["kv_slot"] == 0
    job = dict(zip((n for n, _ in isa.DESCRIPTOR), words.tolist()))
    assert (job["v_offset"], job["kv_head"]) == (kv.v_offset, kv.head)
    assert job["embedding_group"] == INT8.group_bytes(preset(name), shape.dim)

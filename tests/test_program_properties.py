"""Programs of random models: every access in its memory, nothing read that was not written; and
where K and V lie, place by place."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from tokenfabric.compiler.compile import program_of
from tokenfabric.compiler.program import stream_words
from tokenfabric.core import isa
from tokenfabric.core.config import BURST_BEATS, preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.isa import Memory, Op
from tokenfabric.core.kv import KvLayout
from tokenfabric.core.shape import ModelShape

PRESETS = ("tiny", "pynq-z2", "kv260", "ulx3s")
ON_CHIP = {
    Memory.IN: "in_chunks",
    Memory.OUT: "out_chunks",
    Memory.RES: "res_chunks",
    Memory.PARAM: "param_chunks",
}


def random_shape(rng) -> ModelShape:
    """Sizes of every kind: below a chunk, odd, of several row-blocks; half of them fit nowhere."""
    kv_heads = rng.choice([1, 1, 2, 3, 4])
    return ModelShape(
        dim=rng.choice([6, rng.randrange(1, 80), rng.randrange(1, 800)]),
        hidden=rng.choice([10, rng.randrange(1, 200), rng.randrange(1, 2000)]),
        layers=rng.randrange(1, 4),
        heads=kv_heads * rng.choice([1, 2, 3]),
        kv_heads=kv_heads,
        head_dim=2 * rng.choice([1, rng.randrange(1, 33), rng.randrange(1, 65)]),
        vocab=rng.choice([1, rng.randrange(2, 2000)]),
        context=64,
        tied=bool(rng.getrandbits(1)),
    )


def fitting(name, count):
    """So many (shape, rows, program) of models that fit a preset; the others are refused."""
    rng, cfg, found, refused = random.Random(name), preset(name), [], 0
    while len(found) < count:
        shape = random_shape(rng)
        try:
            found.append((shape, *program_of(shape, cfg)))
        except UserError as error:
            assert "\n" not in str(error) and name in str(error)
            refused += 1
        assert refused < 20 * count
    return found


def places(access, row):
    """The chunks that an access touches for a row of a step."""
    at = access.at + row * access.stride
    return {at + n * access.pitch + c for n in range(access.pieces) for c in range(access.chunks)}


def on_chip(accesses):
    return [access for access in accesses if access.memory in ON_CHIP]


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_reads_what_was_written_for_it_last(name):
    """And all of it is there: with as many rows as the program is for, and with one."""
    cfg = preset(name)
    for shape, most, program in fitting(name, 12):
        for rows in {1, most}:
            owner = {memory: {} for memory in ON_CHIP}  # whose row a chunk was written for
            for number, i in enumerate(program):
                what, where = isa.OPERATIONS[i.op], (shape, number, i.op)
                for access in on_chip(what.reads(i, cfg)):
                    for row in range(rows):
                        want = row if access.memory is not Memory.PARAM else 0
                        found = {owner[access.memory].get(at) for at in places(access, row)}
                        assert found == {want}, (*where, access.memory)
                for access in on_chip(what.writes(i, cfg)):
                    for row in range(rows if access.memory is not Memory.PARAM else 1):
                        touched = places(access, row)
                        assert max(touched) < getattr(cfg, ON_CHIP[access.memory]), where
                        owner[access.memory].update(dict.fromkeys(touched, row))


@pytest.mark.parametrize("name", PRESETS)
def test_no_row_writes_what_is_another_rows(name):
    cfg = preset(name)
    for _, most, program in fitting(name, 12):
        for i in program:
            for access in on_chip(isa.OPERATIONS[i.op].writes(i, cfg)):
                if access.memory is not Memory.PARAM:
                    touched = [at for row in range(most) for at in places(access, row)]
                    assert len(set(touched)) == most * access.chunks * access.pieces


@pytest.mark.parametrize("name", PRESETS)
def test_a_program_has_all_matrices_and_ends_on_a_superblock(name):
    """Counted from the shape: columns and inputs of every matrix, in whole chunks."""
    cfg = preset(name)

    def chunks(size):
        return -(-size // cfg.cols)

    for shape, _, program in fitting(name, 12):
        head, dim, hidden = chunks(shape.head_dim), chunks(shape.dim), chunks(shape.hidden)
        of_a_layer = [
            (shape.kv_heads * head, dim), (shape.kv_heads * head, dim), (shape.heads * head, dim),
            (dim, shape.heads * head), (2 * hidden, dim), (dim, hidden),
        ]  # fmt: skip
        want = sum(n * k for n, k in of_a_layer) * shape.layers + chunks(shape.vocab) * dim
        assert sum(i.n * i.k for i in program if i.op is Op.MATMUL) == want
        assert [i.op for i in program].count(Op.END) == 1 and program[-1].op is Op.END
        for wanted in ([0], [0, 1]):  # a step without logits, and one with
            words = sum(stream_words(cfg, i) for i in program if i.want in wanted)
            assert words % BURST_BEATS == 0
        after = [i.want for i in program[:-1]]
        assert after == sorted(after)  # what only logits need is at the end


@pytest.mark.parametrize("seed", range(8))
def test_every_place_of_the_cache_is_one_places(seed):
    """All of K, V and the scales side by side, without overlap; addresses as the hardware adds."""
    rng = random.Random(seed)
    cfg = preset(rng.choice(PRESETS))
    shape = replace(
        random_shape(rng), layers=rng.randrange(1, 4), kv_heads=rng.randrange(1, 4), heads=12
    )
    slots, context, base = rng.randrange(1, 4), rng.randrange(1, 150), 4096 * rng.randrange(9)
    kv = KvLayout.of(cfg, shape, context, slots, base)
    taken, whole, end = [], [], base
    for slot in range(slots):
        for name, layer, head, address, size in kv.tensors(slot):
            taken.append((address, address + kv.positions * size))
            whole += [address] if name != "K scale" else []
            for position in (0, context - 1):
                row = kv.row(slot, position)
                if name == "K scale":  # 2 bytes for each position
                    at = kv.scales_of(layer) + row["scale_slot"] + head * kv.scale_head
                    assert at + 2 * position == address + position * size
                else:
                    at = kv.k_of(layer) + row["kv_row"] + head * kv.head
                    at += kv.v_offset if name == "V" else 0
                    assert at == address + position * size
                    assert row["kv_row"] - row["kv_slot"] == position * kv.head_bytes
    assert len(taken) == slots * shape.layers * shape.kv_heads * 3
    for start, stop in sorted(taken):
        assert start == end and stop > start
        end = stop
    assert end == kv.end and kv.positions >= context
    # Heads of K and V begin with a burst: KvBuffer counts on it.
    assert all((start - base) % (BURST_BEATS * cfg.port_bytes) == 0 for start in whole)

"""Tiles for the systolic array and when their words and activations enter: shared by the tests in
pysim and in Verilator. Needs numpy only.
"""

import numpy as np


def pack_bytes(values) -> int:
    return int.from_bytes(np.asarray(values).astype(np.int8).tobytes(), "little")


def pack_x(values) -> int:
    return int.from_bytes(np.asarray(values).astype("<i2").tobytes(), "little")


def words_of(cfg, tile, rows: bool) -> list[int]:
    """The words of a tile [R, C]: whole columns after each other, or whole rows."""
    flat = (tile if rows else tile.T).reshape(-1)
    return [pack_bytes(word) for word in flat.reshape(-1, cfg.word_bytes)]


def random_tiles(cfg, count, modes, rng):
    """``(by rows, tile [R, C], x [m, R])``; about a quarter of all values are extreme."""
    tiles = []
    for number in range(count):
        rows = {"columns": False, "rows": True}.get(modes, bool(rng.integers(2)))
        m = 1 if number % 3 == 0 else int(rng.integers(1, 8))
        tile = rng.integers(-128, 128, (cfg.rows, cfg.cols))
        x = rng.integers(-32768, 32768, (m, cfg.rows))
        tile[rng.random(tile.shape) < 0.25] = -128
        x[rng.random(x.shape) < 0.25] = -32768
        tiles.append((rows, tile, x))
    return tiles


def expected(tiles):
    return np.concatenate([x @ tile for _, tile, x in tiles])


def schedule(cfg, tiles, word_gaps, x_gaps, rng) -> list[dict]:
    """What enters in each cycle, as early as the contract of SystolicArray allows.

    ``word_gaps`` and ``x_gaps`` are the shares of cycles in which a word or an x waits.
    """
    words = [words_of(cfg, tile, rows) for rows, tile, _ in tiles]
    loading = sent = using = row = 0
    loaded = 0  # tiles complete in the shadow so far
    cycles = []
    while using < len(tiles):
        step = {}
        if (row or loaded > using) and rng.random() >= x_gaps:
            rows, _, x = tiles[using]
            step |= {"valid": 1, "swap": int(row == 0), "x": pack_x(x[row])}
        swapped = using + (row > 0 or step.get("swap", 0))
        if loading < len(tiles) and loading <= swapped and rng.random() >= word_gaps:
            rows = tiles[loading][0]
            step |= {"load": 1, "load_rows": int(rows), "load_index": sent}
            step["word"] = words[loading][sent]
            sent += 1
            if sent == cfg.tile_cycles:
                loading, sent = loading + 1, 0
        if step.get("valid"):
            row += 1
            if row == len(x):
                using, row = using + 1, 0
        loaded = loading
        cycles.append(step)
    return cycles

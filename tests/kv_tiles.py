"""K and V as the words that the array takes."""

import numpy as np


def tiles(cfg, is_v, values):
    """The words of one stream as byte lists, -1 where anything may stand."""
    positions, dims = values.shape
    rows, cols = cfg.rows, cfg.cols
    padded = np.full((-(-positions // rows) * rows, -(-dims // rows) * rows), -1)
    padded[:positions, :dims] = values
    words = []
    if is_v:
        for block in range(0, positions, rows):
            for chunk in range(0, dims, cols):
                tile = padded[block : block + rows, chunk : chunk + cols]
                words += list(tile.reshape(-1, cfg.word_bytes))
    else:
        for block in range(0, positions, cols):
            for chunk in range(0, dims, rows):
                tile = padded[block : block + cols, chunk : chunk + rows]
                words += list(tile.reshape(-1, cfg.word_bytes))
    return words


def check(cfg, got, want):
    assert len(got) == len(want)
    for index, (word, expected) in enumerate(zip(got, want, strict=True)):
        values = np.frombuffer(word.to_bytes(cfg.word_bytes, "little"), np.uint8)
        wrong = (expected >= 0) & (values != expected)
        assert not wrong.any(), f"word {index}: {values} is not {expected}"

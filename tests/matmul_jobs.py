"""Random commands of MatmulEngine with what the streams bring for them and what must come out."""

from dataclasses import dataclass, field

import numpy as np
from tokenfabric.core import ops
from tokenfabric.core.fixed import saturate
from tokenfabric.rtl.layouts import MatmulDest, MatmulKind

STREAM, K, V, LOAD = MatmulKind
BITS = (8, 16, 32)

# --- formats, as docs/microarchitecture.md has them ----------------------------------------------


def to_word(values, dtype) -> int:
    return int.from_bytes(np.asarray(values).astype(dtype).tobytes(), "little")


def column_words(cfg, tile):
    """Words of a tile [R, C]: W columns each, R int8 per column."""
    w = cfg.word_cols
    return [to_word(tile[:, i : i + w].T.ravel(), "i1") for i in range(0, cfg.cols, w)]


def row_words(cfg, tile):
    """Words of a tile [R, C]: P rows each, C int8 per row."""
    p = cfg.ports
    return [to_word(tile[i : i + p].ravel(), "i1") for i in range(0, cfg.rows, p)]


def weight_words(cfg, w, mult):
    """The weight stream of ``w`` int8 [inputs, channels] (whole blocks), ``mult`` [channels]."""
    words = []
    group = cfg.ports * cfg.cols // 2
    for g in range(0, w.shape[1], group):
        scales = np.zeros(group, int)
        scales[: len(mult[g : g + group])] = mult[g : g + group]
        words.append(to_word(scales, "<u2"))
        for c in range(g, min(g + group, w.shape[1]), cfg.cols):
            for r in range(0, w.shape[0], cfg.rows):
                words += column_words(cfg, w[r : r + cfg.rows, c : c + cfg.cols])
    return words


# --- jobs ----------------------------------------------------------------------------------------


@dataclass
class Job:
    """A command, what the streams bring for it, and what must come out."""

    command: dict
    table: list = field(default_factory=list)
    row_scale: list = field(default_factory=list)
    words: list = field(default_factory=list)
    kv_words: list = field(default_factory=list)
    kv_scales: list = field(default_factory=list)
    results: list = field(default_factory=list)
    params: list = field(default_factory=list)


def blank(kind, **changes):
    names = ("m", "k", "n", "tail", "shift", "shift_odd", "bits", "sat", "param")
    return {"kind": kind, "dest": MatmulDest.OUT, **dict.fromkeys(names, 0), **changes}


def load_job(cfg, rng, n):
    per_word = cfg.ports // 2  # chunks
    words = [to_word(rng.integers(0, 256, cfg.word_bytes), "u1") for _ in range(n)]
    param = int(rng.integers(cfg.param_chunks // per_word - n + 1)) * per_word
    params = [(param + i * per_word, word) for i, word in enumerate(words)]
    return Job(blank(LOAD, n=n, param=param), words=words, params=params)


def product_job(cfg, rng, memories, kind, *, m, k, n, tail, dest=None, extreme=False):
    """Random rows at random places of their memory; a quarter of the weights extreme, or all."""
    memory = memories[kind is V]
    blocks = len(memory) // cfg.rows
    src = rng.choice(blocks - k + 1, m) * cfg.k_chunks
    x = np.array([memory.reshape(-1, cfg.cols)[s : s + k * cfg.k_chunks].ravel() for s in src])
    x = x.astype(np.int64)
    x[:, (k - 1) * cfg.rows + tail * cfg.cols :] = 0
    w = rng.integers(-128, 128, (k * cfg.rows, n * cfg.cols))
    w[rng.random(w.shape) < (1 if extreme else 0.25)] = -128
    mult = rng.integers(0, 1 << 16, n * cfg.cols)
    mult[rng.random(mult.shape) < (1 if extreme else 0.1)] = 65535
    bits = int(rng.integers(3))
    near = max(0, 42 + k.bit_length() // 2 - BITS[bits])
    shift, shift_odd = (int(s) for s in np.clip(near + rng.integers(-6, 8, 2), 0, 63))
    dest = dest or MatmulDest(int(rng.choice([0, 1, 2, 4, 5])))
    command = blank(
        kind, m=m, k=k, n=n, tail=tail, shift=shift, shift_odd=shift_odd, bits=bits, dest=dest,
        sat=int(rng.integers(16)),
    )  # fmt: skip
    job = Job(command)
    dst, limit = rng.integers(0, 60000, m), rng.integers(0, 1 << 16, m)
    job.table = [tuple(map(int, row)) for row in zip(src, dst, limit, strict=True)]
    tiles = w.reshape(k, cfg.rows, n, cfg.cols).transpose(0, 2, 1, 3)  # [k, n, R, C]
    acc = x @ w
    if kind is V:
        mult, shifts = rng.integers(0, 1 << 16, m), rng.integers(near - 6, near + 8, m)
        job.row_scale = [(int(q), int(s)) for q, s in zip(mult, shifts, strict=True)]
        wide = ops.requantize(acc, mult[:, None], shifts[:, None])
        for kb in range(k):
            for nb in range(n):
                job.kv_words += row_words(cfg, tiles[kb, nb])
    else:
        odd = np.arange(n * cfg.cols) // cfg.cols % 2 == 1
        wide = ops.requantize(acc, mult, np.where(odd & (kind is STREAM), shift_odd, shift))
        if kind is K:
            job.kv_scales = [to_word(s, "<u2") for s in mult.reshape(n, cfg.cols)]
            for nb in range(n):
                for kb in range(k):
                    job.kv_words += column_words(cfg, tiles[kb, nb])
        else:
            job.words = weight_words(cfg, w, mult)
    y = saturate(wide, BITS[bits])
    for nb in range(n):
        lanes = slice(nb * cfg.cols, (nb + 1) * cfg.cols)
        for i in range(m):
            over = (y != wide)[i, lanes]
            job.results.append(
                {
                    "y": y[i, lanes].tolist(),
                    "saturated": sum(int(bit) << c for c, bit in enumerate(over)),
                    "dst": int(dst[i] + nb) & 0xFFFF,
                    "index": i,
                    "block": nb,
                    "limit": int(limit[i]),
                    "dest": dest,
                    "sat": command["sat"],
                    "last": int(nb == n - 1 and i == m - 1),
                }
            )
    return job


def random_memories(cfg, rng):
    """IN and SCORES as flat int16; a quarter of the values extreme."""
    memories = []
    for chunks in (cfg.in_chunks, cfg.score_chunks):
        memory = rng.integers(-32768, 32768, chunks * cfg.cols)
        memory[rng.random(len(memory)) < 0.25] = -32768
        memories.append(memory)
    return memories


def random_jobs(cfg, rng, memories, count, kinds=(STREAM, K, V, LOAD)):
    jobs = []
    for number in range(count):
        kind = (
            kinds[number % len(kinds)] if number < len(kinds) else kinds[rng.integers(len(kinds))]
        )
        if kind is LOAD:
            jobs.append(load_job(cfg, rng, int(rng.integers(1, 6))))
            continue
        m = int(rng.choice([1, cfg.max_rows, rng.integers(1, cfg.max_rows + 1)]))
        tail = int(rng.integers(1, cfg.k_chunks + 1))
        k, n = int(rng.integers(1, 4)), int(rng.integers(1, 6))
        jobs.append(product_job(cfg, rng, memories, kind, m=m, k=k, n=n, tail=tail))
    return jobs

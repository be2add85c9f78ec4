"""How fast the accelerator is: whole steps on the simulated hardware, read off its counters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import Image
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.registers import COUNTERS
from tokenfabric.core.work import decode_rates, seconds_of
from tokenfabric.host.device import CountingDevice, load, put_job, run
from tokenfabric.host.session import Job

__all__ = ["measure_decode", "measure_prefill", "session_cycles"]

STEPS = 5  # autonomous decode steps; the first, which fills the pipelines, does not count
DEADLINE = 3600.0


def _rows(image: Image, count: int, position: int, flags: RowFlag) -> list[dict[str, int]]:
    tokens = np.random.default_rng(position).integers(0, image.vocab, count)
    return [
        {"token": int(t), "position": position + i, "slot": 0, "flags": int(flags)}
        for i, t in enumerate(tokens)
    ]


def _job(
    device: CountingDevice, image: Image, rows: list[dict[str, int]], steps: int = 1
) -> dict[str, int]:
    """Run one job; its counters."""
    put_job(device, image.descriptor(rows, steps=steps))
    run(device, DEADLINE)
    counters = {name.lower(): device.counter(name) for name, _ in COUNTERS}
    beats = [device.register(f"READ_BEATS_{p}") for p in range(8)]
    counters["read_beats"] = sum(beats)
    counters["write_beats"] = device.register("WRITE_BEATS")
    return counters


def unwrapped(stamps: Iterable[int]) -> list[int]:
    """The stamps of a job's steps, which are 32 bits of a counter, as cycles since its start.

    A step takes fewer than 2**32 cycles: 14 s at 300 MHz.
    """
    cycles = [0]
    for stamp in stamps:
        cycles.append(cycles[-1] + (int(stamp) - cycles[-1]) % (1 << 32))
    return cycles[1:]


def session_cycles(jobs: Sequence[Job]) -> tuple[float, float]:
    """Mean cycles of a session's decode steps, and positions they look at.

    Autonomous steps count from start to start; where there are none, whole jobs of one token of
    each sequence do, and at last the prefill. Positions are summed over the sequences.
    """
    autonomous: list[tuple[int, int]] = []
    single: list[tuple[int, int]] = []
    prefill = [(0, 0)]
    for job in jobs:
        used = job.positions
        stamps = unwrapped(step.cycles for step in job.steps)
        if len(stamps) == 1:
            decode = len(used) == job.rows
            (single if decode else prefill).append((stamps[0], sum(used.values())))
        for number in range(1, len(stamps)):
            took = stamps[number] - stamps[number - 1]
            autonomous.append((took, sum(used.values()) + number * job.rows))
    cycles, positions = np.mean(autonomous or single or prefill[-1:], axis=0)
    return float(cycles), float(positions)


def measure_decode(
    device: CountingDevice, cfg: FabricConfig, image: Image, context: int
) -> dict[str, Any]:
    """Steady-state decode of one sequence with about ``context`` positions in the cache.

    Mean over autonomous steps, start to start; ``spans`` lists them: (job, first cycle, end) with
    the jobs of this measurement counted from 0. UserError if the context has no room for them.
    """
    last = min(context + STEPS // 2, image.context) - 1
    first = last - STEPS + 1
    if first < 0 or context > image.context:
        raise UserError(
            f"context {context} is not between {STEPS} and the {image.context} positions of the "
            "model; choose another --context"
        )
    load(device, image)
    counters = _job(device, image, _rows(image, 1, first, RowFlag.WANT_LOGITS), STEPS)
    ring = device.read(image.map.ring, 8 * STEPS).view("<u4").reshape(-1, 2)
    spans = [(0, begin, end) for begin, end in pairwise(unwrapped(ring[:, 1]))]
    cycles = sum(end - begin for _, begin, end in spans) / len(spans)
    positions = np.arange(first + 1, last + 1) + 1  # of the steps that count
    beats = counters["read_beats"] + counters["write_beats"]
    macs = image.layer_macs + image.attention_macs_per_position * float(positions.mean())
    return {
        "rows": 1,
        "context": context,
        "cycles_per_step": cycles,
        "bytes_per_step": beats * cfg.port_bytes / STEPS,
        "mac_fraction": macs / (cycles * cfg.macs),
        "spans": spans,
        "counters": counters,
        **decode_rates(cfg, image.work, cycles, float(positions.mean())),
    }


def measure_prefill(
    device: CountingDevice, cfg: FabricConfig, image: Image, count: int
) -> dict[str, Any]:
    """Prefill of ``count`` tokens from position 0, in as many steps as it takes.

    The layers are measured without any logits; the classifier, which runs once for the last token,
    is a line of its own and is part of tokens_per_second.
    """
    if not 0 < count <= image.context:
        raise UserError(
            f"a prefill of {count} tokens does not fit the context of {image.context}; choose less"
        )
    load(device, image)
    total: dict[str, int] = {}
    spans: list[tuple[int, int, int]] = []
    for at in range(0, count, image.rows):
        rows = _rows(image, min(image.rows, count - at), at, RowFlag(0))
        counters = _job(device, image, rows)
        total = {name: total.get(name, 0) + value for name, value in counters.items()}
        spans.append((len(spans), 0, counters["cycles"]))
    steps = len(spans)
    layers = total["cycles"]
    rows[-1]["flags"] = int(RowFlag.WANT_LOGITS)
    classifier = _job(device, image, rows)["cycles"] - counters["cycles"]
    seconds = seconds_of(cfg, layers + classifier)
    kv = image.kv_bytes_per_position * sum(
        min(at + image.rows, count) for at in range(0, count, image.rows)
    )
    useful = image.layer_bytes * steps + kv  # K and V once per step, whatever is read
    attention = image.attention_macs_per_position * count * (count + 1) // 2
    macs = image.layer_macs * count + attention
    return {
        "rows": count,
        "steps": steps,
        "cycles_per_step": layers / steps,
        "classifier_cycles": classifier,
        "bytes_per_step": (total["read_beats"] + total["write_beats"]) * cfg.port_bytes / steps,
        "useful_bytes_per_step": useful / steps,
        "bandwidth_fraction": useful / (seconds_of(cfg, layers) * cfg.dram.peak_bytes_per_s),
        "mac_fraction": macs / (layers * cfg.macs),
        "tokens_per_second": count / seconds,
        "spans": spans,
        "counters": total,
    }

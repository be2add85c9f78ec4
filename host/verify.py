"""Replaying a session on another device, and finding the first difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenfabric.core.image import Image
from tokenfabric.host.device import DeviceError, load, put_job, run
from tokenfabric.host.session import Job

__all__ = ["cache_tensors", "replay"]

DEADLINE = 3600.0


def replay(jobs: Sequence[Job], image: Image, subject: Any, reference: Any) -> str | None:
    """Run the jobs of a session on ``subject`` again on ``reference``; the first difference.

    Compared are, job by job, all tokens and all dumped logits; at the end the K and V cache with
    the scales of every position that was written, and the saturation counts of the last job. None
    if everything is equal, otherwise a sentence that names step and tensor.
    """
    load(reference, image)
    step = 0
    for job in jobs:
        put_job(reference, job.descriptor)
        try:
            run(reference, DEADLINE)
        except DeviceError as error:
            return f"step {step}: the reference stopped: {error}"
        count = len(job.steps)
        at = image.map.ring
        ring = reference.read(at, 8 * count * job.rows).view("<u4").reshape(count, job.rows, 2)
        for number, found in enumerate(job.steps):
            want = [int(t) for t in ring[number, :, 0]]
            difference = _logits(job, image, reference, number, step)
            if difference:
                return difference
            if found.tokens != want:
                return f"step {step}: the tokens are {found.tokens} instead of {want}"
            step += 1
    return _cache(jobs, image, subject, reference) or _saturations(subject, reference)


def _logits(job: Job, image: Image, reference: Any, number: int, step: int) -> str | None:
    if job.logits is None:
        return None
    per_step = len(job.logits) // len(job.steps)
    stride = image.map.logits_stride
    at = image.map.logits + number * per_step * stride
    want = reference.read(at, per_step * stride).view("<i4").reshape(per_step, -1)
    found = job.logits[number * per_step : (number + 1) * per_step]
    if np.array_equal(found, want):
        return None
    row, channel = (int(i) for i in np.argwhere(found != want)[0])
    return (
        f"step {step}: the logits of row {row} differ first at channel {channel}: "
        f"{found[row, channel]} instead of {want[row, channel]}"
    )


def _written(jobs: Sequence[Job]) -> dict[int, int]:
    """Positions that the jobs have written, of each slot."""
    last: dict[int, int] = {}
    for job in jobs:
        for slot, positions in job.positions.items():
            last[slot] = max(last.get(slot, 0), positions + len(job.steps) - 1)
    return last


def cache_tensors(image: Image, slot: int = 0) -> Iterator[tuple[str, int, int, int, int]]:
    """(name, layer, KV head, address, bytes per position) of K, V and K scales of a slot."""
    m = image.map
    scales = m.kv + image.layers * 2 * m.v_offset
    scale_layer = m.scale_slot * (m.v_offset // m.kv_slot)
    for layer in range(image.layers):
        k = m.kv + layer * 2 * m.v_offset + slot * m.kv_slot
        s = scales + layer * scale_layer + slot * m.scale_slot
        for head in range(m.kv_slot // m.kv_head):
            yield "K", layer, head, k + head * m.kv_head, image.head_bytes
            yield "V", layer, head, k + m.v_offset + head * m.kv_head, image.head_bytes
            yield "K scale", layer, head, s + head * m.scale_head, 2


def _cache(jobs: Sequence[Job], image: Image, subject: Any, reference: Any) -> str | None:
    for slot, positions in _written(jobs).items():
        where = f" of slot {slot}" if image.slots > 1 else ""
        for name, layer, head, at, size in cache_tensors(image, slot):
            a = subject.read(at, positions * size).reshape(positions, size)
            b = reference.read(at, positions * size).reshape(positions, size)
            if not np.array_equal(a, b):
                position = int(np.argwhere((a != b).any(1))[0, 0])
                return (
                    f"{name} of layer {layer}, KV head {head}, position {position}{where} differs"
                )
    return None


def _saturations(subject: Any, reference: Any) -> str | None:
    if not hasattr(subject, "saturations"):
        return None
    found, want = list(subject.saturations()), list(reference.saturations())
    if found != want:
        index = next(i for i, (a, b) in enumerate(zip(found, want)) if a != b)
        return f"saturation counter {index} is {found[index]} instead of {want[index]}"
    return None

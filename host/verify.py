"""Replaying a session on another device, and finding the first difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tokenfabric.core.image import Image
from tokenfabric.host.device import Device, DeviceError, load, put_job, run
from tokenfabric.host.session import Job

__all__ = ["replay"]

DEADLINE = 3600.0


def replay(jobs: Sequence[Job], image: Image, subject: Device, reference: Device) -> str | None:
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


def _logits(job: Job, image: Image, reference: Device, number: int, step: int) -> str | None:
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


def _cache(jobs: Sequence[Job], image: Image, subject: Device, reference: Device) -> str | None:
    for slot, positions in _written(jobs).items():
        where = f" of slot {slot}" if image.slots > 1 else ""
        for name, layer, head, at, size in image.kv.tensors(slot):
            a = subject.read(at, positions * size).reshape(positions, size)
            b = reference.read(at, positions * size).reshape(positions, size)
            if not np.array_equal(a, b):
                position = int(np.argwhere((a != b).any(1))[0, 0])
                return (
                    f"{name} of layer {layer}, KV head {head}, position {position}{where} differs"
                )
    return None


def _saturations(subject: Device, reference: Device) -> str | None:
    found, want = list(subject.saturations()), list(reference.saturations())
    if found != want:
        index = next(i for i, (a, b) in enumerate(zip(found, want)) if a != b)
        return f"saturation counter {index} is {found[index]} instead of {want[index]}"
    return None

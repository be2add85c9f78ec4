"""The token loop: prefill, decode and sampling on any device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from tokenfabric.host.device import Device, DeviceTimeout, raise_error
from tokenfabric.host.image import PAGE, Image

from tokenfabric.errors import UserError
from tokenfabric.isa import JOB, RowFlag
from tokenfabric.registers import State

__all__ = ["Job", "Sampler", "Session", "Step", "check_prompt"]

NO_TOKEN = 0xFFFFFFFF


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. temperature 0: greedy, on the device; otherwise by the host.

    top_p: keep the most likely tokens that together have this probability. top_k: at most so many
    (0: all). Raises UserError for values out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < 1e6):
            raise UserError(f"temperature {self.temperature} is not between 0 and 1e6")
        if not (0 < self.top_p <= 1):
            raise UserError(f"top-p {self.top_p} is not above 0 and at most 1")
        if self.top_k < 0:
            raise UserError(f"top-k {self.top_k} is negative; 0 keeps all tokens")

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """One token from float logits [vocab]."""
        scaled = (logits - logits.max()) / self.temperature
        p = np.exp(scaled)
        order = np.argsort(-p, kind="stable")
        p = p[order] / p.sum()
        keep = len(p) if self.top_k == 0 else min(self.top_k, len(p))
        keep = min(keep, int(np.searchsorted(np.cumsum(p), self.top_p)) + 1)
        return int(order[rng.choice(keep, p=p[:keep] / p[:keep].sum())])


@dataclass
class Step:
    """What one step of the device chose for each row, and when (cycles since its job's start)."""

    tokens: list[int]
    cycles: int


@dataclass
class Job:
    """One run of the device: its descriptor, its steps, and the logits it dumped (int32) if any."""

    descriptor: np.ndarray
    rows: int
    steps: list[Step] = field(default_factory=list)
    logits: np.ndarray | None = None
    seconds: float = 0.0


def check_prompt(image: Image, prompt: Sequence[int], used: int = 0) -> int:
    """Room left in a context of which ``used`` positions are taken; UserError for a bad prompt."""
    room = image.context - used
    if not prompt:
        raise UserError("the prompt is empty; give at least one token")
    bad = [t for t in prompt if not 0 <= t < image.vocab]
    if bad:
        raise UserError(
            f"token {bad[0]} is outside the vocabulary of {image.vocab}; "
            "use the tokenizer of the model"
        )
    if len(prompt) > room:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the context has room for {room} of "
            f"{image.context}; shorten the prompt"
        )
    return room


class Session:
    """One sequence on one device: the context lives in ``slot`` of the device's KV cache.

    Loads the image when made. ``dump``: the device writes the logits of every row (for comparing);
    ``jobs`` then holds what is needed to replay the session on another device. ``deadline``:
    seconds that a single job may take without a new token before DeviceTimeout.
    """

    def __init__(
        self,
        device: Device,
        image: Image,
        *,
        slot: int = 0,
        dump: bool = False,
        deadline: float = 600.0,
    ):
        if device.fingerprint != image.fingerprint:
            raise UserError(
                f"the image was compiled for {image.preset} with fingerprint {image.fingerprint}, "
                f"the device reports {device.fingerprint}; compile the model for this device"
            )
        self.device, self.image, self.slot = device, image, slot
        self.dump, self.deadline = dump, deadline
        self.tokens: list[int] = []  # what stands in the KV cache
        self.jobs: list[Job] = []
        device.write(PAGE, image.payload)

    def generate(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        sampler: Sampler | None = None,
        stops: Sequence[int] = (),
    ) -> Iterator[int]:
        """Append ``prompt`` to the context, then yield up to ``count`` tokens as they are chosen.

        Ends early at a stop token (which is yielded). The last token yielded is not yet in the
        context: give it with the next prompt. UserError for a prompt that is empty, has a token
        outside the vocabulary, or does not fit the context.
        """
        sampler = sampler or Sampler()
        room = check_prompt(self.image, prompt, len(self.tokens))
        if count < 1:
            raise UserError(f"{count} tokens to generate; ask for at least 1")
        count = min(count, room - len(prompt) + 1)
        rng = np.random.default_rng(sampler.seed)
        token = self._prefill(list(prompt), sampler, rng)
        yield token
        if sampler.temperature == 0:
            yield from self._decode_greedy(token, count - 1, stops)
            return
        for _ in range(count - 1):
            if token in stops:
                return
            token = self._choose(self._run([token]), sampler, rng)
            yield token

    def _prefill(self, prompt: list[int], sampler: Sampler, rng) -> int:
        for at in range(0, len(prompt), self.image.rows):
            rows = prompt[at : at + self.image.rows]
            job = self._run(rows, want_last=at + len(rows) == len(prompt), sampler=sampler)
        return self._choose(job, sampler, rng)

    def _choose(self, job: Job, sampler: Sampler, rng) -> int:
        if sampler.temperature == 0:
            return job.steps[-1].tokens[-1]
        assert job.logits is not None
        logits = job.logits[-1, : self.image.vocab]
        return sampler.choose(logits / (1 << self.image.logits_frac), rng)

    def _decode_greedy(self, token: int, count: int, stops: Sequence[int]) -> Iterator[int]:
        if count < 1 or token in stops:
            return
        for step in self._stream([token], count, stops):
            yield step.tokens[0]

    def _run(self, rows: list[int], *, want_last: bool = True, sampler=None) -> Job:
        """One step over ``rows``; logits of the last row unless ``want_last`` is false."""
        dump_last = sampler is None or sampler.temperature > 0
        for _ in self._stream(rows, 1, (), want_last, dump_last):
            pass
        return self.jobs[-1]

    def _stream(
        self, rows: list[int], steps: int, stops, want_last=True, dump_last=False
    ) -> Iterator[Step]:
        """One job; yields its steps as they are done and keeps ``tokens`` in line."""
        image, device = self.image, self.device
        first = len(self.tokens)
        table = []
        for i, token in enumerate(rows):
            last = i == len(rows) - 1
            flags = RowFlag(0)
            if self.dump:
                flags = RowFlag.WANT_LOGITS | RowFlag.DUMP_LOGITS
            elif last and want_last:
                flags = RowFlag.WANT_LOGITS | (RowFlag.DUMP_LOGITS if dump_last else RowFlag(0))
            if last and stops:
                flags |= RowFlag.STOP
            table.append(
                {"token": token, "position": first + i, "slot": self.slot, "flags": int(flags)}
            )
        job = Job(image.descriptor(table, steps=steps, stops=stops), len(rows))
        self.jobs.append(job)
        began = time.perf_counter()
        device.write(JOB, job.descriptor)
        device.start()
        self.tokens += rows
        finished = False
        try:
            for step in self._steps(job, steps):
                if len(job.steps) > 1:
                    self.tokens.append(job.steps[-2].tokens[0])
                yield step
            finished = True
        finally:
            if not finished:
                device.stop()
                device.wait(self.deadline)
            job.seconds = time.perf_counter() - began
        dumping = sum(bool(row["flags"] & RowFlag.DUMP_LOGITS) for row in table)
        if dumping:
            count = dumping * len(job.steps)
            data = device.read(image.map.logits, count * image.map.logits_stride)
            job.logits = data.view("<i4").reshape(count, -1)

    def _steps(self, job: Job, steps: int) -> Iterator[Step]:
        """Steps of the running job as they appear in the ring, until it is over."""
        device, done = self.device, 0
        end = time.monotonic() + self.deadline
        while True:
            state, ready, _ = device.poll()
            while done < min(ready, steps):
                at = self.image.map.ring + 8 * job.rows * done
                entries = device.read(at, 8 * job.rows).view("<u4").reshape(-1, 2)
                job.steps.append(Step([int(t) for t in entries[:, 0]], int(entries[0, 1])))
                done += 1
                end = time.monotonic() + self.deadline
                yield job.steps[-1]
            if state is not State.RUNNING and done == min(ready, steps):
                raise_error(device)
                return
            if time.monotonic() > end:
                raise DeviceTimeout(f"no new token within {self.deadline:g} s")

"""The token loop: prefill, decode and sampling of one or several sequences on any device."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field

import numpy as np
from tokenfabric.core import exact
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import Image
from tokenfabric.core.isa import DESCRIPTOR, DESCRIPTOR_WORDS, ROW, ROW_WORDS, RowFlag
from tokenfabric.core.registers import Error, State
from tokenfabric.host.device import (
    Device,
    DeviceError,
    DeviceLost,
    DeviceTimeout,
    end_run,
    load,
    put_job,
    raise_error,
)

__all__ = ["Context", "Job", "Sampler", "Session", "Step", "check_prompt"]

NO_TOKEN = 0xFFFFFFFF
STEPS = [name for name, _ in DESCRIPTOR].index("steps")
STOPS = sum(name.startswith("stop") for name, _ in DESCRIPTOR)
POSITION, SLOT = ([name for name, _ in ROW].index(name) for name in ("position", "slot"))


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
        if self.seed < 0:
            raise UserError(f"seed {self.seed} is negative; give 0 or more")

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """One token from float64 logits [vocab]; the same on every machine."""
        order = np.argsort(-logits, kind="stable")  # by logits: probabilities round to equal ones
        ends = np.cumsum(exact.likelihoods(logits[order], self.temperature))
        keep = len(ends) if self.top_k == 0 else min(self.top_k, len(ends))
        keep = min(keep, int(np.searchsorted(ends, self.top_p * ends[-1])) + 1)
        return int(order[exact.pick(ends[:keep], exact.uniforms(rng, 1))[0]])


@dataclass
class Step:
    """What one step of the device chose for each row, and when: cycles since its job's start,
    modulo 2**32 (:func:`tokenfabric.host.perf.unwrapped`)."""

    tokens: list[int]
    cycles: int


@dataclass
class Job:
    """One run of the device: its descriptor, its steps, and the logits it dumped (int32) if any."""

    descriptor: np.ndarray
    rows: int
    steps: list[Step] = field(default_factory=list)
    logits: np.ndarray | None = None

    @property
    def positions(self) -> dict[int, int]:
        """Of each slot: how many of its positions are in use after the first step."""
        table = np.asarray(self.descriptor)[DESCRIPTOR_WORDS:].reshape(-1, ROW_WORDS)
        return {int(row[SLOT]): int(row[POSITION]) + 1 for row in table}


@dataclass
class Context:
    """One sequence: the tokens in its slot of the KV cache, and those that have yet to get there.

    pending: the last token that was chosen, which the next call puts before its prompt.
    """

    slot: int
    tokens: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)


@dataclass
class _Turn:
    """One sequence during one call."""

    context: Context
    given: list[int]
    left: int  # tokens that it may still choose
    sampler: Sampler
    rng: np.random.Generator
    stops: Sequence[int]

    @property
    def live(self) -> bool:
        return self.left > 0 and self.context.pending[0] not in self.stops

    def rows(self, dump: bool) -> list[dict[str, int]]:
        """What has yet to be computed before it can choose, as rows of the row table."""
        tokens = self.given or self.context.pending
        last = RowFlag.WANT_LOGITS
        last |= RowFlag.DUMP_LOGITS if dump or self.sampler.temperature > 0 else RowFlag(0)
        last |= RowFlag.STOP if self.stops else RowFlag(0)
        other = RowFlag.WANT_LOGITS | RowFlag.DUMP_LOGITS if dump else RowFlag(0)
        first, end = len(self.context.tokens), len(tokens) - 1
        return [
            {
                "token": token,
                "position": first + i,
                "slot": self.context.slot,
                "flags": int(last if i == end else other),
            }
            for i, token in enumerate(tokens)
        ]

    def choose(self, token: int, logits: np.ndarray | None) -> int:
        """The next token: ``token``, which the device chose, or one sampled from ``logits``."""
        if self.sampler.temperature == 0:
            return token
        assert logits is not None
        return self.sampler.choose(logits, self.rng)

    def take(self, token: int) -> None:
        """``token`` was chosen after all that was given or pending."""
        self.context.tokens += self.given or self.context.pending
        self.given, self.context.pending = [], [token]
        self.left -= 1


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
        remedy = "shorten the prompt or reset the session" if used else "shorten the prompt"
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the context has room for {room} of "
            f"{image.context}; {remedy}"
        )
    return room


class Session:
    """The token loop on one device: ``contexts``, one for each slot of the image's KV cache.

    A context survives from call to call: only what is new is computed. ``reset`` empties them all.
    A generator that is closed, dropped or interrupted stops the device, and so does the next call;
    the contexts then hold what had been yielded. A call that fails before its first token leaves
    them as they were.

    Loads the image when made, and ends whatever the device was doing. ``dump``: the device writes
    the logits of every row (for comparing), and ``jobs`` holds what is needed to replay the session
    on another device; otherwise it holds the jobs of the last call. ``deadline``: seconds that a
    single job may take without a new token before DeviceTimeout.
    """

    def __init__(
        self,
        device: Device,
        image: Image,
        *,
        dump: bool = False,
        deadline: float = 600.0,
        progress: Callable[[str, int, int], None] | None = None,
    ):
        if device.fingerprint != image.fingerprint:
            raise UserError(
                f"the image was compiled for {image.preset} with fingerprint {image.fingerprint}, "
                f"the device reports {device.fingerprint}; compile the model for this device"
            )
        self.device, self.image = device, image
        self.dump, self.deadline = dump, deadline
        self.contexts = [Context(slot) for slot in range(image.slots)]
        self.jobs: list[Job] = []
        self._live: Callable[[], Generator | None] = lambda: None
        end_run(device, deadline)
        load(device, image, progress)

    @property
    def tokens(self) -> list[int]:
        """What stands in the KV cache of the first sequence."""
        return self.contexts[0].tokens

    def reset(self) -> None:
        """Forget all contexts."""
        self.stop()
        self.contexts = [Context(slot) for slot in range(self.image.slots)]

    def stop(self) -> None:
        """End the call that is under way, if any."""
        live = self._live()
        if live is not None:
            live.close()

    def generate(
        self,
        prompt: Sequence[int],
        count: int,
        *,
        sampler: Sampler | None = None,
        stops: Sequence[int] = (),
    ) -> Iterator[int]:
        """Append ``prompt`` to the first context and yield up to ``count`` tokens as they come.

        Ends early at a stop token (which is yielded) and at the end of the context. An empty prompt
        goes on after the last token. UserError for a prompt that has nothing to follow, has a token
        outside the vocabulary, or does not fit the context.
        """
        return _only(self.batch([prompt], count, samplers=[sampler or Sampler()], stops=stops))

    def batch(
        self,
        prompts: Sequence[Sequence[int]],
        count: int,
        *,
        samplers: Sequence[Sampler] | None = None,
        stops: Sequence[int] = (),
    ) -> Generator[list[int | None], None, None]:
        """As ``generate``, for several contexts at a time: prompt i is appended to context i.

        Yields, for each step, the token that each sequence chose; None for those that have ended.
        What a sequence says does not depend on the others. With ``dump`` the device needs
        memory for the logits of all rows of a job.
        """
        self.stop()
        most = min(self.image.slots, self.image.rows)
        if not 0 < len(prompts) <= most:
            raise UserError(
                f"{len(prompts)} prompts at a time, the image has room for {most}; "
                f"give 1 to {most} or compile it with more slots"
            )
        if count < 1:
            raise UserError(f"{count} tokens to generate; ask for at least 1")
        turns = []
        for context, prompt, sampler in zip(
            self.contexts, prompts, samplers or [Sampler()] * len(prompts)
        ):
            given = [*context.pending, *prompt]
            room = check_prompt(self.image, given, len(context.tokens))
            left = min(count, room - len(given) + 1)
            rng = np.random.default_rng(sampler.seed)
            turns.append(_Turn(context, given, left, sampler, rng, stops))
        if not self.dump:
            self.jobs = []
        steps = self._steps(turns)
        self._live = weakref.ref(steps)
        return steps

    # --- one call ------------------------------------------------------------------------------

    def _steps(self, turns: list[_Turn]) -> Generator[list[int | None], None, None]:
        chosen = self._prefill(turns)
        for turn, token in zip(turns, chosen):
            turn.take(token)
        yield [*chosen]
        while live := [turn for turn in turns if turn.live]:
            with closing(self._decode(live)) as steps:
                for tokens in steps:
                    new: dict[int, int] = {}
                    for turn, token in zip(live, tokens):
                        if turn.live:
                            turn.take(token)
                            new[turn.context.slot] = token
                    yield [new.get(turn.context.slot) for turn in turns]
                    if not any(turn.live for turn in live):
                        break

    def _prefill(self, turns: list[_Turn]) -> list[int]:
        """Compute all that was given, rows of all sequences together; the first tokens."""
        rows = [row for turn in turns for row in turn.rows(self.dump)]
        ends = np.cumsum([len(turn.given) for turn in turns]) - 1
        tokens: list[int] = []
        logits: list[np.ndarray | None] = []
        for at in range(0, len(rows), self.image.rows):
            more = self._one_step(rows[at : at + self.image.rows])
            tokens += more[0]
            logits += more[1]
        return [t.choose(tokens[end], logits[end]) for t, end in zip(turns, ends)]

    def _decode(self, live: list[_Turn]) -> Generator[list[int], None, None]:
        """Tokens of each step: one step, or as many as all can go if the device chooses alone."""
        rows = [row for turn in live for row in turn.rows(self.dump)]
        if any(turn.sampler.temperature > 0 for turn in live):
            found = self._one_step(rows)
            yield [turn.choose(token, logits) for turn, token, logits in zip(live, *found)]
            return
        steps = min(turn.left for turn in live)
        with closing(self._run(rows, steps, live[0].stops[:STOPS])) as run:
            for step in run:
                yield step.tokens

    # --- one job -------------------------------------------------------------------------------

    def _one_step(self, rows: list[dict[str, int]]) -> tuple[list[int], list[np.ndarray | None]]:
        """Each row's token, and its float logits if it dumped them."""
        [step] = self._run(rows)
        job = self.jobs[-1]
        dumped = iter([] if job.logits is None else job.logits[:, : self.image.vocab])
        scale = 1 << self.image.logits_frac
        logits = [
            next(dumped) / scale if row["flags"] & RowFlag.DUMP_LOGITS else None for row in rows
        ]
        if not self.dump:
            job.logits = None  # a long text's would fill the memory
        return step.tokens, logits

    def _run(
        self, rows: list[dict[str, int]], steps: int = 1, stops: Sequence[int] = ()
    ) -> Generator[Step, None, None]:
        """One job; yields its steps as they are done."""
        job = Job(self.image.descriptor(rows, steps=steps, stops=stops), len(rows))
        self.jobs.append(job)
        put_job(self.device, job.descriptor)
        try:
            self.device.start()
            yield from self._watch(job)
        except DeviceTimeout:
            with suppress(DeviceTimeout):  # the next session tries again
                end_run(self.device, self.deadline, at_once=True)
            raise
        except DeviceError:
            raise
        except BaseException:  # closed, interrupted or lost: the device may have gone on meanwhile
            with suppress(DeviceLost):  # then nothing can be ended
                end_run(self.device, self.deadline)
                self._collect(job)
                job.descriptor[STEPS] = len(job.steps)
                self._read_logits(job, rows)
            raise
        self._read_logits(job, rows)

    def _read_logits(self, job: Job, rows: list[dict[str, int]]) -> None:
        dumping = sum(bool(row["flags"] & RowFlag.DUMP_LOGITS) for row in rows)
        if count := dumping * len(job.steps):
            data = self.device.read(self.image.map.logits, count * self.image.map.logits_stride)
            job.logits = data.view("<i4").reshape(count, -1)

    def _watch(self, job: Job) -> Iterator[Step]:
        """Steps of the running job as they appear in the ring, until it is over."""
        end = time.monotonic() + self.deadline
        while True:
            seen = len(job.steps)
            state, error = self._collect(job)
            yield from job.steps[seen:]
            if state is State.ERROR and error is Error.SILENT:
                # No fault: this program slept, and was taken for dead. What is left comes next.
                if job.steps:
                    job.descriptor[STEPS] = len(job.steps)
                    return
                if time.monotonic() > end:
                    raise_error(self.device)
                self.device.start()
            elif state is not State.RUNNING:
                raise_error(self.device)
                return
            if len(job.steps) > seen:
                end = time.monotonic() + self.deadline
            elif time.monotonic() > end:
                raise DeviceTimeout(
                    f"no new token within {self.deadline:g} s; open the device anew, or give it a "
                    "longer deadline if it is only slow"
                )

    def _collect(self, job: Job) -> tuple[State, Error]:
        """Append the steps whose tokens have come to stand in the ring."""
        state, ready, error = self.device.poll()
        seen = len(job.steps)
        if ready > seen:
            at, size = self.image.map.ring + 8 * job.rows * seen, 8 * job.rows * (ready - seen)
            ring = self.device.read(at, size).view("<u4").reshape(-1, job.rows, 2)
            job.steps += [Step(row[:, 0].tolist(), int(row[0, 1])) for row in ring]
        return state, error


def _only(steps: Generator[list[int | None], None, None]) -> Iterator[int]:
    """The tokens of the only sequence."""
    with closing(steps):
        for [token] in steps:
            assert token is not None
            yield token

"""Text in, text out, while the fabric decodes: for notebooks, programs and the command line.

llm = LLM(device, image)
for piece in llm.generate("Once upon a time", max_tokens=100):
    print(piece, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import html
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tokenfabric.core.config import PRESETS
from tokenfabric.core.image import Image
from tokenfabric.core.work import decode_rates
from tokenfabric.host.device import Device
from tokenfabric.host.perf import session_cycles
from tokenfabric.host.session import Sampler, Session
from tokenfabric.host.tokenizer import Decoder, Tokenizer

__all__ = ["LLM", "Batch", "Generation", "Stats"]

REDRAW = 0.05  # seconds between two updates of a display


@dataclass(frozen=True)
class Stats:
    """How fast one sequence was. None where the device has no clock or did not decode.

    seconds: of wall time, from the first wait to the last token. cycles_per_token: of decoding;
    board_tokens_per_second: the same at the clock of the preset.
    """

    prompt_tokens: int
    tokens: int
    seconds: float
    cycles_per_token: float | None
    board_tokens_per_second: float | None
    bandwidth_fraction: float | None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        text = f"{self.tokens} tokens in {self.seconds:.2f} s, {self.tokens_per_second:,.1f}/s"
        if self.cycles_per_token is None or self.board_tokens_per_second is None:
            return text
        cycles, board = self.cycles_per_token, self.board_tokens_per_second
        text += f"; {cycles:,.0f} cycles a token, {board:,.1f}/s at the board's clock"
        share = self.bandwidth_fraction
        return text if share is None else f"{text}, {share:.1%} of the DRAM limit"


class Generation:
    """What one sequence says: iterate over it (``for`` or ``async for``) for its pieces.

    A piece is whole characters, as soon as there are some. Whoever stops iterating may go on later;
    ``close``, or the next call on the LLM, ends it for good. ``text``, ``tokens`` and ``stats``
    tell what there is so far, or, if nobody has begun to iterate, run it to its end first.
    """

    def __init__(self, run: _Run, prompt: str, given: int, decoder: Decoder):
        self.prompt = prompt
        self._run, self._decoder = run, decoder
        self._given = given  # tokens
        self._pieces: deque[str] = deque()  # not yet handed out
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._over = False
        self._ended: float | None = None  # when the last token came

    # --- pieces --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while not self._pieces:
            if self._over:
                raise StopIteration
            self._run.step()
        return self._pieces.popleft()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        """The waiting is done by a thread. Cancelled, it ends the generation first."""
        waiting = asyncio.ensure_future(asyncio.to_thread(next, self, None))
        try:
            piece = await asyncio.shield(waiting)
        except asyncio.CancelledError:
            await asyncio.wait([waiting])
            waiting.exception()  # seen
            await asyncio.to_thread(self.close)
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        """End it, and with it the others of its batch: the device stops after its step."""
        self._run.close()

    def _take(self, token: int | None) -> None:
        """The token of a step; None: this sequence has ended."""
        if self._over:
            return
        if token is None:
            self._over = True
            piece = self._decoder.finish()
        else:
            self._tokens.append(token)
            self._ended = time.perf_counter()
            piece = self._decoder.push(token)
        if piece:
            self._pieces.append(piece)
            self._text.append(piece)

    # --- results -------------------------------------------------------------------------------

    @property
    def text(self) -> str:
        """What was said after the prompt."""
        self._run.ensure_begun()
        return "".join(self._text)

    @property
    def tokens(self) -> list[int]:
        """Its tokens, with the one that ended it if there is one."""
        self._run.ensure_begun()
        return list(self._tokens)

    @property
    def stats(self) -> Stats:
        """How fast it was."""
        self._run.ensure_begun()
        return self._run.stats(self._given, len(self._tokens), self._ended)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        state = "over" if self._over else "running" if self._run.began else "not begun"
        return f"<Generation {self.prompt[:40]!r}: {len(self._tokens)} tokens, {state}>"

    # --- notebooks -----------------------------------------------------------------------------

    def _repr_html_(self) -> str:
        prompt, text = html.escape(self.prompt), html.escape(self.text)
        return (
            f'<div style="white-space: pre-wrap"><b>{prompt}</b>{text}</div>'
            f"<small>{html.escape(str(self.stats))}</small>"
        )

    def display(self) -> None:
        """Show it while it comes: in place in a notebook, else printed."""
        if _in_notebook():
            self._run.step()
            _display(self, self)
            return
        print(self.prompt, end="", flush=True)
        for piece in self:
            print(piece, end="", flush=True)
        print(f"\n\n{self.stats}")


class Batch(list[Generation]):
    """The Generations of one call with several prompts. Waiting for one moves all of them on."""

    def close(self) -> None:
        """End them all."""
        for generation in self:
            generation.close()

    def _repr_html_(self) -> str:
        return "\n".join(generation._repr_html_() for generation in self)

    def display(self) -> None:
        """Show all while they come, in place in a notebook; else printed one after the other."""
        if _in_notebook():
            self[0]._run.step()
            _display(self, zip_longest(*self))
            return
        for generation in self:
            generation.display()


def _in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _display(shown: Any, pieces: Iterable[Any]) -> None:
    """Draw ``shown`` again and again while ``pieces`` come."""
    from IPython.display import display

    handle, drawn = display(shown, display_id=True), 0.0
    for _ in pieces:
        if time.monotonic() - drawn >= REDRAW:
            handle.update(shown)
            drawn = time.monotonic()
    handle.update(shown)


class _Run:
    """One call of the session, shared by its generations; steps it for whoever needs a piece."""

    def __init__(self, session: Session, prompts: list[list[int]], count: int, **options: Any):
        self._session = session
        self._steps = session.batch(prompts, count, **options)
        self._jobs, self._first_job = session.jobs, len(session.jobs)
        self._last_job: int | None = None
        self._lock = threading.Lock()  # the generations of a batch may be waited for in threads
        self.generations: list[Callable[[], Generation | None]] = []  # weak: dropped ones end it
        self.began: float | None = None

    def step(self) -> None:
        """The next token of every generation, or the end of all."""
        with self._lock:
            if self.began is None:
                self.began = time.perf_counter()
            try:
                tokens = next(self._steps, None)
            except BaseException:
                self._finish()
                raise
            if tokens is None:
                self._finish()
                return
            self._tell(tokens)

    def _tell(self, tokens: Sequence[int | None]) -> None:
        for generation, token in zip(self.generations, tokens):
            if (alive := generation()) is not None:
                alive._take(token)

    def ensure_begun(self) -> None:
        """Run to the end if nobody has begun to iterate."""
        if self.began is None:
            while self._last_job is None:
                self.step()

    def close(self) -> None:
        with self._lock:
            self.began = self.began or time.perf_counter()
            self._steps.close()
            self._finish()

    def _finish(self) -> None:
        if self._last_job is None:
            self._last_job = len(self._jobs)
            self._tell([None] * len(self.generations))

    def stats(self, given: int, count: int, ended: float | None) -> Stats:
        began = self.began or 0.0
        seconds = 0.0 if ended is None else ended - began
        jobs = [job for job in self._jobs[self._first_job : self._last_job] if job.steps]
        cycles, positions = session_cycles(jobs) if jobs else (0.0, 0.0)
        image = self._session.image
        cfg = PRESETS.get(image.preset)
        if not cycles or cfg is None or cfg.fingerprint != image.fingerprint:
            return Stats(given, count, seconds, cycles or None, None, None)
        rates = decode_rates(cfg, image.work, cycles, positions)
        board, share = rates["tokens_per_second"], rates["bandwidth_fraction"]
        return Stats(given, count, seconds, cycles, board, share)


class LLM:
    """A model on a device. ``generate`` begins a new text, ``chat`` goes on with the last one.

    Both take one prompt and return a :class:`Generation`, or take several, at most as many as the
    image has slots, and return a :class:`Batch` of them, decoded together. Nothing runs until
    somebody iterates over a Generation or asks for its text. ``progress``, ``dump`` and
    ``deadline`` are those of :class:`~tokenfabric.host.session.Session`.
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
        self.tokenizer = Tokenizer.from_bytes(image.tokenizer, f"{image.name} (tokenizer)")
        self.session = Session(device, image, dump=dump, deadline=deadline, progress=progress)
        self._run: Callable[[], _Run | None] = lambda: None

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        keep: bool = False,
    ) -> Any:
        """A text that begins with ``prompt``; with ``keep``, one that ``prompt`` is appended to.

        Ends with the model's end of text, after ``max_tokens``, or where the context is full.
        temperature 0 always takes the most likely token; otherwise prompt i is sampled with
        ``seed + i``, whatever else is in the batch.
        """
        self.stop()
        if not keep:
            self.session.reset()
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        new = [not context.tokens for context in self.session.contexts]
        new += [True] * (len(prompts) - len(new))  # too many: the session will say so
        given = [self.tokenizer.encode(text, bos=begins) for text, begins in zip(prompts, new)]
        samplers = [Sampler(temperature, top_p, top_k, seed + i) for i in range(len(prompts))]
        run = _Run(self.session, given, max_tokens, samplers=samplers, stops=self.tokenizer.eos)
        self._run = weakref.ref(run)
        generations = Batch()
        for text, tokens, begins in zip(prompts, given, new):
            decoder = self.tokenizer.decoder(begins)
            for token in tokens:
                decoder.push(token)
            generations.append(Generation(run, text, len(tokens), decoder))
        run.generations = [weakref.ref(generation) for generation in generations]
        return generations[0] if isinstance(prompt, str) else generations

    def chat(self, prompt: str | Sequence[str], **options: Any) -> Any:
        """Appends ``prompt`` (which may be "") to the last text, or texts, and goes on.

        Only what is new is computed. Options: those of ``generate``.
        """
        return self.generate(prompt, keep=True, **options)

    def stop(self) -> None:
        """End what is being generated; the text so far can be gone on with."""
        run = self._run()
        if run is not None:
            run.close()

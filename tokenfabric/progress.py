"""One progress line for all that takes long, redrawn in place; in a pipe a line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from threading import Event, RLock, Thread
from typing import TextIO

__all__ = ["Progress"]

INTERVAL = 0.1  # seconds between two redraws of a bar
TICK = 1.0  # seconds after which a line is redrawn though nothing was told
SELDOM = 30.0  # seconds between two lines where none can be redrawn
WIDTH = 24


class Progress:
    """``progress(what)`` or ``progress(what, done, total)``: one line of stderr, redrawn in place.

    As a context manager it also counts the seconds while nothing is told, and leaves an empty line
    behind, however the block ends. Where ``stream`` is neither a terminal nor a notebook's, it gets
    a plain line every SELDOM seconds of the block instead.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        notebook = type(self._stream).__module__.startswith("ipykernel")
        self._live = self._stream.isatty() or notebook
        self._what, self._done, self._total = "", 0, 0
        self._began, self._drawn, self._length = 0.0, 0.0, 0
        self._lock, self._over = RLock(), Event()

    def __enter__(self) -> Progress:
        self._over.clear()
        self._drawn = time.monotonic()
        Thread(target=self._tick, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.clear()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show that ``what`` is being done and, if known, how far it is."""
        with self._lock:
            now = time.monotonic()
            changed = what != self._what
            self._what, self._done, self._total = what, done, total
            if changed:
                self._began = now
            if self._live and (changed or done >= total or now - self._drawn >= INTERVAL):
                self._draw(now)

    def _tick(self) -> None:
        """Until the block ends: the line again, with the seconds that have passed."""
        every = TICK if self._live else SELDOM
        while not self._over.wait(TICK):
            with self._lock:
                now = time.monotonic()
                if self._what and not self._over.is_set() and now - self._drawn >= every:
                    self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn = now
        text, done, total = self._what, self._done, self._total
        seconds = now - self._began
        if not self._live:
            text += f" {done}/{total}" if total > 0 else ""
            self._stream.write(f"tokenfabric: {text}, {seconds:.0f} s\n")
            self._stream.flush()
            return
        text += f" {self._bar(done / total)} {done}/{total}" if total > 0 else ""
        text += f" {seconds:.0f} s" if seconds >= 1 else ""
        columns = shutil.get_terminal_size().columns
        self._write(text[: columns - 1])

    def _write(self, text: str) -> None:
        """Over the line before; notebooks know the carriage return, but no way to erase."""
        self._stream.write("\r" + text.ljust(self._length))
        self._length = len(text)
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line, so that other text can be written."""
        with self._lock:
            if self._live and self._what:
                self._write("")
                self._stream.write("\r")
                self._stream.flush()
            self._what = ""

    @staticmethod
    def _bar(share: float) -> str:
        full = int(min(max(share, 0.0), 1.0) * WIDTH)
        return "[" + "#" * full + "." * (WIDTH - full) + "]"

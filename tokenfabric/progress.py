"""One progress bar for all that takes long: on a terminal or in a notebook, never in a pipe."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

__all__ = ["Progress"]

INTERVAL = 0.1  # seconds between two redraws of a bar
WIDTH = 24


class Progress:
    """``progress(what)`` or ``progress(what, done, total)``: one line of stderr, redrawn in place.

    Nothing is written where ``stream`` is neither a terminal nor a notebook's. As a context manager
    it leaves an empty line behind, however the block ends.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        notebook = type(self._stream).__module__.startswith("ipykernel")
        self._live = self._stream.isatty() or notebook
        self._what, self._began, self._drawn, self._length = "", 0.0, 0.0, 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show that ``what`` is being done and, if known, how far it is."""
        if not self._live:
            return
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        elif done < total and now - self._drawn < INTERVAL:
            return
        self._drawn = now
        text = what if total <= 0 else f"{what} {self._bar(done / total)} {done}/{total}"
        if now - self._began >= 1:
            text += f" {now - self._began:.0f} s"
        columns = shutil.get_terminal_size().columns
        self._write(text[: columns - 1])

    def _write(self, text: str) -> None:
        """Over the line before; notebooks know the carriage return, but no way to erase."""
        self._stream.write("\r" + text.ljust(self._length))
        self._length = len(text)
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line, so that other text can be written."""
        if self._live and self._what:
            self._what = ""
            self._write("")
            self._stream.write("\r")
            self._stream.flush()

    @staticmethod
    def _bar(share: float) -> str:
        full = int(min(max(share, 0.0), 1.0) * WIDTH)
        return "[" + "#" * full + "." * (WIDTH - full) + "]"

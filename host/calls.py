"""Calls that may not return: those of a remote board, each with a deadline."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from tokenfabric.host.device import DeviceLost

__all__ = ["Caller", "here", "reason"]

SLOWEST = 1e6  # bytes per second of the network


class Caller:
    """Makes the calls of a remote board in a thread of its own, so that each has a deadline.

    A call that fails raises DeviceLost. One that does not return within ``deadline`` seconds does,
    too, and ends the connection with ``hang_up``; every later call then raises the same at once.
    """

    def __init__(self, name: str, deadline: float, hang_up: Callable[[], None]):
        self.name, self.deadline, self._hang_up = name, deadline, hang_up
        self._lost = ""
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name=name).start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            function, arguments, answer = call
            try:
                answer.put((function(*arguments), None))
            except BaseException as error:  # whatever it is, the caller must get it
                answer.put((None, error))

    def __call__(self, function: Callable, *arguments: Any, moved: int = 0) -> Any:
        """``function(*arguments)``; ``moved``: bytes that it moves."""
        if self._lost:
            raise DeviceLost(self._lost)
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((function, arguments, answer))
        seconds = self.deadline + moved / SLOWEST
        try:
            result, error = answer.get(timeout=seconds)
        except queue.Empty:
            self._lost = (
                f"{self.name} has not answered for {seconds:g} s; check its power and its "
                "network, then open it again"
            )
            self._hang_up()  # or the thread would wait in there for ever, even when Python ends
            raise DeviceLost(self._lost) from None
        if error is None:
            return result
        gone = hasattr(error, "code")  # an error of gRPC; else the board said what is wrong
        what = f"does not answer any more ({reason(error)})" if gone else f"says: {reason(error)}"
        raise DeviceLost(f"{self.name} {what}; open it again") from error

    def close(self) -> None:
        """Ends the thread after the calls that wait."""
        self._lost = self._lost or f"{self.name} has been closed; open it again"
        self._calls.put(None)


def here(function: Callable, *arguments: Any, moved: int = 0) -> Any:
    """The Caller of a board that this program runs on: a call cannot get lost."""
    return function(*arguments)


def reason(error: BaseException) -> str:
    """One line. Errors of gRPC print many; their ``details()`` is one."""
    details = getattr(error, "details", None)
    text = str(details() if callable(details) else error) or type(error).__name__
    return text.splitlines()[0]

"""Transcripts of what passes between host and device: recorded once, replayed without the device.

A transcript is JSON lines: a header, then one line for each call with its arguments and its answer.
What is read stands there in full (base64), what is written too if it is small, else its SHA-256.
Time is no part of it: of polls with the same answer in a row only the first is kept.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.core import __version__
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_bytes, show
from tokenfabric.core.registers import Error, State
from tokenfabric.host.device import Device, DeviceError, DeviceLost, DeviceTimeout, counting

__all__ = ["Recorder", "Replay"]

FORMAT = "tokenfabric transcript"
VERSION = 1
SMALL = 2048  # bytes written that stand in the transcript themselves
RAISED = {kind.__name__: kind for kind in (DeviceError, DeviceLost, DeviceTimeout)}


def _data(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _written(array: np.ndarray) -> str:
    data = np.ascontiguousarray(array).tobytes()
    if len(data) <= SMALL:
        return base64.b64encode(data).decode()
    return f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}"


class Recorder:
    """A Device that passes every call on to ``device`` and writes it to ``path``.

    made_by: what ran, such as "simulation (verilator), no board" or a board; it stands in the
    header. The file appears when the recorder is closed, or at the end of its ``with`` block; an
    error of the device is recorded, an interrupt leaves no file.
    """

    def __init__(self, device: Device, path: str | Path, *, preset: str, made_by: str):
        self._device, self._path = device, Path(path)
        self.fingerprint = device.fingerprint
        self._part = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        try:
            self._file = self._part.open("x", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); choose another"
            ) from None
        self._last: Any = None
        self._line(
            {
                "format": FORMAT,
                "version": VERSION,
                "made_by": made_by,
                "preset": preset,
                "fingerprint": self.fingerprint,
                "tokenfabric": __version__,
                "python": platform.python_version(),
                "numpy": np.__version__,
            }
        )

    def _line(self, entry: dict[str, Any]) -> None:
        if entry.get("call") != "poll" or entry != self._last:
            self._file.write(json.dumps(entry) + "\n")
        self._last = entry

    def _call(self, name: str, arguments: list[Any], call: Callable[[], Any], answer: Any) -> Any:
        """Make the call, and note ``answer`` of what it returns, or what it raises."""
        entry = {"call": name, "arguments": arguments}
        try:
            found = call()
        except DeviceError as error:
            self._line({**entry, "raises": "DeviceError", "what": [int(error.code), error.pc]})
            raise
        except (DeviceTimeout, DeviceLost) as error:
            self._line({**entry, "raises": type(error).__name__, "what": [str(error)]})
            raise
        self._line({**entry, "answer": answer(found)})
        return found

    def write(self, address: int, array: np.ndarray) -> None:
        self._call(
            "write", [address, _written(array)], lambda: self._device.write(address, array), _same
        )

    def read(self, address: int, count: int) -> np.ndarray:
        return self._call(
            "read", [address, count], lambda: self._device.read(address, count), _data
        )

    def start(self) -> None:
        self._call("start", [], self._device.start, _same)

    def poll(self) -> tuple[State, int, Error]:
        return self._call("poll", [], self._device.poll, lambda found: [int(v) for v in found])

    def wait(self, deadline: float) -> State:
        return self._call("wait", [], lambda: self._device.wait(deadline), int)

    def stop(self) -> None:
        self._call("stop", [], self._device.stop, _same)

    def reset(self, deadline: float) -> None:
        self._call("reset", [], lambda: self._device.reset(deadline), _same)

    @property
    def pc(self) -> int:
        return self._call("pc", [], lambda: self._device.pc, int)

    def saturations(self) -> list[int]:
        return self._call("saturations", [], self._device.saturations, _same)

    def register(self, name: str) -> int:
        device = counting(self._device, f"register {name}")
        return self._call("register", [name], lambda: device.register(name), int)

    def counter(self, name: str) -> int:
        device = counting(self._device, f"counter {name}")
        return self._call("counter", [name], lambda: device.counter(name), int)

    def close(self, keep: bool = True) -> None:
        """Give the file its name; or, unless ``keep``, remove it."""
        if not self._file.closed:
            self._file.close()
            self._part.replace(self._path) if keep else self._part.unlink()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(keep=kind is None or issubclass(kind, RuntimeError))


def _same(value: Any) -> Any:
    return value


class Replay:
    """A Device that answers from the transcript at ``path``; ``header`` says where it comes from.

    UserError at the first call that is not the one that was recorded, naming the line.
    """

    def __init__(self, path: str | Path):
        self._path, self._at = Path(path), 1
        try:
            text = read_bytes(self._path).decode()
            self._lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
            self.header = self._lines[0]
            known = (self.header["format"], self.header["version"]) == (FORMAT, VERSION)
            self.fingerprint: str = self.header["fingerprint"]
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise UserError(f"{path}: is no transcript of version {VERSION}; record it again")

    def _answer(self, name: str, *arguments: Any) -> Any:
        call = {"call": name, "arguments": list(arguments)}
        entry = self._lines[self._at] if self._at < len(self._lines) else {"call": "the end"}
        expected = {key: entry.get(key) for key in call}
        if expected == call:
            self._at += 1
        elif name == "poll" and self._lines[self._at - 1].get("call") == "poll":
            entry = self._lines[self._at - 1]  # nothing has changed since
        else:
            raise UserError(
                f"{self._path}, line {self._at + 1}: the transcript has {_shown(entry)}, "
                f"the program calls {_shown(call)}; record it again if that is right"
            )
        if "raises" in entry:
            raise RAISED[entry["raises"]](*entry["what"])
        return entry["answer"]

    def write(self, address: int, array: np.ndarray) -> None:
        self._answer("write", address, _written(array))

    def read(self, address: int, count: int) -> np.ndarray:
        data = base64.b64decode(self._answer("read", address, count))
        return np.frombuffer(data, np.uint8).copy()

    def start(self) -> None:
        self._answer("start")

    def poll(self) -> tuple[State, int, Error]:
        state, done, error = self._answer("poll")
        return State(state), done, Error(error)

    def wait(self, deadline: float) -> State:
        return State(self._answer("wait"))

    def stop(self) -> None:
        self._answer("stop")

    def reset(self, deadline: float) -> None:
        self._answer("reset")

    @property
    def pc(self) -> int:
        return self._answer("pc")

    def saturations(self) -> list[int]:
        return self._answer("saturations")

    def register(self, name: str) -> int:
        return self._answer("register", name)

    def counter(self, name: str) -> int:
        return self._answer("counter", name)


def _shown(entry: dict[str, Any]) -> str:
    arguments = ", ".join(show(a, 40) for a in entry.get("arguments", ()))
    return f"{entry['call']}({arguments})" if "arguments" in entry else entry["call"]

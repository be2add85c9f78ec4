"""The progress bar: on a terminal one line that goes away, elsewhere nothing."""

import io

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

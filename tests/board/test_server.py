"""The command ``tokenfabric board``: what it says, where it listens, how it ends."""

import json
import re
import signal
import socket
import stat
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import BOARD, SERVER
from tokenfabric.core.errors import UserError
from tokenfabric.sim.board import virtual_board
from virtual import connect, start

SECONDS = 60


@contextmanager
def command(*arguments):
    """``tokenfabric board``, which does not outlive the test."""
    process = subprocess.Popen(
        [SERVER, "-m", "tokenfabric", "board", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def refusal(*arguments):
    """The one line on stderr of a command that must not start."""
    with command(*arguments) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2 and out == ""
    assert err.count("\n") == 1, err
    return err


def until(path, process):
    end = time.monotonic() + SECONDS
    while not path.exists():
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_says_where_it_is_and_leaves_nothing(tmp_path, number, code):
    ready = tmp_path / "ready.json"
    arguments = ("--preset=tiny", f"--listen=unix:{tmp_path}/vb", f"--json={ready}")
    with command(BOARD, *arguments, "--write-design", tmp_path / "design") as process:
        until(ready, process)
        told = json.loads(ready.read_text())
        files = {path.name for path in (tmp_path / "design").iterdir()}
        bitfile = Path(told["bitfile"])
        assert files == {bitfile.name, bitfile.with_suffix(".hwh").name}
        assert told["address"] == f"unix:{tmp_path}/vb" and told["fingerprint"] in bitfile.name
        path = tmp_path / "vb:7967"
        assert stat.S_ISSOCK(path.stat().st_mode) and not path.stat().st_mode & 0o077
        process.send_signal(number)
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (code, "")
    assert f"export PYNQ_REMOTE_DEVICES=unix:{tmp_path}/vb\n" in out and str(bitfile) in out
    assert not path.exists()


def test_a_taken_socket_stays_with_who_has_it(tmp_path):
    listen = f"unix:{tmp_path}/vb"
    with start(listen=listen) as running:
        error = refusal(BOARD, "--preset=tiny", f"--listen={listen}")
        assert re.search(r"vb:7967: is taken", error)
        assert connect(running).name.startswith(BOARD)


def test_a_dead_boards_socket_is_taken_over(tmp_path):
    listen = f"unix:{tmp_path}/vb"
    with start(listen=listen) as running:
        running.kill()
        assert (tmp_path / "vb:7967").exists()
    with start(listen=listen) as running:
        assert connect(running).name.startswith(BOARD)


def test_a_taken_port_is_refused():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    with start(listen=listen):
        assert f"{listen}: is taken" in refusal(BOARD, "--preset=tiny", f"--listen={listen}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["kv261"], "no board 'kv261'; there are: pynq-z2, kv260, zcu104"),
        (["kv260", "--listen=0.0.0.0"], "--open-to-all"),
        (["kv260", "--listen=here"], "nor unix:PATH"),
        (["kv260", "--listen=127.0.0.1:0"], "nor unix:PATH"),
        (["kv260", "--preset=tiny", "--listen=unix:/no/such/vb"], "there is no folder /no/such"),
        (["kv260", "--preset=huge"], "no preset 'huge'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, text):
    assert text in refusal(*arguments)


def test_the_context_manager_says_why_it_did_not_start():
    with pytest.raises(UserError, match="did not start: no preset 'huge'"):
        with virtual_board("kv260", preset="huge", python=SERVER):
            pass


def test_it_ends_with_its_parent():
    """However that ends: its end of the pipe is closed then."""
    with virtual_board(BOARD, preset="tiny", python=SERVER) as board:
        board.process.stdin.close()
        assert board.process.wait(SECONDS) == 0

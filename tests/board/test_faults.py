"""What goes wrong: one clear error in time, and the next session on the board works."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pynq
import pytest
from conftest import BOARD
from tokenfabric.core.boards import VLNV
from tokenfabric.core.boards import board as board_named
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.registers import offset
from tokenfabric.host.device import DeviceError, DeviceLost
from tokenfabric.sim.board import write_design
from tokenfabric.sim.board_model import FAULTS
from virtual import connect, start

from tokenfabric import notebook
from tokenfabric.cli import main
from tokenfabric.commands import generate
from tokenfabric.commands.inputs import shipped_model
from tokenfabric.notebook import open_board

PROMPT = "One windy day, Lily"
CONTEXT = 64
BIG = 32  # slots, which take more than 1 MiB
SECONDS = 60.0  # for a process that has to do with a healthy board
MIB = 1 << 20


def load(board, **options):
    return notebook.load(on=board, context=CONTEXT, **options)


@pytest.fixture(scope="module")
def story():
    """What a healthy board says."""
    return notebook.load(on="golden", preset="tiny", context=CONTEXT).generate(
        PROMPT, max_tokens=12
    )


def check(board, story):
    """A new session on the board works."""
    with open_board(board.bitfile, board.address) as opened:
        assert load(opened).generate(PROMPT, max_tokens=12).text == story.text


def begin(llm):
    """A generation in the middle of its second run; the first was the prompt's."""
    generation = llm.generate(PROMPT, max_tokens=40)
    next(generation)
    next(generation)
    return generation


def free_kib(board):
    """Contiguous memory that the board has left."""
    text = connect(board).read_file("/proc/meminfo").decode()
    return int(text.split("CmaFree:")[1].split()[0])


@pytest.fixture(scope="module")
def shared():
    with start(memory_mib=64) as running:
        yield running


@pytest.fixture
def board(shared, story):
    """A board that must be in order again after the test, all its memory free."""
    assert free_kib(shared) == 64 << 10
    yield shared
    for text in ("stick 0 0", "fail_read 0", "throttle 1 0"):
        fault(shared, text)
    assert free_kib(shared) == 64 << 10
    check(shared, story)


def fault(board, text):
    connect(board).write_file(FAULTS, text.encode())


@contextmanager
def one_line(kind, match):
    """The error is of that kind and says it in one line."""
    with pytest.raises(kind, match=match) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value) or kind is DeviceError  # what to do


@contextmanager
def within(seconds):
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < seconds


# --- the board goes away --------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["by address", "by environment"])
def test_a_board_that_dies_and_comes_back(tmp_path, story, monkeypatch, named):
    listen = f"unix:{tmp_path}/vb"
    monkeypatch.setenv("PYNQ_REMOTE_DEVICES", listen)
    address = listen if named == "by address" else None
    with start(listen=listen) as running:
        with open_board(running.bitfile, address) as opened:
            generation = begin(load(opened))
            running.kill()
            with within(10), one_line(DeviceLost, f"{tmp_path}/vb does not answer any more"):
                list(generation)
            with one_line(UserError, "no board at"):
                open_board(running.bitfile, address)
    with start(listen=listen) as running:
        with one_line(DeviceLost, "has been closed; open it again"):
            opened.clocks()
        with open_board(running.bitfile, address) as opened:
            assert load(opened).generate(PROMPT, max_tokens=12).text == story.text


def test_old_handles_are_of_no_use_on_a_board_that_was_restarted(tmp_path, story):
    listen = f"unix:{tmp_path}/vb"
    with start(listen=listen) as running:
        opened = open_board(running.bitfile, running.address)
        llm = load(opened)
        generation = begin(llm)
        running.kill()
    with start(listen=listen) as running:
        generation.close()  # quietly: there is nothing to end
        with opened, one_line(DeviceLost, "has been started anew"):
            llm.generate(PROMPT, max_tokens=4).text  # noqa: B018  runs it
        assert free_kib(running) == 256 << 10
        check(running, story)


def test_a_board_that_hangs(story):
    with start() as running:
        with open_board(running.bitfile, running.address, deadline=1.0) as opened:
            generation = begin(load(opened))
            running.process.send_signal(signal.SIGSTOP)
            with within(10), one_line(DeviceLost, "has not answered for 1"):
                list(generation)
            with within(1), pytest.raises(DeviceLost, match="has not answered"):
                opened.clocks()
            begun = time.monotonic()
        assert time.monotonic() - begun < 1  # to close it
        with within(10), one_line(UserError, "no board at"):
            open_board(running.bitfile, running.address)
        running.process.send_signal(signal.SIGCONT)
        check(running, story)


LOST = """
import os, signal, sys
from tokenfabric.notebook import load, open_board
from tokenfabric.host.device import DeviceLost
bitfile, address, pid, number = sys.argv[1:]
board = open_board(bitfile, address, deadline=1.0)
generation = load(on=board, context=64).generate("One", max_tokens=60)
next(generation)
os.kill(int(pid), int(number))
try:
    list(generation)
except DeviceLost as error:
    print(error)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_python_ends_quietly_when_the_board_is_lost(number):
    """Nothing is closed, and buffers, channels and threads are left to the interpreter."""
    with start() as running:
        command = [sys.executable, "-c", LOST, running.bitfile, running.address]
        command += [running.process.pid, int(number)]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=SECONDS)
        running.process.kill()
    assert (done.returncode, done.stderr) == (0, "")
    assert "open it again" in done.stdout


# --- the wrong files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """An image file for the accelerator."""
    path = tmp_path_factory.mktemp("image") / "stories.tfi"
    assert main(["compile", str(shipped_model()), "--preset=tiny", f"--output={path}"]) == 0
    return path


def test_a_corrupt_image(board, image, tmp_path):
    data = bytearray(image.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "corrupt.tfi"
    path.write_bytes(data)
    with open_board(board.bitfile, board.address) as opened:
        with one_line(UserError, r"corrupt\.tfi"):
            notebook.load(path, on=opened)
        notebook.load(image, on=opened)


def test_an_image_for_another_preset(board, tmp_path):
    path = tmp_path / "other.tfi"
    assert main(["compile", str(shipped_model()), "--preset=kv260", f"--output={path}"]) == 0
    with open_board(board.bitfile, board.address) as opened:
        with one_line(UserError, "compiled for"):
            notebook.load(path, on=opened)


def spoil_bit(bit, hwh):
    data = bit.read_bytes()
    bit.write_bytes(data.replace(b"TOKENFABRIC DESIGN", b"something different"[:18]))


def garbage_bit(bit, hwh):
    bit.write_bytes(b"no bitstream")


def no_hwh(bit, hwh):
    hwh.unlink()


def garbage_hwh(bit, hwh):
    hwh.write_text("<EDKSYSTEM")


def replace_in_hwh(old, new):
    def replace(bit, hwh):
        text = hwh.read_text()
        assert old in text
        hwh.write_text(text.replace(old, new))
        data = bit.read_bytes()  # pynq may have kept a map under its hash
        bit.write_bytes(data.replace(b"\xff" * 32, b"\xfe" * 32))

    return replace


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (spoil_bit, DeviceLost, "the fabric is empty, load a bitstream"),
        (garbage_bit, UserError, "PYNQ cannot load it"),
        (no_hwh, UserError, "no such file; build it"),
        (garbage_hwh, UserError, "PYNQ cannot load it"),
        (replace_in_hwh(VLNV, "somebody.else:ip:thing:1.0"), UserError, f"holds no {VLNV}"),
        (replace_in_hwh('VALUE="0x18"', 'VALUE="0x1c"'), UserError, "instead of 0x18; use the"),
    ],
    ids=["no design", "garbage", "no .hwh", "garbage .hwh", "other IP", "stale map"],
)
def test_a_wrong_bitstream(board, tmp_path, change, kind, match):
    bit, hwh = tmp_path / "wrong.bit", tmp_path / "wrong.hwh"
    shutil.copy(board.bitfile, bit)
    shutil.copy(board.bitfile.with_suffix(".hwh"), hwh)
    change(bit, hwh)
    with one_line(kind, match):
        open_board(bit, board.address)


# --- memory ---------------------------------------------------------------------------------------


def test_a_board_with_too_little_memory():
    with (
        start(memory_mib=1) as running,
        open_board(running.bitfile, running.address) as opened,
        one_line(UserError, r"no \S+ MiB of .* \(1 of 1 MiB are free\); boot with a larger cma="),
    ):
        load(opened, slots=BIG)


def test_memory_that_another_program_has(board, story):
    with open_board(board.bitfile, board.address) as opened:
        with pynq.allocate((63 * MIB,), "u1") as other:
            assert other.physical_address
            with one_line(UserError, r"\(1 of 64 MiB are free\); close what else uses it"):
                load(opened, slots=BIG)
        assert load(opened).generate(PROMPT, max_tokens=12).text == story.text


CLIENT = """
import sys
from tokenfabric.notebook import load, open_board
board = open_board(*sys.argv[1:])
for piece in load(on=board, slots=8).generate("One windy day, Lily", max_tokens=240):
    print("piece", flush=True)
"""


def test_who_is_killed_leaves_his_memory(story):
    """As on a real board; and his run goes on."""
    with start(memory_mib=4) as running:
        files = [str(running.bitfile), running.address]
        for _ in range(9):  # until it is full, which is soon
            client = subprocess.Popen(
                [sys.executable, "-c", CLIENT, *files],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            if not (client.stdout.readline() and client.stdout.readline()):
                break
            client.kill()
            client.communicate()
            with one_line(UserError, "at work for another program; wait .* download=True"):
                open_board(*files, download=False)
        error = client.communicate()[1].splitlines()[-1]
        assert "restart the board if killed programs have left theirs behind" in error
        check(running, story)  # for which there is room


# --- several programs -----------------------------------------------------------------------------


def test_who_opens_takes_the_board(board, story):
    with open_board(board.bitfile, board.address) as first:
        old = begin(load(first))
        with open_board(board.bitfile, board.address) as second:
            new = begin(load(second))
            with one_line(DeviceLost, "another program has taken it"):
                list(old)
            first.close()
            list(new)
            assert new.text.startswith(story.text)
            assert new.text.startswith(old.text)  # nothing that the other's run would have said


def test_another_bitstream_in_between(board, tmp_path):
    with open_board(board.bitfile, board.address) as opened:
        generation = begin(load(opened))
        other = write_design(tmp_path, board_named(BOARD), preset("kv260"))
        pynq.Overlay(str(other), device=connect(board))
        with one_line(DeviceLost, "the bitstream is for another board or accelerator"):
            list(generation)


def test_the_same_bitstream_again_in_between(board):
    with open_board(board.bitfile, board.address) as opened:
        llm = load(opened)
        generation = begin(llm)
        pynq.Overlay(str(board.bitfile), device=connect(board))
        with one_line(DeviceLost, "has taken it or loaded a bitstream"):
            list(generation)
        with one_line(DeviceLost, "has taken it or loaded a bitstream"):
            llm.generate(PROMPT, max_tokens=4).text  # noqa: B018  runs it


def test_a_board_at_work_is_left_alone(board, story):
    with open_board(board.bitfile, board.address) as opened:
        generation = begin(load(opened))
        with one_line(UserError, "at work for another program; wait"):
            open_board(board.bitfile, board.address, download=False)
        with pytest.raises(RuntimeError, match="a run is under way; wait for its end or stop it"):
            opened._held[0].start()
        list(generation)
        assert generation.text.startswith(story.text)


def test_a_model_that_made_way_for_another(board, story):
    with open_board(board.bitfile, board.address) as opened:
        first = load(opened)
        begun = begin(first)
        second = load(opened)
        for use in (lambda: list(begun), lambda: first.generate(PROMPT).text):
            with one_line(DeviceLost, "another model; load it again"):
                use()
        assert second.generate(PROMPT, max_tokens=12).text == story.text


# --- the fabric and its memory --------------------------------------------------------------------


def test_a_failing_memory(board, story):
    with open_board(board.bitfile, board.address) as opened:
        llm = load(opened)
        fault(board, "fail_read 100")
        with one_line(DeviceError, "AXI_READ at instruction"):
            llm.generate(PROMPT, max_tokens=12).text  # noqa: B018  runs it
        assert llm.generate(PROMPT, max_tokens=12).text == story.text


def test_a_hung_fabric(board, story):
    with open_board(board.bitfile, board.address) as opened:
        llm = load(opened)
        opened.ip.write(offset("WATCHDOG"), 20_000)
        fault(board, "stick 0 1")
        with within(SECONDS), one_line(DeviceError, "WATCHDOG"):
            llm.generate(PROMPT, max_tokens=12).text  # noqa: B018  runs it
        fault(board, "stick 0 0")
        assert llm.generate(PROMPT, max_tokens=12).text == story.text


# --- the program itself ---------------------------------------------------------------------------


def test_an_error_of_the_user(board):
    with pytest.raises(ZeroDivisionError), open_board(board.bitfile, board.address) as opened:
        for _ in load(opened).generate(PROMPT, max_tokens=200):
            1 / 0  # noqa: B018


def command(board, *options, **environment):
    """``tokenfabric generate`` on the board, as a process."""
    line = [sys.executable, "-m", "tokenfabric", "generate", PROMPT, "--on=board", *options]
    return subprocess.Popen(
        [*line, f"--bitstream={board.bitfile}"],
        env={**os.environ, **board.environment, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    """The exit code, and the lines on stderr, of which a progress line may precede the last."""
    error = process.communicate(timeout=SECONDS)[1]
    return process.returncode, error.rpartition("\r")[2].splitlines()


def begun(process):
    """The process has written the first of its text, and is in the middle of a run."""
    assert process.stdout.read(len(PROMPT) + 20).startswith(PROMPT)
    return process


def test_an_interrupt(board):
    process = begun(command(board, "-n250"))
    process.send_signal(signal.SIGINT)
    assert finish(process) == (130, [])


def test_the_command_on_a_failing_memory(board):
    process = begun(command(board, "-n250"))
    fault(board, "fail_read 100")
    code, lines = finish(process)
    assert code == 1 and len(lines) == 1, lines
    assert lines[0].startswith("tokenfabric: error: the accelerator stopped with AXI_READ")


def test_the_command_on_a_board_that_dies():
    with start() as running:
        process = begun(command(running, "-n250"))
        running.kill()
        code, lines = finish(process)
    assert code == 1 and len(lines) == 1, lines
    assert re.match(r"tokenfabric: error: the board at .* does not answer any more", lines[0])


def test_the_command_on_a_hung_fabric(story, capsys, monkeypatch):
    monkeypatch.setattr(generate, "DEADLINE", 0.5)
    with start() as board:
        monkeypatch.setenv("PYNQ_REMOTE_DEVICES", board.address)
        fault(board, "stick 0 1")
        with within(SECONDS):
            assert main(["generate", PROMPT, "--on=board", f"--bitstream={board.bitfile}"]) == 1
        assert free_kib(board) < 256 << 10  # what hangs there may yet be written
        fault(board, "stick 0 0")
        check(board, story)
    error = capsys.readouterr().err
    assert "tokenfabric: error: no new token within 0.5 s; " in error
    assert "tokenfabric: its memory stays allocated: " in error


def test_the_command_without_a_board(board):
    process = command(board, PYNQ_REMOTE_DEVICES="unix:/nowhere")
    code, lines = finish(process)
    assert code == 2 and len(lines) == 1, lines
    assert lines[0].startswith("tokenfabric: error: no board at unix:/nowhere: ")

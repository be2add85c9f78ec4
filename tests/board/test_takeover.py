"""A board that changes hands in the middle of a run, and programs that sleep or die in one."""

import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pynq
import pytest
from tokenfabric.core.errors import UserError
from tokenfabric.core.registers import Error, State, offset
from tokenfabric.host.device import DeviceLost
from tokenfabric.sim.board_model import FAULTS
from virtual import connect, start

from tokenfabric import notebook
from tokenfabric.cli import main
from tokenfabric.notebook import open_board

PROMPT = "One windy day, Lily"
CONTEXT = 256
SECONDS = 60.0


@pytest.fixture(scope="module")
def shared():
    with start(memory_mib=64) as running:
        yield running


@pytest.fixture
def board(shared):
    """A board whose memory is all free; the test says how many bursts it has cut."""
    before = traffic(shared)["cut"]
    yield shared
    assert traffic(shared)["cut"] == before
    assert free_kib(shared) == 64 << 10


@pytest.fixture(scope="module")
def story():
    """Tokens that a healthy accelerator says."""
    llm = notebook.load(on="golden", preset="tiny", context=CONTEXT)
    return llm.generate(PROMPT, max_tokens=60).text


def traffic(board):
    """What the simulated memory says about itself; asking is no access to the accelerator."""
    text = connect(board).read_file(FAULTS).decode()
    return {name: int(value) for name, value in re.findall(r"([a-z ]+) (\d+)\n", text)}


def free_kib(board):
    text = connect(board).read_file("/proc/meminfo").decode()
    return int(text.split("CmaFree:")[1].split()[0])


def begin(opened, tokens=200):
    """A run is under way, and has written some of its tokens."""
    generation = notebook.load(on=opened, context=CONTEXT).generate(PROMPT, max_tokens=tokens)
    next(generation)
    next(generation)
    return generation


def busy(board):
    """Bursts are in flight now: most of the time there are."""
    end = time.monotonic() + SECONDS
    while not traffic(board)["in flight"]:
        assert time.monotonic() < end
    return board


def test_opening_a_board_cuts_no_bursts(board, story):
    with ExitStack() as stack:
        old = begin(stack.enter_context(open_board(board.bitfile, board.address)))
        for _ in range(3):
            busy(board)
            opened = stack.enter_context(open_board(board.bitfile, board.address))
            assert traffic(board)["in flight"] == 0
            new = begin(opened)
            with pytest.raises(DeviceLost, match="another program has taken it"):
                list(old)
            old = new
        assert story.startswith(new.text)


def test_programming_it_without_the_driver_does():
    """What this model of a board counts, a board does not forgive."""
    with start() as board:
        for _ in range(20):
            with open_board(board.bitfile, board.address) as opened:
                generation = begin(opened)
                pynq.Overlay(str(board.bitfile), device=connect(board))
                with pytest.raises(DeviceLost, match="has taken it or loaded a bitstream"):
                    list(generation)
            if traffic(board)["cut"]:
                break
        assert traffic(board)["cut"]


def test_a_board_that_was_started_anew_is_not_touched(tmp_path):
    """Nothing is in its fabric, where the simulated port would answer with an error."""
    listen = f"unix:{tmp_path}/vb"
    for _ in range(2):
        with start(listen=listen) as board:
            device = connect(board)
            assert int(device.read_file("/sys/class/fpga_manager/fpga0/flags"), 16) == 0
            open_board(board.bitfile, board.address).close()
            assert int(device.read_file("/sys/class/fpga_manager/fpga0/flags"), 16) > 0xFFFF


def test_a_design_of_somebody_else_takes_the_mark_away(board):
    open_board(board.bitfile, board.address).close()
    device = connect(board)
    pynq.Overlay(str(board.bitfile), device=device)
    assert device.read_file("/sys/class/fpga_manager/fpga0/flags") == b"0"


def test_doctor_leaves_a_board_at_work_alone(board, story, capsys):
    with open_board(board.bitfile, board.address) as opened:
        generation = begin(opened, tokens=60)
        command = ["doctor", "--bitstream", str(board.bitfile), "--address", board.address]
        assert main(command) == 1
        out = capsys.readouterr().out
        assert "the accelerator is at work for another program" in out
        with pytest.raises(UserError, match="at work for another program; wait"):
            open_board(board.bitfile, board.address, take=False)
        list(generation)
        assert generation.text == story


# --- programs that die or sleep -------------------------------------------------------------------

CLIENT = """
import sys
from tokenfabric.host.text import LLM
from tokenfabric.commands.inputs import load_image, shipped_model
from tokenfabric.notebook import open_board
from tokenfabric.progress import Progress
bitfile, address, heartbeat, tokens = sys.argv[1:]
board = open_board(bitfile, address)
with Progress() as progress:
    _, image = load_image(shipped_model(), None, board.config, 256, progress, 1)
llm = LLM(board.device(image, heartbeat=int(heartbeat)), image)
for piece in llm.generate("One windy day, Lily", max_tokens=int(tokens)):
    print(piece, end="", flush=True)
board.close()
"""


@contextmanager
def client(board, heartbeat, tokens):
    """A program in the middle of a run."""
    command = [sys.executable, "-c", CLIENT, board.bitfile, board.address, heartbeat, tokens]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        begun = process.stdout.read(20)
        assert begun, process.stderr.read()
        process.begun = begun
        yield process
    finally:
        process.kill()
        process.communicate()


def at_rest(board):
    """Nothing has been in flight or written for a while."""
    end, last = time.monotonic() + SECONDS, None
    while (now := traffic(board)) != last or now["in flight"]:
        assert time.monotonic() < end
        last = now
        time.sleep(0.3)
    return now


def test_the_run_of_a_killed_program_ends():
    """A board that Python runs on gives its memory to others then."""
    with start() as board:
        with client(board, 100_000, 200) as process:
            process.kill()
            process.wait()
        written = at_rest(board)["written"]
        base = pynq.Overlay(str(board.bitfile), device=connect(board), download=False).npu_0
        assert base.read(offset("STATUS")) == State.ERROR
        assert base.read(offset("ERROR")) & 0xFF == Error.SILENT
        assert 0 < base.read(offset("RING_HEAD")) < 190
        time.sleep(0.5)
        assert traffic(board)["written"] == written
        with open_board(board.bitfile, board.address) as opened:
            assert len(begin(opened).text) > 0
        assert traffic(board)["cut"] == 0


def test_a_program_that_slept_goes_on(board, story):
    """Ctrl-Z, a debugger: the same tokens, from the last whole step on."""
    with client(board, 100_000, 60) as process:
        process.send_signal(signal.SIGSTOP)
        assert at_rest(board)["in flight"] == 0
        process.send_signal(signal.SIGCONT)
        text = process.begun + process.stdout.read()
        assert (process.wait(SECONDS), text) == (0, story), process.stderr.read()


# --- memory that the accelerator holds ------------------------------------------------------------


def test_memory_in_use_is_not_given_to_others(capsys):
    with start() as board:
        opened = open_board(board.bitfile, board.address)
        generation = begin(opened)
        connect(board).write_file(FAULTS, b"stick 0 1")
        opened.ip.write(offset("HEARTBEAT"), 20_000)
        at_rest(board)
        before = free_kib(board)
        opened.close()
        generation.close()
        line = "its memory stays allocated: the accelerator does not let go of the memory; restart"
        assert line in capsys.readouterr().err
        assert free_kib(board) == before < 256 << 10
        with pytest.raises(RuntimeError, match="does not let go of the memory; restart the board"):
            open_board(board.bitfile, board.address)
        connect(board).write_file(FAULTS, b"stick 0 0")
        with open_board(board.bitfile, board.address) as opened:
            assert len(begin(opened).text) > 0

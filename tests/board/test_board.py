"""The driver on a virtual board, through PYNQ."""

import re
import socket
import subprocess
import sys

import pytest
from conftest import BOARD, PYNQ, SERVER
from tokenfabric.host.record import Recorder, Replay
from tokenfabric.host.session import Session
from tokenfabric.host.text import LLM
from tokenfabric.host.verify import replay
from tokenfabric.sim.board import virtual_board
from tokenfabric.sim.golden import GoldenDevice

from tokenfabric.notebook import load, open_board
from tokenfabric.selftest import check_arithmetic, check_memory

PROMPT = "One windy day, Lily"


def test_a_story_is_the_golden_one(opened):
    llm = load(on=opened, context=128)
    image = llm.session.image
    device = opened.device(image, dumped_logits=48)
    llm = LLM(device, image, dump=True)
    pieces = []
    for piece in llm.generate(PROMPT, max_tokens=24):
        pieces.append(piece)
    assert len(pieces) > 10
    llm.chat(" Then", max_tokens=8).text  # noqa: B018  runs it
    golden = GoldenDevice(opened.config, image.memory(48))
    assert replay(llm.session.jobs, image, device, golden) is None


def test_a_batch_says_what_each_prompt_says_alone(opened):
    llm = load(on=opened, context=128, slots=2)
    prompts = [PROMPT, "One sunny day, Tom"]
    alone = [llm.generate(prompt, max_tokens=10).text for prompt in prompts]
    together = [text.text for text in llm.generate(prompts, max_tokens=10)]
    assert together == alone


def test_who_stops_reading_can_go_on(opened):
    llm = load(on=opened, context=128)
    first = llm.generate(PROMPT, max_tokens=100)
    text = next(first) + next(first)
    first.close()
    again = llm.generate(PROMPT, max_tokens=10)
    assert again.text.startswith(text)


def test_the_self_test_passes_on_a_good_board(opened):
    assert check_arithmetic(opened.device, opened.config) is None
    speed = check_memory(opened.device, opened.config)
    assert speed.difference is None and sum(speed.moved) > 8 << 20


def test_a_transcript_replays(opened, tmp_path):
    llm = load(on=opened, context=64)
    image, path = llm.session.image, tmp_path / "board.jsonl"
    device = opened.device(image)
    with Recorder(device, path, preset=opened.config.name, made_by=opened.title) as recorder:
        said = list(Session(recorder, image).generate([1, 5, 9], 6))
    again = Replay(path)
    assert "virtual" in again.header["made_by"]
    assert list(Session(again, image).generate([1, 5, 9], 6)) == said


@pytest.mark.slow
def test_the_real_preset():
    """The board with its own accelerator, at its own widths."""
    with (
        virtual_board(BOARD, python=SERVER) as board,
        open_board(board.bitfile, board.address) as opened,
    ):
        assert opened.config.name == BOARD
        assert check_arithmetic(opened.device, opened.config) is None


def test_two_boards_at_once(board, opened):
    with (
        virtual_board(BOARD, preset="tiny", python=SERVER) as other,
        open_board(other.bitfile, other.address) as second,
    ):
        texts = [load(on=b, context=64).generate(PROMPT, max_tokens=6) for b in (opened, second)]
        assert len(texts[0].text) > 6 and texts[0].text == texts[1].text


@pytest.mark.skipif(PYNQ < 4, reason="pynq 3 brings no self-test")
@pytest.mark.parametrize("name", ["kv260", "zcu104"])
def test_amds_own_self_test(name):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listen = f"127.0.0.1:{port}"
    with virtual_board(name, preset="tiny", listen=listen, python=SERVER) as board:
        command = [sys.executable, "-m", "pynq.remote.selftest", "--ip", "127.0.0.1"]
        command += ["--port", str(port), "--bitstream", str(board.bitfile)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    assert re.search(r"11 passed, 0 failed", done.stdout)


def test_doctor_finds_a_good_board_well_and_a_slow_clock(board, capsys):
    from tokenfabric.cli import main

    command = ["doctor", "--bitstream", str(board.bitfile), "--address", board.address]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "every logit equals numpy's" in out and "MB without an error" in out
    with open_board(board.bitfile, board.address) as opened:
        import pynq

        pynq.Clocks.fclk0_mhz = 50
        assert opened.clocks() == (100.0, pytest.approx(50, rel=0.01))


def test_doctor_says_what_is_wrong(board, capsys):
    from tokenfabric.cli import main

    command = ["doctor", "--address", board.address, "--bitstream"]
    assert main([*command, "missing.bit"]) == 1
    assert "-> build it with 'tokenfabric bitstream'" in capsys.readouterr().out
    assert main(["doctor", "--bitstream", str(board.bitfile), "--address", "unix:/nowhere"]) == 1
    assert "no board at unix:/nowhere" in capsys.readouterr().out

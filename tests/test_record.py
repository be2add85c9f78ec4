"""Transcripts: what was recorded replays, what differs is named, and nothing half written stays.

tests/data/stories.jsonl is a run of the simulated accelerator, tests/data/board.jsonl one through
PYNQ on a virtual board; no board of silicon has made one yet. After a change of the fingerprint,
``make transcripts`` writes both again.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from small_models import golden, prompt, speaking_model
from test_tokens import LITERAL, PROMPT, STORIES
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.isa import JOB
from tokenfabric.core.registers import Error, State
from tokenfabric.host.device import Device, DeviceError, DeviceTimeout
from tokenfabric.host.record import SMALL, Recorder, Replay
from tokenfabric.host.session import Sampler, Session
from tokenfabric.host.text import LLM
from tokenfabric.quant.qmodel import QModel

from tokenfabric import cli


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run.jsonl"


def recorder(device, path) -> Recorder:
    return Recorder(device, path, preset="pynq-z2", made_by="golden")


@pytest.mark.parametrize(
    ("name", "made_by"),
    [("stories", "simulation (verilator), no board"), ("board", "the board kv260 (virtual)")],
)
def test_the_transcripts_replay(name, made_by):
    transcript = STORIES.with_name(f"{name}.jsonl")
    replay = Replay(transcript)
    cfg = preset(replay.header["preset"])
    assert replay.fingerprint == cfg.fingerprint, "record it again: make transcripts"
    image = compile_model(QModel.read(STORIES), cfg, context=128)
    generation = LLM(replay, image).generate(PROMPT, max_tokens=24)
    assert generation.tokens == LITERAL[:24]
    assert generation.stats.cycles_per_token > 1000
    assert replay.header["made_by"] == made_by
    assert transcript.stat().st_size < 200_000
    with pytest.raises(UserError, match=rf"{transcript.name}, line \d+: .* the end, .* write\("):
        LLM(replay, image)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_session_replays(path, temperature):
    _, _, image, device = golden()

    def run(device) -> list[int]:
        session = Session(device, image, dump=True)
        stream = session.generate(prompt(20), 9, sampler=Sampler(temperature=temperature))
        tokens = [next(stream), next(stream)]
        stream.close()
        tokens += session.generate([1, 2], 5)
        return [*tokens, *device.saturations()]

    with recorder(device, path) as recording:
        assert isinstance(recording, Device)
        told = run(recording)
    replay = Replay(path)
    assert isinstance(replay, Device) and run(replay) == told
    names = [json.loads(line).get("call") for line in path.read_text().splitlines()]
    assert {"write", "read", "start", "poll"} <= {*names}
    assert names.count("saturations") == 1


def test_the_first_call_that_differs_is_named(path):
    _, _, image, device = golden()
    with recorder(device, path) as recording:
        list(Session(recording, image).generate([1, 2, 3], 3))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    at = next(i for i, line in enumerate(lines) if line.get("arguments", [0])[:1] == [JOB])
    text = rf"run\.jsonl, line {at + 1}: the transcript has write\({JOB}, .*the program calls write"
    with pytest.raises(UserError, match=text) as caught:
        list(Session(Replay(path), image).generate([1, 2, 4], 3))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_large_writes_are_compared_by_their_digest(path):
    _, _, _, device = golden()
    large, small = np.arange(SMALL + 4, dtype=np.uint8), np.arange(SMALL, dtype=np.uint8)
    with recorder(device, path) as recording:
        recording.write(0, large)
        recording.write(0, small)
        assert np.array_equal(recording.read(0, 9), small[:9])
    assert len(path.read_text()) < 2 * SMALL
    replay = Replay(path)
    changed = large.copy()
    changed[-1] ^= 1
    with pytest.raises(UserError, match="line 2: the transcript has write"):
        replay.write(0, changed)
    replay.write(0, large)
    replay.write(0, small)
    assert np.array_equal(replay.read(0, 9), small[:9])


def test_polls_that_say_the_same_are_kept_once(path):
    class Slow:
        fingerprint, said = "f", 0

        def poll(self):
            self.said += 1
            return State.RUNNING if self.said < 50 else State.DONE, self.said // 25, Error.NONE

    with recorder(Slow(), path) as recording:
        while recording.poll()[0] is State.RUNNING:
            pass
    assert len(path.read_text().splitlines()) == 4
    replay = Replay(path)
    found = [replay.poll() for _ in range(5)]
    assert [(int(state), done) for state, done, _ in found] == [(1, 0), (1, 1), *[(2, 2)] * 3]


def test_errors_are_recorded_and_raised_again(path):
    class Failing:
        fingerprint, pc = "f", 7

        def wait(self, deadline):
            raise DeviceTimeout("no end of the run within 3 s")

        def start(self):
            raise DeviceError(Error.AXI_READ, self.pc)

    with pytest.raises(DeviceError), recorder(Failing(), path) as recording:
        with pytest.raises(DeviceTimeout):
            recording.wait(3)
        assert recording.pc == 7
        recording.start()
    replay = Replay(path)
    with pytest.raises(DeviceTimeout, match="no end of the run within 3 s"):
        replay.wait(99)
    assert replay.pc == 7
    with pytest.raises(DeviceError, match="AXI_READ at instruction 7"):
        replay.start()


def test_an_interrupt_leaves_no_file(path):
    _, _, _, device = golden()
    path.write_text("older")
    with pytest.raises(KeyboardInterrupt), recorder(device, path) as recording:
        recording.stop()
        raise KeyboardInterrupt
    assert os.listdir(path.parent) == [path.name] and path.read_text() == "older"


def test_a_file_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        recorder(golden()[3], tmp_path / "no" / "x.jsonl")


@pytest.mark.parametrize(
    "text", ["{}", "[]", "not json", '{"format": "tokenfabric transcript", "version": 2}', "1\n2"]
)
def test_what_is_no_transcript_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match="is no transcript of version 1"):
        Replay(path)


def test_generate_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = speaking_model()
    model.write("m.tfm")
    line = "generate hello --model m.tfm --on golden -n 8 --verify --record r.jsonl --json r.json"
    assert cli.main(line.split()) == 0
    result = json.loads(Path("r.json").read_text())
    image = compile_model(model, preset("pynq-z2"))
    replay = Replay("r.jsonl")
    assert replay.header["made_by"] == "simulation (golden), no board"
    assert LLM(replay, image, dump=True).generate("hello", max_tokens=8).text == result["text"]
    capsys.readouterr()
    assert cli.main("generate x --model m.tfm --on golden --record no/x".split()) == 2
    assert "there is no folder no" in capsys.readouterr().err

"""Exploring: what is found fits the board and the model, and says so in every form."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
from small_models import SMALL
from tokenfabric.compiler.area import shares
from tokenfabric.compiler.compile import compile_model
from tokenfabric.compiler.explore import FILL, best_first, explore, front, rate
from tokenfabric.core.boards import BOARDS
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import NAMED_SHAPES, shape_from
from tokenfabric.quant.qmodel import QModel

from tokenfabric import cli

PYNQ = BOARDS["pynq-z2"]
COMMAND = ["explore", "--board", "pynq-z2", "--shape", "stories260k"]


@pytest.fixture(scope="module")
def small():
    return explore(PYNQ, SMALL, 40)


@pytest.mark.parametrize("name", ["pynq-z2", "kv260"])
def test_what_is_found_fits_and_is_not_slower_than_the_preset(name):
    spec, shape = BOARDS[name], shape_from("stories15m")
    found = explore(spec, shape, 64)
    for candidate in found:
        parts = shares(candidate.cfg, spec.fpga)
        assert max(parts.values()) < FILL and candidate.shares == parts
        assert (
            candidate.cfg.max_context >= 64 and candidate.cfg.port_bytes <= spec.config.port_bytes
        )
    own = rate(spec, spec.config, shape, 64, None)
    assert found[0].speed > 0.97 * own.speed and found[0].size <= own.size


def test_the_best_one_runs_the_model(small):
    """Its memories are as large as the model needs: it compiles, with all rows of a step."""
    assert small
    for candidate in (small[0], small[-1], max(small, key=lambda c: c.cfg.max_rows)):
        image = compile_model(QModel.random(SMALL), candidate.cfg)
        assert image.rows == candidate.cfg.max_rows


def test_the_front_is_what_nothing_beats(small):
    kept = front(small)
    assert kept[0] is small[0] and kept == sorted(kept, key=lambda c: -c.size)
    for candidate in small:
        assert any(k.size < candidate.size + 0.011 and k.speed > 0.98 * candidate.speed
                   for k in kept)  # fmt: skip


def test_equal_speed_goes_to_the_smaller_one(small):
    ranked = best_first(small[::-1])
    assert ranked[0].cfg == small[0].cfg
    top = max(c.speed for c in small)
    assert ranked[0].size == min(c.size for c in small if c.speed >= 0.99 * top)


def test_a_prefill_wants_more_rows_than_decoding():
    shape = shape_from("stories260k")
    decode, prefill = explore(PYNQ, shape, 64)[0], explore(PYNQ, shape, 64, 64)[0]
    assert prefill.cfg.max_rows > decode.cfg.max_rows
    assert prefill.speed == prefill.prefill["tokens_per_second"] > 3 * decode.speed


def test_a_model_that_is_too_large_is_refused_with_both_sizes():
    huge = NAMED_SHAPES["smollm2-135m"]
    huge = type(huge)(4096, 11008, 32, 32, 32, 128, 32_000, 2048)
    with pytest.raises(UserError, match=r"KV cache take 6,\d{3}\.\d MB, .* layers = 32"):
        explore(PYNQ, huge, 64)


def test_a_longest_sum_that_no_array_can_do_is_refused_with_the_reason():
    wide = type(SMALL)(64, 16_384, 1, 1, 1, 64, 100, 64)
    with pytest.raises(UserError, match="no accelerator for this model fits the TUL PYNQ-Z2"):
        explore(PYNQ, wide, 8)


def test_the_command_prints_saves_and_writes(tmp_path, capsys):
    saved, data = tmp_path / "my.json", tmp_path / "r.json"
    assert cli.main([*COMMAND, "--save", str(saved), "--json", str(data)]) == 0
    out = capsys.readouterr().out
    assert "stories260k on TUL PYNQ-Z2, decode at context 64" in out and "\npynq-z2 " in out
    assert "1: the best" in out and "What takes the time" in out
    result = json.loads(data.read_text())
    best = result["front"][0]
    cfg = preset(str(saved))
    assert cfg.name == "my" and cfg.rows == best["cfg"]["rows"]
    assert f"{best['decode']['tokens_per_second']:,.1f}" in out
    assert result["simulated"] == [] and result["tried"] > 10


def test_json_on_stdout_is_json_alone(capsys):
    assert cli.main([*COMMAND, "--rows", "16", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 16


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_the_figure_is_one(kind, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"p.{kind}"
    assert cli.main([*COMMAND, "--plot", str(path)]) == 0
    data = path.read_bytes()
    if kind == "png":
        assert data[:4] == b"\x89PNG" and len(data) > 20_000
    else:
        assert all(word in data for word in (b"decode at context 64", b"array 16 x 8", b"GB/s"))


def test_without_matplotlib_there_is_one_line_that_says_how(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main([*COMMAND, "--plot", str(tmp_path / "p.png")]) == 2
    assert "pip install 'tokenfabric[plot]'" in capsys.readouterr().err
    assert cli.main(COMMAND) == 0  # and the terminal needs none


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--board", "arty"], "no board 'arty'; there are: pynq-z2"),
        (["--save", "x.txt"], "--save x.txt: the name must end in .json"),
        (["--plot", "x.gif"], "--plot x.gif: the name must end in .png or .svg or .pdf"),
        (["--context", "5000"], "context 5000 does not fit: the model has 512"),
        (["--shape", "nix"], "'nix' is no shape"),
    ],
)
def test_bad_options_are_one_line(options, text, capsys):
    assert cli.main([*COMMAND, *options]) == 2
    assert text in capsys.readouterr().err


@pytest.mark.verilator
def test_the_best_one_is_as_fast_when_simulated(tmp_path):
    data = tmp_path / "r.json"
    assert cli.main([*COMMAND, "--verify", "1", "--json", str(data)]) == 0
    result = json.loads(data.read_text())
    found = result["front"][0]["decode"]["cycles_per_step"]
    assert result["simulated"][0]["cycles_per_step"] == pytest.approx(found, rel=0.05)


def test_a_context_that_is_no_power_of_two_gets_room_that_is_one():
    shape = replace(SMALL, context=384)
    assert {c.cfg.max_context for c in explore(PYNQ, shape, 300)} == {512}


def test_a_context_beyond_the_accumulators_is_refused_with_the_reason():
    with pytest.raises(UserError, match="max_context = 16384 needs 37-bit accumulators"):
        explore(PYNQ, replace(SMALL, context=16_384), 10_000)

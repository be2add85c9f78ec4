"""Configs: presets are sound, impossible hardware is refused with the arithmetic."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from tokenfabric.core.config import PRESETS, FabricConfig, preset, write_preset
from tokenfabric.core.dram import Dram
from tokenfabric.core.errors import UserError

SLOW = Dram(name="ddr", peak_bytes_per_s=4e9, reachable=0.9)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"max_rows": 0}, "max_rows = 0 must be positive"),
        ({"rows": 24}, "rows = 24 must be a power of two"),
        ({"cols": 2}, "cols = 2 is none of 4, 8 and 16, the bytes of a port beat"),
        ({"rows": 8, "cols": 16}, "rows = 8 is not a multiple of cols"),
        ({"ports": 1}, "ports x beat = 1 x 8 = 8 bytes must hold a 16-bit multiplier for each"),
        ({"rows": 64}, "ports x beat = 4 x 8 = 32 bytes must be a multiple of rows = 64"),
        ({"ports": 8}, "a tile of 16 x 8 weights lasts 2 cycles at 64 bytes per cycle"),
        ({"dram": SLOW}, r"4 ports x 8 bytes x 110.0 MHz = 3.52 GB/s is below 1.05 x .* 3.60 GB/s"),
        ({"weight_fifo_beats": 128}, "weight_fifo_beats = 128 is below two times the 8 x 16"),
        ({"max_context": 2040}, "max_context = 2040 must be a power of two: .*; take 1024 or 2048"),
        ({"max_context": 384}, "max_context = 384 must be a power of two: .*; take 256 or 512"),
        ({"max_context": 8}, "max_context = 8 is below rows = 16"),
        ({"max_context": 16384}, "max_context = 16384 needs 37-bit accumulators, there are 36"),
        ({"in_chunks": 4095}, "in_chunks = 4095 is not a multiple of 2: rows / cols"),
        ({"out_chunks": 4095}, "out_chunks = 4095 is not a multiple of 2: chunks that the vector"),
        ({"param_chunks": 1023}, "param_chunks = 1023 is not a multiple of 2: chunks of int16"),
        ({"kv_chunks": 2050}, "kv_chunks = 2050 is not a multiple of 4: its banks"),
        ({"in_chunks": 65538}, "in_chunks = 65538 is above 65536: addresses have 16 bits"),
        ({"out_chunks": 65538}, "out_chunks = 65538 is above 65536: addresses have 16 bits"),
        ({"res_chunks": 65537}, "res_chunks = 65537 is above 65536: addresses have 16 bits"),
        ({"param_chunks": 4098}, "param_chunks = 4098 is above 4096: addresses have 12 bits"),
        ({"max_rows": 512}, "512 x 2048 / 8 = 131072 chunks of scores: addresses have 16 bits"),
        ({"program_words": 65536}, "program_words = 65536: they are counted by 16 bits"),
        (
            {"max_head_dim": 2048, "kv_chunks": 16384},
            "max_head_dim / cols = 2048 / 8 = 256 chunks: the instructions' field has 8 bits",
        ),
        (
            {"max_head_dim": 1024, "max_context": 8192, "kv_chunks": 16384},
            "8192 x 1024 / 8 = 1048576 beats of K: a read counts them by 20 bits",
        ),
        ({"rows": 64, "ports": 16, "kv_chunks": 8192}, "ports = 16: there are counters for 8"),
        ({"fabric_rows": 6}, "fabric_rows = 6 is not a multiple of 4 below rows = 16"),
        ({"fabric_rows": 16}, "fabric_rows = 16 is not a multiple of 4 below rows = 16"),
        ({"ps_ports": ("hp0", "hp1")}, "ps_ports = hp0, hp1 are not 4 ports"),
        ({"ultra": ("in", "acc")}, "ultra = acc: only in, kv, scores, weights can be"),
        ({"max_head_dim": 8}, "max_head_dim = 8 is below two chunks of 8"),
        ({"kv_chunks": 1000}, "kv_chunks = 1000 is below four blocks of 256 chunks"),
    ],
)
def test_impossible_hardware_is_refused(changes, text):
    with pytest.raises(UserError, match=text) as caught:
        preset("pynq-z2").replace(**changes)
    assert str(caught.value).startswith("config pynq-z2: ")


def test_an_accumulator_that_could_wrap_is_refused(monkeypatch):
    monkeypatch.setattr("tokenfabric.core.config.ACC_BITS", 35)
    with pytest.raises(UserError, match="K = 8192 needs 36-bit accumulators, there are 35"):
        preset("pynq-z2").replace(name="pynq-z2")


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"no preset 'pynq'; there are: tiny, pynq-z2, kv260, .*\.json"
    ):
        preset("pynq")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hide_the_longest_stall_and_swallow_the_memory_rate(name):
    cfg = PRESETS[name]
    assert cfg.name == name
    assert cfg.intake_ratio >= 1 and cfg.stall_cycles_hidden > 0 and cfg.macs == cfg.rows * cfg.cols


def test_the_memories_of_the_kv260_fit_80_percent_of_its_blocks():
    cfg = PRESETS["kv260"]
    assert sum(cfg.block_rams().values()) <= 0.8 * 144 and sum(cfg.ultra_rams().values()) <= 51
    assert cfg.memories().keys() == cfg.block_rams().keys() | cfg.ultra_rams().keys()


def test_the_preset_for_the_board_meets_what_was_decided_for_it():
    cfg = PRESETS["pynq-z2"]
    assert cfg.macs == 128 and cfg.word_bytes == 32
    assert cfg.weight_fifo_beats * cfg.word_bytes >= 32 * 1024
    assert sum(cfg.block_rams().values()) <= 112


def test_the_fingerprint_is_stable_and_sees_every_field():
    cfg = PRESETS["pynq-z2"]
    assert cfg.fingerprint == replace(cfg).fingerprint and len(cfg.fingerprint) == 16
    changed = {
        "name": "x",
        "part": "x",
        "rows": 32,
        "cols": 16,
        "ports": 2,
        "dram": replace(cfg.dram, reachable=0.9),
        "fabric_rows": 4,
        "ps_ports": ("hp0", "hp1", "hp2", "hp3"),
        "ultra": ("in",),
    }
    # A change of its own must not be refused because of another number.
    free = cfg.replace(dram=replace(cfg.dram, name="none"), kv_chunks=4096)
    for field in fields(FabricConfig):
        value = changed.get(field.name) or 2 * getattr(free, field.name)
        assert free.replace(**{field.name: value}).fingerprint != free.fingerprint, field.name


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_file(name, tmp_path):
    path = tmp_path / "my.json"
    write_preset(PRESETS[name], path)
    read = preset(str(path))
    assert read == PRESETS[name] and read.fingerprint == PRESETS[name].fingerprint


def test_numbers_written_by_hand_are_the_same_preset(tmp_path):
    """100 for 100.0, other order, defaults left out."""
    path = tmp_path / "my.json"
    write_preset(PRESETS["tiny"], path)
    values = json.loads(path.read_text())
    del values["outstanding"]
    values["clock_mhz"] = 100
    path.write_text(json.dumps(dict(sorted(values.items()))))
    assert preset(str(path)).fingerprint == PRESETS["tiny"].fingerprint


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokenfabric_preset": 2}, "tokenfabric_preset = 2 is not 1"),
        ({"lanes": 8}, "unknown key 'lanes'; known are: name, part, rows"),
        ({"dram": {"name": "none", "speed": 3}}, "unknown key 'dram.speed'"),
        ({"dram": {"name": "none", "reachable": 1}}, "the key 'dram.peak_bytes_per_s' is missing"),
        ({"dram": "none"}, "dram = 'none' is not an object"),
        ({"rows": "16"}, "rows = '16' is not an integer"),
        ({"rows": True}, "rows = True is not an integer"),
        ({"clock_mhz": -1}, "clock_mhz = -1 is not a number above 0"),
        ({"name": ""}, "name = '' is not a text"),
        ({"cols": None}, "cols = None is not an integer"),
        ({"rows": 24}, "config tiny: rows = 24 must be a power of two"),
    ],
)
def test_a_bad_preset_file_is_refused_in_one_line(changes, text, tmp_path):
    path = tmp_path / "my.json"
    write_preset(PRESETS["tiny"], path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=text) as caught:
        preset(str(path))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_missing_preset_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"my\.json: no such file"):
        preset(str(tmp_path / "my.json"))

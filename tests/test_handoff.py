"""The files that PYNQ loads onto a virtual board; ``tests/board`` has them loaded."""

import pytest
from tokenfabric.core.boards import BOARDS, board
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.host.handoff import bitfile, design, design_of, divisors, handoff


@pytest.mark.parametrize("preset_name", PRESETS)
@pytest.mark.parametrize("board_name", BOARDS)
def test_a_bitfile_tells_its_design(board_name, preset_name):
    spec, cfg = board(board_name), preset(preset_name)
    hwh = handoff(spec, cfg)
    bit = bitfile(spec, cfg, hwh)
    assert design_of(bit) == design(cfg, hwh)
    assert design_of(bit).split()[0] == cfg.fingerprint
    payload = bit[int.from_bytes(bit[:2], "big") + 4 :]
    for tag in b"abcd":
        assert payload[0] == tag
        payload = payload[3 + int.from_bytes(payload[1:3], "big") :]
    assert payload[:1] == b"e" and int.from_bytes(payload[1:5], "big") == len(payload[5:])
    data = payload[5:]
    assert len(data) % 4 == 0
    turned = b"".join(data[at : at + 4][::-1] for at in range(0, len(data), 4))
    assert design_of(turned) == design_of(bit)


def test_every_board_and_accelerator_is_another_design():
    designs = {
        design(cfg, handoff(spec, cfg)) for spec in BOARDS.values() for cfg in PRESETS.values()
    }
    assert len(designs) == len(BOARDS) * len(PRESETS)


def test_another_map_is_another_design():
    cfg = preset("tiny")
    hwh = handoff(board("kv260"), cfg)
    assert design(cfg, hwh) != design(cfg, hwh.replace("IDENT", "WHO"))


@pytest.mark.parametrize("data", [b"", b"abc", bytes(1000), b"TOKENFABRIC"])
def test_other_files_hold_no_design(data):
    assert design_of(data) is None


@pytest.mark.parametrize("mhz", [50.0, 100.0, 125.0, 200.0, 250.0])
def test_divisors_make_the_clock(mhz):
    first, second = divisors(mhz)
    assert 1000.0 / (first * second) == mhz and max(first, second) < 64

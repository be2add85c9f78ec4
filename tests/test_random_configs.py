"""What FabricConfig accepts works: a few random configs, bit for bit. All 50: make test-configs."""

import pytest
from random_configs import build_quickly, difference, drawn, long_heads

SEED = 5


def test_many_are_refused_in_one_line_that_names_a_field():
    every = list(drawn(SEED, 50))
    refused = [text for cfg, text in every if cfg is None]
    assert len(refused) > 50 and len(every) == 50 + len(refused)
    for text in refused:
        assert text.startswith("config random: ") and "\n" not in text, text
    assert len({text.split()[2] for text in refused}) > 8  # different fields


@pytest.mark.verilator
@pytest.mark.slow
@pytest.mark.parametrize("number", range(1))
def test_an_accepted_config_computes_what_golden_does(number, monkeypatch):
    build_quickly(monkeypatch)
    cfg = [cfg for cfg, _ in drawn(SEED, number + 1) if cfg is not None][number]
    assert difference(cfg, number) is None


@pytest.mark.verilator
@pytest.mark.slow
def test_heads_of_256(monkeypatch):
    build_quickly(monkeypatch)
    assert long_heads(8) is None

"""Fifty random configs that FabricConfig accepts, each built and run: make test-configs."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1]))
from random_configs import LONG_HEADS, build_quickly, difference, drawn, long_heads

COUNT, SEED = 50, 1


@pytest.mark.parametrize("number", range(COUNT))
def test_it_computes_what_golden_does(number, monkeypatch):
    build_quickly(monkeypatch)
    cfg = [cfg for cfg, _ in drawn(SEED, number + 1) if cfg is not None][number]
    assert difference(cfg, number) is None, cfg


@pytest.mark.parametrize("port_bytes", LONG_HEADS)
def test_heads_of_256(port_bytes, monkeypatch):
    build_quickly(monkeypatch)
    assert long_heads(port_bytes) is None

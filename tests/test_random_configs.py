"""What FabricConfig accepts works: a few random configs, bit for bit. All 50: make test-configs."""

import pytest
from random_configs import build_quickly, difference, drawn, run_both
from tokenfabric.core.config import preset
from tokenfabric.core.shape import ModelShape

SEED = 5


def test_many_are_refused_in_one_line_that_names_a_field():
    every = list(drawn(SEED, 50))
    refused = [text for cfg, text in every if cfg is None]
    assert len(refused) > 50 and len(every) == 50 + len(refused)
    for text in refused:
        assert text.startswith("config random: ") and " = " in text and "\n" not in text, text
    assert len({text.split()[2] for text in refused}) > 8  # different fields


@pytest.mark.verilator
@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_an_accepted_config_computes_what_golden_does(number, monkeypatch):
    build_quickly(monkeypatch)
    cfg = [cfg for cfg, _ in drawn(SEED, number + 1) if cfg is not None][number]
    assert difference(cfg, number) is None


TINY = preset("tiny").replace(max_head_dim=256, max_context=128)
LONG_HEADS = {  # by bytes of a port: 64, 32 and 16 beats for a head
    4: TINY.replace(name="long4", cols=4, in_chunks=1024, out_chunks=1024, kv_chunks=4096),
    8: TINY.replace(name="long8", kv_chunks=2048),
    16: TINY.replace(name="long16", rows=16, cols=16, kv_chunks=1024),
}


@pytest.mark.verilator
@pytest.mark.slow
@pytest.mark.parametrize("port_bytes", LONG_HEADS)
def test_heads_of_256(port_bytes, monkeypatch):
    """Of several steps, several jobs and, with 136 and 24, positions that begin within a burst."""
    build_quickly(monkeypatch)
    cfg = LONG_HEADS[port_bytes]
    for head_dim in (256, 136, 24):
        shape = ModelShape(32, 48, 1, 2, 1, head_dim, 40, 64)
        assert run_both(cfg, shape, head_dim) is None

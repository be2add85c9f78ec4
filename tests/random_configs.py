"""Configs drawn at random near the presets, and a small random model on each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenfabric.compiler.compile import check_fits, compile_model
from tokenfabric.core.config import FabricConfig, preset
from tokenfabric.core.dram import PUBLISHED
from tokenfabric.core.errors import UserError
from tokenfabric.core.shape import ModelShape
from tokenfabric.host.session import Session
from tokenfabric.host.verify import replay
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim import verilator
from tokenfabric.sim.devices import make_device

MACS = 256  # larger arrays take minutes to build
DEADLINE = 900.0  # seconds without a new token, on a busy machine
TOKENS = 3


def _draw(rng: np.random.Generator) -> dict:
    """Numbers of a config, most of them possible on their own."""

    def power(low: int, high: int) -> int:
        return 1 << int(rng.integers(low, high + 1))

    def near(value: int, odds: float = 0.15) -> int:
        return value + int(rng.integers(-3, 4)) if rng.random() < odds else value

    rows, cols, ports = power(2, 6), power(2, 4), power(0, 3)
    head = power(2, 8)
    blocks = max(rows, 16) * max(1, head // cols)
    return {
        "name": "random",
        "part": "tests",
        "clock_mhz": 100.0,
        "dram": PUBLISHED["none"],
        "rows": near(rows, 0.03),
        "cols": near(cols, 0.03),
        "ports": ports,
        "max_rows": near(power(0, 5), 0.05),
        "max_context": near(power(4, 11), 0.1),
        "max_head_dim": head,
        "in_chunks": near(power(7, 12) * int(rng.integers(1, 4))),
        "out_chunks": near(power(6, 11) * int(rng.integers(1, 4))),
        "res_chunks": near(power(4, 10)),
        "param_chunks": near(power(6, 10)),
        "weight_fifo_beats": power(7, 10),
        "kv_chunks": near(blocks * int(rng.integers(3, 9)) + ports * int(rng.integers(0, 9))),
        "program_words": int(rng.integers(20, 400)),
        "outstanding": int(rng.integers(1, 17)),
        "fabric_rows": 0 if rng.random() < 0.7 else int(rng.integers(0, rows)),
        "ultra": tuple(n for n in ("in", "scores", "weights", "kv") if rng.random() < 0.1),
    }


def drawn(seed: int, accepted: int) -> Iterator[tuple[FabricConfig | None, str]]:
    """Configs until so many are accepted; for the others None and the refusal."""
    rng = np.random.default_rng(seed)
    while accepted:
        values = _draw(rng)
        if values["rows"] * values["cols"] > MACS:
            continue
        try:
            yield FabricConfig(**values), ""
            accepted -= 1
        except UserError as error:
            yield None, str(error)


def random_shape(cfg: FabricConfig, rng: np.random.Generator) -> ModelShape | None:
    """A small one that fits; None if not even the smallest does."""

    def size(most: int) -> int:
        return int(rng.integers(1, most + 1))

    for attempt in range(60):
        most = (96, 40, 9)[attempt // 20]
        kv_heads = size(3)
        shape = ModelShape(
            dim=size(most), hidden=size(2 * most), layers=size(2), heads=kv_heads * size(3),
            kv_heads=kv_heads, head_dim=2 * size(cfg.max_head_dim // 2), vocab=size(80),
            context=size(128), tied=bool(rng.random() < 0.5),
        )  # fmt: skip
        if rng.random() < 0.3:
            shape = ModelShape(**{**vars(shape), "head_dim": cfg.max_head_dim})
        try:
            check_fits(shape, cfg)
        except UserError:
            continue
        return shape
    smallest = ModelShape(1, 1, 1, 1, 1, 2, 1, 1)
    try:
        check_fits(smallest, cfg)
    except UserError:
        return None
    return smallest


def difference(cfg: FabricConfig, seed: int) -> str | None:
    """:func:`run_both` with a small random model; None, too, if no model fits."""
    shape = random_shape(cfg, np.random.default_rng(seed))
    return None if shape is None else run_both(cfg, shape, seed)


def run_both(cfg: FabricConfig, shape: ModelShape, seed: int) -> str | None:
    """The difference between the Verilated hardware and golden: None if a random model computes the
    same with a prompt, some tokens, and another prompt while memory stalls."""
    rng = np.random.default_rng(seed)
    image = compile_model(QModel.random(shape, seed), cfg)
    room = image.context
    device = make_device("verilator", cfg, image.memory(room + 1))
    session = Session(device, image, dump=True, deadline=DEADLINE)
    jobs = []
    for stalls, most in ((0.0, min(room, image.rows + 2)), (0.4, min(room, 2 * image.rows + 5))):
        device.top.throttle(seed + 1, stalls)
        session.reset()
        prompt = rng.integers(image.vocab, size=rng.integers(1, most + 1)).tolist()
        list(session.generate(prompt, TOKENS))
        jobs += session.jobs[len(jobs) :]
    golden = make_device("golden", cfg, image.memory(room + 1))
    found = replay(jobs, image, device, golden)
    return found and f"{shape}: {found}"


def build_quickly(monkeypatch) -> None:
    """The C++ of the simulation without optimization: a run is shorter than the compiler's."""
    monkeypatch.setattr(verilator, "FAST", "-O0")


LONG_HEADS = {  # by bytes of a port: 64, 32 and 16 beats for a head
    port_bytes: preset("tiny").replace(
        name=f"long{port_bytes}", cols=port_bytes, max_head_dim=256, max_context=128, **more
    )
    for port_bytes, more in (
        (4, {"in_chunks": 1024, "out_chunks": 1024, "kv_chunks": 4096}),
        (8, {"kv_chunks": 2048}),
        (16, {"rows": 16, "kv_chunks": 1024}),
    )
}


def long_heads(port_bytes: int) -> str | None:
    """Where several steps and jobs with heads of 256 differ from golden, None for nowhere; and with
    136 and 24, whose positions begin within a burst."""
    shapes = [ModelShape(32, 48, 1, 2, 1, head_dim, 40, 64) for head_dim in (256, 136, 24)]
    found = (run_both(LONG_HEADS[port_bytes], shape, shape.head_dim) for shape in shapes)
    return next((text for text in found if text is not None), None)

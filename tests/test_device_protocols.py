"""Devices are what their protocols say, and callers ask for no more than that."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from small_models import golden, speaking_model
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.registers import COUNTERS, SATURATION_COUNTERS, State
from tokenfabric.host.device import CountingDevice, Device, counting, load, put_job, run
from tokenfabric.host.driver import RegisterDevice
from tokenfabric.host.perf import measure_decode
from tokenfabric.host.record import Recorder, Replay
from tokenfabric.sim.devices import VerilatedDevice, make_device
from tokenfabric.sim.golden import GoldenDevice

CLASSES = (RegisterDevice, GoldenDevice, Recorder, Replay, VerilatedDevice)
ROW = {"token": 1, "position": 0, "slot": 0, "flags": int(RowFlag.WANT_LOGITS)}


def members(protocol: type) -> dict[str, inspect.Signature | None]:
    """Names of a protocol and of those that it extends; signatures of its methods."""
    found: dict[str, inspect.Signature | None] = {}
    for base in reversed(protocol.__mro__):
        for name, member in vars(base).items():
            if not name.startswith("_") and (callable(member) or isinstance(member, property)):
                found[name] = inspect.signature(member) if callable(member) else None
    return found


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_methods_take_what_the_protocol_says(kind):
    wanted = members(Device if kind is GoldenDevice else CountingDevice)
    assert {"pc", "saturations", "write", "poll", "reset"} <= set(wanted)
    for name, signature in wanted.items():
        if signature is None:
            continue  # a property, or an attribute set when it is made
        found = inspect.signature(getattr(kind, name))
        names = list(found.parameters)
        assert names[: len(signature.parameters)] == list(signature.parameters), name
        extra = [p for n, p in found.parameters.items() if n not in signature.parameters]
        assert all(p.default is not inspect.Parameter.empty for p in extra), name


def test_the_golden_device_has_no_counters():
    _, cfg, image, device = golden()
    assert isinstance(device, Device) and not isinstance(device, CountingDevice)
    with pytest.raises(UserError, match="perf needs cycle counters, which GoldenDevice lacks; use"):
        counting(device, "perf")
    load(device, image)
    put_job(device, image.descriptor([ROW]))
    run(device, 10)
    assert len(device.saturations()) == SATURATION_COUNTERS
    assert device.pc == image.map.program_words - 1
    with pytest.raises(AttributeError):
        measure_decode(device, cfg, image, 10)


@pytest.mark.slow
def test_a_simulated_device_counts():
    model, cfg = speaking_model(), preset("tiny")
    image = compile_model(model, cfg)
    device = make_device("pysim", cfg, image.memory())
    assert isinstance(device, CountingDevice) and counting(device, "x") is device
    counters = [device.counter(name) for name, _ in COUNTERS]
    assert counters[0] == 0 and device.register("STATUS") == State.IDLE
    assert device.saturations() == [0] * SATURATION_COUNTERS and device.pc == 0


class Bare(GoldenDevice):
    """A golden device that says what is asked of it."""

    def register(self, name):
        return len(name)

    def counter(self, name):
        return 1 << 40


def test_counters_are_recorded_and_replayed(tmp_path):
    _, cfg, image, _ = golden()
    path = tmp_path / "run.jsonl"
    with Recorder(Bare(cfg, image.memory()), path, preset=cfg.name, made_by="test") as device:
        assert isinstance(device, CountingDevice)
        assert device.register("STATUS") == 6 and device.counter("CYCLES") == 1 << 40
        load(device, image)
        put_job(device, image.descriptor([ROW]))
        run(device, 10)
        saturated, pc = device.saturations(), device.pc
    again = Replay(path)
    assert isinstance(again, CountingDevice)
    assert again.register("STATUS") == 6 and again.counter("CYCLES") == 1 << 40
    load(again, image)
    put_job(again, image.descriptor([ROW]))
    run(again, 10)
    assert again.saturations() == saturated and again.pc == pc
    with pytest.raises(UserError, match="the transcript has the end, the program calls counter"):
        again.counter("CYCLES")


def test_a_recorder_of_a_device_without_counters_says_so(tmp_path):
    _, cfg, _, device = golden()
    with Recorder(device, tmp_path / "x", preset=cfg.name, made_by="test") as recorder:
        with pytest.raises(UserError, match=r"counter CYCLES needs .* GoldenDevice lacks"):
            recorder.counter("CYCLES")
        recorder.write(0, np.zeros(4, np.uint8))


# --- nobody asks a device for what its type does not say ------------------------------------------


def probes(tree: ast.AST) -> list[int]:
    """Lines where a device is asked whether it has something, or where its bus is reached for."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = ast.unparse(node.args[0]) if node.args else ""
            about = any(word in name.split(".")[-1] for word in ("device", "subject", "reference"))
            if node.func.id in ("hasattr", "getattr") and about:
                found.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr == "bus":
            if ast.unparse(node.value).endswith("device"):
                found.append(node.lineno)
        if isinstance(node, ast.arg) and node.annotation is not None:
            if node.arg in ("device", "subject", "reference"):
                if ast.unparse(node.annotation) == "Any":
                    found.append(node.lineno)
    return found


def test_the_search_finds_what_callers_used_to_do():
    for text in (
        'hasattr(subject, "saturations")',
        'getattr(self._device, "pc", 0)',
        "device.bus.top.record(True)",
        "def f(device: Any): pass",
    ):
        assert probes(ast.parse(text)) == [1], text
    assert probes(ast.parse("hasattr(stream, 'reconfigure'); self.bus.read32(0)")) == []


FILES = [
    path
    for folder in ("host", "sim", "tokenfabric", "tokenfabric/commands", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.name != "pynq_device.py"  # its ``device`` is one of PYNQ's
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(Path(path).relative_to(ROOT)))
def test_no_caller_reaches_around_the_protocols(path):
    lines = probes(ast.parse(path.read_text(encoding="utf-8")))
    assert not lines, f"{path.name}, lines {lines}"

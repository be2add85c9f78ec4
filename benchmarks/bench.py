"""What the accelerator takes in cycles, compared exactly, and how fast its simulation is.

``cycles.json`` holds the cycles of some measurements; they are the same on every machine, so each
difference is a change of the hardware, of the compiler or of the DRAM model. ``speed.json`` holds
what one machine has measured of the simulator; it is only shown beside the new figures.

    python benchmarks/bench.py            compare all cycles, measure the speed (make bench)
    python benchmarks/bench.py --fast     compare those cycles that take seconds
    python benchmarks/bench.py --update   write both files (make bench-update)
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.core.config import FabricConfig, preset
from tokenfabric.core.image import Image
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.shape import shape_from
from tokenfabric.flow.verilog import cached_verilog
from tokenfabric.host.device import Device, load, put_job, run
from tokenfabric.host.driver import RegisterDevice
from tokenfabric.sim import verilator
from tokenfabric.sim.devices import BASE, POLL_CYCLES, PROBES, verilated
from tokenfabric.sim.measure import measure_on, random_image

from tokenfabric.commands.options import write_json

HERE = Path(__file__).resolve().parent
CYCLES, SPEED = HERE / "cycles.json", HERE / "speed.json"
UPDATE = "if that is what you wanted: make bench-update"
EXACT = ("cycles_per_step", "classifier_cycles", "bytes_per_step")

PAIRS = 7  # of a native and a bare run
STEPS = 60  # of decoding in each
MAX_RATIO = 1.25
DEADLINE = 600.0


@dataclass(frozen=True)
class Case:
    """A decode step with ``count`` positions in the cache, or the prefill of so many tokens."""

    preset: str
    shape: str
    what: str
    count: int

    @property
    def name(self) -> str:
        return f"{self.preset} {self.shape} {self.what} {self.count}"


FAST = (
    Case("tiny", "stories260k", "decode", 64),
    Case("tiny", "stories260k", "prefill", 16),
    Case("pynq-z2", "stories260k", "decode", 64),
    Case("pynq-z2", "stories260k", "decode", 500),
    Case("pynq-z2", "stories260k", "prefill", 64),
)
SLOW = (
    Case("pynq-z2", "stories15m", "decode", 64),
    Case("pynq-z2", "stories15m", "prefill", 32),
)


@lru_cache(maxsize=2)
def compiled(preset_name: str, shape: str) -> tuple[FabricConfig, Image]:
    cfg = preset(preset_name)
    return cfg, random_image(cfg, shape_from(shape))


def cycles_of(case: Case) -> dict[str, float]:
    cfg, image = compiled(case.preset, case.shape)
    device = verilated(cfg, image.memory())
    wanted = {"context" if case.what == "decode" else "rows": case.count}
    result = measure_on(device, cfg, image, **wanted)
    return {name: result[name] for name in EXACT if name in result}


def differences(cases: tuple[Case, ...], known: dict[str, Any]) -> list[str]:
    """One line for each figure that is not the known one."""
    found = []
    for case in cases:
        new, old = cycles_of(case), known.get(case.name, {})
        print(f"{case.name:<36}{new['cycles_per_step']:>14,.2f} cycles per step", flush=True)
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                found.append(f"{case.name}: {name} {old.get(name)} -> {new.get(name)}")
    return found


class Bare:
    """The bus of bare.cpp: the same design with an ideal memory and nothing else around it."""

    def __init__(self, cfg: FabricConfig, memory: tuple[int, int]):
        library = verilator.build(
            cached_verilog(cfg),
            ports=cfg.ports,
            port_bytes=cfg.port_bytes,
            probes=PROBES,
            harness=HERE / "bare.cpp",
        )
        self.lib = ctypes.CDLL(str(library))
        handle, i32, i64, u32 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint32
        for name, result, *arguments in (
            ("bare_open", handle, ctypes.c_uint64, ctypes.c_uint64),
            ("bare_close", None, handle),
            ("bare_memory", ctypes.POINTER(ctypes.c_uint8), handle),
            ("bare_cycle", i64, handle),
            ("tf_run", i64, handle, i64),
            ("bare_transact", u32, handle, i32, u32, u32),
        ):
            function = getattr(self.lib, name)
            function.restype, function.argtypes = result, arguments
        size = sum(memory)
        self.handle = self.lib.bare_open(BASE, size)
        whole = np.ctypeslib.as_array(self.lib.bare_memory(self.handle), shape=(size,))
        self.bases, self.memory = (BASE, BASE + memory[0]), np.split(whole, [memory[0]])

    @property
    def cycles(self) -> int:
        return self.lib.bare_cycle(self.handle)

    def read32(self, offset: int) -> int:
        return self.lib.bare_transact(self.handle, 0, offset, 0)

    def write32(self, offset: int, value: int) -> None:
        self.lib.bare_transact(self.handle, 1, offset, value)

    def flush(self, window: int) -> None:
        pass

    def invalidate(self, window: int) -> None:
        pass

    def advance(self) -> None:
        self.lib.tf_run(self.handle, POLL_CYCLES)


def made(kind: str, cfg: FabricConfig, image: Image) -> tuple[Any, Any]:
    """A device with the image in it, and what counts its cycles."""
    if kind == "bare":
        counter = Bare(cfg, image.memory())
        device = RegisterDevice(counter)
    else:
        device = counter = verilated(cfg, image.memory())
    load(device, image)
    return device, counter


def decode(device: Device, image: Image, steps: int) -> np.ndarray:
    """Run so many autonomous steps from an empty context; their tokens."""
    row = {"token": 1, "position": 0, "slot": 0, "flags": int(RowFlag.WANT_LOGITS)}
    put_job(device, image.descriptor([row], steps=steps))
    run(device, DEADLINE)
    return device.read(image.map.ring, 8 * steps).view("<u4")[::2]


def speed() -> dict[str, float]:
    """Of the native device and the bare one, in turn, so that both see the same machine.

    Processor time, not time of the clock: others may be using the machine.
    """
    cfg, image = compiled("pynq-z2", "stories260k")
    devices = {kind: made(kind, cfg, image) for kind in ("native", "bare")}
    tokens = {kind: decode(device, image, STEPS) for kind, (device, _) in devices.items()}
    if not np.array_equal(tokens["native"], tokens["bare"]):
        raise SystemExit("the bare simulation has chosen other tokens")
    rates: dict[str, list[float]] = {kind: [] for kind in devices}
    per_token = []
    for _ in range(PAIRS):
        for kind, (device, counter) in devices.items():
            before, began = counter.cycles, time.process_time()
            decode(device, image, STEPS)
            took = time.process_time() - began
            rates[kind].append((counter.cycles - before) / took)
            if kind == "native":
                per_token.append(STEPS / took)
    ratios = [bare / native for native, bare in zip(rates["native"], rates["bare"])]
    return {
        "simulated_cycles_per_second": statistics.median(rates["native"]),
        "bare_cycles_per_second": statistics.median(rates["bare"]),
        "native_over_bare": statistics.median(ratios),
        "stories260k_tokens_per_second": statistics.median(per_token),
    }


def instructions(kind: str) -> float | None:
    """Instructions of the processor per simulated cycle; None without valgrind.

    The difference of a long and a short run, so that making the device does not count.
    """
    if shutil.which("valgrind") is None:
        return None
    counted = []
    for steps in (2, 12):
        command = ["valgrind", "--tool=cachegrind", "--cache-sim=no",
                   "--cachegrind-out-file=/dev/null", sys.executable, __file__,
                   "--once", kind, str(steps)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
        executed = re.findall(r"I *refs: *([\d,]+)", done.stderr)[-1]
        counted.append((int(executed.replace(",", "")), int(done.stdout.split()[-1])))
    (few, short), (many, long) = counted
    return (many - few) / (long - short)


def once(kind: str, steps: int) -> None:
    """What valgrind watches: so many steps; prints the cycles that they ran."""
    cfg, image = compiled("pynq-z2", "stories260k")
    device, counter = made(kind, cfg, image)
    before = counter.cycles
    decode(device, image, steps)
    print(counter.cycles - before)


def build_seconds() -> float:
    """From nothing to a simulator of pynq-z2: Verilog, Verilator, C++."""
    code = ("from tokenfabric.sim.devices import verilated\n"
            "from tokenfabric.core.config import preset\n"
            "verilated(preset('pynq-z2'), (1 << 20, 4096))")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tokenfabric-") as folder:
        began = time.monotonic()
        environment = {**os.environ, "TOKENFABRIC_CACHE": folder}
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=3600)
        return time.monotonic() - began


def measured_speed() -> dict[str, float]:
    result = speed()
    native, bare = (instructions(kind) for kind in ("native", "bare"))
    if native is not None and bare is not None:
        result["instructions_per_cycle"] = native
        result["instructions_native_over_bare"] = native / bare
    result["build_seconds"] = build_seconds()
    return {name: round(value, 3) for name, value in result.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="only cycles, only small shapes")
    parser.add_argument("--update", action="store_true", help="write what was measured")
    parser.add_argument("--once", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        once(args.once[0], int(args.once[1]))
        return 0
    if args.update:
        write_json(str(CYCLES), {case.name: cycles_of(case) for case in (*FAST, *SLOW)})
        write_json(str(SPEED), measured_speed())
        return 0
    cases = FAST if args.fast else (*FAST, *SLOW)
    found = differences(cases, json.loads(CYCLES.read_text()))
    if not args.fast:
        known = json.loads(SPEED.read_text())
        now = measured_speed()
        for name, value in now.items():
            print(f"{name:<36}{value:>14,.3f}  baseline {known.get(name, float('nan')):,.3f}")
        if now["native_over_bare"] > MAX_RATIO:
            print(f"the native simulation takes more than {MAX_RATIO} times the bare one")
    for line in found:
        print(line)
    if found:
        print(UPDATE)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())

"""The design in Verilator, as a library with a C++ harness around it.

:func:`build` turns Verilog into a shared library, or finds it in the cache; :class:`VerilatedTop`
runs it. Memory, AXI traffic and time are all in C++: Python sets up memory, starts, and waits.

A cycle of the simulation is a cycle of the fabric clock; memory runs at its own rate beside it
(``sim/dram.py``), so cycle counts are what a board at ``clock_mhz`` would take.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.core.errors import UserError
from tokenfabric.flow.toolchain import (
    Progress,
    cached,
    compiler,
    digest,
    run_all,
    verilator,
)
from tokenfabric.sim.axi_monitor import AxiProtocolError, SimulationError
from tokenfabric.sim.dram import DDR3_1050_X16, DramParameters, DramSpec

VERILATE = ("--cc", "--no-timing", "-O3", "-Wno-fatal", "-Wno-lint", "--noassert")
COMPILE = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-faligned-new", "-w", "-DVERILATOR=1",
           "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVM_TIMING=0")  # fmt: skip
FAST = "-O2"  # -Os, Verilator's own choice, runs at half the speed; -O3 is no faster
SLOW = "-O0"  # constructors and the like, run once and half of the code
SPLIT_ABOVE = 400_000  # bytes of generated C++ worth a second compiler process
RUN_CHUNK = 1 << 17  # cycles between looks for Ctrl-C
PROBE = 'public_flat_rd -module "top" -var "{}"\n'
LITE_CYCLES = 10_000  # a register access without an answer by then never gets one

HARNESS = Path(__file__).parent / "harness.cpp"
HEADERS = sorted(HARNESS.parent.glob("*.h"))  # what it includes, and dram.h includes

DEFAULT_BASE = 0x1000_0000


class RegisterError(SimulationError):
    """A register access got an error response, or none."""


def build(
    verilog: str,
    *,
    ports: int,
    port_bytes: int,
    probes: Sequence[str] = (),
    waves: bool = False,
    harness: Path = HARNESS,
    progress: Progress | None = None,
) -> Path:
    """The shared library of a design, from the cache if its like has been built before.

    ``verilog`` holds a module ``top`` with ``clk``, ``rst``, ``irq``, an AXI4-Lite slave
    ``s_axi_ctrl_*`` (32-bit data) and AXI masters ``m_axi_hp<i>_*`` of ``port_bytes`` (4, 8 or 16)
    for i in 0..``ports``-1, all of which read and of which 0 writes. ``waves`` builds one that can
    write a VCD, at a third of the speed. ``probes`` names signals of at most 32 bits in ``top``
    that a recording keeps. ``harness``: another one than VerilatedTop's (benchmarks).

    ``UserError`` if a tool is missing or the build fails; then with the place of its output.
    """
    if not 1 <= ports <= 8 or port_bytes not in (4, 8, 16):
        raise ValueError(f"ports={ports} (1..8), port_bytes={port_bytes} (4, 8 or 16)")
    texts = {path.name: path.read_text() for path in (harness, *HEADERS)}
    texts["ports.h"] = ports_header(ports, port_bytes, probes)
    texts["probes.vlt"] = "`verilator_config\n" + "".join(PROBE.format(name) for name in probes)
    return _build(verilog, texts, waves, progress)


def build_with(
    source: Path, headers: Sequence[Path], verilog: str, progress: Progress | None = None
) -> Path:
    """The shared library of a design with another harness: a C++ file and what it includes."""
    texts = {path.name: path.read_text() for path in (source, *headers)}
    return _build(verilog, {**texts, "probes.vlt": "`verilator_config\n"}, False, progress)


def _build(verilog: str, texts: dict[str, str], waves: bool, progress: Progress | None) -> Path:
    """texts: of the C++ files by name, the first of which is compiled."""
    key = digest(
        verilog, *texts.values(), verilator().version,
        *compiler().key, *VERILATE, *COMPILE, FAST, SLOW, f"waves={waves}",
    )  # fmt: skip
    harness = next(iter(texts))

    def make(directory: Path) -> None:
        (directory / "top.v").write_text(verilog)
        for name, text in texts.items():
            (directory / name).write_text(text)
        trace = ["--trace"] if waves else []
        command = [*verilator().command, *VERILATE, *trace, "--top-module", "top", "--prefix",
                   "Vtop", "-Mdir", ".", "probes.vlt", "top.v"]  # fmt: skip
        run_all([("Verilator", command)], directory, progress)
        flags = [*_compile_flags(waves), "-I."]
        objects, commands = [], []
        for source, level in [(harness, FAST), *_units(directory)]:
            objects.append(Path(source).with_suffix(".o").name)
            command = [*compiler().command, *flags, level, "-c", source, "-o", objects[-1]]
            commands.append(("C++ compiler", command))
        run_all(commands, directory, progress)
        runtime = _runtime(waves, progress)
        link = [*compiler().command, "-shared", "-o", "top.so", *objects, *map(str, runtime)]
        run_all([("linker", [*link, "-pthread"])], directory, progress)
        for path in directory.iterdir():
            if path.name not in ("top.so", "top.v", "build.log"):
                path.unlink()

    return cached("verilated", key, make, progress) / "top.so"


def ports_header(ports: int, port_bytes: int, probes: Sequence[str]) -> str:
    """The header that tells harness.cpp what ports and probes the design has."""
    each = " ".join(f"X({i})" for i in range(ports))
    # Verilator's name of a variable: other characters than letters and digits in hexadecimal.
    mangled = (re.sub(r"\W", lambda c: f"__0{ord(c[0]):02x}", name) for name in probes)
    named = " ".join(f"X(top__DOT__{name})" for name in mangled)
    return (
        f"#define TOKENFABRIC_PORTS(X) {each}\n"
        f"#define TOKENFABRIC_PORT_COUNT {ports}\n"
        f"#define TOKENFABRIC_PORT_BYTES {port_bytes}\n"
        f"#define TOKENFABRIC_PROBES(X) {named}\n"
        f"#define TOKENFABRIC_PROBE_COUNT {len(probes)}\n"
    )


def _compile_flags(waves: bool) -> list[str]:
    include = verilator().root / "include"
    trace = [f"-DVM_TRACE={int(waves)}", f"-DVM_TRACE_VCD={int(waves)}"]
    trace += ["-DVM_TRACE_FST=0", "-DVM_TRACE_SAIF=0"]
    return [*COMPILE, *trace, f"-I{include}", f"-I{include / 'vltstd'}"]


def _units(directory: Path) -> list[tuple[str, str]]:
    """Gathers Verilator's many files into few: each compiler run reads the same large headers."""
    generated = sorted(p for p in directory.glob("Vtop*.cpp"))
    slow = [p for p in generated if "Slow" in p.name]
    fast = [p for p in generated if "Slow" not in p.name]
    units = []
    for name, files, level in (("fast", fast, FAST), ("slow", slow, SLOW)):
        size = sum(p.stat().st_size for p in files)
        parts: list[list[Path]] = [[] for _ in range(min(len(files), 1 + size // SPLIT_ABOVE, 8))]
        for path in sorted(files, key=lambda p: (-p.stat().st_size, p.name)):
            min(parts, key=lambda part: sum(p.stat().st_size for p in part)).append(path)
        for number, part in enumerate(parts):
            unit = f"{name}{number}.cpp"
            text = "".join(f'#include "{p.name}"\n' for p in sorted(part))
            (directory / unit).write_text("#define VL_INCLUDE_OPT include\n" + text)
            units.append((unit, level))
    return units


def _runtime(waves: bool, progress: Progress | None) -> list[Path]:
    """Objects of Verilator's own library, which takes longer to compile than a small design."""
    names = ["verilated", "verilated_threads"] + ["verilated_vcd_c"] * waves
    flags = [*_compile_flags(waves), FAST]
    key = digest(verilator().version, *compiler().key, *flags, *names)

    def make(directory: Path) -> None:
        include = verilator().root / "include"
        run_all(
            [
                ("Verilator's library",
                 [*compiler().command, *flags, "-c", str(include / f"{n}.cpp"), "-o", f"{n}.o"])
                for n in names
            ],
            directory, progress,
        )  # fmt: skip

    directory = cached("runtime", key, make, progress)
    return [directory / f"{name}.o" for name in names]


@dataclass(frozen=True)
class PortCounters:
    """Traffic of one port since the device was made. Stalls and waits are in cycles."""

    read_bytes: int
    write_bytes: int
    read_bursts: int
    write_bursts: int
    read_address_stalls: int
    read_stalls: int
    """Cycles in which memory offered a beat and the design did not take it."""
    read_waits: int
    """Cycles in which reads were in flight and memory offered no beat."""
    write_address_stalls: int
    write_stalls: int
    max_reads: int
    """Most read bursts in flight at once."""
    max_writes: int
    bus_errors: int
    """Bursts answered with an error response."""


class _Counters(ctypes.Structure):
    NAMES = tuple(field.name for field in fields(PortCounters))
    _fields_ = tuple((name, ctypes.c_uint64) for name in NAMES)


BUS_USE = np.dtype(
    [("start", "i8"), ("end", "i8"), ("accepted", "i8"), ("arrival", "i8"), ("enter", "i8"),
     ("done", "i8"), ("address", "u4"), ("bytes", "u2"), ("port", "u1"), ("use", "u1")]
)  # fmt: skip
"""``struct BusUse`` of dram_bursts.h: ``start`` and ``end`` in cycles << 16, others in cycles."""
READ, WRITE, REFRESH, TURN = range(4)  # ``use``


@dataclass(frozen=True)
class Recording:
    """What :meth:`VerilatedTop.record` has kept.

    ``bus``: BUS_USE, one after the other in time. ``probes``: rows of a cycle and the values from
    then on, one whenever a value has changed.
    """

    bus: np.ndarray
    probes: np.ndarray


class VerilatedTop:
    """A design in simulation, in reset when made and then ready.

    ``memory`` is the simulated DRAM itself (uint8, ``memory_bytes`` long, first byte at bus
    address ``base``), not a copy; it may be read and written between calls. Accesses of the design
    outside it get DECERR and are listed in ``bus_errors``. Not for several threads at once; any
    number of instances may live side by side.
    """

    def __init__(
        self,
        library: Path,
        *,
        clock_mhz: float,
        dram: DramSpec = DDR3_1050_X16,
        memory_bytes: int,
        base: int = DEFAULT_BASE,
    ):
        if memory_bytes <= 0 or base < 0 or base + memory_bytes > 1 << 32:
            raise ValueError(
                f"base={base:#x} with memory_bytes={memory_bytes:#x} is not in 32 bits"
            )
        self.clock_mhz = clock_mhz
        self.dram = dram
        self.base = base
        self._lib = _load(library)
        self.ports: int = self._lib.tf_ports()
        self.port_bytes: int = self._lib.tf_port_bytes()
        parameters = dram.parameters(clock_mhz)
        self._handle = self._lib.tf_open(ctypes.byref(parameters), base, memory_bytes)
        if not self._handle:
            raise UserError(f"no room for a simulated DRAM of {memory_bytes} bytes")
        pointer = self._lib.tf_memory(self._handle)
        self.memory: np.ndarray = np.ctypeslib.as_array(pointer, shape=(memory_bytes,))

    def close(self) -> None:
        """Ends the simulation and frees the memory, after which ``memory`` must not be touched."""
        if self._handle:
            self.memory = np.empty(0, np.uint8)
            self._lib.tf_close(self._handle)
            self._handle = None

    def __enter__(self) -> VerilatedTop:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()

    @property
    def cycles(self) -> int:
        """Fabric cycles since the device was made, resets included."""
        return self._lib.tf_cycle(self._live())

    @property
    def irq(self) -> bool:
        """The design's interrupt output."""
        return bool(self._lib.tf_irq(self._live()))

    @property
    def in_flight(self) -> int:
        """Bursts that the memory has been asked for, or has been begun to be, and not answered."""
        return self._lib.tf_in_flight(self._live())

    @property
    def last_error(self) -> str:
        """The first AXI rule broken since the last reset, or an empty string."""
        return self._lib.tf_error(self._live()).decode()

    @property
    def bus_errors(self) -> list[str]:
        """The first accesses outside the memory, as text."""
        texts: list[str] = []
        while (text := self._lib.tf_bus_error(self._live(), len(texts))) is not None:
            texts.append(text.decode())
        return texts

    def counters(self, port: int) -> PortCounters:
        """Counters of port ``port``."""
        if not 0 <= port < self.ports:
            raise ValueError(f"port {port} of {self.ports}")
        counters = _Counters()
        self._lib.tf_counters(self._live(), port, ctypes.byref(counters))
        return PortCounters(**{name: getattr(counters, name) for name in _Counters.NAMES})

    def reset(self) -> None:
        """Holds ``rst`` for some cycles; the memory, what it was asked for and counters stay."""
        self._lib.tf_reset(self._live())

    def run(self, max_cycles: int, until_idle: bool = True) -> int:
        """Steps ``max_cycles``, or until ``irq`` is high if ``until_idle``; returns the cycles run.

        ``AxiProtocolError`` as soon as the design breaks a rule, now or before.
        """
        done = 0
        while True:
            chunk = min(RUN_CHUNK, max_cycles - done)
            stepped = self._lib.tf_run(self._live(), chunk, until_idle)
            done += stepped
            self._check()
            if stepped < chunk or done >= max_cycles:
                return done

    def read32(self, offset: int) -> int:
        """Reads a register, in simulated time. ``RegisterError`` if it answers with an error."""
        return self._transact(False, offset, 0)

    def write32(self, offset: int, value: int) -> None:
        """Writes a register, in simulated time. ``RegisterError`` if it answers with an error."""
        self._transact(True, offset, value)

    def throttle(self, seed: int, stalls: float = 0.5) -> None:
        """Holds every channel back in a share of the cycles, at random from ``seed``; 0 ends it."""
        if not 0 <= stalls < 1:
            raise ValueError(f"stalls={stalls} is not in 0..1")
        self._lib.tf_throttle(self._live(), seed, int(stalls * 256))

    def fail_read(self, number: int) -> None:
        """The ``number``-th read burst from now, over all ports, returns SLVERR; 0 = none."""
        self._lib.tf_fail_read(self._live(), number)

    def record(self, on: bool) -> None:
        """Begin to record all that keeps the DRAM's data bus, and the probes; or end it."""
        self._lib.tf_record(self._live(), on)

    def recording(self) -> Recording:
        """A copy of the last recording."""
        probed = np.dtype(("i8", (1 + self._lib.tf_probes(),)))
        return Recording(
            self._records(self._lib.tf_uses, BUS_USE), self._records(self._lib.tf_probed, probed)
        )

    def _records(self, function: Any, dtype: np.dtype) -> np.ndarray:
        count = ctypes.c_uint64()
        at = function(self._live(), ctypes.byref(count))
        data = ctypes.string_at(at, count.value * dtype.itemsize) if count.value else b""
        return np.frombuffer(data, dtype)

    def stick(self, port: int, stuck: bool = True) -> None:
        """From now on port ``port`` takes no address and no data to write, until unstuck."""
        if not 0 <= port < self.ports:
            raise ValueError(f"port {port} of {self.ports}")
        self._lib.tf_stick(self._live(), port, stuck)

    def trace(self, path: Path | str | None) -> None:
        """Writes all signals from now on to a VCD; ``None`` ends it.

        ``ValueError`` if the library was not built with ``waves``.
        """
        if not self._lib.tf_trace(self._live(), str(path).encode() if path is not None else None):
            raise ValueError(f"cannot write waves to {path}: build with waves=True")

    def _live(self) -> int:
        if not self._handle:
            raise ValueError("the simulation has been closed")
        return self._handle

    def _check(self) -> None:
        if error := self.last_error:
            raise AxiProtocolError(error)

    def _transact(self, write: bool, offset: int, value: int) -> int:
        data, response = ctypes.c_uint32(value), ctypes.c_int(0)
        code = self._lib.tf_transact(
            self._live(), write, offset, ctypes.byref(data), LITE_CYCLES, ctypes.byref(response)
        )
        self._check()
        what = f"register {offset:#x}: {'write' if write else 'read'}"
        if code:
            raise RegisterError(f"{what} got no answer within {LITE_CYCLES} cycles")
        if response.value:
            raise RegisterError(f"{what} got the error response {response.value}")
        return data.value


def _load(library: Path) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library))
    handle, i32, i64, u64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_uint64
    u32 = ctypes.c_uint32
    text = ctypes.c_char_p
    for name, result, *arguments in (
        ("tf_open", handle, ctypes.POINTER(DramParameters), u64, u64),
        ("tf_close", None, handle),
        ("tf_ports", i32),
        ("tf_port_bytes", i32),
        ("tf_memory", ctypes.POINTER(ctypes.c_uint8), handle),
        ("tf_reset", None, handle),
        ("tf_run", i64, handle, i64, i32),
        ("tf_transact", i32, handle, i32, u32, ctypes.POINTER(u32), i64, ctypes.POINTER(i32)),
        ("tf_in_flight", u64, handle),
        ("tf_irq", i32, handle),
        ("tf_cycle", i64, handle),
        ("tf_error", text, handle),
        ("tf_counters", None, handle, i32, ctypes.POINTER(_Counters)),
        ("tf_bus_error", text, handle, u64),
        ("tf_throttle", None, handle, u64, i32),
        ("tf_stick", None, handle, i32, i32),
        ("tf_record", None, handle, i32),
        ("tf_probes", i32),
        ("tf_uses", handle, handle, ctypes.POINTER(u64)),
        ("tf_probed", handle, handle, ctypes.POINTER(u64)),
        ("tf_fail_read", None, handle, i64),
        ("tf_trace", i32, handle, text),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib

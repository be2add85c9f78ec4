"""Every number that hardware and software share, in one frozen, checked, hashed place."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokenfabric.core import isa, registers
from tokenfabric.core.dram import PUBLISHED, Dram
from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_json_object, show, write_file
from tokenfabric.core.fixed import ceil_div
from tokenfabric.core.ops import ACT_BITS, OPS_VERSION, RES_BITS, WEIGHT_BITS

__all__ = ["PRESETS", "FabricConfig", "preset", "write_preset"]

FILE_VERSION = 1  # of a preset's JSON file
VERSION_KEY = "tokenfabric_preset"

BURST_BEATS = 16  # Zynq-7000's HP ports are AXI3: no longer bursts
ACC_BITS = 36
PROGRAM_BITS = 16  # of the instructions of a program
FETCH_BITS = 20  # of the beats that one read of any length may have
LUT_RAM_WORDS = 32  # a memory of so few takes no block RAM


ULTRA_RAM = frozenset(("in", "scores", "weights", "kv"))  # may be built of UltraRAM


@dataclass(frozen=True, kw_only=True)
class FabricConfig:
    """One accelerator. Sizes of models are not here: they live in the program.

    Memories are counted in chunks: ``cols`` values of one row (16-bit activations, 32-bit residual
    values). Refuses impossible hardware with a :class:`UserError` that shows the arithmetic.
    """

    name: str
    part: str  # what it is meant for, in words
    rows: int  # array height: products summed per column and cycle
    cols: int  # array width, lanes of every vector unit, bytes of a port beat
    ports: int  # AXI read ports
    clock_mhz: float
    dram: Dram
    max_rows: int  # rows of one step
    max_context: int
    max_head_dim: int
    in_chunks: int  # activations the array reads
    out_chunks: int  # activations the array writes
    res_chunks: int  # residual stream
    param_chunks: int  # norm gains, K means
    weight_fifo_beats: int  # per port
    kv_chunks: int  # K and V on their way to the array
    program_words: int
    outstanding: int = 8  # weight bursts in flight per port
    fabric_rows: int = 0  # of the array, their multipliers made of LUTs instead of DSP slices
    ps_ports: tuple[str, ...] = ()  # of the processing system that the ports are, where it matters
    ultra: tuple[str, ...] = ()  # memories in UltraRAM, of ULTRA_RAM

    def __post_init__(self) -> None:
        def refuse(condition: bool, text: str) -> None:
            if condition:
                raise UserError(f"config {self.name}: {text}")

        for field, value in asdict(self).items():
            if isinstance(value, int) and field != "fabric_rows":
                refuse(value <= 0, f"{field} = {value} must be positive")
        for field in ("rows", "cols", "ports", "max_rows", "max_head_dim", "weight_fifo_beats"):
            value = getattr(self, field)
            refuse(value & (value - 1) != 0, f"{field} = {value} must be a power of two")
        refuse(
            self.cols not in (4, 8, 16),
            f"cols = {self.cols} is none of 4, 8 and 16, the bytes of a port beat",
        )
        word = f"ports x beat = {self.ports} x {self.cols} = {self.word_bytes} bytes"
        refuse(self.rows % self.cols != 0, f"rows = {self.rows} is not a multiple of cols")
        refuse(
            self.word_bytes < 2 * self.cols,
            f"{word} must hold a 16-bit multiplier for each of the {self.cols} columns",
        )
        refuse(
            self.word_bytes % self.rows != 0,
            f"{word} must be a multiple of rows = {self.rows}: a word brings whole columns",
        )
        refuse(
            self.tile_cycles < 4,
            f"a tile of {self.rows} x {self.cols} weights lasts {self.tile_cycles} cycles at "
            f"{self.word_bytes} bytes per cycle; the accumulators need 4",
        )
        port_rate = self.word_bytes * self.clock_mhz * 1e6
        dram_rate = self.dram.peak_bytes_per_s * self.dram.reachable
        refuse(
            self.dram.name != "none" and port_rate < 1.05 * dram_rate,
            f"{self.ports} ports x {self.cols} bytes x {self.clock_mhz} MHz = "
            f"{port_rate / 1e9:.2f} GB/s is below 1.05 x the reachable {dram_rate / 1e9:.2f} GB/s",
        )
        refuse(
            self.weight_fifo_beats < 2 * self.outstanding * BURST_BEATS,
            f"weight_fifo_beats = {self.weight_fifo_beats} is below two times the "
            f"{self.outstanding} x {BURST_BEATS} beats in flight",
        )
        refuse(
            self.fabric_rows not in range(0, self.rows - self.word_rows + 1, self.word_rows),
            f"fabric_rows = {self.fabric_rows} is not a multiple of {self.word_rows} below "
            f"rows = {self.rows}",
        )
        refuse(
            len(self.ps_ports) not in (0, self.ports),
            f"ps_ports = {', '.join(self.ps_ports)} are not {self.ports} ports",
        )
        unknown = set(self.ultra) - ULTRA_RAM
        refuse(
            bool(unknown),
            f"ultra = {', '.join(sorted(unknown))}: only {', '.join(sorted(ULTRA_RAM))} can be",
        )
        self._check_memories(refuse)
        self._check_counters(refuse)

    def _check_memories(self, refuse: Callable[[bool, str], None]) -> None:
        """What the memories on the chip must keep to."""
        context, above = self.max_context, 1 << self.max_context.bit_length()
        refuse(
            context & (context - 1) != 0,
            f"max_context = {context} must be a power of two: a row's number and a position make "
            f"the address of a score bit by bit; take {above // 2} or {above}",
        )
        refuse(
            context < self.rows,
            f"max_context = {context} is below rows = {self.rows}, the scores read at once",
        )
        for name, units, why in (
            ("in_chunks", self.k_chunks, "rows / cols, chunks that the array reads at once"),
            ("out_chunks", 2, "chunks that the vector unit reads at once"),
            ("param_chunks", self.load_chunks, "chunks of int16 in a word of the weight stream"),
            ("kv_chunks", self.ports, "its banks, one for each port"),
        ):
            value = getattr(self, name)
            refuse(value % units != 0, f"{name} = {value} is not a multiple of {units}: {why}")
        refuse(
            self.max_head_dim < 2 * self.cols,
            f"max_head_dim = {self.max_head_dim} is below two chunks of {self.cols}; shorter heads "
            "run on it, too",
        )
        block = max(self.rows, BURST_BEATS) * self.max_head_chunks
        refuse(
            self.kv_chunks < 4 * block,
            f"kv_chunks = {self.kv_chunks} is below four blocks of {block} chunks",
        )

    def _check_counters(self, refuse: Callable[[bool, str], None]) -> None:
        """What must fit the fields of instructions, counters and accumulators."""
        most, bits = registers.MAX_PORTS, dict(isa.FIELDS)
        refuse(self.ports > most, f"ports = {self.ports}: there are counters for {most}")
        for names, field in (("in_chunks out_chunks res_chunks", "src"), ("param_chunks", "param")):
            end = 1 << bits[field]
            for name in names.split():
                text = f"{name} = {getattr(self, name)} is above {end}"
                refuse(getattr(self, name) > end, f"{text}: addresses have {bits[field]} bits")
        refuse(
            self.score_chunks > 1 << bits["src"],
            f"max_rows x max_context / cols = {self.max_rows} x {self.max_context} / {self.cols} "
            f"= {self.score_chunks} chunks of scores: addresses have {bits['src']} bits",
        )
        refuse(
            self.max_head_chunks >= 1 << bits["head_chunks"],
            f"max_head_dim / cols = {self.max_head_dim} / {self.cols} = {self.max_head_chunks} "
            f"chunks: the instructions' field has {bits['head_chunks']} bits",
        )
        refuse(
            self.program_words >= 1 << PROGRAM_BITS,
            f"program_words = {self.program_words}: they are counted by {PROGRAM_BITS} bits",
        )
        beats = self.max_context * self.max_head_chunks
        refuse(
            beats >= 1 << FETCH_BITS,
            f"max_context x max_head_dim / cols = {self.max_context} x {self.max_head_dim} / "
            f"{self.cols} = {beats} beats of K: a read counts them by {FETCH_BITS} bits",
        )
        # Products of 16-bit and 8-bit values: what the softmax leaves are 16-bit values, too.
        for name, value in (("K", self.max_k), ("max_context", self.max_context)):
            need = ACT_BITS + WEIGHT_BITS - 1 + (value - 1).bit_length()
            refuse(
                need > ACC_BITS,
                f"{name} = {value} needs {need}-bit accumulators, there are {ACC_BITS}",
            )

    # --- derived numbers -----------------------------------------------------------------------

    @property
    def macs(self) -> int:
        return self.rows * self.cols

    @property
    def port_bytes(self) -> int:
        """Bytes of one beat of one port."""
        return self.cols

    @property
    def word_bytes(self) -> int:
        """Weights the array takes per cycle: one beat of every port."""
        return self.ports * self.cols

    @property
    def tile_cycles(self) -> int:
        """Words in a tile of rows x cols weights, so the shortest time a tile can last."""
        return self.rows * self.cols // self.word_bytes

    @property
    def word_cols(self) -> int:
        """Columns that one word fills when it brings whole columns (weights, K)."""
        return self.word_bytes // self.rows

    @property
    def word_rows(self) -> int:
        """Rows that one word fills when it brings whole rows (V): also the chains of the array."""
        return self.word_bytes // self.cols

    @property
    def k_chunks(self) -> int:
        """Chunks in one row-block of the array: what the array reads per cycle."""
        return self.rows // self.cols

    @property
    def scale_channels(self) -> int:
        """Output channels whose multipliers fit one word."""
        return self.word_bytes // 2

    @property
    def load_chunks(self) -> int:
        """Chunks of PARAM that LOAD writes at once: int16 values in a word."""
        return self.word_bytes // (2 * self.cols)

    @property
    def max_k(self) -> int:
        """The longest row that fits the activation memory for at least one row."""
        return min(8192, self.in_chunks * self.cols)

    @property
    def max_head_chunks(self) -> int:
        return self.max_head_dim // self.cols

    @property
    def acc_words(self) -> int:
        """Accumulator words of ``cols``: the attention output needs a head for every row."""
        return self.max_rows * self.max_head_chunks

    @property
    def score_chunks(self) -> int:
        return self.max_rows * self.max_context // self.cols

    @property
    def superblock_bytes(self) -> int:
        """The stretch of the weight stream in which every port reads one burst."""
        return self.ports * BURST_BEATS * self.cols

    @property
    def peak_bytes_per_cycle(self) -> float:
        return self.dram.peak_bytes_per_s / (self.clock_mhz * 1e6)

    @property
    def intake_ratio(self) -> float:
        """Weights the array can take per byte the memory can deliver at its reachable rate."""
        return self.word_bytes / (self.peak_bytes_per_cycle * self.dram.reachable)

    @property
    def stall_cycles_hidden(self) -> int:
        """The longest pause of the array during which the memory keeps filling the weight FIFO."""
        beats = self.weight_fifo_beats * self.ports
        return int(beats * self.port_bytes / (self.peak_bytes_per_cycle * self.dram.reachable))

    def memories(self) -> dict[str, tuple[int, int, int]]:
        """Every memory that is meant for RAM blocks: how many of it, bits of a word, words."""
        act, res = self.cols * ACT_BITS, self.cols * RES_BITS
        return {
            "in": (1, act * self.k_chunks, self.in_chunks // self.k_chunks),
            "out": (1, act * 2, self.out_chunks // 2),
            "res": (1, res, self.res_chunks),
            "scores": (1, act * self.k_chunks, self.score_chunks // self.k_chunks),
            "param": (1, act * self.load_chunks, self.param_chunks // self.load_chunks),
            "rope": (1, act, self.max_rows * self.max_head_chunks),
            "weights": (self.ports, 8 * self.port_bytes, self.weight_fifo_beats),
            "kv": (self.ports, 8 * self.cols, self.kv_chunks // self.ports),
            "kv_scales": (1, act, 2 * self.max_context // self.cols),
            "acc": (1, self.cols * ACC_BITS, self.acc_words),
            "program": (1, isa.INSTRUCTION_BITS, self.program_words),
        }

    def block_rams(self) -> dict[str, float]:
        """36-kbit block RAMs of the memories that are not in UltraRAM, as 7-series cuts them."""
        return {
            name: count * _block_rams(width, depth)
            for name, (count, width, depth) in self.memories().items()
            if name not in self.ultra and depth > LUT_RAM_WORDS
        }

    def ultra_rams(self) -> dict[str, int]:
        """UltraRAMs of 4096 x 72 bits, by memory."""
        memories = {name: self.memories()[name] for name in self.ultra}
        return {
            name: count * ceil_div(width, 72) * ceil_div(depth, 4096)
            for name, (count, width, depth) in memories.items()
        }

    @property
    def fingerprint(self) -> str:
        """16 hex digits: config, ISA table, register map and ops version."""
        text = json.dumps(
            [asdict(self), isa.describe(), registers.describe(), OPS_VERSION], sort_keys=True
        )
        return hashlib.blake2s(text.encode(), digest_size=8).hexdigest()

    def replace(self, **changes) -> FabricConfig:
        return replace(self, **changes)


def _block_rams(width: int, depth: int) -> float:
    """Blocks of 36 kbit for a memory with one write and one read port: the best of their shapes."""
    shapes = ((72, 512), (36, 1024), (18, 2048), (9, 4096))
    halves = ((36, 512), (18, 1024), (9, 2048))
    whole = min(-(-width // w) * -(-depth // d) for w, d in shapes)
    return min(whole, min(-(-width // w) * -(-depth // d) for w, d in halves) / 2)


PRESETS = {
    config.name: config
    for config in (
        FabricConfig(
            name="tiny",
            part="tests",
            rows=8,
            cols=8,
            ports=2,
            clock_mhz=100.0,
            dram=PUBLISHED["none"],
            max_rows=4,
            max_context=512,
            max_head_dim=64,
            in_chunks=512,
            out_chunks=512,
            res_chunks=128,
            param_chunks=128,
            weight_fifo_beats=256,
            kv_chunks=512,
            program_words=256,
        ),
        FabricConfig(
            name="pynq-z2",
            part="xc7z020clg400-1",
            rows=16,
            cols=8,
            ports=4,
            clock_mhz=110.0,
            dram=PUBLISHED["ddr3-1050-x16"],
            max_rows=16,
            max_context=2048,
            max_head_dim=128,
            in_chunks=4096,
            out_chunks=4096,
            res_chunks=2048,
            param_chunks=1024,
            weight_fifo_beats=1024,
            kv_chunks=2048,
            program_words=1024,
        ),
        FabricConfig(
            name="kv260",
            part="xck26-sfvc784-2LV-c",
            rows=64,
            cols=16,
            ports=4,
            clock_mhz=300.0,
            dram=PUBLISHED["ddr4-2133-x64"],
            max_rows=16,
            max_context=2048,
            max_head_dim=128,
            in_chunks=16384,
            out_chunks=3072,
            res_chunks=2048,
            param_chunks=512,
            weight_fifo_beats=4096,
            kv_chunks=16384,
            program_words=1024,
            fabric_rows=8,
            ps_ports=("hp0", "hp1", "hp3", "hpc0"),
            ultra=("in", "scores", "weights", "kv"),
        ),
        FabricConfig(
            name="ulx3s",
            part="LFE5U-85F-6BG381C",
            rows=8,
            cols=4,
            ports=2,
            clock_mhz=65.0,
            dram=PUBLISHED["sdr-65-x16"],
            max_rows=4,
            max_context=512,
            max_head_dim=64,
            in_chunks=1024,
            out_chunks=1024,
            res_chunks=512,
            param_chunks=256,
            weight_fifo_beats=256,
            kv_chunks=1024,
            program_words=512,
        ),
    )
}


def preset(name: str) -> FabricConfig:
    """The preset called ``name``, or the one in the JSON file of that name (:func:`write_preset`).

    The file must have every number that has no default, and no other keys.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix.lower() != ".json" and not path.is_file():
        raise UserError(
            f"no preset {show(name)}; there are: {', '.join(PRESETS)}, or give a .json file"
        )
    values = read_json_object(path)
    version = values.pop(VERSION_KEY, None)
    if version != FILE_VERSION:
        raise UserError(
            f"{path}: {VERSION_KEY} = {show(version)} is not {FILE_VERSION}; give a file that "
            "'tokenfabric explore --save' wrote"
        )
    try:
        return _from_json(FabricConfig, values, "")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write_preset(cfg: FabricConfig, path: str | Path) -> None:
    """A file that :func:`preset` reads: the same numbers, so the same fingerprint."""
    text = json.dumps({VERSION_KEY: FILE_VERSION, **asdict(cfg)}, indent=2, allow_nan=False)
    write_file(path, [text.encode() + b"\n"])


def _from_json(kind: Any, values: dict[str, Any], inside: str) -> Any:
    """The dataclass ``kind`` with every value checked and of its field's type."""
    known = {field.name: field for field in fields(kind)}
    for name in values:
        if name not in known:
            raise UserError(f"unknown key {show(inside + name)}; known are: {', '.join(known)}")
    missing = [n for n, field in known.items() if field.default is MISSING and n not in values]
    if missing:
        raise UserError(f"the key {inside + missing[0]!r} is missing; add it")
    return kind(**{n: _value(str(known[n].type), v, inside + n) for n, v in values.items()})


def _value(kind: str, value: Any, name: str) -> Any:
    """``value`` as a field declared as ``kind`` holds it. UserError if it is something else."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if kind == "int" and is_int:
        return value
    # The fingerprint tells 100 from 100.0.
    if kind == "float" and (is_int or isinstance(value, float)) and 0 < value < math.inf:
        return float(value)
    if kind == "str" and isinstance(value, str) and value:
        return value
    if kind == "Dram" and isinstance(value, dict):
        return _from_json(Dram, value, f"{name}.")
    if kind.startswith("tuple") and isinstance(value, list):
        return tuple(_value("str", item, name) for item in value)
    kinds = {"int": "an integer", "float": "a number above 0", "str": "a text", "Dram": "an object"}
    need = kinds.get(kind, "a list of texts")
    raise UserError(f"{name} = {show(value)} is not {need}; correct it")

"""The register map of the AXI4-Lite port ``s_axi_ctrl``: one table for RTL, drivers and docs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

__all__ = ["ERROR_TEXT", "REGISTERS", "Error", "Register", "State", "describe", "offset"]

IDENT = 0x544B4642  # "TKFB"
ABI_VERSION = 3
MAX_PORTS = 8
SATURATION_COUNTERS = 16
LOCKED = "; during a run writes are ignored"


class State(IntEnum):
    """STATUS.state"""

    IDLE = 0
    RUNNING = 1
    DONE = 2
    ERROR = 3
    STOPPED = 4


class Error(IntEnum):
    """ERROR.code"""

    NONE = 0
    WINDOW = 1
    AXI_READ = 2
    AXI_WRITE = 3
    ILLEGAL = 4
    WATCHDOG = 5
    DESCRIPTOR = 6
    CONTEXT = 7
    SILENT = 8


ERROR_TEXT = {
    Error.NONE: "no error",
    Error.WINDOW: "an address outside the window that the driver opened",
    Error.AXI_READ: "the memory answered a read with an error",
    Error.AXI_WRITE: "the memory answered a write with an error",
    Error.ILLEGAL: "an illegal instruction",
    Error.WATCHDOG: "the watchdog ran out: nothing finished in time",
    Error.DESCRIPTOR: "the job descriptor is not one, or asks for more than the fabric has",
    Error.CONTEXT: "a row would pass the end of its context",
    Error.SILENT: "the host did not touch the control port for the cycles of HEARTBEAT",
}


@dataclass(frozen=True)
class Register:
    """One 32-bit register. access: "ro", "rw", or "wo" (writes are commands, reads give 0)."""

    name: str
    offset: int
    access: str
    doc: str
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)  # name -> (lsb, bits)


def _table() -> list[Register]:
    table: list[Register] = []

    def add(name: str, access: str, doc: str, **fields: tuple[int, int]) -> None:
        table.append(Register(name, 4 * len(table), access, doc, fields))

    # Those up to JOB_SIZE keep their places in every version: with them the driver ends the run of
    # an older accelerator before it programs another.
    add("IDENT", "ro", f"{IDENT:#010x}")
    add("ABI", "ro", "version of this map, of the descriptor and of the ISA")
    add("FINGERPRINT_LO", "ro", "low half of the config's fingerprint")
    add("FINGERPRINT_HI", "ro", "high half of the config's fingerprint")
    add(
        "CONTROL",
        "wo",
        "start runs the job described at the start of the job window; stop ends it after the "
        "current step; reset ends it at once. Of several bits only the first of reset, stop and "
        "start counts. stop and reset also end a run that has not begun yet",
        start=(0, 1),
        stop=(1, 1),
        reset=(2, 1),
    )
    add("STATUS", "ro", "what the fabric is doing", state=(0, 3))
    add("ERROR", "ro", "why the last run ended in state ERROR", code=(0, 8), port=(8, 4))
    add("PC", "ro", "the instruction that was being issued")
    for name, doc in (("WINDOW", "0 (weights, KV cache)"), ("JOB", "0x80000000 (job window)")):
        base = f"bus address of device address {doc}, a multiple of 4096"
        add(name + "_BASE", "rw", base + LOCKED)
        add(name + "_SIZE", "rw", "bytes; no access leaves [base, base + size)" + LOCKED)
    add(
        "WATCHDOG",
        "rw",
        "cycles without a finished burst, instruction or step before it bites; 0: never" + LOCKED,
    )
    add(
        "HEARTBEAT",
        "rw",
        "cycles without an access to this port before a run is ended with SILENT; 0: never",
    )
    add(
        "SEEN",
        "rw",
        "what the host has seen; irq is high while steps differs from RING_HEAD, and after the "
        "end of a run until end is set",
        steps=(0, 31),
        end=(31, 1),
    )
    add("RING_BASE", "ro", "device address of the token ring, from the descriptor")
    add("RING_HEAD", "ro", "steps whose tokens stand in the ring, their writes answered")
    for name, doc in COUNTERS:
        add(name + "_LO", "ro", doc + ", low half")
        add(name + "_HI", "ro", doc + ", high half")
    for port in range(MAX_PORTS):
        add(f"READ_BEATS_{port}", "ro", f"beats read on port {port}")
    add("WRITE_BEATS", "ro", "beats written on port 0")
    for index in range(SATURATION_COUNTERS):
        add(f"SATURATED_{index}", "ro", f"values that saturated in tensors of class {index}")
    return table


# 64-bit counters; all counters are cleared by start.
COUNTERS = [
    ("CYCLES", "cycles since start, frozen when the run ends"),
    ("ARRAY_BUSY", "cycles in which activations entered the array"),
    ("ARRAY_WAIT_WEIGHTS", "cycles in which the array waited for the weight stream"),
    ("ARRAY_WAIT_KV", "cycles in which the array waited for K or V"),
    ("ARRAY_WAIT_ROOM", "cycles in which the array waited for room to put logits"),
    ("ARRAY_IDLE", "cycles in which no command was in the array"),
    ("VECTOR_BUSY", "cycles in which the vector unit was busy"),
    ("SOFTMAX_BUSY", "cycles in which the softmax unit was busy"),
    ("ATTENTION_BUSY", "cycles in which an attention instruction was running"),
    ("STREAM_FULL", "cycles in which the weight stream waited for room in its FIFO"),
]

REGISTERS = _table()
_BY_NAME = {register.name: register for register in REGISTERS}


def offset(name: str) -> int:
    """Byte offset of the register ``name``."""
    return _BY_NAME[name].offset


def describe() -> list:
    """The table as plain lists, for the fingerprint and the documentation."""
    return [
        ABI_VERSION,
        [[r.name, r.offset, r.access, sorted(r.fields.items())] for r in REGISTERS],
    ]

# amaranth: UnusedElaboratable=no
"""The host's link over a serial line: bits on the wire, frames made with Python's library."""

from __future__ import annotations

import binascii
import struct
from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np
import pytest
from amaranth.sim import Simulator
from tokenfabric.core.link import BAD, OK, UNIT, Command
from tokenfabric.rtl.uart import Link, divisor

HZ, BAUD = 8e6, 1e6
DIVISOR = 8
SILENCE = 40e-6  # 320 cycles: four bytes
QUIET = 1_200


def checked(data: bytes) -> bytes:
    return data + struct.pack(">H", binascii.crc_hqx(data, 0xFFFF))


def request(command: int, address: int, units: int, data: bytes = b"") -> bytes:
    head = checked(struct.pack("<BBI", command, units - 1, address))
    return head + (checked(data) if data else b"")


@dataclass
class Board:
    """What is behind the link: registers and memory that take their time; a plain model."""

    seed: int
    memory: dict[int, int] = field(default_factory=dict)
    registers: dict[int, int] = field(default_factory=dict)
    written: list[tuple[str, int, int]] = field(default_factory=list)


def run(board: Board, frames: list[tuple[int, bytes]], gap: int = 0) -> tuple[bytes, list]:
    """Send (idle cycles before it, frame) one after the other, each after the answer before it.

    The answers, and the cycle of every change of ``tx`` and of every access.
    """
    rng = np.random.default_rng(board.seed)
    dut = Link(HZ, BAUD, addr_bits=20, silence=SILENCE)
    memory, control = dut.memory, dut.control
    answers, events = bytearray(), []
    line: list[int] = []  # bits to send, each for DIVISOR cycles
    pending: list[tuple[str, int, int]] = []  # answers of memory and registers, when they are due

    def bits(frame: bytes) -> None:
        for byte in frame:
            line.extend([0, *(byte >> i & 1 for i in range(8)), 1])
            line.extend([1] * int(rng.integers(0, 1 + gap)))

    async def bench(ctx):
        receiving, last_tx, cycle, idle = None, 1, 0, 0
        todo = list(frames)
        while todo or line or idle < QUIET:
            if not line and todo and idle > todo[0][0] and cycle % DIVISOR == 0:
                _, frame = todo.pop(0)
                bits(frame)
                idle = 0
            ctx.set(dut.rx, line[0] if line else 1)
            ready = bool(rng.random() < 0.4)
            ctx.set(memory.ready, ready)
            for name in ("awready", "wready", "arready"):
                ctx.set(getattr(control, name), ready)
            ctx.set(memory.r_valid, 0)
            ctx.set(control.rvalid, 0)
            if pending and pending[0][1] <= cycle:
                kind, _, value = pending.pop(0)
                valid, data = (
                    (memory.r_valid, memory.r_data) if kind == "memory"
                    else (control.rvalid, control.rdata)
                )  # fmt: skip
                ctx.set(valid, 1)
                ctx.set(data, value)
            due = cycle + int(rng.integers(2, 30))
            if ctx.get(memory.en) and ready:
                at = ctx.get(memory.addr)
                if ctx.get(memory.write):
                    value = ctx.get(memory.w_data)
                    board.memory[at] = value
                    board.written.append(("memory", at, value))
                else:
                    pending.append(("memory", due, board.memory.get(at, at * 3)))
                events.append((cycle, "memory"))
            if ctx.get(control.awvalid) and ctx.get(control.wvalid) and ready:
                value = ctx.get(control.wdata), ctx.get(control.wstrb)
                assert value[1] == 0b1111
                board.registers[ctx.get(control.awaddr)] = value[0]
                board.written.append(("register", ctx.get(control.awaddr), value[0]))
                events.append((cycle, "set"))
            if ctx.get(control.arvalid) and ready:
                at = ctx.get(control.araddr)
                pending.append(("register", due, board.registers.get(at, at ^ 0xABCD)))
                events.append((cycle, "get"))
            tx = ctx.get(dut.tx)
            if tx != last_tx:
                events.append((cycle, tx))
                last_tx = tx
            if receiving is None and not tx:
                receiving = [cycle, []]
            elif receiving is not None:
                at = cycle - receiving[0]
                if at % DIVISOR == DIVISOR // 2 and at > DIVISOR:
                    receiving[1].append(tx)
                if len(receiving[1]) == 9:
                    assert receiving[1][8] == 1  # the stop bit
                    answers.append(sum(b << i for i, b in enumerate(receiving[1][:8])))
                    receiving, idle = None, 0
            await ctx.tick()
            cycle += 1
            idle = 0 if line else idle + 1
            if line and cycle % DIVISOR == 0:
                line.pop(0)
        assert not ctx.get(dut.active)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return bytes(answers), events


def answer(data: bytes, status: int = OK) -> bytes:
    return checked(bytes([status]) + data)


@pytest.mark.parametrize("gap", [0, 3])
def test_memory_and_registers_both_ways(gap):
    rng = np.random.default_rng(5)
    words = rng.integers(0, 256, (3, UNIT)).astype(np.uint8).tobytes()
    board = Board(seed=1)
    frames = [
        (900, request(Command.WRITE, 0x4000, 3, words)),
        (900, request(Command.READ, 0x3FF8, 5)),
        (900, request(Command.WRITE_REGISTER, 0x24, 1, struct.pack("<Q", 0xDEADBEEF))),
        (900, request(Command.READ_REGISTER, 0x24, 1)),
        (900, request(Command.READ_REGISTER, 0x30, 1)),
    ]
    found, _ = run(board, frames, gap)
    before, after = ((at // UNIT) * 3 for at in (0x3FF8, 0x4018))
    read = struct.pack("<Q", before) + words + struct.pack("<Q", after)
    assert found == (
        answer(b"") + answer(read) + answer(b"") + answer(struct.pack("<Q", 0xDEADBEEF))
        + answer(struct.pack("<Q", 0x30 ^ 0xABCD))
    )  # fmt: skip
    assert [kind for kind, _, _ in board.written] == ["memory"] * 3 + ["register"]
    assert board.registers == {0x24: 0xDEADBEEF}


def broken(frame: bytes, at: int, bit: int) -> bytes:
    return frame[:at] + bytes([frame[at] ^ 1 << bit]) + frame[at + 1 :]


WRITE = request(Command.WRITE_REGISTER, 0x20, 1, struct.pack("<Q", 7))


@pytest.mark.parametrize(
    "frame",
    [
        *(broken(WRITE, at, at % 8) for at in (0, 1, 3, 6, 7, 9, 15, 17)),
        WRITE[:5], WRITE[:11], WRITE[:17],  # it stops in the middle
        request(4, 0, 1), request(0x80, 0, 1),  # unknown commands
        request(Command.WRITE_REGISTER, 0x20, 2, bytes(16)),  # two registers in a frame
    ],
)  # fmt: skip
def test_a_broken_request_is_refused_and_nothing_of_a_register_is_done(frame):
    """And the next request works."""
    board = Board(seed=2)
    found, _ = run(board, [(900, frame), (900, request(Command.READ_REGISTER, 0x20, 1))])
    assert found == answer(b"", BAD) + answer(struct.pack("<Q", 0x20 ^ 0xABCD))
    assert board.written == []


def test_bytes_that_are_no_request_do_not_keep_it_busy():
    board = Board(seed=3)
    found, _ = run(board, [(900, b"\x00"), (900, request(Command.READ, 0, 1))])
    assert found == answer(b"", BAD) + answer(bytes(UNIT))


def test_every_cycle_is_as_it_was():
    """Edges of the line and accesses, as cycle numbers: the literal is of the first version."""
    words = np.random.default_rng(6).integers(0, 256, (2, UNIT)).astype(np.uint8).tobytes()
    frames = [
        (900, request(Command.WRITE, 0x40, 2, words)),
        (901, request(Command.READ, 0x38, 4)),
        (905, WRITE),
        (903, broken(WRITE, 9, 3)),
        (902, request(Command.READ_REGISTER, 0x20, 1)),
    ]
    _, events = run(Board(seed=4), frames, gap=2)
    assert (len(events), sha256(repr(events).encode()).hexdigest()[:16]) == LITERAL


LITERAL = (246, "53ca1ead46678092")


@pytest.mark.parametrize(("hz", "baud"), [(8e6, 1e6), (65e6, 3e6), (25e6, 115_200)])
def test_a_divisor_keeps_the_rate(hz, baud):
    assert abs(hz / divisor(hz, baud) / baud - 1) < 0.02


@pytest.mark.parametrize(("hz", "baud"), [(8e6, 3e6), (25e6, 2.9e6)])
def test_rates_that_cannot_be_kept_are_refused(hz, baud):
    with pytest.raises(ValueError, match="baud cannot be made from"):
        divisor(hz, baud)

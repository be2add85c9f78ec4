# amaranth: UnusedElaboratable=no
"""The board with nothing but a serial line: bytes on its pins, tokens out of them."""

import binascii
import struct
from dataclasses import replace

import numpy as np
import pytest
from small_models import golden, prompt
from tokenfabric.core import registers
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.link import BAD, BAUD, OK, SILENCE, Command
from tokenfabric.core.shape import ModelShape
from tokenfabric.flow.verilog import to_verilog
from tokenfabric.host.device import DeviceLost
from tokenfabric.host.driver import RegisterDevice
from tokenfabric.host.session import Session
from tokenfabric.host.uart import SerialBoard, UartBus, open_device
from tokenfabric.host.verify import replay
from tokenfabric.rtl.uart import divisor
from tokenfabric.rtl.ulx3s import PINS, SDRAM_CLOCK_NS, Board, Ulx3s, constraints, pll
from tokenfabric.sim.golden import GoldenDevice

CFG = preset("ulx3s")
SHAPE = ModelShape(
    dim=32, hidden=40, layers=2, heads=4, kv_heads=2, head_dim=8, vocab=48, context=64
)
SIZES = (40960, 12288)
SILENCE_S = 2e-5  # no time for a pause of the USB, for there is none


HZ = CFG.clock_mhz * 1e6
LINE = {"baud": HZ / 8, "silence": SILENCE_S}


@pytest.fixture(scope="module")
def verilog():
    return to_verilog(Board(CFG, **LINE))


@pytest.fixture
def line(verilog):
    from rigs.serial_line import SimulatedLine

    simulated = SimulatedLine(verilog, hz=HZ, **LINE)
    yield simulated
    simulated.close()


@pytest.fixture
def bus(line):
    return UartBus(line, SIZES, pause=lambda seconds: line.pause(seconds * SILENCE_S / SILENCE))


def _checked(data):
    return data + struct.pack(">H", binascii.crc_hqx(data, 0xFFFF))


@pytest.mark.slow
@pytest.mark.verilator
def test_tokens_over_the_line_equal_golden(bus):
    _, _, image, device = golden(SHAPE, "ulx3s", seed=3, context=64)
    assert all(need <= have for need, have in zip(image.memory(16), SIZES))
    expected = list(Session(device, image).generate(prompt(5, SHAPE.vocab), 6))
    assert len(set(expected)) > 1
    serial = RegisterDevice(bus)
    session = Session(serial, image, dump=True)
    assert list(session.generate(prompt(5, SHAPE.vocab), 6)) == expected
    fresh = GoldenDevice(CFG, image.memory(16))
    assert replay(session.jobs, image, serial, fresh) is None  # logits and KV cache


@pytest.mark.slow
@pytest.mark.verilator
def test_memory_comes_back_as_it_was_sent_also_in_parts(bus):
    rng = np.random.default_rng(0)
    for window, size in enumerate(SIZES):
        bus.memory[window][:] = rng.integers(0, 256, size)
        bus.flush(window)
    for window, size in enumerate(SIZES):
        sent = bus.memory[window].copy()
        sent[rng.integers(0, size, 20)] ^= 0x55
        bus.memory[window][:] = sent
        bus.flush(window)
        bus.memory[window][:] = 0
        bus.invalidate(window)
        assert (bus.memory[window] == sent).all()


@pytest.mark.verilator
def test_only_what_differs_is_sent(bus, line):
    bus.flush(1)
    before = line.cycles
    bus.memory[1][100] = 1
    bus.memory[1][-1] = 2
    bus.flush(1)
    assert line.cycles - before < 3 * 80 * (10 + 10 + 3)  # two frames, two answers


@pytest.mark.verilator
def test_broken_requests_are_refused_and_do_nothing(bus, line):
    bus.write32(registers.offset("WATCHDOG"), 1000)
    for frame in (
        _checked(struct.pack("<BBI", 3, 0, registers.offset("WATCHDOG")))
        + _checked(struct.pack("<Q", 77))[:-1]
        + b"!",
        _checked(struct.pack("<BBI", 4, 0, 0)),  # no such command
        _checked(struct.pack("<BBI", 3, 1, 0)),  # two registers
        struct.pack("<BBI", 2, 0, 0) + b"??",  # checksum
        _checked(struct.pack("<BBI", 1, 3, 0)) + b"twelve bytes",  # the rest never comes
        b"\0",
    ):
        line.write(frame)
        answer = line.read(3)
        assert answer[0] == BAD and binascii.crc_hqx(answer, 0xFFFF) == 0
        assert line.read(1) == b""
    assert bus.read32(registers.offset("WATCHDOG")) == 1000


@pytest.mark.slow
@pytest.mark.verilator
def test_noise_on_the_line_is_repaired_or_reported(bus, line):
    noisy = _Noisy(line, [3, 40, 2060])
    bus.line = noisy
    bus.memory[0][:] = np.arange(SIZES[0]) % 251
    bus.flush(0)
    assert not noisy.at  # all of it happened
    bus.line, sent = line, bus.memory[0].copy()
    bus.memory[0][:] = 0
    bus.invalidate(0)
    assert (bus.memory[0] == sent).all()
    bus.line = _Noisy(line, range(10**6))
    with pytest.raises(DeviceLost, match="serial line"):
        bus.flush(1)
        bus.memory[1][:] = 7
        bus.flush(1)


class _Noisy:
    """A line that flips a bit of the bytes with these numbers."""

    def __init__(self, line, at):
        self.line, self.at, self.sent = line, list(at), 0
        self.read, self.reset_input_buffer = line.read, line.reset_input_buffer

    def write(self, data):
        data = bytearray(data)
        while self.at and self.at[0] < self.sent + len(data):
            data[self.at.pop(0) - self.sent] ^= 0x10
        self.sent += len(data)
        self.line.write(bytes(data))


class _Deaf:
    """A line whose answers to register writes get lost."""

    def __init__(self):
        self.frames = []

    def write(self, data):
        self.frames.append(data)

    def read(self, size):
        return b""

    def reset_input_buffer(self):
        pass


def test_a_register_write_is_not_repeated_when_its_answer_is_lost():
    line = _Deaf()
    with pytest.raises(DeviceLost):
        UartBus(line, SIZES, pause=lambda seconds: None).write32(0x10, 1)
    assert len(line.frames) == 1


class _Registers:
    """A line with registers at its end: of another accelerator."""

    def write(self, data):
        offset = data[2] | data[3] << 8
        values = {registers.offset("IDENT"): registers.IDENT}
        values[registers.offset("ABI")] = registers.ABI_VERSION
        self.answer = bytes([OK])
        if data[0] == Command.READ_REGISTER:
            self.answer += struct.pack("<Q", values.get(offset, 5))
        self.answer = _checked(self.answer)

    def read(self, size):
        return self.answer

    def reset_input_buffer(self):
        pass


def test_another_accelerator_is_refused():
    _, _, image, _ = golden(SHAPE, "ulx3s", context=64)
    with pytest.raises(UserError, match="fingerprint 0000000500000005, ulx3s of this version"):
        open_device(_Registers(), image)


def test_a_model_that_does_not_fit_is_refused():
    _, _, image, _ = golden(SHAPE, "ulx3s", context=64)
    large = replace(image.map, end=1 << 25)
    with pytest.raises(
        UserError, match=r"KV cache take 33\.\d MB, .* the board of ulx3s has 33\.6 MB; ask for"
    ):
        open_device(_Registers(), replace(image, map=large))


def test_a_port_that_is_not_there():
    pytest.importorskip("serial")
    with pytest.raises(UserError, match="cannot open the serial port /dev/nothing"):
        SerialBoard("/dev/nothing")


def test_without_pyserial(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "serial", None)
    with pytest.raises(UserError, match=r"pip install 'tokenfabric\[uart\]'"):
        SerialBoard("/dev/ttyUSB0")


def test_the_line_rate_can_be_made_from_the_clock():
    assert divisor(CFG.clock_mhz * 1e6, BAUD) >= 8
    with pytest.raises(ValueError, match="baud"):
        divisor(20e6, BAUD)


@pytest.mark.parametrize("mhz", [25, 60, 65, 75, 80, 100])
def test_the_pll_makes_the_clocks(mhz):
    values = pll(mhz, SDRAM_CLOCK_NS)
    phase = 25 / values["p_CLKI_DIV"]
    made = phase * values["p_CLKFB_DIV"]
    vco = made * values["p_CLKOP_DIV"]
    assert made == mhz and phase >= 3.125
    assert 400 <= vco <= 800
    assert values["p_CLKOS_DIV"] == values["p_CLKOP_DIV"]
    late = values["p_CLKOS_CPHASE"] - values["p_CLKOP_CPHASE"] + values["p_CLKOS_FPHASE"] / 8
    assert abs(late * 1000 / vco - SDRAM_CLOCK_NS) <= 1000 / vco / 16
    assert values["p_CLKOS_CPHASE"] < 128 and values["p_CLKOS_FPHASE"] < 8


def test_a_clock_that_the_pll_cannot_make():
    with pytest.raises(ValueError, match="no PLL setting"):
        pll(66, 0)


def test_every_pin_is_a_port_and_every_port_a_pin():
    design = Ulx3s(CFG)
    widths = {"_".join(map(str, p)): len(v) for p, _, v in design.signature.flatten(design)}
    widths.update((name, len(pad)) for name, pad in design.pads.items())
    ports = {n if w == 1 else f"{n}[{i}]" for n, w in widths.items() for i in range(w)}
    assert ports == set(PINS)
    assert len({ball for ball, _ in PINS.values()}) == len(PINS)
    assert all(f'LOCATE COMP "{pin}" SITE "{PINS[pin][0]}"' in constraints() for pin in PINS)


def test_an_accelerator_with_other_ports_is_refused():
    with pytest.raises(ValueError, match="two ports of 4 bytes"):
        Board(preset("pynq-z2"))

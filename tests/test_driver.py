"""The driver's part in keeping memory in step: caches that nobody flushes for it."""

import numpy as np
import pytest
from small_models import SMALL
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core import isa
from tokenfabric.core.config import preset
from tokenfabric.core.image import PAGE
from tokenfabric.core.registers import State, offset
from tokenfabric.host.device import DeviceLost, DeviceTimeout
from tokenfabric.host.driver import RegisterDevice, settle
from tokenfabric.host.session import Session
from tokenfabric.host.verify import replay
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.devices import make_device


class CachedBus:
    """A simulated board whose CPU sees copies of the memory, and counts what it moves."""

    def __init__(self, bus):
        self.bus, self.bases = bus, bus.bases
        self.memory = [memory.copy() for memory in bus.memory]
        self.read32, self.write32, self.advance = bus.read32, bus.write32, bus.advance
        self.moved = []

    def flush(self, window):
        self.bus.memory[window][:] = self.memory[window]
        self.moved.append(("flush", window))

    def invalidate(self, window):
        self.memory[window][:] = self.bus.memory[window]
        self.moved.append(("invalidate", window))


@pytest.fixture(scope="module")
def image():
    return compile_model(QModel.random(SMALL, 3), preset("tiny"), slots=2)


@pytest.fixture
def device(image):
    plain = make_device("verilator", preset("tiny"), image.memory(16))
    return RegisterDevice(CachedBus(plain.bus))


pytestmark = pytest.mark.verilator


def test_a_session_on_a_cached_bus_equals_golden(image, device):
    session = Session(device, image, dump=True)
    list(session.generate([5, 6, 7], 4))
    list(session.generate([8], 3))
    golden = make_device("golden", preset("tiny"), image.memory(16))
    assert replay(session.jobs, image, device, golden) is None


def test_the_bulk_window_is_flushed_once(image, device):
    session = Session(device, image)
    list(session.generate([5, 6, 7], 12))
    assert device.bus.moved.count(("flush", 0)) == 1
    assert ("invalidate", 0) not in device.bus.moved
    assert device.bus.moved.count(("flush", 1)) == len(session.jobs)


def test_writing_to_a_window_keeps_what_the_accelerator_wrote_there(image, device):
    session = Session(device, image)
    list(session.generate([5, 6, 7], 4))
    dram, count = device.bus.bus.memory[0], len(session.tokens)
    parts = [(at, at + count * size) for *_, at, size in image.kv.tensors()]
    cache = [dram[first:last].copy() for first, last in parts]
    assert all(part.any() for part in cache)
    device.write(image.map.rope, device.read(image.map.rope, 64))
    list(session.generate([8], 2))
    for (first, last), before in zip(parts, cache):
        assert np.array_equal(dram[first:last], before)


def test_nothing_is_written_during_a_run(image, device):
    device.write(PAGE, image.payload)
    rows = [{"token": 5, "position": 0, "slot": 0, "flags": int(isa.RowFlag.WANT_LOGITS)}]
    device.write(isa.JOB, image.descriptor(rows, steps=50))
    device.start()
    with pytest.raises(RuntimeError, match="a run is under way"):
        device.write(0, np.zeros(8, np.uint8))
    assert device.poll()[0] is State.RUNNING
    device.reset()
    assert device.poll()[0] is State.IDLE
    device.write(0, np.zeros(8, np.uint8))


def test_an_accelerator_that_somebody_else_took_is_noticed(image, device):
    session = Session(device, image)
    list(session.generate([5], 2))
    bus = device.bus.bus
    RegisterDevice(type(bus)(bus.top, image.memory()[0] - PAGE))  # its buffers lie elsewhere
    with pytest.raises(DeviceLost, match="another program has taken it"):
        list(session.generate([6], 2))


def test_the_interrupt_is_news(image, device):
    """High for each step in the ring that has not been seen, and after the end."""
    top = device.bus.bus.top
    assert not top.irq
    device.write(PAGE, image.payload)
    rows = [{"token": 5, "position": 0, "slot": 0, "flags": int(isa.RowFlag.WANT_LOGITS)}]
    device.write(isa.JOB, image.descriptor(rows, steps=3))
    device.start()
    news = 0
    while True:
        top.run(1 << 20)
        assert top.irq
        state, done, _ = device.poll()
        news += 1
        if state is not State.RUNNING:
            break
        assert done == news and (done == 3 or not top.irq)
    assert done == 3 and not top.irq


def begin(image, device, steps=50):
    """A run of so many steps is under way."""
    device.write(PAGE, image.payload)
    rows = [{"token": 5, "position": 0, "slot": 0, "flags": int(isa.RowFlag.WANT_LOGITS)}]
    device.write(isa.JOB, image.descriptor(rows, steps=steps))
    device.start()


@pytest.mark.parametrize("cycles", [0, 1, 40, 97, 700, 4000, 4321, 6007])
def test_who_releases_the_memory_may_give_it_away(image, device, cycles):
    top = device.bus.bus.top
    begin(image, device)
    top.run(cycles, until_idle=False)
    device.release()
    assert top.in_flight == 0 and not top.irq
    top.memory[:] = before = np.random.default_rng(cycles).integers(0, 256, top.memory.size, "u1")
    device.bus.write32(offset("CONTROL"), 1)
    top.run(20_000, until_idle=False)
    assert np.array_equal(top.memory, before) and top.in_flight == 0
    with pytest.raises(DeviceLost, match="windows are not the ones"):
        device.start()
    session = Session(RegisterDevice(device.bus), image)
    assert len(list(session.generate([5], 3))) == 3


@pytest.mark.parametrize("watchdog", [0, 3000])
@pytest.mark.parametrize("waited", [0, 50_000], ids=["in the run", "after it"])
def test_memory_that_is_not_let_go_of(image, device, watchdog, waited):
    """Also where the run has ended in an error, and its bursts have not."""
    top = device.bus.bus.top
    device.bus.write32(offset("WATCHDOG"), watchdog)
    device.bus.write32(offset("HEARTBEAT"), 9000)
    begin(image, device)
    top.run(3000, until_idle=False)
    top.stick(0)
    top.run(1500 + waited, until_idle=False)
    state = device.bus.read32(offset("STATUS"))
    assert state == (State.ERROR if waited else State.RUNNING)
    with pytest.raises(DeviceTimeout, match="does not let go of the memory; restart the board"):
        device.release()
    top.stick(0, False)
    settle(device.bus)
    assert top.in_flight == 0

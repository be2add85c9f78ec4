"""What a board does that a simulation may forgive: resets and commands at any moment, dead hosts.

The memory behind the simulated ports forgets nothing when the fabric is reset.
"""

from __future__ import annotations

import numpy as np
import pytest
from small_models import SMALL
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.core.isa import RowFlag
from tokenfabric.core.registers import Error, State, offset
from tokenfabric.host.device import DeviceError, load, put_job, raise_error
from tokenfabric.host.driver import RegisterDevice
from tokenfabric.host.session import Session
from tokenfabric.host.verify import replay
from tokenfabric.quant.qmodel import QModel
from tokenfabric.rtl.control import Supervisor
from tokenfabric.sim.devices import VerilatedBus, make_device, verilated

pytestmark = pytest.mark.verilator

CFG = preset("tiny")
START, STOP, RESET = 1, 2, 4
LONG = 100_000  # cycles: more than any run here takes
DUMPED = 8


@pytest.fixture(scope="module")
def image():
    return compile_model(QModel.random(SMALL, 1), CFG, slots=2)


@pytest.fixture
def device(image):
    made = verilated(CFG, image.memory(DUMPED))
    load(made, image)
    return made


def rows(count=1, first=0):
    flags = int(RowFlag.WANT_LOGITS)
    return [
        {"token": 5 + i, "position": first + i, "slot": 0, "flags": flags} for i in range(count)
    ]


def begin(device, image, *, steps=20, cycles=0):
    """A run of so many steps is under way since so many cycles."""
    put_job(device, image.descriptor(rows(), steps=steps))
    device.start()
    device.top.run(cycles, until_idle=False)


def command(device, word):
    device.bus.write32(offset("CONTROL"), word)


def assert_right(device, image):
    """What it says now, and all logits and the cache on the way, are the golden device's."""
    session = Session(device, image, dump=True)
    assert len(list(session.generate([1, 2, 3], 3))) == 3
    golden = make_device("golden", CFG, image.memory(DUMPED))
    assert replay(session.jobs, image, device, golden) is None


@pytest.mark.parametrize("later", [0, 1, 2, 3, 5, 20, 60, 90, 500])
@pytest.mark.parametrize("word", [STOP, RESET])
def test_a_command_counts_from_the_start_on(device, image, word, later):
    begin(device, image, cycles=later)
    command(device, word)
    assert device.wait(60) is (State.STOPPED if word == STOP else State.IDLE)
    assert device.register("RING_HEAD") == (1 if word == STOP else 0)
    assert_right(device, image)


@pytest.mark.parametrize("word", [START | STOP, START | RESET, START | STOP | RESET])
def test_of_several_commands_one_counts(device, image, word):
    """No start beside another command; a running job takes the first of reset and stop."""
    put_job(device, image.descriptor(rows(), steps=20))
    command(device, word)
    device.top.run(LONG, until_idle=False)
    assert device.register("STATUS") == State.IDLE and device.register("CYCLES_LO") == 0
    begin(device, image, cycles=4000)
    command(device, word)
    assert device.wait(60) is (State.IDLE if word & RESET else State.STOPPED)


@pytest.mark.parametrize("watchdog", [0, 2000])
def test_a_stuck_port_lets_go_of_the_run(device, image, watchdog):
    """Even without a watchdog; and it is told apart from a run that has ended well."""
    device._set("WATCHDOG", watchdog)
    begin(device, image, cycles=3000)
    device.top.stick(0)
    device.top.run(1500, until_idle=False)
    command(device, RESET)
    device.top.run((watchdog or Supervisor.DRAIN) + 2000, until_idle=False)
    assert device.register("STATUS") == State.ERROR
    assert device.register("ERROR") & 0xFF == Error.WATCHDOG
    device.wait(60)
    put_job(device, image.descriptor(rows(), steps=1))
    device.start()
    device.top.run((watchdog or Supervisor.DRAIN) + 2000, until_idle=False)
    with pytest.raises(DeviceError, match="WATCHDOG"):
        raise_error(device)
    device.top.stick(0, False)
    assert_right(device, image)


def test_what_a_run_stands_on_is_locked_while_it_lasts(device, image):
    begin(device, image, cycles=3000)
    names = ("WINDOW_BASE", "WINDOW_SIZE", "JOB_BASE", "JOB_SIZE", "WATCHDOG")
    before = {name: device.register(name) for name in names}
    for name in names:
        device._set(name, before[name] ^ 0xFFFF_0000)
    assert {name: device.register(name) for name in names} == before
    device.wait(60)
    device._set("WATCHDOG", 77)
    assert device.register("WATCHDOG") == 77


@pytest.mark.parametrize("moment", [*range(150, 9000, 590), 30, 61, 97, 120])
def test_a_reset_of_the_fabric_at_any_moment(device, image, moment):
    """What stands on the ports goes on, and the next run finds nothing of it."""
    put_job(device, image.descriptor(rows(4), steps=3))
    device.start()
    device.top.run(moment, until_idle=False)
    device.top.reset()
    assert device.register("STATUS") == State.IDLE
    assert device.register("WINDOW_SIZE") == 0
    opened = RegisterDevice(VerilatedBus(device.top, image.memory(DUMPED)[0]))
    assert_right(opened, image)
    device.top.run(LONG, until_idle=False)
    assert device.top.in_flight == 0


def test_resets_one_after_the_other(device, image):
    rng = np.random.default_rng(5)
    for moment in rng.integers(0, 400, 12):
        put_job(device, image.descriptor(rows(4), steps=3))
        command(device, START)
        device.top.run(int(moment), until_idle=False)
        device.top.reset()
        opened = RegisterDevice(VerilatedBus(device.top, image.memory(DUMPED)[0]))
    assert_right(opened, image)


def test_a_host_that_is_silent_ends_the_run(device, image):
    device._set("HEARTBEAT", 20_000)
    begin(device, image, steps=60)
    device.top.run(20_000 + 2000, until_idle=False)
    quiet = device.top.memory.copy()
    device.top.run(LONG, until_idle=False)
    assert np.array_equal(quiet, device.top.memory) and device.top.in_flight == 0
    with pytest.raises(DeviceError, match="SILENT"):
        raise_error(device)
    assert 0 < device.register("RING_HEAD") < 60
    assert_right(device, image)


def test_a_host_that_is_heard_of_ends_nothing(device, image):
    device._set("HEARTBEAT", 5000)
    begin(device, image, steps=5)
    for _ in range(40):
        device.top.run(4000, until_idle=False)
        device.register("IDENT")
    assert device.wait(60) is State.DONE and device.register("RING_HEAD") == 5


@pytest.mark.parametrize("heartbeat", [25_000, 60_000])
def test_a_slow_reader_gets_the_same_tokens(device, image, heartbeat):
    """A job that ended in the silence goes on from its last whole step."""
    whole = list(Session(device, image).generate([1, 2, 3], 24))
    device._set("HEARTBEAT", heartbeat)
    session, slow = Session(device, image), []
    for token in session.generate([1, 2, 3], 24):
        slow.append(token)
        device.top.run(LONG, until_idle=False)
    assert slow == whole
    assert len(session.jobs) > 2  # the prompt's, and more than one of steps
    golden = make_device("golden", CFG, image.memory(DUMPED))
    assert replay(session.jobs, image, device, golden) is None


def test_silence_that_never_ends_is_an_error(device, image):
    """One that is shorter than a step, here."""
    device._set("HEARTBEAT", 500)
    session = Session(device, image, deadline=0.3)
    with pytest.raises(DeviceError, match="SILENT"):
        list(session.generate([1, 2, 3], 3))


def test_who_opens_it_ends_the_run_of_who_is_gone(device, image):
    begin(device, image, steps=60, cycles=3000)
    opened = RegisterDevice(VerilatedBus(device.top, image.memory(DUMPED)[0]))
    assert opened.register("STATUS") == State.IDLE and device.top.in_flight == 0
    load(opened, image)
    assert_right(opened, image)

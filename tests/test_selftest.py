"""The test that a board runs on itself: it passes on a good accelerator and not on a bad one."""

import pytest
from tokenfabric.core.config import preset
from tokenfabric.sim.devices import make_device

from tokenfabric.selftest import check_arithmetic, check_memory

pytestmark = pytest.mark.verilator
CFG = preset("pynq-z2")


def opener(flip=None):
    """Opens simulated devices; ``flip``: an address whose bit is wrong in their memory."""

    def open_device(image, dumped):
        device = make_device("verilator", CFG, image.memory(dumped))
        if flip is not None:
            start = device.start

            def broken_start():
                device.bus.memory[0][image.map.stream + flip] ^= 0x40
                start()

            device.start = broken_start
        return device

    return open_device


def test_a_good_accelerator_passes():
    assert check_arithmetic(opener(), CFG) is None
    speed = check_memory(opener(), CFG)
    assert speed.difference is None
    assert len(speed.moved) == 4 and sum(speed.moved) > 8 << 20
    total = sum(speed.rates(CFG.clock_mhz))
    assert 0.9 * CFG.dram.reachable < total / CFG.dram.peak_bytes_per_s < 1


def test_one_wrong_bit_is_found():
    assert "logits differ, first that of channel" in check_arithmetic(opener(5000), CFG)
    assert "differ" in check_memory(opener(4 << 20), CFG).difference

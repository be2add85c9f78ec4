"""SoftmaxUnit under cocotb in Verilator, at the sizes of the presets."""

import pytest
from tokenfabric.rtl.softmax import SoftmaxUnit
from tokenfabric.rtl.verilog import to_verilog
from tokenfabric.sim.cocotb_runner import run_cocotb

from tokenfabric.config import preset


@pytest.mark.verilator
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "pynq-z2"])
def test_softmax(name):
    dut = SoftmaxUnit(preset(name))
    env = {"TOKENFABRIC_PRESET": name, "LATENCY": str(dut.LATENCY)}
    run_cocotb(to_verilog(dut), "top", "cocotb_softmax", env=env, seed=1)

"""SoftmaxUnit under cocotb in Verilator, at the sizes of the presets."""

import pytest
from rigs.cocotb_runner import run_cocotb
from tokenfabric.core.config import preset
from tokenfabric.flow.verilog import to_verilog
from tokenfabric.rtl.softmax import SoftmaxUnit


@pytest.mark.verilator
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "pynq-z2"])
def test_softmax(name):
    dut = SoftmaxUnit(preset(name))
    env = {"TOKENFABRIC_PRESET": name, "LATENCY": str(dut.LATENCY)}
    run_cocotb(to_verilog(dut), "top", "cocotb_softmax", env=env, seed=1)

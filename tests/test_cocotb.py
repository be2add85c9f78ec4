"""Units under cocotb in Verilator: the Verilog that is synthesized, not Amaranth's model."""

import pytest
from rigs.cocotb_runner import run_cocotb
from tokenfabric.core.config import preset
from tokenfabric.flow.verilog import to_verilog
from tokenfabric.rtl.systolic import SystolicArray


@pytest.mark.verilator
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "pynq-z2"])
def test_systolic(name):
    dut = SystolicArray(preset(name))
    env = {"TOKENFABRIC_PRESET": name, "LATENCY": str(dut.LATENCY)}
    run_cocotb(to_verilog(dut), "top", "cocotb_systolic", env=env, seed=1)

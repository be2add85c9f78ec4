"""Run by cocotb inside the simulator: the bench of test_netlist.py, for as long as it is told."""

import os

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, Timer

CYCLES = int(os.environ["CYCLES"])


@cocotb.test(timeout_time=CYCLES + 100, timeout_unit="us")
async def gates_equal_rtl(dut):
    dut.rst.value = 1
    Clock(dut.clk, 10, "ns").start()
    for _ in range(4):
        await FallingEdge(dut.clk)
    dut.rst.value = 0
    await Timer(10 * CYCLES, "ns")
    assert int(dut.compared.value) >= CYCLES - 4
    assert int(dut.moved.value) > CYCLES // 8, "the outputs hardly change"
    assert int(dut.wrong.value) == 0

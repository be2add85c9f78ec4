"""Devices that need no board: the golden interpreter, pysim and Verilator."""

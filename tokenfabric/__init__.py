"""From a Llama-style checkpoint to tokens streaming off an FPGA, every bit checked."""

__version__ = "0.1.0"

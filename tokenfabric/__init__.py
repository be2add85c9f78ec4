"""From a Llama-style checkpoint to tokens streaming off an FPGA, every bit checked."""

from tokenfabric.core import __version__

__all__ = ["__version__"]

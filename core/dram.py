"""The memories of the boards, as their vendors publish them. One home."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PUBLISHED", "Dram"]


@dataclass(frozen=True, kw_only=True)
class Dram:
    """The memory behind the ports, as its vendor publishes it."""

    name: str
    peak_bytes_per_s: float
    reachable: float  # highest published share of the peak, sequential reads


PUBLISHED = {
    dram.name: dram
    for dram in (
        # PYNQ-Z1 and Z2: one chip on a Zynq-7000.
        Dram(name="ddr3-1050-x16", peak_bytes_per_s=2.1e9, reachable=0.97),
        # KV260 and KR260: four x16 chips on a Zynq UltraScale+, at the 1066.7 MHz to which the boot
        # firmware of their K26 sets them. The share is that of 2400, the only one published.
        Dram(name="ddr4-2133-x64", peak_bytes_per_s=17.0667e9, reachable=0.93),
        # The same at the most that the Zynq does: what Hummingbird measured on.
        Dram(name="ddr4-2400-x64", peak_bytes_per_s=19.2e9, reachable=0.93),
        # ULX3S: one chip, at the fabric's clock; what rtl/sdram.py reaches.
        Dram(name="sdr-65-x16", peak_bytes_per_s=130e6, reachable=0.95),
        # A latency and nothing else, for tests.
        Dram(name="none", peak_bytes_per_s=1.6e9, reachable=1.0),
    )
}
"""By name. ``sim/dram.py`` models their times."""

"""AXI signatures: masters of the memory ports, the AXI4-Lite slave of the control port.

Bursts are INCR, at most 16 beats, full width, one ID (returned in order): in AXI3 and AXI4 alike.
Arm, "AMBA AXI Protocol Specification", IHI 0022.
"""

from __future__ import annotations

from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["lite", "memory_port", "read_master", "write_master"]


def _address(channel: str) -> dict:
    return {
        f"a{channel}addr": Out(32),
        f"a{channel}len": Out(8),
        f"a{channel}size": Out(3),
        f"a{channel}burst": Out(2),
        f"a{channel}valid": Out(1),
        f"a{channel}ready": In(1),
    }


def _read(bits: int) -> dict:
    return {
        **_address("r"),
        "rdata": In(bits),
        "rresp": In(2),
        "rlast": In(1),
        "rvalid": In(1),
        "rready": Out(1),
    }


def _write(bits: int) -> dict:
    return {
        **_address("w"),
        "wdata": Out(bits),
        "wstrb": Out(bits // 8),
        "wlast": Out(1),
        "wvalid": Out(1),
        "wready": In(1),
        "bresp": In(2),
        "bvalid": In(1),
        "bready": Out(1),
    }


def read_master(port_bytes: int) -> wiring.Signature:
    """The read channels of a master port, from the master's side."""
    return wiring.Signature(_read(8 * port_bytes))


def write_master(port_bytes: int) -> wiring.Signature:
    """The write channels of a master port, from the master's side."""
    return wiring.Signature(_write(8 * port_bytes))


def lite(addr_bits: int) -> wiring.Signature:
    """AXI4-Lite with 32-bit data, from the master's side."""
    return wiring.Signature(
        {
            "awaddr": Out(addr_bits),
            "awvalid": Out(1),
            "awready": In(1),
            "wdata": Out(32),
            "wstrb": Out(4),
            "wvalid": Out(1),
            "wready": In(1),
            "bresp": In(2),
            "bvalid": In(1),
            "bready": Out(1),
            "araddr": Out(addr_bits),
            "arvalid": Out(1),
            "arready": In(1),
            "rdata": In(32),
            "rresp": In(2),
            "rvalid": In(1),
            "rready": Out(1),
        }
    )


def memory_port(port_bytes: int, *, writes: bool) -> wiring.Signature:
    """A whole master port: the read channels and, if ``writes``, the write channels."""
    bits = 8 * port_bytes
    return wiring.Signature({**_read(bits), **(_write(bits) if writes else {})})

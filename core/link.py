"""The frames between a host and a board on a serial line: one contract for rtl/uart.py and driver.

Bytes are 8N1, least significant bit first. A request is

    command  count  address[4]  crc[2]  { data[8] x (count + 1)  crc[2] }    data: writes only

and its answer ``status { data[8] x (count + 1) } crc[2]``, data for reads only. ``address`` is in
bytes, low byte first, a multiple of 8 for memory; a register is the low four bytes of its unit of
data, and there is one in a frame. Each ``crc`` is CRC-16/CCITT (0x1021, from 0xFFFF) of the bytes
before it, back to the last ``crc`` or to the start of the frame, high byte first. ITU-T V.41.

``status`` is OK, or BAD after a request that is broken or unknown; then nothing of a register write
was done, of a memory write perhaps a part. A broken request, also one that stops in the middle, is
over when the line has been silent for SILENCE; then it is answered.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["BAD", "BAUD", "OK", "SILENCE", "UNIT", "Command"]

BAUD = 3_000_000  # the most that the ULX3S's USB serial chip, an FT231X, does
OK, BAD = 0xA5, 0x5A
UNIT = 8  # bytes
SILENCE = 0.02  # seconds; USB may pause for some milliseconds within a frame


class Command(IntEnum):
    """Bit 0: write. Bit 1: a register."""

    READ = 0
    WRITE = 1
    READ_REGISTER = 2
    WRITE_REGISTER = 3

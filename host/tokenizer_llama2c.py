"""Reads the tokenizer.bin of llama2.c."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_bytes
from tokenfabric.host.bpe import Tokenizer, build


def load_llama2c(path: Path) -> Tokenizer:
    """tokenizer.bin: int32 longest piece; per piece float32 score, int32 length, UTF-8 bytes."""
    data = read_bytes(path)

    def broken(what: str) -> UserError:
        return UserError(
            f"{path}: not a llama2.c tokenizer.bin: {what}; "
            "give the tokenizer.bin of the model or a tokenizer.json"
        )

    if len(data) < 4:
        raise broken(f"{len(data)} bytes are too few")
    (longest,) = struct.unpack_from("<i", data)
    pieces: list[str] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        if at + 8 > len(data):
            raise broken(f"it ends within token {len(pieces)}")
        score, length = struct.unpack_from("<fi", data, at)
        at += 8
        if not 0 <= length <= min(longest, len(data) - at):
            raise broken(
                f"token {len(pieces)} is {length} bytes long, the limit is {longest} and "
                f"{len(data) - at} bytes are left"
            )
        if not math.isfinite(score):
            raise broken(f"the score of token {len(pieces)} is {score}")
        try:
            pieces.append(data[at : at + length].decode())
        except UnicodeDecodeError:
            raise broken(f"token {len(pieces)} is not UTF-8") from None
        scores.append(score)
        at += length
    if pieces[3:259] != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise broken("ids 3 to 258 are not the bytes <0x00> to <0xFF>")
    values = {
        "pieces": pieces,
        "scores": scores,
        "bos": 1,
        "eos": [1, 2],  # the stories models end a story with the BOS of the next
        "special": [0, 1, 2],
        "byte_fallback": True,
        "split": [["prepend", " ", "always", False]],
        "strip_space": True,
    }
    return build(path, values)

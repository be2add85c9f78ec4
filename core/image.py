"""The compiled image: what is put into a device's memory, and what the token loop must know."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from tokenfabric.core import isa
from tokenfabric.core.boards import memory_of
from tokenfabric.core.config import FabricConfig
from tokenfabric.core.container import read_container, write_container
from tokenfabric.core.errors import UserError
from tokenfabric.core.fixed import round_up
from tokenfabric.core.kv import KvLayout
from tokenfabric.core.work import Work

__all__ = ["MAGIC", "PAGE", "Image", "MemoryMap", "check_windows", "memory_fault"]

MAGIC = b"TFimage\x01"
PAGE = 4096


def memory_fault(cfg: FabricConfig, bulk: int, job: int) -> str | None:
    """Why a device of ``cfg`` cannot have windows of so many bytes; None if it can.

    Device addresses of a window have 31 bits, and both windows lie in the memory of the board.
    """
    have = memory_of(cfg)
    for what, size in (("weights and KV cache", bulk), ("job and logits", job)):
        if size > isa.JOB and (have is None or have >= isa.JOB):
            return f"{what} take {_mb(size)}, a window has {_mb(isa.JOB)}"
    if have is not None and bulk + job > have:
        jobs = f", job and logits {_mb(job)}" if job else ""
        return (
            f"weights and KV cache take {_mb(bulk)}{jobs}, the board of {cfg.name} has {_mb(have)}"
        )
    return None


def check_windows(cfg: FabricConfig, sizes: tuple[int, int]) -> None:
    """UserError if a device of ``cfg`` cannot have windows of these sizes (:meth:`Image.memory`).

    Whoever makes a device calls it. For models :mod:`tokenfabric.compiler.memory` asks the same
    before any work, and says what would fit.
    """
    if fault := memory_fault(cfg, *sizes):
        raise UserError(
            f"{fault}; ask for fewer tokens, or compile with a smaller context or fewer slots"
        )


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


@dataclass(frozen=True, kw_only=True)
class MemoryMap:
    """Device addresses (bytes) and pitches, as in ``isa.DESCRIPTOR``; ``end``: of the bulk window.

    The bulk window up to ``kv`` is constant and stands in the image; the rest of it is written by
    the device. ``ring`` and ``logits`` lie in the job window.
    """

    program: int
    program_words: int
    stream: int
    stream_body: int
    stream_full: int
    embedding: int
    embedding_group: int
    rope: int
    kv: int
    v_offset: int
    kv_slot: int
    kv_head: int
    scale_slot: int
    scale_head: int
    ring: int
    logits: int
    logits_stride: int
    end: int

    def windows(self, dumped: int) -> tuple[int, int]:
        """Bytes of the bulk window, and of the job window with so many rows of logits."""
        return self.end, round_up(self.logits - isa.JOB + dumped * self.logits_stride, PAGE)


@dataclass(frozen=True, kw_only=True)
class Image:
    """A model compiled for one accelerator.

    preset, fingerprint: of the accelerator. rows: rows of a step that the program has room for.
    context: positions of a slot. layers: of the model. slots: sequences at a time.
    head_bytes: of a head in the KV cache. logits_frac: fraction bits of the logits.
    Useful bytes, for ``bandwidth_fraction``: layer_bytes and classifier_bytes of weights,
    kv_bytes_per_position. layer_macs: multiply-accumulates of the layers per row, without the
    attention_macs_per_position.
    tokenizer: its bytes. payload: uint8, device memory from address PAGE up to map.kv.
    """

    preset: str
    fingerprint: str
    name: str
    rows: int
    context: int
    layers: int
    slots: int
    vocab: int
    head_bytes: int
    logits_frac: int
    layer_bytes: int
    classifier_bytes: int
    kv_bytes_per_position: int
    layer_macs: int
    attention_macs_per_position: int
    map: MemoryMap
    tokenizer: bytes = field(repr=False)
    payload: np.ndarray = field(repr=False)

    @property
    def work(self) -> Work:
        """What a step of this model must do at least."""
        return Work(**{f.name: getattr(self, f.name) for f in fields(Work)})

    @property
    def kv(self) -> KvLayout:
        """How the KV cache lies in memory."""
        m = self.map
        return KvLayout(
            base=m.kv,
            layers=self.layers,
            slots=self.slots,
            kv_heads=m.kv_slot // m.kv_head,
            positions=m.kv_head // self.head_bytes,
            head_bytes=self.head_bytes,
        )

    def memory(self, dumped_logits: int = 0) -> tuple[int, int]:
        """Bytes of the bulk window and of the job window that a device must offer.

        The job window has room for so many rows of logits, or as many as slots, for sampling.
        """
        return self.map.windows(max(dumped_logits, self.slots))

    def write(self, path: str | Path) -> None:
        """Write the image file, whole or not at all."""
        header = asdict(self)
        header["tokenizer"], header["payload"] = len(self.tokenizer), int(self.payload.size)
        write_container(path, MAGIC, header, [self.tokenizer, self.payload.tobytes()])

    @classmethod
    def read(cls, path: str | Path) -> Image:
        """Read an image file; UserError for anything that is not a sound one."""
        header, data = read_container(path, MAGIC, "an image file", "tokenfabric compile")
        names = {f.name for f in fields(cls)}
        bad = set(header) ^ names
        if bad:
            raise UserError(f"{path}: header field {sorted(bad)[0]!r} is missing or unknown")
        try:
            header["map"] = MemoryMap(**_integers(header["map"]))
            split, size = int(header["tokenizer"]), int(header["payload"])
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: the header is not one of an image ({error})") from None
        if split < 0 or split + size != len(data) or size != header["map"].kv - PAGE:
            raise UserError(
                f"{path}: the header promises {split} + {size} bytes, the file holds {len(data)}; "
                "run 'tokenfabric compile' again"
            )
        header["tokenizer"] = bytes(data[:split])
        header["payload"] = np.frombuffer(data[split:], np.uint8)
        return cls(**header)

    def descriptor(self, rows: list[dict[str, int]], *, steps: int = 1, stops=()) -> np.ndarray:
        """The job descriptor and row table, uint32, to be written to device address ``isa.JOB``.

        ``rows``: {token, position, slot, flags} of each row, rows of a slot together.
        """
        if not 0 < len(rows) <= self.rows:
            raise ValueError(f"{len(rows)} rows, a step of this image takes 1 to {self.rows}")
        m, kv = self.map, self.kv
        values = {
            "magic": isa.DESCRIPTOR_MAGIC,
            "program": m.program,
            "program_words": m.program_words,
            "stream": m.stream,
            "stream_body": m.stream_body,
            "stream_full": m.stream_full,
            "embedding": m.embedding,
            "embedding_group": m.embedding_group,
            "rope": m.rope,
            "head_bytes": kv.head_bytes,
            "v_offset": kv.v_offset,
            "kv_head": kv.head,
            "scale_head": kv.scale_head,
            "logits": m.logits,
            "logits_stride": m.logits_stride,
            "ring": m.ring,
            "rows": len(rows),
            "steps": steps,
            "vocab": self.vocab,
            "context": self.context,
        }
        stops = [*stops, *[0xFFFFFFFF] * 4][:4]
        values.update({f"stop{i}": stop for i, stop in enumerate(stops)})
        words = np.zeros(isa.DESCRIPTOR_WORDS + isa.ROW_WORDS * len(rows), np.uint32)
        for at, (name, _) in enumerate(isa.DESCRIPTOR):
            words[at] = values[name]
        for number, row in enumerate(rows):
            entry = {**row, **kv.row(row["slot"], row["position"]), "reserved": 0}
            at = isa.DESCRIPTOR_WORDS + isa.ROW_WORDS * number
            words[at : at + isa.ROW_WORDS] = [entry[name] for name, _ in isa.ROW]
        return words


def _integers(values: Any) -> dict[str, int]:
    return {str(k): int(v) for k, v in dict(values).items()}

"""How the KV cache lies in DRAM: the only place that knows.

``[layer][K|V][slot][kv_head][position][head_dim]`` int8, head_dim padded to whole chunks; behind it
the K scales, uint16 ``[layer][slot][kv_head][position]``. So a head is one long read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenfabric.core.fixed import round_up

if TYPE_CHECKING:
    from tokenfabric.core.config import FabricConfig
    from tokenfabric.core.shape import ModelShape

__all__ = ["POSITION_STEP", "SCALE_BYTES", "KvLayout", "useful_bytes_per_position"]

POSITION_STEP = 64  # positions of a slot are padded to it: whole bursts of K scales
SCALE_BYTES = 2


def useful_bytes_per_position(shape: ModelShape) -> int:
    """K, V and K scales of one position of one sequence, without padding."""
    return shape.layers * shape.kv_heads * (2 * shape.head_dim + SCALE_BYTES)


@dataclass(frozen=True, kw_only=True)
class KvLayout:
    """Addresses in bytes. base: of the cache. slots: sequences. positions: of a slot, padded.

    head_bytes: of one head at one position, padded to whole chunks.
    """

    base: int
    layers: int
    slots: int
    kv_heads: int
    positions: int
    head_bytes: int

    @classmethod
    def of(cls, cfg: FabricConfig, shape: ModelShape, context: int, slots: int, base: int):
        """Of a model with room for ``context`` positions in each of ``slots`` slots."""
        return cls(
            base=base,
            layers=shape.layers,
            slots=slots,
            kv_heads=shape.kv_heads,
            positions=round_up(context, POSITION_STEP),
            head_bytes=round_up(shape.head_dim, cfg.cols),
        )

    # --- pitches -------------------------------------------------------------------------------

    @property
    def head(self) -> int:
        """From KV head to KV head of K (and of V)."""
        return self.positions * self.head_bytes

    @property
    def slot(self) -> int:
        """From slot to slot of K (and of V)."""
        return self.kv_heads * self.head

    @property
    def v_offset(self) -> int:
        """From K to V of the same layer, slot, head and position."""
        return self.slots * self.slot

    @property
    def layer(self) -> int:
        """From layer to layer."""
        return 2 * self.v_offset

    @property
    def scale_head(self) -> int:
        """From KV head to KV head of the K scales."""
        return SCALE_BYTES * self.positions

    @property
    def scale_slot(self) -> int:
        """From slot to slot of the K scales."""
        return self.kv_heads * self.scale_head

    @property
    def scale_layer(self) -> int:
        """From layer to layer of the K scales."""
        return self.slots * self.scale_slot

    # --- addresses -----------------------------------------------------------------------------

    @property
    def scales(self) -> int:
        """Of the K scales; from ``base`` to here are K and V."""
        return self.base + self.layers * self.layer

    @property
    def end(self) -> int:
        """The first byte behind the cache."""
        return self.scales + self.layers * self.scale_layer

    def k_of(self, layer: int) -> int:
        """K of slot 0, head 0, position 0."""
        return self.base + layer * self.layer

    def scales_of(self, layer: int) -> int:
        """The K scale of slot 0, head 0, position 0."""
        return self.scales + layer * self.scale_layer

    def row(self, slot: int, position: int) -> dict[str, int]:
        """The fields of ``isa.ROW`` that say where a row's K and V are."""
        kv_slot = slot * self.slot
        return {
            "kv_slot": kv_slot,
            "scale_slot": slot * self.scale_slot,
            "kv_row": kv_slot + position * self.head_bytes,
        }

    def tensors(self, slot: int = 0) -> Iterator[tuple[str, int, int, int, int]]:
        """(name, layer, KV head, address, bytes per position) of K, V and K scales of a slot."""
        for layer in range(self.layers):
            k = self.k_of(layer) + slot * self.slot
            scales = self.scales_of(layer) + slot * self.scale_slot
            for head in range(self.kv_heads):
                yield "K", layer, head, k + head * self.head, self.head_bytes
                yield "V", layer, head, k + self.v_offset + head * self.head, self.head_bytes
                yield "K scale", layer, head, scales + head * self.scale_head, SCALE_BYTES

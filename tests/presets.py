"""Configs for tests besides the presets."""

from tokenfabric.core.config import preset

# As small as ports of 128 bits allow, with some of the array's multipliers in LUTs.
TINY16 = preset("tiny").replace(
    name="tiny16",
    rows=16,
    cols=16,
    max_head_dim=128,
    kv_chunks=512,
    fabric_rows=4,
    ultra=("in", "scores", "weights", "kv"),
)

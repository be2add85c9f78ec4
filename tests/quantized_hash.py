"""Prints the hash of a model file that is quantized here and now, for test_reproducible.py."""

import hashlib
import sys
from pathlib import Path

from checkpoints import random_checkpoint
from tokenfabric.core.shape import ModelShape
from tokenfabric.quant.quantize import quantize_checkpoint

SHAPE = ModelShape(96, 200, 2, 6, 3, 16, 300, 64, tied=False)
FOUND = "c430a00772e24c23580ed7705fa80d5a2b1389e10a3ec52732f7554bc14a0660"  # on every machine


class Words:
    """As much of a tokenizer as quantizing needs with texts that the model samples."""

    vocab, bos, eos = SHAPE.vocab, 1, [2]

    def to_bytes(self) -> bytes:
        return b"words"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    quantize_checkpoint(random_checkpoint(SHAPE, seed=21, scale=1.5), Words()).write(path)
    print(hashlib.sha256(path.read_bytes()).hexdigest())

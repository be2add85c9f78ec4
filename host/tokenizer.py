"""Text to token ids and back with the standard library only, so that a board needs nothing else.

``load_tokenizer`` reads llama2.c's tokenizer.bin (``tokenizer_llama2c.py``) or a Hugging Face
tokenizer.json (``tokenizer_hf.py``; BPE: byte-level as in GPT-2, Llama 3 and SmolLM, or
SentencePiece-like as in Llama 2). What it returns is a ``Tokenizer`` (``bpe.py``):
``Tokenizer.to_bytes`` gives the blob that the model file embeds, ``Tokenizer.from_bytes`` reads it
on the board.

Differences from the ``tokenizers`` library, all for exotic text: which characters are letters,
numbers and normal forms is what the Unicode tables of the Python that loaded tokenizer.json say
(letters and numbers are then frozen in the blob); lone surrogates become U+FFFD; each run of bytes
that is not UTF-8 decodes to U+FFFD as Python does it, where SentencePiece-like tokenizers of the
library write one for every byte of the run; and a text's dummy space is dropped once, where the
library's Metaspace drops every space of the first piece.
"""

from __future__ import annotations

from pathlib import Path

from tokenfabric.core.errors import UserError
from tokenfabric.host.bpe import Decoder, Tokenizer, check_rows
from tokenfabric.host.tokenizer_hf import load_hf
from tokenfabric.host.tokenizer_llama2c import load_llama2c

__all__ = ["Decoder", "Tokenizer", "find_tokenizer", "load_tokenizer"]


def load_tokenizer(path: str | Path, vocab: int | None = None) -> Tokenizer:
    """Read a tokenizer.bin of llama2.c, a tokenizer.json, or the Hugging Face folder of one.

    BOS and EOS of a tokenizer.json: see ``tokenizer_hf.py``. ``vocab``: rows of the checkpoint's
    embedding, which the tokenizer must fit: it may have fewer tokens (rows of padding are usual),
    and tokens that were added without a row are left out. UserError, one line, for files that are
    damaged or of a kind not supported.
    """
    path = _file(Path(path))
    if path.suffix == ".json":
        return load_hf(path, vocab)
    tokenizer = load_llama2c(path)
    check_rows(path, tokenizer.vocab, vocab)
    return tokenizer


def _file(path: Path) -> Path:
    """The tokenizer's own file, ``path`` or in that folder."""
    if not path.is_dir():
        return path
    file = path / "tokenizer.json"
    if not file.exists() and not file.is_symlink():
        for name in ("tokenizer.model", "vocab.json"):
            if (path / name).exists():
                raise UserError(
                    f"{path}: {name} is not read, only tokenizer.json; convert it with "
                    "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
                )
        raise UserError(f"{file}: no such file; download it, too, or give --tokenizer FILE")
    return file


def find_tokenizer(checkpoint: str | Path, vocab: int) -> Path:
    """The tokenizer that belongs to a checkpoint, for load_tokenizer.

    A folder holds its own; for a .bin it is tok<vocab>.bin or tokenizer.bin beside it.
    """
    checkpoint = Path(checkpoint)
    if checkpoint.is_dir():
        return checkpoint
    names = [f"tok{vocab}.bin", "tokenizer.bin"]
    for name in names:
        if (checkpoint.parent / name).exists():
            return checkpoint.parent / name
    raise UserError(
        f"{checkpoint}: neither {names[0]} nor {names[1]} is beside it; give --tokenizer FILE"
    )

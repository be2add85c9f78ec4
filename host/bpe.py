"""Byte pair encoding: token ids of a text and back, and the blob that the model file embeds.

Tokenizers of llama2.c and of Hugging Face are one algorithm: cut the text into words
(``pretokenize.py``), a word into characters (or the characters that stand for its bytes), then
merge the best pair of neighbours, leftmost first, until none is left. "Best" is the highest score
of the merged piece (llama2.c) or the earliest merge (Hugging Face).
"""

from __future__ import annotations

import codecs
import heapq
import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import parse_json_object, show
from tokenfabric.host.pretokenize import SPLITS, Step, any_of, compile_step, cut, prepare

VERSION = 1
MAX_VOCAB = 1 << 20  # as in tokenfabric.core.shape


def _byte_alphabet() -> list[str]:
    """GPT-2's one printable character per byte (bytes_to_unicode in its encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in enumerate(_BYTE_TO_CHAR)}


@dataclass
class Tokenizer:
    """One BPE tokenizer as plain data; build it with load_tokenizer or from_bytes.

    bos: id that begins a text, None if none does. eos: ids that end one. vocab: number of ids.
    The other fields are the serialised form:

    pieces: piece of every id, "" for ids that are unused or only in ``added``. In a byte-level
    tokenizer a piece is spelled in GPT-2's alphabet of one character per byte.
    scores: one per piece (llama2.c), or None. merges: pairs of ids, flat, best first, or None.
    special: ids that decode to nothing. added: [content, id, lstrip, rstrip, normalized] of tokens
    that are cut out of the text before anything else. normalize, split: steps, see Step.
    classes: Unicode categories used by the split regexes. space: what decodes to a space, or "".
    strip_space: drop the space that the first piece of a text begins with. between: what stands
    between two pieces when they are shown.

    UserError if the fields contradict each other.
    """

    pieces: list[str]
    bos: int | None
    eos: list[int]
    special: list[int]
    scores: list[float] | None = None
    merges: list[int] | None = None
    byte_level: bool = False
    byte_fallback: bool = False
    unk: int | None = None
    fuse_unk: bool = False
    ignore_merges: bool = False
    added: list[list[Any]] = field(default_factory=list)
    normalize: list[Step] = field(default_factory=list)
    split: list[Step] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    space: str = ""
    strip_space: bool = False
    between: str = ""

    def __post_init__(self) -> None:
        check(self)
        self.vocab = len(self.pieces)
        # of equal pieces the first is the one that encoding gives
        self._ids = {piece: i for i, piece in reversed([*enumerate(self.pieces)]) if piece}
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        self._byte_ids = [self._ids.get(name) for name in names] if self.byte_fallback else []
        self._pairs = self._pair_table()
        self._normalize = [compile_step(step, self.classes) for step in self.normalize]
        self._split = [compile_step(step, self.classes) for step in self.split]
        self._added = [any_of(self.added, normalized=False)]
        self._added.append(any_of(self._normalized_added(), normalized=True))
        self._bytes = self._decoding_table(dict(zip(names, range(256), strict=True)))

    # Encoding

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of ``text``; with ``bos``, of one that begins here: after the BOS, if the model
        has one, and only once if the text spells it out. Never emits any other end marker, except
        where the text spells out one of the ``added`` tokens."""
        ids = self._encode(text)
        if bos and self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
        for start, section in cut(self._added[0], text, 0):
            if isinstance(section, int):
                ids.append(section)
                continue
            (section,) = prepare(self._normalize, [section], start == 0)
            for where, part in cut(self._added[1], section, start):
                if isinstance(part, int):
                    ids.append(part)
                    continue
                for word in prepare(self._split, [part], where == 0):
                    ids += self._encode_word(word)
        return ids

    def _encode_word(self, word: str) -> list[int]:
        if self.byte_level:
            word = "".join(_BYTE_TO_CHAR[byte] for byte in word.encode())
        if self.ignore_merges and word in self._ids:
            return [self._ids[word]]
        ids: list[int] = []
        unknown = False  # whether the last id is an unk that a second one may join
        for char in word:
            spelled = [self._ids.get(char)]
            if spelled == [None] and self._byte_ids:
                spelled = [self._byte_ids[byte] for byte in char.encode()]
            if None not in spelled:
                ids += [i for i in spelled if i is not None]
            elif self.unk is not None and not (unknown and self.fuse_unk):
                ids.append(self.unk)
            unknown = None in spelled
        return self._merge(ids)

    def _merge(self, ids: list[int]) -> list[int]:
        """Merge the best pair, leftmost first, until no pair can be; O(n log n)."""
        after = [*range(1, len(ids)), -1]
        before = [*range(-1, len(ids) - 1)]
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int, j: int) -> None:
            found = self._pair(ids[i], ids[j])
            if found:
                heapq.heappush(heap, (found[0], i, ids[i], ids[j], found[1]))

        for i in range(len(ids) - 1):
            offer(i, i + 1)
        while heap:
            _, i, left, right, new = heapq.heappop(heap)
            j = after[i]
            if j < 0 or ids[i] != left or ids[j] != right:
                continue  # one of the two has been merged since this pair was offered
            ids[i], ids[j] = new, -1
            after[i] = after[j]
            after[j] = -1
            if after[i] >= 0:
                before[after[i]] = i
                offer(i, after[i])
            if before[i] >= 0:
                offer(before[i], i)
        return [i for i in ids if i >= 0]

    def _pair(self, left: int, right: int) -> tuple[float, int] | None:
        """(priority, lower first; id of the merged piece), or None if the two do not merge."""
        if self.scores is None:
            return self._pairs.get((left, right))
        new = self._ids.get(self.pieces[left] + self.pieces[right])
        return None if new is None else (-self.scores[new], new)

    def _pair_table(self) -> dict[tuple[int, int], tuple[float, int]]:
        table: dict[tuple[int, int], tuple[float, int]] = {}
        merges = self.merges or []
        for rank, (left, right) in enumerate(zip(merges[::2], merges[1::2], strict=True)):
            new = self._ids.get(self.pieces[left] + self.pieces[right])
            if new is None:
                piece = show(self.pieces[left] + self.pieces[right])
                raise UserError(f"merge {rank} makes {piece}, which is not in the vocabulary")
            table[left, right] = (rank, new)
        return table

    def _normalized_added(self) -> list[list[Any]]:
        return [
            ["".join(prepare(self._normalize, [content], True)), *rest]
            for content, *rest in self.added
        ]

    # Decoding

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``, which begin a text; ids of ``special`` show nothing, ids that no
        piece has and bytes that are not UTF-8 show U+FFFD."""
        decoder = self.decoder()
        return "".join(decoder.push(i) for i in ids) + decoder.finish()

    def decoder(self, start: bool = True) -> Decoder:
        """A Decoder; ``start``: the ids begin a text, as opposed to continuing one."""
        return Decoder(self, start)

    def _decoding_table(self, byte_of: dict[str, int]) -> list[bytes]:
        text = list(self.pieces)
        for content, i, *_ in self.added:
            text[i] = content
        hidden = {self.bos, *self.eos, *self.special}
        table = []
        for i, piece in enumerate(text):
            if i in hidden:
                table.append(b"")
            elif self.byte_level and all(char in _CHAR_TO_BYTE for char in piece):
                table.append(bytes(_CHAR_TO_BYTE[char] for char in piece))
            elif self.byte_fallback and piece in byte_of:
                table.append(bytes([byte_of[piece]]))
            else:
                shown = piece.replace(self.space, " ") if self.space else piece
                table.append((self.between + shown).encode())
        return table

    # The blob in the model file

    def to_bytes(self) -> bytes:
        """The tokenizer as versioned JSON in UTF-8; the same tokenizer gives the same bytes."""
        data = {"tokenfabric_tokenizer": VERSION} | asdict(self)
        for name, usual in _UNWRITTEN.items():
            if data[name] == usual:
                del data[name]
        return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str | Path = "tokenizer") -> Tokenizer:
        """What to_bytes wrote. UserError, naming ``source``, for anything else."""
        if not data:
            raise UserError(f"{source}: there is none; quantize the checkpoint with --tokenizer")
        found = parse_json_object(source, data)
        version = found.pop("tokenfabric_tokenizer", None)
        if version != VERSION:
            raise UserError(
                f"{source}: tokenizer version {show(version)}, this program reads {VERSION}; "
                "quantize the checkpoint again"
            )
        found = {**_UNWRITTEN, **found}
        names = {f.name for f in fields(cls)}
        if found.keys() != names:
            wrong = ", ".join(sorted(names ^ found.keys()))
            raise UserError(
                f"{source}: tokenizer fields missing or unknown: {show(wrong)}; quantize again"
            )
        return build(source, found)


# Fields that a blob holds only where they say something else: older blobs lack them.
_UNWRITTEN: dict[str, Any] = {"between": ""}


class Decoder:
    """Ids to text, one at a time, holding back bytes until they complete a character."""

    def __init__(self, tokenizer: Tokenizer, start: bool = True) -> None:
        self._tokenizer = tokenizer
        self._strip = start and tokenizer.strip_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes, often "" in the middle of a character."""
        t = self._tokenizer
        data = t._bytes[token] if 0 <= token < t.vocab else "\ufffd".encode()
        if token == t.bos:
            self._strip = t.strip_space
        elif self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """U+FFFD for a character that was never completed, else ""."""
        return self._utf8.decode(b"", final=True)


def build(source: str | Path, values: dict[str, Any]) -> Tokenizer:
    """A Tokenizer of these fields. UserError, naming ``source``, if they contradict each other."""
    try:
        return Tokenizer(**values)
    except (UserError, UnicodeEncodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{source}: {why}; use the tokenizer the model came with") from None


def check_rows(source: str | Path, tokens: int, vocab: int | None) -> None:
    """UserError if a tokenizer has more tokens than a checkpoint (None: any) has rows."""
    if vocab is not None and tokens > vocab:
        raise UserError(
            f"{source}: {tokens} tokens, the checkpoint has only {vocab}; "
            "give the tokenizer the model was trained with"
        )


def check(t: Tokenizer) -> None:
    """UserError unless every field has the type and range that the code relies on."""

    def need(good: bool, what: str) -> None:
        if not good:
            raise UserError(f"the tokenizer's {what}")

    def strings(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) for v in value)

    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(type(v) is int and 0 <= v < count for v in value)

    need(strings(t.pieces), "pieces are not strings")
    count = len(t.pieces)
    need(1 <= count <= MAX_VOCAB, f"vocabulary of {count} is not from 1 to {MAX_VOCAB}")
    need(t.bos is None or ids([t.bos]), f"bos {show(t.bos)} is not an id below {count}")
    need(ids(t.eos), f"eos {show(t.eos)} are not ids below {count}")
    need(ids(t.special), f"special tokens {show(t.special)} are not ids below {count}")
    need(t.unk is None or ids([t.unk]), f"unk {show(t.unk)} is not an id below {count}")
    need((t.scores is None) != (t.merges is None), "scores and merges must be one or the other")
    if t.scores is not None:
        number = all(type(s) in (int, float) and math.isfinite(s) for s in t.scores)
        need(number and len(t.scores) == count, "scores are not one finite number per piece")
    if t.merges is not None:
        need(ids(t.merges) and len(t.merges) % 2 == 0, "merges are not pairs of ids")
    for name in ("byte_level", "byte_fallback", "fuse_unk", "ignore_merges", "strip_space"):
        need(isinstance(getattr(t, name), bool), f"{name} is not true or false")
    need(isinstance(t.space, str), "space is not a string")
    need(isinstance(t.between, str), "between is not a string")
    classes = t.classes
    named = isinstance(classes, dict) and strings([*classes, *classes.values()])
    need(named, "classes are not strings")
    need(isinstance(t.added, list), "added tokens are not a list")
    for token in t.added:
        shaped = isinstance(token, list) and len(token) == 5 and isinstance(token[0], str)
        flags = shaped and ids([token[1]]) and all(isinstance(flag, bool) for flag in token[2:])
        need(flags, f"added token {show(token)} is not [content, id, lstrip, rstrip, normalized]")
    for step in [*t.normalize, *t.split]:
        good = isinstance(step, list) and any(
            len(step) == len(form) and all(f(v) for f, v in zip(form, step, strict=True))
            for form in _STEPS
        )
        need(good, f"step {show(step)} is unknown")
    need(not any(step[0] in SPLITS for step in t.normalize), "normalization may not split")


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


_STEPS: list[list[Any]] = [
    [lambda v: v == "form", lambda v: v in ("NFC", "NFD", "NFKC", "NFKD")],
    [lambda v: v == "lower"],
    [lambda v: v == "replace", lambda v: _is_str(v) and v, _is_str],
    [
        lambda v: v == "prepend",
        _is_str,
        lambda v: v in ("always", "first"),
        lambda v: isinstance(v, bool),
    ],
    [lambda v: v in SPLITS, _is_str],
]

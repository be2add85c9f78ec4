"""Text to token ids and back with the standard library only, so that a board needs nothing else.

``load_tokenizer`` reads llama2.c's tokenizer.bin or a Hugging Face tokenizer.json (BPE: byte-level
as in GPT-2, Llama 3 and SmolLM, or SentencePiece-like as in Llama 2). ``Tokenizer.to_bytes`` gives
the blob that the model file embeds, ``Tokenizer.from_bytes`` reads it on the board.

Both kinds are one algorithm: cut the text into words, a word into characters (or the characters
that stand for its bytes), then merge the best pair of neighbours, leftmost first, until none is
left. "Best" is the highest score of the merged piece (llama2.c) or the earliest merge (Hugging
Face).

Differences from the ``tokenizers`` library, all for exotic text: which characters are letters,
numbers and normal forms is what the Unicode tables of the Python that loaded tokenizer.json say
(letters and numbers are then frozen in the blob); lone surrogates become U+FFFD; each run of bytes
that is not UTF-8 decodes to U+FFFD as Python does it, where SentencePiece-like tokenizers of the
library write one for every byte of the run; and a text's dummy space is dropped once, where the
library's Metaspace drops every space of the first piece.
"""

from __future__ import annotations

import codecs
import functools
import heapq
import json
import math
import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import parse_json_object, read_bytes, read_json_object, show

VERSION = 1
MAX_VOCAB = 1 << 20  # as in tokenfabric.core.shape

# What a step of text preparation may be: [name, *arguments].
#   ["form", "NFC"]                        Unicode normal form
#   ["replace", old, new]
#   ["prepend", text, "always" | "first", only_if_absent]    "first": only where the text begins
#   ["split", regex]                       matches and what lies between them become words
Step = list[Any]


@dataclass
class Tokenizer:
    """One BPE tokenizer as plain data; build it with load_tokenizer or from_bytes.

    bos: id that begins a text. eos: ids that end one. vocab: number of ids.
    The other fields are the serialised form:

    pieces: piece of every id, "" for ids that are unused or only in ``added``. In a byte-level
    tokenizer a piece is spelled in GPT-2's alphabet of one character per byte.
    scores: one per piece (llama2.c), or None. merges: pairs of ids, flat, best first, or None.
    special: ids that decode to nothing. added: [content, id, lstrip, rstrip, normalized] of tokens
    that are cut out of the text before anything else. normalize, split: steps, see Step.
    classes: Unicode categories used by the split regexes. space: what decodes to a space, or "".
    strip_space: drop the space that the first piece of a text begins with.

    UserError if the fields contradict each other.
    """

    pieces: list[str]
    bos: int
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

    def __post_init__(self) -> None:
        _check(self)
        self.vocab = len(self.pieces)
        # of equal pieces the first is the one that encoding gives
        self._ids = {piece: i for i, piece in reversed([*enumerate(self.pieces)]) if piece}
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        self._byte_ids = [self._ids.get(name) for name in names] if self.byte_fallback else []
        self._pairs = self._pair_table()
        self._normalize = [_compile(step, self.classes) for step in self.normalize]
        self._split = [_compile(step, self.classes) for step in self.split]
        self._added = [_any_of(self.added, normalized=False)]
        self._added.append(_any_of(self._normalized_added(), normalized=True))
        self._bytes = self._decoding_table(dict(zip(names, range(256), strict=True)))

    # Encoding

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """Token ids of ``text``, after ``bos`` if asked for. Never emits any other end marker,
        except where the text spells out one of the ``added`` tokens."""
        ids = [self.bos] if bos else []
        text = re.sub("[\ud800-\udfff]", "\ufffd", text)
        for start, section in _cut(self._added[0], text, 0):
            if isinstance(section, int):
                ids.append(section)
                continue
            (section,) = _prepare(self._normalize, [section], start == 0)
            for where, part in _cut(self._added[1], section, start):
                if isinstance(part, int):
                    ids.append(part)
                    continue
                for word in _prepare(self._split, [part], where == 0):
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
            ["".join(_prepare(self._normalize, [content], True)), *rest]
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
            elif not self.byte_level and piece in byte_of:
                table.append(bytes([byte_of[piece]]))
            else:
                table.append((piece.replace(self.space, " ") if self.space else piece).encode())
        return table

    # The blob in the model file

    def to_bytes(self) -> bytes:
        """The tokenizer as versioned JSON in UTF-8; the same tokenizer gives the same bytes."""
        data = {"tokenfabric_tokenizer": VERSION} | asdict(self)
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
        names = {f.name for f in fields(cls)}
        if found.keys() != names:
            wrong = ", ".join(sorted(names ^ found.keys()))
            raise UserError(
                f"{source}: tokenizer fields missing or unknown: {show(wrong)}; quantize again"
            )
        return _build(source, found)


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


def load_tokenizer(path: str | Path, vocab: int | None = None) -> Tokenizer:
    """Read a tokenizer.bin of llama2.c, a tokenizer.json, or the Hugging Face folder of one.

    BOS and EOS of a tokenizer.json come from generation_config.json, config.json and
    tokenizer_config.json beside it. ``vocab``: the checkpoint's vocabulary, which the tokenizer
    must fit. UserError, one line, for files that are damaged or of a kind not supported.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "tokenizer.json").exists() and (path / "tokenizer.model").exists():
            raise UserError(
                f"{path}: tokenizer.model is not read, only tokenizer.json; convert it with "
                "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            )
        path = path / "tokenizer.json"
    if path.suffix == ".json":
        tokenizer = _load_hf(path)
    else:
        tokenizer = _load_llama2c(path)
        if vocab is not None and tokenizer.vocab < vocab:
            raise UserError(
                f"{path}: {tokenizer.vocab} tokens, the checkpoint has {vocab}; "
                "give the tokenizer the model was trained with"
            )
    if vocab is not None and tokenizer.vocab > vocab:
        raise UserError(
            f"{path}: {tokenizer.vocab} tokens, the checkpoint has only {vocab}; "
            "give the tokenizer the model was trained with"
        )
    return tokenizer


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


# Text preparation


def _prepare(steps: list[Step], words: list[str], first: bool) -> list[str]:
    """Apply the steps; ``first``: words[0] is where the text begins."""
    for name, *arguments in steps:
        if name == "form":
            words = [unicodedata.normalize(arguments[0], word) for word in words]
        elif name == "replace":
            words = [word.replace(*arguments) for word in words]
        elif name == "prepend":
            text, when, only_if_absent = arguments
            words = [
                text + word
                if word
                and (when == "always" or (first and i == 0))
                and not (only_if_absent and word.startswith(text))
                else word
                for i, word in enumerate(words)
            ]
        else:
            words = [part for word in words for part in _split(arguments[0], word)]
    return words


def _split(regex: re.Pattern[str], word: str) -> Iterator[str]:
    end = 0
    for match in regex.finditer(word):
        if match.start() > end:
            yield word[end : match.start()]
        if match.group():
            yield match.group()
        end = match.end()
    if end < len(word):
        yield word[end:]


def _cut(
    added: tuple[re.Pattern[str], dict[str, int]] | None, text: str, at: int
) -> Iterator[tuple[int, str | int]]:
    """(position, text between added tokens | id of an added token) from left to right."""
    end = 0
    for match in added[0].finditer(text) if added else ():
        if match.start() > end:
            yield at + end, text[end : match.start()]
        assert added and match.lastgroup
        yield at + match.start(), added[1][match.lastgroup]
        end = match.end()
    if end < len(text):
        yield at + end, text[end:]


def _any_of(
    added: list[list[Any]], normalized: bool
) -> tuple[re.Pattern[str], dict[str, int]] | None:
    """A regex of the added tokens, one group each and the longest first, and its groups' ids."""
    chosen = [token for token in added if token[4] == normalized and token[0]]
    chosen.sort(key=lambda token: -len(token[0]))
    ids = {f"t{i}": token[1] for i, token in enumerate(chosen)}
    if not chosen:
        return None
    parts = [
        f"(?P<t{i}>{f'[{_SPACE}]*' * left}{re.escape(content)}{f'[{_SPACE}]*' * right})"
        for i, (content, _, left, right, _) in enumerate(chosen)
    ]
    return re.compile("|".join(parts)), ids


# The regexes of Hugging Face are Oniguruma's; the few constructs they use are translated to re.

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Unicode White_Space. Python's own \s also takes U+001C..1F.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def _compile(step: Step, classes: dict[str, str]) -> Step:
    """The step with its regex compiled; categories it names are looked up in, or added to, classes.

    UserError for constructs whose meaning differs between the two libraries.
    """
    if step[0] != "split":
        return step
    pattern = step[1]

    def unsupported(what: str) -> UserError:
        return UserError(f"the regex {show(pattern)} uses {what}, which is not supported")

    out: list[str] = []
    i, inside = 0, False
    while i < len(pattern):
        char, rest = pattern[i], pattern[i:]
        taken = 1
        if char == "\\":
            category = re.match(r"\\([pP])\{([LMNPSZC][a-z]?)\}", rest)
            kind = rest[1:2]
            if category or kind in ("s", "S"):
                if category:
                    kind, name = category.groups()
                    if name not in classes:
                        classes[name] = _category(name)
                    members, taken = classes[name], category.end()
                else:
                    members, taken = _SPACE, 2
                if inside and kind in "PS":
                    raise unsupported(f"{rest[:taken]} within [...]")
                out.append(members if inside else f"[{'^' if kind in 'PS' else ''}{members}]")
            elif kind and (kind in "dDrntf" or not kind.isalnum()):
                out.append(rest[:2])
                taken = 2
            else:
                raise unsupported(show(rest[:4]))
        elif inside:
            if char == "[" or rest.startswith("&&"):
                raise unsupported("a class within a class")
            inside = char != "]"
            out.append(char)
        elif char == "[":
            taken = 2 if rest[1:2] == "^" else 1
            inside = True
            out.append(rest[:taken])
            if rest[taken : taken + 1] == "]":
                raise unsupported("']' at the start of a class")
        elif char in "^$":
            raise unsupported(f"{char!r} (a line anchor)")
        elif char in "*+?}" and rest[1:2] == "+":
            raise unsupported("a possessive quantifier")
        else:
            out.append(char)
        i += taken
    try:
        return ["split", re.compile("".join(out))]
    except (re.error, RecursionError, OverflowError) as error:
        raise unsupported(f"something that Python's re refuses ({error})") from None


@functools.cache
def _category(name: str) -> str:
    """The characters of a Unicode general category ("L", "Lu"...) as the inside of a [...]."""
    members = [c for c in range(0x110000) if unicodedata.category(chr(c)).startswith(name)]
    ranges: list[list[int]] = []
    for c in members:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return "".join(
        re.escape(chr(a)) + ("" if a == b else "-" + re.escape(chr(b))) for a, b in ranges
    )


def _byte_alphabet() -> list[str]:
    """GPT-2's one printable character per byte (bytes_to_unicode in its encoder.py)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_BYTE_TO_CHAR = _byte_alphabet()
_CHAR_TO_BYTE = {char: byte for byte, char in enumerate(_BYTE_TO_CHAR)}


# Checks


def _build(source: str | Path, values: dict[str, Any]) -> Tokenizer:
    try:
        return Tokenizer(**values)
    except (UserError, UnicodeEncodeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{source}: {why}; use the tokenizer the model came with") from None


def _check(t: Tokenizer) -> None:
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
    need(ids([t.bos]), f"bos {show(t.bos)} is not an id below {count}")
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
    need(not any(step[0] == "split" for step in t.normalize), "normalization may not split")


def _is_str(value: Any) -> bool:
    return isinstance(value, str)


_STEPS: list[list[Any]] = [
    [lambda v: v == "form", lambda v: v in ("NFC", "NFD", "NFKC", "NFKD")],
    [lambda v: v == "replace", lambda v: _is_str(v) and v, _is_str],
    [
        lambda v: v == "prepend",
        _is_str,
        lambda v: v in ("always", "first"),
        lambda v: isinstance(v, bool),
    ],
    [lambda v: v == "split", _is_str],
]


# llama2.c


def _load_llama2c(path: Path) -> Tokenizer:
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
    return _build(path, values)


# Hugging Face


def _load_hf(path: Path) -> Tokenizer:
    data = read_json_object(path)
    try:
        values = _HfReader(path, data).values()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: not a tokenizer.json this program understands ({type(error).__name__}: "
            f"{show(str(error))}); save it again with a recent version of tokenizers"
        ) from None
    return _build(path, values)


class _HfReader:
    """Turns the JSON of a tokenizer.json into the fields of a Tokenizer, or refuses by name."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data

    def refuse(self, part: str, what: object, need: str) -> UserError:
        return UserError(f"{self.path}: {part} {show(what)} is not supported; {need}")

    def values(self) -> dict[str, Any]:
        model = self.data["model"]
        kind = model.get("type", "BPE")
        if kind != "BPE":
            raise self.refuse("model", kind, "only BPE is")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(key):
                raise self.refuse(f"model.{key}", model[key], "it must be null")

        added = self.data.get("added_tokens") or []
        ids: dict[str, int] = model["vocab"]
        count = 1 + max([*ids.values(), *(token["id"] for token in added)])
        if count > MAX_VOCAB or min(ids.values()) < 0:
            raise self.refuse("vocab with id", count - 1, f"ids are from 0 to {MAX_VOCAB - 1}")
        pieces = [""] * count
        for piece, i in ids.items():
            if pieces[i]:
                raise self.refuse("vocab with id", i, f"both {show(piece)} and another have it")
            pieces[i] = piece
        merges: list[int] = []
        for merge in model["merges"]:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            merges += [ids[left], ids[right]]
        for token in added:
            if token.get("single_word"):
                raise self.refuse("added token with single_word", token["content"], "use false")

        split, byte_level = self.pre_tokenizer(self.data.get("pre_tokenizer"))
        space, strip_space = self.decoder(self.data.get("decoder"), byte_level)
        names = {token["content"]: token["id"] for token in added}
        bos, eos = self.ends(ids | names)
        unk = model.get("unk_token")
        return {
            "pieces": pieces,
            "bos": bos,
            "eos": eos,
            "special": [token["id"] for token in added if token.get("special")],
            "merges": merges,
            "byte_level": byte_level,
            "byte_fallback": bool(model.get("byte_fallback")),
            "unk": None if unk is None else ids[unk],
            "fuse_unk": bool(model.get("fuse_unk")),
            "ignore_merges": bool(model.get("ignore_merges")),
            "added": [
                [t["content"], t["id"], *(bool(t.get(flag)) for flag in _ADDED_FLAGS)]
                for t in added
            ],
            "normalize": self.normalizer(self.data.get("normalizer")),
            "split": split,
            "space": space,
            "strip_space": strip_space,
        }

    def normalizer(self, node: Any) -> list[Step]:
        if node is None:
            return []
        kind = node["type"]
        if kind == "Sequence":
            return [step for child in node["normalizers"] for step in self.normalizer(child)]
        if kind == "Prepend":
            return [["prepend", node["prepend"], "always", False]]
        if kind == "Replace" and "String" in node["pattern"]:
            return [["replace", node["pattern"]["String"], node["content"]]]
        if kind in ("NFC", "NFD", "NFKC", "NFKD"):
            return [["form", kind]]
        raise self.refuse("normalizer", kind, "only Prepend, Replace of a string and NF* are")

    def pre_tokenizer(self, node: Any) -> tuple[list[Step], bool]:
        """The steps, and whether the words are spelled in bytes at the end."""
        if node is None:
            return [], False
        kind = node["type"]
        if kind == "Sequence":
            steps: list[Step] = []
            byte_level = False
            for child in node["pretokenizers"]:
                if byte_level:
                    raise self.refuse("pre_tokenizer after ByteLevel", child["type"], "put it last")
                more, byte_level = self.pre_tokenizer(child)
                steps += more
            return steps, byte_level
        if kind == "ByteLevel":
            steps = [["prepend", " ", "always", True]] if node["add_prefix_space"] else []
            return steps + ([["split", _GPT2]] if node.get("use_regex", True) else []), True
        if kind == "Digits":
            return [["split", r"\p{N}" if node["individual_digits"] else r"\p{N}+"]], False
        if kind == "Split" and node["behavior"] == "Isolated":
            pattern = node["pattern"]
            regex = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
            return [["split", regex]], False
        if kind == "Metaspace":
            mark, scheme = node["replacement"], self.prepend_scheme(node)
            steps = [["replace", " ", mark]]
            if scheme != "never":
                steps.append(["prepend", mark, scheme, True])
            if node.get("split", True):
                steps.append(["split", f"{re.escape(mark)}[^{re.escape(mark)}]*"])
            return steps, False
        raise self.refuse("pre_tokenizer", kind, "only ByteLevel, Digits, Metaspace and Split are")

    def prepend_scheme(self, node: dict[str, Any]) -> str:
        """ "always", "first" or "never"; files of older versions say add_prefix_space instead."""
        otherwise = "always" if node.get("add_prefix_space", True) else "never"
        return str(node.get("prepend_scheme", otherwise))

    def decoder(self, node: Any, byte_level: bool) -> tuple[str, bool]:
        """(what decodes to a space, whether the first space of a text is dropped)."""
        nodes = node["decoders"] if node and node["type"] == "Sequence" else [node]
        kinds = [n["type"] if n else None for n in nodes]
        if byte_level:
            if kinds != ["ByteLevel"]:
                raise self.refuse("decoder", kinds, "byte-level tokenizers need ByteLevel")
            return "", False
        space, strip = "", False
        for n, kind in zip(nodes, kinds, strict=True):
            if kind == "Metaspace":
                space, strip = n["replacement"], self.prepend_scheme(n) != "never"
            elif kind == "Replace" and n["content"] == " " and "String" in n["pattern"]:
                space = n["pattern"]["String"]
            elif kind == "Strip" and (n["content"], n["stop"]) == (" ", 0) and n["start"] in (0, 1):
                strip = n["start"] == 1
            elif kind not in ("ByteFallback", "Fuse"):
                raise self.refuse("decoder", kind, "only Metaspace's or Llama's own are")
        return space, strip

    def ends(self, ids: dict[str, int]) -> tuple[int, list[int]]:
        """BOS and every EOS, from the files beside this one, else from the tokenizer itself."""
        found: dict[str, list[Any]] = {"bos": [], "eos": []}
        for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
            path = self.path.parent / name
            config = read_json_object(path) if path.exists() else {}
            for end, known in found.items():
                value = config.get(f"{end}_token_id")
                known += value if isinstance(value, list) else [value]
                token: Any = config.get(f"{end}_token")
                content: Any = token["content"] if isinstance(token, dict) else token
                known.append(ids.get(content))
        post = self.data.get("post_processor")
        for node in post["processors"] if post and post["type"] == "Sequence" else [post]:
            first = node["single"][0] if node and node["type"] == "TemplateProcessing" else {}
            if "SpecialToken" in first:
                found["bos"].append(ids.get(first["SpecialToken"]["id"]))
        found["bos"] += [ids.get(name) for name in _BOS_NAMES]
        bos = [i for i in found["bos"] if i is not None]
        eos = [i for i in found["eos"] if i is not None]
        if not bos:
            raise UserError(
                f"{self.path}: no BOS token is named; put bos_token and eos_token into a "
                "tokenizer_config.json beside it"
            )
        if not eos:
            eos = [i for i in (ids.get(name) for name in _EOS_NAMES) if i is not None][:1]
        return bos[0], list(dict.fromkeys(eos))


_ADDED_FLAGS = ("lstrip", "rstrip", "normalized")
_BOS_NAMES = ("<s>", "<bos>", "<|bos|>", "<|begin_of_text|>", "<|endoftext|>")
_EOS_NAMES = ("</s>", "<eos>", "<|eos|>", "<|end_of_text|>", "<|endoftext|>")

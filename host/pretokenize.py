"""What happens to a text before its words are encoded: steps, added tokens, regexes.

The regexes of Hugging Face are Oniguruma's; the few constructs they use are translated to ``re``.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import show

# What a step of text preparation may be: [name, *arguments].
#   ["form", "NFC"]                        Unicode normal form
#   ["lower"]
#   ["replace", old, new]
#   ["prepend", text, "always" | "first", only_if_absent]    "first": only where the text begins
#   ["split", regex]                       matches and what lies between them become words
#   ["words", regex], ["gaps", regex]      only the matches do, or only what lies between them
Step = list[Any]
SPLITS = ("split", "words", "gaps")

# How GPT-2 cuts a text into words.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What the pre-tokenizer Whitespace takes for a word's characters (Alphabetic, marks, digits,
# connectors, joiners), and what counts as punctuation; for the inside of a [...].
WORD = r"\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}"
WORD += "\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189\u200c\u200d"
PUNCTUATION = r"!-/:-@\[-`{-~\p{P}"
# Unicode White_Space. Python's own \s also takes U+001C..1F.
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def prepare(steps: list[Step], words: list[str], first: bool) -> list[str]:
    """Apply the steps; ``first``: words[0] is where the text begins."""
    for name, *arguments in steps:
        if name == "form":
            words = [unicodedata.normalize(arguments[0], word) for word in words]
        elif name == "lower":
            words = ["".join(char.lower() for char in word) for word in words]
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
            words = [part for word in words for part in _split(name, arguments[0], word)]
    return words


def _split(name: str, regex: re.Pattern[str], word: str) -> Iterator[str]:
    """The parts of a word. Where its beginning is left out there is an empty part, so that the
    first part is where the word begins."""
    end = 0
    for match in regex.finditer(word):
        if match.start() > end or (name == "gaps" and match.end() > match.start() == 0):
            yield "" if name == "words" else word[end : match.start()]
        if match.group() and name != "gaps":
            yield match.group()
        end = match.end()
    if end < len(word) and name != "words":
        yield word[end:]


def cut(
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


def any_of(
    added: list[list[Any]], normalized: bool
) -> tuple[re.Pattern[str], dict[str, int]] | None:
    """A regex of the added tokens, one group each and the longest first, and its groups' ids."""
    chosen = [token for token in added if token[4] == normalized and token[0]]
    chosen.sort(key=lambda token: -len(token[0]))
    ids = {f"t{i}": token[1] for i, token in enumerate(chosen)}
    if not chosen:
        return None
    parts = [
        f"(?P<t{i}>{f'[{SPACE}]*' * left}{re.escape(content)}{f'[{SPACE}]*' * right})"
        for i, (content, _, left, right, _) in enumerate(chosen)
    ]
    return re.compile("|".join(parts)), ids


def compile_step(step: Step, classes: dict[str, str]) -> Step:
    """The step with its regex compiled; categories it names are looked up in, or added to, classes.

    UserError for constructs whose meaning differs between the two libraries.
    """
    if step[0] not in SPLITS:
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
                    members, taken = SPACE, 2
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
        return [step[0], re.compile("".join(out))]
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

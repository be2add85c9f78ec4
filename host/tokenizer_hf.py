"""Reads the tokenizer.json of Hugging Face, with what stands in the files beside it.

Which token begins a text, asked in this order:

1. The tokenizer's own template (``post_processor``): the token that it puts before a text, or none.
2. ``add_bos_token: false`` of tokenizer_config.json: none does. Nor where ``bos_token`` is null, or
   where the tokenizer's class adds none by itself, unless ``add_bos_token`` is true.
3. ``bos_token`` of tokenizer_config.json, or of special_tokens_map.json.
4. ``bos_token_id`` of config.json, then of generation_config.json.
5. An added token with a usual name.

Only added tokens count, by name or id: others are ordinary text, whatever a config's default says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_json_object, show
from tokenfabric.host.bpe import MAX_VOCAB, Tokenizer, build, check_rows
from tokenfabric.host.pretokenize import GPT2, PUNCTUATION, WORD, Step


def load_hf(path: Path, vocab: int | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without added tokens whose id is not below ``vocab``.

    UserError for one that is damaged, not supported, or has more tokens otherwise.
    """
    data = read_json_object(path)
    try:
        values = _HfReader(path, data, vocab).values()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: not a tokenizer.json this program understands ({type(error).__name__}: "
            f"{show(str(error))}); save it again with a recent version of tokenizers"
        ) from None
    return build(path, values)


class _HfReader:
    """Turns the JSON of a tokenizer.json into the fields of a Tokenizer, or refuses by name."""

    def __init__(self, path: Path, data: dict[str, Any], vocab: int | None) -> None:
        self.path, self.data, self.vocab = path, data, vocab

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

        ids: dict[str, int] = model["vocab"]
        every = self.data.get("added_tokens") or []
        added = [
            t for t in every if self.vocab is None or t["id"] < self.vocab or t["content"] in ids
        ]
        count = 1 + max([*ids.values(), *(token["id"] for token in added)])
        if count > MAX_VOCAB or min(ids.values()) < 0:
            raise self.refuse("vocab with id", count - 1, f"ids are from 0 to {MAX_VOCAB - 1}")
        check_rows(self.path, count, self.vocab)
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

        normalize = self.normalizer(self.data.get("normalizer"))
        split, byte_level = self.pre_tokenizer(self.data.get("pre_tokenizer"))
        node, between = self.data.get("decoder"), ""
        if node is None:
            space, strip_space, between = self.no_decoder([*normalize, *split], byte_level)
        else:
            space, strip_space = self.decoder(node, byte_level)
        names = {token["content"]: token["id"] for token in added}
        ends = _Ends(self.path, self.data, {token["content"]: token["id"] for token in every})
        bos = ends.bos()
        if bos is not None and bos not in names.values():
            raise UserError(
                f"{self.path}: a text begins with token {bos}, the checkpoint has only "
                f"{self.vocab}; give the tokenizer the model was trained with"
            )
        unk = model.get("unk_token")
        return {
            "pieces": pieces,
            "bos": bos,
            "eos": ends.eos(names, count),
            "special": [token["id"] for token in added if token.get("special")],
            "merges": merges,
            "byte_level": byte_level,
            "byte_fallback": bool(model.get("byte_fallback")),
            "unk": None if unk is None else (names | ids)[unk],
            "fuse_unk": bool(model.get("fuse_unk")),
            "ignore_merges": bool(model.get("ignore_merges")),
            "added": [
                [t["content"], t["id"], *(bool(t.get(flag)) for flag in _ADDED_FLAGS)]
                for t in added
            ],
            "normalize": normalize,
            "split": split,
            "space": space,
            "strip_space": strip_space,
            "between": between,
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
        if kind == "Lowercase":
            return [["lower"]]
        able = "only Lowercase, NF*, Prepend and Replace of a string are"
        raise self.refuse("normalizer", kind, able)

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
            return steps + ([["split", GPT2]] if node.get("use_regex", True) else []), True
        if kind == "Digits":
            return [["split", r"\p{N}" if node["individual_digits"] else r"\p{N}+"]], False
        if kind == "Split":
            pattern = node["pattern"]
            regex = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
            how = {"Isolated": "split", "Removed": "words" if node.get("invert") else "gaps"}
            if node["behavior"] in how:
                return [[how[node["behavior"]], regex]], False
        if kind in _PLAIN and node.get("behavior", "Isolated") == "Isolated":
            return [list(step) for step in _PLAIN[kind]], False
        if kind == "CharDelimiterSplit":
            return [["gaps", re.escape(node["delimiter"])]], False
        if kind == "Metaspace":
            mark, scheme = node["replacement"], self.prepend_scheme(node)
            steps = [["replace", " ", mark]]
            if scheme != "never":
                steps.append(["prepend", mark, scheme, True])
            if node.get("split", True):
                steps.append(["split", f"{re.escape(mark)}[^{re.escape(mark)}]*"])
            return steps, False
        what = f"{kind} {node['behavior']}" if "behavior" in node else kind
        able = ("ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Split", *_PLAIN)
        raise self.refuse("pre_tokenizer", what, f"only {', '.join(able)} are (Isolated, Removed)")

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

    def no_decoder(self, steps: list[Step], byte_level: bool) -> tuple[str, bool, str]:
        """As ``decoder``, and what stands between pieces, where the file does not say: the mark
        that stands for a space is one, and spaces that were taken away come back."""
        marks = [step[2] for step in steps if step[:2] == ["replace", " "]]
        if byte_level:
            return "", False, ""
        if marks:
            return marks[0], any(step[:2] == ["prepend", marks[0]] for step in steps), ""
        removed = any(step[0] in ("words", "gaps") for step in steps)
        return "", removed, " " if removed else ""


class _Ends:
    """What begins and ends a text; the rules are at the top of this file.

    added: name -> id of every added token.
    """

    def __init__(self, path: Path, data: dict[str, Any], added: dict[str, int]) -> None:
        def beside(name: str) -> dict[str, Any]:
            file = path.parent / name
            return read_json_object(file) if file.exists() or file.is_symlink() else {}

        self.generation, self.config = beside("generation_config.json"), beside("config.json")
        self.own = beside("special_tokens_map.json") | beside("tokenizer_config.json")
        self.path, self.added, self.processor = path, added, data.get("post_processor")

    def bos(self) -> int | None:
        """What begins a text; None if nothing does."""
        template = self.template()
        if template is not None:
            return template[0] if template else None
        asked = self.own.get("add_bos_token")
        bare = self.own.get("bos_token", "") is None or self.own.get("tokenizer_class") in _BARE
        if asked is False or (asked is None and bare):
            return None
        ids = [self.added.get(self.name("bos"))]
        for config in (self.config, self.generation):
            value = config.get("bos_token_id")
            ids += value if isinstance(value, list) else [value]
        ids += [self.added.get(name) for name in _BOS_NAMES]
        return next((i for i in ids if i in self.added.values()), None)

    def eos(self, added: dict[str, int], count: int) -> list[int]:
        """All that end a text, of the files and of the tokenizer: ids below ``count``. Those of
        ``added`` go before others; the 2 that classes have by default goes last."""
        ids: list[Any] = []
        for config in (self.generation, self.config):
            value = config.get("eos_token_id")
            ids += value if isinstance(value, list) else [value]
        ids.append(added.get(self.name("eos")))
        known = [i for i in ids if i is not None and not (type(i) is int and not 0 <= i < count)]
        sure = [i for i in known if i in added.values()]
        meant = [] if self.name("eos") else [i for i in known if i != _DEFAULT_EOS]
        usual = [added[name] for name in _EOS_NAMES if name in added][:1]
        return list(dict.fromkeys(sure or meant or usual or known))

    def name(self, end: str) -> str:
        """Of the token that tokenizer_config.json calls ``end``, "" for none."""
        token = self.own.get(f"{end}_token")
        content = token.get("content") if isinstance(token, dict) else token
        return content if isinstance(content, str) else ""

    def template(self) -> list[int] | None:
        """What the tokenizer itself puts before a text; None if it has no template."""
        post = self.processor
        for node in post["processors"] if post and post["type"] == "Sequence" else [post]:
            if not node:
                continue
            kind = node["type"]
            if kind in ("BertProcessing", "RobertaProcessing"):
                return [node["cls"][1]]
            if kind == "TemplateProcessing":
                ids: list[int] = []
                for part in node["single"]:
                    if "SpecialToken" not in part:
                        break
                    name = part["SpecialToken"]["id"]
                    known = node.get("special_tokens", {}).get(name)
                    ids += known["ids"] if known else [self.added[name]]
                if len(ids) > 1 or not all(i in self.added.values() for i in ids):
                    raise UserError(
                        f"{self.path}: its template puts tokens {show(ids)} before a text; only "
                        "one, an added token, is supported"
                    )
                return ids
        return None


_ADDED_FLAGS = ("lstrip", "rstrip", "normalized")
_BOS_NAMES = ("<s>", "<bos>", "<|bos|>", "<|begin_of_text|>")
_DEFAULT_EOS = 2  # of LlamaConfig and others, whatever the tokenizer
_EOS_NAMES = ("</s>", "<eos>", "<|eos|>", "<|end_of_text|>", "<|endoftext|>")
# Classes of transformers whose add_bos_token is false where it is not given.
_BARE = ("GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast")
# Pre-tokenizers without settings.
_PLAIN: dict[str, list[Step]] = {
    "Whitespace": [["words", f"[{WORD}]+|[^\\s{WORD}]+"]],
    "WhitespaceSplit": [["gaps", r"\s+"]],
    "BertPreTokenizer": [["gaps", r"\s+"], ["split", f"[{PUNCTUATION}]"]],
    "Punctuation": [["split", f"[{PUNCTUATION}]"]],
}

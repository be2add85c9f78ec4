"""Reads the tokenizer.json of Hugging Face, with what stands in the files beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenfabric.core.errors import UserError
from tokenfabric.core.files import read_json_object, show
from tokenfabric.host.bpe import MAX_VOCAB, Tokenizer, build
from tokenfabric.host.pretokenize import GPT2, Step


def load_hf(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. UserError for one that is damaged or not supported."""
    data = read_json_object(path)
    try:
        values = _HfReader(path, data).values()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(
            f"{path}: not a tokenizer.json this program understands ({type(error).__name__}: "
            f"{show(str(error))}); save it again with a recent version of tokenizers"
        ) from None
    return build(path, values)


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
            return steps + ([["split", GPT2]] if node.get("use_regex", True) else []), True
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

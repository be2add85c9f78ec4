"""A tokenizer.json of bytes alone, written without any library, for tests to edit."""

from __future__ import annotations

import json

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def save_bytes_tokenizer(folder, edit=None):
    """A tokenizer.json with one piece per byte and two specials, written without any library."""
    alphabet = {chr(c): i for i, c in enumerate([*range(0x21, 0x7F), *range(0xA1, 0xAD)])}
    data = {
        "added_tokens": [
            {"id": 200 + i, "content": content, "special": True, **dict.fromkeys(FLAGS, False)}
            for i, content in enumerate(["<s>", "</s>", "<|im_end|>"])
        ],
        "normalizer": None,
        "pre_tokenizer": BYTES,
        "post_processor": None,
        "decoder": BYTES,
        "model": {"type": "BPE", "vocab": alphabet | {"ab": 150}, "merges": ["a b"]},
    }
    if edit:
        edit(data)
    folder.mkdir(exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


def put(*keys, value):
    def edit(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


def template(*names, after=()):
    """A post_processor that puts ``names`` before a text, and ``after`` behind it."""
    ids = {"<s>": 200, "</s>": 201, "<|im_end|>": 202, "a": 64}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    single += [{"Sequence": {"id": "A", "type_id": 0}}]
    single += [{"SpecialToken": {"id": name, "type_id": 0}} for name in after]
    table = {n: {"id": n, "ids": [ids[n]], "tokens": [n]} for n in (*names, *after)}
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": table}

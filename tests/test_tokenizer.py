import ast
import json
import random
import struct
import sys
import unicodedata
from pathlib import Path

import pytest
from byte_tokenizers import put, save_bytes_tokenizer, template
from tokenfabric.core.errors import UserError
from tokenfabric.host import tokenizer as module
from tokenfabric.host.tokenizer import Decoder, Tokenizer, find_tokenizer, load_tokenizer

STORIES = Path(__file__).parent.parent / "models" / "stories"

LILY_TEXT = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
LILY_IDS = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401]
LILY_IDS += [396, 267, 337, 410, 408, 419, 292, 411, 322, 265, 282, 295, 433, 426, 385, 328, 432]
LILY_IDS += [358, 394, 261, 370, 432, 352, 266, 268, 388, 426]

TEXTS = [
    "",
    " ",
    "a",
    LILY_TEXT,
    "  leading, trailing  ",
    "tabs\tand\nnew\r\nlines\n\n\n  indented\n",
    "spaces   in    runs     before words",
    "it's we're they'll I'd you've I'm don't IT'S WE'RE THEY'LL 'tis ''quoted''",
    "0 12 345 6789 3.14159 1,000,000 2024-01-31 v2.0b7 x1y2",
    "punct!!! ... (a[b]{c}) <d> #e @f $g %h ^i &j *k -l _m =n +o \\p |q ~r `s` /t ;u :v ?w",
    "naïve café Ünïcödé straße ŒUVRE ǅ ß",
    "cafe\u0301 e\u0302\u0323 \u1e69 \ufb01 \u212b",
    "привет мир Ελληνικά עברית العربية ٣٤٥",
    "日本語のテキスト 中文 一二三 한국어 ไทย हिन्दी १२३",
    "emoji 🙂🚀👨‍👩‍👧🇩🇪 ❤️ end",
    "½ ² ³ ① Ⅷ ㊿ x² 10⁵",
    "a\xa0b\u2003c\u3000d\x85e\u2028f\x1cg\x00h\u200bi\ufeffj",
    "▁ literal ▁▁ marks Ġ Ċ <0x41> <0xE2>",
    "def f(x):\n    return x + 1  # comment\n\nclass A:\n\tpass\n",
    "ſ's 'ſ İi ıI",
    "a" * 300,
]


def random_texts(count=150):
    """Strings that mix all kinds of characters, and joints of the texts above."""
    rng = random.Random(4)
    pool = [c for text in TEXTS for c in text] + list("  \n\n''stremdv1234567890")
    letters = [chr(c) for c in range(0x3000) if unicodedata.category(chr(c)) in ("Lu", "Ll", "Nd")]
    for i in range(count):
        if i % 3:
            yield "".join(rng.choices(pool, k=rng.randrange(1, 60)))
        else:
            yield "".join(rng.choices(letters, k=20)) + rng.choice(TEXTS)[:40]


def corpus():
    words = LILY_TEXT.split()
    rng = random.Random(5)
    return [" ".join(rng.choices(words, k=12)) for _ in range(200)] + TEXTS * 2


def train(make):
    """A BPE trained on the corpus; ``make(lib)`` says how: pre-tokenizer, decoder, specials..."""
    lib = pytest.importorskip("tokenizers", reason="the independent reference needs tokenizers")
    options = make(lib)
    tokenizer = lib.Tokenizer(lib.models.BPE(**options.get("model", {})))
    for part in ("normalizer", "pre_tokenizer", "decoder", "post_processor"):
        if part in options:
            setattr(tokenizer, part, options[part])
    trainer = lib.trainers.BpeTrainer(
        vocab_size=options.get("vocab", 700),
        special_tokens=options.get("special", ["<s>", "</s>"]),
        initial_alphabet=options.get("alphabet", []),
        limit_alphabet=options.get("limit", 10_000),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens(options.get("added", []))
    data = json.loads(tokenizer.to_str())
    # the trainer can only make byte tokens as special ones, which in a real Llama they are not
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return lib.Tokenizer.from_str(json.dumps(data))


def byte_level(lib, *before, prefix=False, regex=True, **more):
    last = lib.pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    return {
        "pre_tokenizer": lib.pre_tokenizers.Sequence([*before, last]) if before else last,
        "decoder": lib.decoders.ByteLevel(),
        "alphabet": lib.pre_tokenizers.ByteLevel.alphabet(),
    } | more


UNK = ["<s>", "</s>", "<unk>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama2_decoder(lib):
    d = lib.decoders
    return d.Sequence([d.Replace("▁", " "), d.ByteFallback(), d.Fuse(), d.Strip(" ", 1, 0)])


def llama2(lib, **model):
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "model": {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"} | model,
        "normalizer": lib.normalizers.Sequence(
            [lib.normalizers.Prepend("▁"), lib.normalizers.Replace(" ", "▁")]
        ),
        "decoder": llama2_decoder(lib),
        "special": ["<unk>", "<s>", "</s>", *bytes_],
        "limit": 60,
        "vocab": 600,
    }


def metaspace(lib, scheme, split=True, **more):
    space = {"prepend_scheme": scheme, "split": split}
    return {
        "pre_tokenizer": lib.pre_tokenizers.Metaspace(**space),
        "decoder": lib.decoders.Metaspace(**space),
    } | more


def words(lib, pre_tokenizer, **more):
    """Words without their spaces, and no decoder."""
    return {"pre_tokenizer": pre_tokenizer, "model": {"unk_token": "<unk>"}, "special": UNK} | more


def added_tokens(lib):
    return {
        "added": [
            lib.AddedToken("<|plain|>", normalized=False),
            lib.AddedToken("<|plain|>longer", normalized=False),
            lib.AddedToken("<|left|>", lstrip=True, normalized=False),
            lib.AddedToken("<|right|>", rstrip=True, normalized=False),
            lib.AddedToken("<|norm|>", normalized=True),
            lib.AddedToken("ÅB", normalized=True),
        ]
    }


KINDS = {
    "gpt2": lambda lib: byte_level(lib),
    "gpt2 prefix space": lambda lib: byte_level(lib, prefix=True),
    "no regex": lambda lib: byte_level(lib, regex=False),
    "smollm": lambda lib: byte_level(lib, lib.pre_tokenizers.Digits(individual_digits=True)),
    "digit runs": lambda lib: byte_level(lib, lib.pre_tokenizers.Digits(), prefix=True),
    "llama3": lambda lib: byte_level(
        lib,
        lib.pre_tokenizers.Split(lib.Regex(LLAMA3), "isolated"),
        regex=False,
        model={"ignore_merges": True},
    ),
    "split on a string": lambda lib: byte_level(lib, lib.pre_tokenizers.Split(". ", "isolated")),
    "nfc": lambda lib: byte_level(lib, normalizer=lib.normalizers.NFC(), **added_tokens(lib)),
    "nfkd": lambda lib: byte_level(lib, normalizer=lib.normalizers.NFKD()),
    "llama2": llama2,
    "llama2 added": lambda lib: llama2(lib) | added_tokens(lib),
    "metaspace": lambda lib: metaspace(lib, "always"),
    "metaspace first": lambda lib: metaspace(lib, "first", **added_tokens(lib)),
    "digits, metaspace first": lambda lib: metaspace(
        lib,
        "first",
        pre_tokenizer=lib.pre_tokenizers.Sequence(
            [lib.pre_tokenizers.Digits(), lib.pre_tokenizers.Metaspace(prepend_scheme="first")]
        ),
    ),
    "metaspace never": lambda lib: metaspace(lib, "never"),
    "metaspace whole": lambda lib: metaspace(lib, "always", split=False, limit=40),
    "unk": lambda lib: metaspace(
        lib, "always", limit=40, model={"unk_token": "<unk>"}, special=UNK
    ),
    "whitespace": lambda lib: words(lib, lib.pre_tokenizers.Whitespace()),
    "whitespace split": lambda lib: words(lib, lib.pre_tokenizers.WhitespaceSplit(), limit=60),
    "bert": lambda lib: words(
        lib, lib.pre_tokenizers.BertPreTokenizer(), normalizer=lib.normalizers.Lowercase()
    ),
    "delimiter": lambda lib: words(lib, lib.pre_tokenizers.CharDelimiterSplit(" ")),
    "removed": lambda lib: words(lib, lib.pre_tokenizers.Split(lib.Regex("[ .]+"), "removed")),
    "kept": lambda lib: words(
        lib, lib.pre_tokenizers.Split(lib.Regex(r"\p{L}+|\d"), "removed", invert=True)
    ),
    "punctuation, metaspace first": lambda lib: metaspace(
        lib,
        "first",
        pre_tokenizer=lib.pre_tokenizers.Sequence(
            [
                lib.pre_tokenizers.Split("\n", "removed"),
                lib.pre_tokenizers.Punctuation(),
                lib.pre_tokenizers.Metaspace(prepend_scheme="first"),
            ]
        ),
    ),
    "fused unk": lambda lib: metaspace(
        lib, "always", limit=40, model={"unk_token": "<unk>", "fuse_unk": True}, special=UNK
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """(the tokenizers library's tokenizer, ours loaded from its file)."""
    theirs = train(KINDS[request.param])
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    theirs.save(str(path))
    return theirs, load_tokenizer(path)


def test_encodes_as_the_tokenizers_library(pair):
    theirs, ours = pair
    marks = ["<|plain|>", "<|plain|>longer", "<|left|>", "<|right|>", "<|norm|>", "ÅB", "<s>"]
    rng = random.Random(6)
    texts = [*TEXTS, *random_texts()]
    texts += [" ".join(rng.choices([*marks, *TEXTS[2:12], " "], k=5)) for _ in range(30)]
    for text in texts:
        want = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False) == want, text
        # a text that spells the BOS out gets no second one
        assert ours.encode(text) == (want if want[:1] == [ours.bos] else [ours.bos, *want])


def test_decodes_as_the_tokenizers_library(pair):
    theirs, ours = pair
    for text in [*TEXTS, *random_texts(40)]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        if ids and theirs.id_to_token(ids[0]).count("▁") > 1:
            continue  # the library's Metaspace drops every space of the first piece, not just one
        assert ours.decode(ids) == theirs.decode(ids), text
        assert ours.decode([ours.bos, *ids, ours.eos[0]]) == theirs.decode(ids)


@pytest.mark.parametrize("kind", ["gpt2", "no regex", "smollm", "llama3", "split on a string"])
def test_byte_level_decoding_undoes_encoding(kind, tmp_path):
    train(KINDS[kind]).save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    for text in [*TEXTS, *random_texts(40)]:
        assert ours.decode(ours.encode(text)) == text


def test_streams_as_it_decodes(pair):
    _, ours = pair
    for text in TEXTS:
        ids = ours.encode(text)
        decoder = ours.decoder()
        shown = [decoder.push(i) for i in ids]
        assert "".join(shown) + decoder.finish() == ours.decode(ids)


def test_blob_round_trip(pair):
    _, ours = pair
    blob = ours.to_bytes()
    again = Tokenizer.from_bytes(blob)
    assert again == ours and again.to_bytes() == blob
    for text in TEXTS:
        assert again.encode(text) == ours.encode(text)
        assert again.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def test_committed_stories_tokenizer():
    lib = pytest.importorskip("tokenizers", reason="the independent reference needs tokenizers")
    if not (STORIES / "tokenizer.json").exists():
        pytest.skip("models/stories/tokenizer.json is absent")
    theirs, ours = lib.Tokenizer.from_file(str(STORIES / "tokenizer.json")), load_tokenizer(STORIES)
    for text in [*TEXTS, *random_texts()]:
        want = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, bos=False) == want, text
        assert ours.decode(want) == theirs.decode(want)


# llama2.c


PIECES = (" ", "a", "b", "c", "ab", "bc", "abc", " a", "é")


def write_tokenizer_bin(path, pieces=PIECES, scores=None):
    """A tokenizer.bin with the usual first 259 tokens and then ``pieces``."""
    first = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    scores = [0.0] * len(first) + list(scores or [-float(i) for i in range(len(pieces))])
    raw = [piece.encode() for piece in [*first, *pieces]]
    data = struct.pack("<i", max(map(len, raw)))
    for score, piece in zip(scores, raw, strict=True):
        data += struct.pack("<fi", score, len(piece)) + piece
    path.write_bytes(data)
    return path


def slow_run_c(pieces, scores, text):
    """encode() of llama2.c's run.c, transcribed: scan all pairs, merge the best, repeat."""
    lookup = {piece: i for i, piece in reversed([*enumerate(pieces)])}
    ids = [lookup[" "]] if text else []
    for char in text:
        ids += [lookup[char]] if char in lookup else [byte + 3 for byte in char.encode()]
    while True:
        best, at, new = -1e10, -1, -1
        for i in range(len(ids) - 1):
            merged = lookup.get(pieces[ids[i]] + pieces[ids[i + 1]])
            if merged is not None and scores[merged] > best:
                best, at, new = scores[merged], i, merged
        if at < 0:
            return ids
        ids[at : at + 2] = [new]


def test_real_tokenizer_bin(shared):
    models = shared / "models"
    assert find_tokenizer(models / "stories260K.bin", 512) == models / "tok512.bin"
    ours = load_tokenizer(models / "tok512.bin", 512)
    assert (ours.vocab, ours.bos, 2 in ours.eos) == (512, 1, True)
    assert ours.encode(LILY_TEXT) == [1, *LILY_IDS]
    assert ours.decode([1, *LILY_IDS]) == ours.decode(LILY_IDS) == LILY_TEXT
    text = (shared / "data" / "tinystories-sample.txt").read_text()
    for sample in [*TEXTS, *random_texts(60), text[:400]]:
        ids = ours.encode(sample, bos=False)
        assert ids == slow_run_c(ours.pieces, ours.scores, sample)
        assert ours.decode(ids) == sample
    assert ours.decode(ours.encode(text)) == text
    assert Tokenizer.from_bytes(ours.to_bytes()) == ours


def test_equal_scores_merge_leftmost_first(tmp_path):
    pieces = (" ", "a", "aa", "aaa", "b", "ab", "ba")
    for seed in range(20):
        scores = random.Random(seed).choices([-1.0, -2.0], k=len(pieces))
        ours = load_tokenizer(write_tokenizer_bin(tmp_path / "t.bin", pieces, scores))
        for text in ("aaaaaaa", "abaabab", "bbaaabba", "aa aab"):
            assert ours.encode(text, bos=False) == slow_run_c(ours.pieces, ours.scores, text)


def test_tokenizer_bin_ids(tmp_path):
    ours = load_tokenizer(write_tokenizer_bin(tmp_path / "t.bin"))
    space, _, b, c, _, bc, abc, space_a, accented = range(259, 268)
    assert ours.encode("") == [1]
    assert ours.encode("abc", bos=False) == [space, abc]  # ab scores above bc above " a"
    assert ours.encode("a", bos=False) == [space_a]
    assert ours.encode("b", bos=False) == [space, b]
    assert ours.encode("é€", bos=False) == [space, accented, 3 + 0xE2, 3 + 0x82, 3 + 0xAC]
    assert ours.encode("\ud800", bos=False) == [space, 3 + 0xEF, 3 + 0xBF, 3 + 0xBD]
    assert ours.decode([1, space_a, bc, 2]) == "abc"
    assert ours.decode([space_a, space_a]) == "a a"
    assert ours.decode([space, space_a, c, 1, space_a]) == " aca"


def test_the_first_of_equal_pieces_is_used(tmp_path):
    ours = load_tokenizer(write_tokenizer_bin(tmp_path / "t.bin", (" ", "a", "a")))
    assert ours.encode("a", bos=False) == [259, 260]
    assert ours.decode([259, 261]) == "a"


def test_ignore_merges_takes_a_whole_word_that_no_merge_makes(tmp_path):
    def edit(data):
        data["model"]["vocab"]["abc"] = 151

    a_b, c = 150, ord("c") - 0x21
    ours = load_tokenizer(save_bytes_tokenizer(tmp_path, edit))
    assert ours.encode("abc", bos=False) == [a_b, c]
    ours.ignore_merges = True
    assert ours.encode("abc", bos=False) == [151]


def test_decoder_holds_incomplete_characters_back(tmp_path):
    ours = load_tokenizer(write_tokenizer_bin(tmp_path / "t.bin"))
    a, space_a = 260, 266
    decoder = Decoder(ours)
    pushed = [decoder.push(i) for i in (1, space_a, *(3 + byte for byte in "🙂".encode()), a)]
    assert pushed == ["", "a", "", "", "", "🙂", "a"]
    assert decoder.finish() == ""
    decoder = ours.decoder(start=False)  # continues a text: its first space is real
    assert [decoder.push(space_a), decoder.push(3 + 0xE2)] == [" a", ""]
    assert decoder.finish() == "\ufffd"
    assert ours.decode([3 + 0xE2, a, 3 + 0xFF, a]) == "\ufffda\ufffda"
    assert ours.decode([a, 10_000, -1, a]) == "a\ufffd\ufffda"


def test_a_tokenizer_without_decoder(tmp_path):
    ours = load_tokenizer(save_bytes_tokenizer(tmp_path, put("decoder", value=None)))
    assert ours.decode(ours.encode("ab!a")) == "ab!a"

    def marks(data):  # Llama 2's way, whose decoder was lost
        data.update(decoder=None, pre_tokenizer=None)
        steps = [{"type": "Prepend", "prepend": "!"}]
        steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "!"})
        data["normalizer"] = {"type": "Sequence", "normalizers": steps}

    ours = load_tokenizer(save_bytes_tokenizer(tmp_path, marks))
    assert ours.decode(ours.encode("ab a")) == "ab a"

    def plain(data):  # spaces are pieces themselves
        data.update(decoder=None, pre_tokenizer=None)
        data["model"]["vocab"][" "] = 160

    ours = load_tokenizer(save_bytes_tokenizer(tmp_path, plain))
    assert ours.decode(ours.encode("ab a")) == "ab a"


def test_words_that_lost_their_spaces_get_them_back(tmp_path):
    def edit(data):
        data.update(decoder=None, pre_tokenizer={"type": "Whitespace"})

    ours = load_tokenizer(save_bytes_tokenizer(tmp_path, edit))
    ids = ours.encode("ab ab")
    assert ids == [200, 150, 150] and ours.decode(ids) == "ab ab"
    decoder = ours.decoder(start=False)
    assert [decoder.push(150), decoder.push(201), decoder.push(64)] == [" ab", "", " a"]
    assert Tokenizer.from_bytes(ours.to_bytes()) == ours


def test_a_blob_says_only_what_is_unusual(tmp_path):
    blob = load_tokenizer(save_bytes_tokenizer(tmp_path)).to_bytes()
    assert b'"strip_space":' in blob and b'"between":' not in blob


# Bad input


def refused(words, call, *arguments):
    with pytest.raises(UserError, match=words) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


def regex_split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (put("model", "type", value="Unigram"), "model 'Unigram'"),
        (put("model", "dropout", value=0.1), "model.dropout 0.1"),
        (put("model", "end_of_word_suffix", value="</w>"), "end_of_word_suffix '</w>'"),
        (put("model", "vocab", value={"a": 10**9}), "vocab with id 1000000000"),
        (put("model", "vocab", value={"a": -1, "b": 3}), "vocab with id"),
        (put("model", "vocab", value={"a": 1, "b": 1}), "vocab with id 1"),
        (put("model", "vocab", value={"a": "x"}), "not a tokenizer.json"),
        (put("model", "vocab", value=[]), "not a tokenizer.json"),
        (put("model", "vocab", "\ud800", value=160), "surrogates not allowed"),
        (put("model", "merges", value=["a zz"]), "not a tokenizer.json"),
        (put("model", "merges", value=["a"]), "not a tokenizer.json"),
        (put("model", "merges", value=["a c"]), "merge 0 makes 'ac', which is not in the vocab"),
        (put("model", value=None), "not a tokenizer.json"),
        (put("normalizer", value={"type": "StripAccents"}), "normalizer 'StripAccents'"),
        (
            put("normalizer", value={"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}),
            "normalizer 'Replace'",
        ),
        (put("pre_tokenizer", value={"type": "UnicodeScripts"}), "pre_tokenizer 'UnicodeScripts'"),
        (
            put("pre_tokenizer", value={"type": "Punctuation", "behavior": "Contiguous"}),
            "pre_tokenizer 'Punctuation Contiguous'",
        ),
        (
            put("pre_tokenizer", value=regex_split("a") | {"behavior": "MergedWithNext"}),
            "pre_tokenizer 'Split MergedWithNext'",
        ),
        (put("decoder", value={"type": "WordPiece"}), r"decoder \['WordPiece'\]"),
        (put("added_tokens", 0, "single_word", value=True), "single_word '<s>'"),
        (put("added_tokens", 2, "id", value=-5), "not ids below 202"),
        (put("post_processor", value=template("<s>", "<s>")), "puts tokens .* only one, an added"),
        (put("post_processor", value=template("a")), "puts tokens .64. before a text; only one"),
        (put("added_tokens", 0, "id", value=10**12), "vocab with id"),
    ],
)
def test_tokenizer_json_that_is_not_supported(tmp_path, edit, words):
    path = save_bytes_tokenizer(tmp_path, edit)
    assert str(path) in refused(words, load_tokenizer, path)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (r"\w+", "uses '.*w.*'"),
        (r"\p{Han}+", "uses"),
        (r"[^\S\n]", "within"),
        (r"[a[b]]", "a class within a class"),
        (r"[a&&b]", "a class within a class"),
        (r"[]a]", "start of a class"),
        (r"a++", "possessive"),
        (r"^a", "line anchor"),
        (r"(a", "Python's re refuses"),
        ("a\\", "uses"),
    ],
)
def test_regexes_that_differ_between_libraries_are_refused(tmp_path, pattern, words):
    split = {"type": "Sequence", "pretokenizers": [regex_split(pattern), {"type": "Digits"}]}
    split["pretokenizers"].pop()
    edit = put("pre_tokenizer", value=split)
    path = save_bytes_tokenizer(tmp_path, lambda d: (edit(d), d.update(decoder=LLAMA_DECODER)))
    refused(words, load_tokenizer, path)


LLAMA_DECODER = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}


def test_tokenizer_file_or_folder_that_is_none(tmp_path):
    refused("no such file", load_tokenizer, tmp_path / "tokenizer.bin")
    refused("tokenizer.json: no such file; .*give --tokenizer FILE", load_tokenizer, tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    refused("vocab.json is not read, only tokenizer.json", load_tokenizer, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    refused("tokenizer.model is not read", load_tokenizer, tmp_path)
    refused("not a llama2.c tokenizer.bin", load_tokenizer, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer.json").write_text("{")
    refused("not valid JSON", load_tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    refused("tokenizer.json: the JSON holds a list", load_tokenizer, tmp_path)
    refused("neither tok40.bin nor tokenizer.bin", find_tokenizer, tmp_path / "m.bin", 40)
    (tmp_path / "tokenizer.bin").write_bytes(b"x")
    assert find_tokenizer(tmp_path / "m.bin", 40) == tmp_path / "tokenizer.bin"
    (tmp_path / "tok40.bin").write_bytes(b"x")
    assert find_tokenizer(tmp_path / "m.bin", 40) == tmp_path / "tok40.bin"
    assert find_tokenizer(tmp_path, 40) == tmp_path


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98765\n"


def test_files_that_only_stand_for_others(tmp_path):
    save_bytes_tokenizer(tmp_path)
    names = ["config.json", "generation_config.json", "special_tokens_map.json"]
    for name in [*names, "tokenizer_config.json", "tokenizer.json"]:
        path = tmp_path / name
        path.write_text(POINTER)
        refused(f"{name}: is a Git LFS pointer to a file of 98,765 b", load_tokenizer, tmp_path)
        path.unlink()
        path.symlink_to("blobs/nowhere")  # as an unfinished download leaves it
        refused(f"{name}: a link to a file that is not there", load_tokenizer, tmp_path)
        path.unlink()
    path = tmp_path / "tokenizer.bin"
    path.write_text(POINTER)
    refused("tokenizer.bin: is a Git LFS pointer", load_tokenizer, path)


def test_tokenizer_of_another_model(tmp_path):
    path = write_tokenizer_bin(tmp_path / "t.bin")
    assert load_tokenizer(path, 268).vocab == 268
    refused("268 tokens, the checkpoint has only 267", load_tokenizer, path, 267)
    assert load_tokenizer(path, 320).vocab == 268  # rows of padding are usual
    path = save_bytes_tokenizer(tmp_path / "hf")
    assert load_tokenizer(path, 256).vocab == 203
    refused("151 tokens, the checkpoint has only 150", load_tokenizer, path, 150)


def test_an_added_token_without_a_row_cannot_be_used(tmp_path):
    def edit(data):
        pad = {"id": 203, "content": "<pad>", "special": True}
        data["added_tokens"] += [pad, {"id": 205, "content": "<more>"}]

    path = save_bytes_tokenizer(tmp_path, edit)
    config = tmp_path / "config.json"
    config.write_text('{"eos_token_id": [201, 203]}')
    whole, ours = load_tokenizer(path), load_tokenizer(path, 203)
    assert (whole.vocab, ours.vocab) == (206, 203) and load_tokenizer(path, 204).vocab == 204
    assert whole.encode("<pad>")[-1] == 203 and whole.eos == [201, 203]
    assert max(ours.encode("<pad><more>")) < 203 and ours.eos == [201]
    assert ours.decode(ours.encode("<pad>")) == "<pad>"
    config.write_text('{"bos_token_id": 203}')
    refused("begins with token 203, the checkpoint has only 203", load_tokenizer, path, 203)


def test_damaged_tokenizer_bin(tmp_path):
    path = write_tokenizer_bin(tmp_path / "t.bin")
    data = path.read_bytes()
    rng = random.Random(7)
    for cut in [*range(1, 60), *rng.sample(range(len(data)), 60)]:
        path.write_bytes(data[:cut])
        try:
            assert load_tokenizer(path).vocab >= 259  # cut between two of the last pieces
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
    for bad in (b"", struct.pack("<i", 7), data[:4] + struct.pack("<fi", 0, 2**31 - 1) + data[12:]):
        path.write_bytes(bad)
        refused("empty|not a llama2.c tokenizer.bin", load_tokenizer, path)
    path.write_bytes(data[:4] + struct.pack("<f", float("nan")) + data[8:])
    refused("score of token 0 is nan", load_tokenizer, path)
    path.write_bytes(data.replace("é".encode(), b"\xff\xff"))
    refused("token 267 is not UTF-8", load_tokenizer, path)
    path.write_bytes(data.replace(b"<0x41>", b"<0x42>"))
    refused("ids 3 to 258 are not the bytes", load_tokenizer, path)


def good_fields(tmp_path):
    return json.loads(load_tokenizer(save_bytes_tokenizer(tmp_path)).to_bytes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenfabric_tokenizer": 2}, "version 2, this program reads 1"),
        ({"extra": 1}, "missing or unknown: 'extra'"),
        ({"pieces": []}, "vocabulary of 0"),
        ({"pieces": ["a", 1]}, "pieces are not strings"),
        ({"bos": 203}, "bos 203 is not an id below 203"),
        ({"bos": -1}, "bos -1"),
        ({"between": 1}, "between is not a string"),
        ({"eos": [True]}, "eos"),
        ({"special": 3}, "special tokens 3"),
        ({"unk": -1}, "unk -1"),
        ({"merges": None}, "scores and merges"),
        ({"merges": [1]}, "merges are not pairs"),
        ({"merges": [1, 500]}, "merges are not pairs"),
        ({"merges": None, "scores": [1.0]}, "one finite number per piece"),
        ({"byte_level": 1}, "byte_level is not true or false"),
        ({"space": None}, "space is not a string"),
        ({"classes": [1]}, "classes are not strings"),
        ({"classes": {"L": "z-a", "N": "0"}}, "Python's re refuses"),
        ({"added": [["x", 5, False, False]]}, "added token"),
        ({"added": {}}, "added tokens are not a list"),
        ({"split": [["explode"]]}, "step"),
        ({"split": [["replace", "", "b"]]}, "step"),
        ({"split": [["split", "("]]}, "Python's re refuses"),
        ({"normalize": [["split", "a"]]}, "normalization may not split"),
        ({"normalize": [["form", "NFX"]]}, "step"),
    ],
)
def test_damaged_blob(tmp_path, change, words):
    blob = json.dumps(good_fields(tmp_path) | change).encode()
    assert refused(words, Tokenizer.from_bytes, blob, "m.tfm").startswith("m.tfm: ")


def test_damaged_blob_bytes_raise_nothing_but_user_errors(tmp_path):
    blob = load_tokenizer(save_bytes_tokenizer(tmp_path)).to_bytes()
    rng = random.Random(8)
    for _ in range(200):
        data = bytearray(blob)
        data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            Tokenizer.from_bytes(bytes(data))
        except UserError as error:
            assert "\n" not in str(error)
    refused("there is none; quantize the checkpoint with --tokenizer", Tokenizer.from_bytes, b"")
    for cut in range(97, len(blob), 97):
        refused("not valid JSON", Tokenizer.from_bytes, blob[:cut])


OWN = {"bpe", "pretokenize", "tokenizer", "tokenizer_hf", "tokenizer_llama2c"}


@pytest.mark.parametrize("name", sorted(OWN))
def test_imports_nothing_that_a_board_lacks(name):
    tree = ast.parse((Path(module.__file__).parent / f"{name}.py").read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    outside = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    allowed = {"tokenfabric.core.errors", "tokenfabric.core.files"}
    assert outside <= allowed | {f"tokenfabric.host.{own}" for own in OWN}

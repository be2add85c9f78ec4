import json
import os
import random
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import (
    TINY,
    hf_tensors,
    random_checkpoint,
    safetensors_bytes,
    write_hf,
    write_llama2c_version1,
    write_shards,
)
from checkpoints import write_llama2c as write_bin
from tokenfabric.core.errors import UserError
from tokenfabric.quant.checkpoint import interleave_rope, load_checkpoint

UNTIED = replace(TINY, tied=False)
HEADER = 28


def refused(path, words="."):
    """The message load_checkpoint refuses ``path`` with: one line, with the file and ``words``."""
    with pytest.raises(UserError, match=words) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 700 and str(path) in message
    return message


def same(a, b):
    assert a.shape == b.shape
    for x, y in zip(a.layers, b.layers, strict=True):
        assert list(x) == list(y)
        for tensor in x:
            np.testing.assert_array_equal(x[tensor], y[tensor], strict=True)
    for name in ("embedding", "final_norm", "classifier"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


@pytest.mark.parametrize("shape", [TINY, UNTIED], ids=["tied", "untied"])
def test_llama2c_round_trip(tmp_path, shape):
    made = random_checkpoint(shape)
    read = load_checkpoint(str(write_bin(tmp_path / "m.bin", made)))
    same(made, read)
    assert (read.classifier is read.embedding) == shape.tied


@pytest.mark.parametrize("shape", [TINY, UNTIED], ids=["tied", "untied"])
def test_llama2c_version_1_round_trip(tmp_path, shape):
    made = random_checkpoint(shape)
    read = load_checkpoint(write_llama2c_version1(tmp_path / "m.bin", made))
    same(made, read)
    assert (read.classifier is read.embedding) == shape.tied


def test_llama2c_version_1_truncated_or_of_another_version(tmp_path):
    path = write_llama2c_version1(tmp_path / "m.bin", random_checkpoint(UNTIED))
    data = path.read_bytes()
    for cut in (4, 255, 256, 257, 3000, len(data) - 1):
        path.write_bytes(data[:cut])
        refused(path, "shorter than the 256-byte" if cut < 256 else f"{len(data) - cut} missing")
    for at, value, words in ((4, 2, "version 2"), (36, 7, "shared_classifier=7")):
        path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
        refused(path, f"with {words}; only float32 is read: export it with --version 1 or")


@pytest.mark.parametrize("dim", [16, 24], ids=["square", "heads*head_dim != dim"])
@pytest.mark.parametrize("tied", [True, False])
def test_hf_round_trip(tmp_path, dim, tied):
    shape = replace(TINY, dim=dim, tied=tied, norm_eps=1e-6, rope_theta=5e5)
    made = random_checkpoint(shape)
    read = load_checkpoint(write_hf(tmp_path, made))
    same(made, read)
    assert (read.classifier is read.embedding) == tied
    assert all(a.flags.c_contiguous for layer in read.layers for a in layer.values())


def test_hf_16_bit_floats(tmp_path):
    made = random_checkpoint()
    half = load_checkpoint(write_hf(tmp_path / "f16", made, "F16"))
    np.testing.assert_array_equal(half.embedding, made.embedding.astype(np.float16))
    brain = load_checkpoint(write_hf(tmp_path / "bf16", made, "BF16"))
    torch = pytest.importorskip("torch")
    bits = torch.from_numpy((made.embedding.view(np.uint32) >> 16).astype(np.int16))
    np.testing.assert_array_equal(brain.embedding, bits.view(torch.bfloat16).float().numpy())
    assert half.embedding.dtype == brain.embedding.dtype == np.float32


def test_reads_what_the_safetensors_library_writes(tmp_path):
    numpy_writer = pytest.importorskip("safetensors.numpy")
    made = random_checkpoint()
    folder = write_hf(tmp_path, made)
    numpy_writer.save_file(hf_tensors(made), folder / "model.safetensors", {"format": "pt"})
    same(made, load_checkpoint(folder))


def test_interleave_is_the_documented_permutation():
    rows = np.arange(2 * 6, dtype=np.float32)[:, None]  # 2 heads of 6: halves 0-2 and 3-5
    assert interleave_rope(rows, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_real_model(shared):
    read = load_checkpoint(shared / "models" / "stories260K.bin")
    assert read.shape.parameters == 260_032 and read.shape.kv_heads == 4
    assert 0.01 < read.embedding.std() < 1


# Bad llama2.c files


def test_bin_truncated_at_every_structural_boundary(tmp_path):
    path = write_bin(tmp_path / "m.bin", random_checkpoint(UNTIED))
    data = path.read_bytes()
    s = UNTIED
    sizes = [7, s.vocab * s.dim]
    for rows, columns in [(1, s.dim), (s.q_dim, s.dim), (s.kv_dim, s.dim), (s.kv_dim, s.dim),
                          (s.dim, s.q_dim), (1, s.dim), (s.hidden, s.dim), (s.dim, s.hidden),
                          (s.hidden, s.dim)]:  # fmt: skip
        sizes.append(s.layers * rows * columns)
    sizes += [s.dim, s.context * s.head_dim, s.vocab * s.dim]
    ends = np.cumsum(sizes) * 4
    assert ends[-1] == len(data)
    cuts = {int(end) + extra for end in ends for extra in (-1, 0, 1)} | set(range(HEADER))
    for cut in sorted(cut for cut in cuts if cut < len(data)):
        path.write_bytes(data[:cut])
        message = refused(path)
        if cut >= HEADER:
            assert f"{len(data) - cut} missing" in message
    path.write_bytes(data + b"\0")
    refused(path, "1 too many")


def test_random_headers_never_allocate_more_than_the_file(tmp_path):
    rng = random.Random(1)
    path = tmp_path / "m.bin"
    good = write_bin(path, random_checkpoint()).read_bytes()
    words = [0, 1, 2, 3, 4, 8, 16, 64, 512, 65_536, -1, 2**31 - 1, -(2**31)]
    for i in range(300):
        header = bytearray(good[:HEADER])
        if i % 3 == 0:
            header = bytearray(rng.randbytes(HEADER))
        elif i % 3 == 1:
            header[rng.randrange(HEADER)] ^= rng.randrange(1, 256)
        else:
            header = bytearray(struct.pack("<7i", *(rng.choice(words) for _ in range(7))))
        path.write_bytes(bytes(header) + good[HEADER:])
        tracemalloc.start()
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < len(good) + 65_536, (bytes(header), peak)


def test_absurd_header_in_a_small_file_names_both_sizes(tmp_path):
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<7i", 65_536, 262_144, 256, 1_024, 1_024, 1_048_576, 1_048_576))
    message = refused(path, "the file has 28 bytes")
    assert "dim 65536" in message and "missing" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("index", "name"),
    [(7, r"embedding\[0, 0\]"), (7 + 640 + 16, r"layer1\.attn_norm\[0\]"), (-1, "classifier")],
)
def test_bin_with_a_weight_that_is_not_finite(tmp_path, value, index, name):
    path = write_bin(tmp_path / "m.bin", random_checkpoint(UNTIED))
    words = np.fromfile(path, "<f4")
    words[index] = value
    words.tofile(path)
    refused(path, f"tensor {name}.* is {value}")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"PK\x03\x04" + b"\0" * 60, "never opened; convert it to safetensors"),
        (b"\x80\x02}q\x00" + b"\0" * 60, "never opened; convert it to safetensors"),
        (b"GGUF" + b"\0" * 60, "GGUF is not read"),
        (b"24ka" + b"\0" * 60, "64 bytes is shorter than the 256-byte header"),
        (b"24ka" + b"\0" * 300, "a llama2.c .bin with version 0; only float32 is read: export"),
        (b"ak42" + b"\1\0\0\0" * 60, r"begins with b'ak42.*export it again"),
        (b"version https://git-lfs.github.com/spec/v1\nsize 1234\n", "Git LFS pointer.* 1,234 b"),
        (safetensors_bytes({"a": np.ones(3)}), "give the folder"),
        (b'{"a": 1}' + b" " * 60, "give the folder"),
        (b"\0" * 28, "dim=0 is not a multiple of heads=0"),
    ],
)
def test_files_of_other_formats(tmp_path, data, words):
    path = tmp_path / "m.bin"
    path.write_bytes(data)
    refused(path, words)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl"])
def test_pickles_are_refused_by_suffix(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"\0" * 100)
    refused(path, "convert it to safetensors")


def test_dim_640_is_not_mistaken_for_a_pickle(tmp_path):
    shape = replace(TINY, dim=640, heads=4, head_dim=160, kv_heads=1, hidden=2, layers=1)
    path = write_bin(tmp_path / "m.bin", random_checkpoint(shape))
    assert path.read_bytes()[:3] == b"\x80\x02\0"
    assert load_checkpoint(path).shape == shape


def test_missing_file_and_device(tmp_path):
    refused(tmp_path / "nothing.bin", "no such file")
    refused(tmp_path / ("x" * 300), "cannot be read")
    if os.path.exists("/dev/zero"):
        refused("/dev/zero", "not a regular file")


# Bad Hugging Face folders


def rewrite(folder, change):
    """Let ``change`` edit the header (a dict) or return a new one; data stays."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header = change(header) or header
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def entry(name, **fields):
    return lambda header: header[name].update(fields)


NORM = "model.norm.weight"  # the last tensor of the tied model: 16 values
LAST = 4 * 2 * (16 + 16) + 4 * (40 * 16 + 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 24 * 16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: b"not json" * 9, "not valid JSON"),
        (lambda h: b"[]", "the JSON holds a list"),
        (lambda h: b'{"a": 1, "a": 2}', "appears twice"),
        (lambda h: b"\xff", "not valid JSON"),
        (lambda h: h.pop(NORM) and None, "64 bytes follow the last tensor"),
        (lambda h: h.update({"lm_head.weight": h.pop(NORM)}), "'model.norm.weight' is missing"),
        (lambda h: h.update({"model.bias": h.pop(NORM)}), "'model.bias' is not part of"),
        (entry(NORM, shape=[4, 4]), r"has shape \[4, 4\], config.json needs \[16\]"),
        (entry(NORM, dtype="I32"), "dtype 'I32', only F32, F16, BF16"),
        (entry(NORM, dtype="F16"), "disagree"),
        (entry(NORM, shape=[10**30]), "disagree"),
        (entry(NORM, shape=[-16]), "disagree"),
        (entry(NORM, shape="16"), "disagree"),
        (entry(NORM, shape=[True] * 3), "disagree"),
        (entry(NORM, dtype=None), "disagree"),
        (entry(NORM, data_offsets=[LAST]), "disagree"),
        (entry(NORM, data_offsets=[LAST - 4, LAST + 60]), "it must begin at"),
        (entry(NORM, data_offsets=[LAST + 4, LAST + 68]), "it must begin at"),
        (entry(NORM, data_offsets=[10**12, 10**12 + 64]), "it must begin at"),
        (entry(NORM, dtype="I8", data_offsets=[LAST, LAST - 64]), "it must begin at"),
        (lambda h: h.update({NORM: [1, 2]}), "disagree"),
        (lambda h: h.update({NORM: None}), "disagree"),
    ],
)
def test_bad_safetensors_header(tmp_path, change, words):
    folder = write_hf(tmp_path, random_checkpoint())
    rewrite(folder, change)
    refused(folder, words)


def test_safetensors_truncated_anywhere(tmp_path):
    folder = write_hf(tmp_path, random_checkpoint())
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    cuts = [0, 1, 7, 8, 9, start - 1, start, start + 1, start + 40 * 16 * 4, len(data) - 1]
    for cut in cuts:
        path.write_bytes(data[:cut])
        refused(folder, "it is truncated|empty" if cut < start else "it must begin at")
    path.write_bytes(data + b"\0")
    refused(folder, "1 bytes follow the last tensor")


def test_random_safetensors_damage_raises_nothing_but_user_errors(tmp_path):
    rng = random.Random(2)
    folder = write_hf(tmp_path, random_checkpoint(replace(TINY, layers=1)))
    path = folder / "model.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    caught = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(header)] = rng.randrange(256)
        path.write_bytes(data)
        try:
            load_checkpoint(folder)  # damage to __metadata__ or a space may go unnoticed
        except UserError as error:
            assert "\n" not in str(error)
            caught += 1
    assert caught > 200


def test_huge_header_length_is_not_believed(tmp_path):
    folder = write_hf(tmp_path, random_checkpoint())
    path = folder / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(folder, f"says it has {2**62} bytes")


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_hf_weight_that_is_not_finite(tmp_path, dtype):
    made = random_checkpoint()
    made.layers[1]["w2"][3, 5] = np.nan
    refused(write_hf(tmp_path, made, dtype), r"model.layers.1.mlp.down_proj.weight\[3, 5\] is nan")


def test_hf_folder_without_weights(tmp_path):
    folder = write_hf(tmp_path, random_checkpoint())
    (folder / "model.safetensors").unlink()
    refused(folder, "no such file")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    refused(folder, "pickled pytorch_model.bin")


def test_hf_config_of_another_model(tmp_path):
    refused(write_hf(tmp_path, random_checkpoint(), config={"num_hidden_layers": 1}), "layers.1")
    refused(write_hf(tmp_path, random_checkpoint(), config={"num_hidden_layers": 3}), "missing")
    refused(write_hf(tmp_path, random_checkpoint(), config={"intermediate_size": 32}), "24, 16")


def test_tied_model_may_repeat_the_embedding_but_not_contradict_it(tmp_path):
    made = random_checkpoint()
    folder = write_hf(tmp_path, made)
    tensors = hf_tensors(made) | {"lm_head.weight": made.embedding}
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    same(made, load_checkpoint(folder))
    tensors["lm_head.weight"] = made.embedding * 2
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    refused(folder, "lm_head.weight differs from model.embed_tokens.weight")


@pytest.mark.parametrize("config", [{"tie_word_embeddings": False}, {"tie_word_embeddings": None}])
def test_without_a_classifier_the_embedding_is_it(tmp_path, config):
    made = random_checkpoint()
    read = load_checkpoint(write_hf(tmp_path, made, config=config))
    same(made, read)
    assert read.shape.tied and read.classifier is read.embedding


# Shards


@pytest.mark.parametrize("count", [1, 3])
def test_shards_round_trip(tmp_path, count):
    made = random_checkpoint(UNTIED)
    same(made, load_checkpoint(write_shards(tmp_path, made, count)))


SHARD = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / SHARD).unlink(), f"{SHARD}: no such file.*names it; download all 2"),
        (lambda f: (f / SHARD).write_bytes(b""), f"{SHARD}: the file is empty"),
        (lambda f: (f / SHARD).write_bytes(b"x" * 99), f"{SHARD}: the header says it has"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "index.json, which is missing"),
        (lambda f: edit_index(f, lambda m: m.clear()), "weight_map does not name a file"),
        (lambda f: edit_index(f, lambda m: m.update({NORM: "../x"})), "weight_map does not name"),
        (lambda f: edit_index(f, lambda m: m.update({NORM: 3})), "weight_map does not name a fi"),
        (lambda f: edit_index(f, lambda m: m.update({NORM: "x"})), "x: no such file, but"),
        (lambda f: edit_index(f, lambda m: m.update({"lm_head.weight": SHARD})), "says is in it"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "the JSON holds a list"),
    ],
)
def test_damaged_shards(tmp_path, spoil, words):
    spoil(write_shards(tmp_path, random_checkpoint()))
    refused(tmp_path, words)


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


def test_shards_of_another_model(tmp_path):
    write_shards(tmp_path, random_checkpoint())
    config = json.loads((tmp_path / "config.json").read_text())
    for layers, words in ((3, "'model.layers.2.+' is missing; use"), (1, "not part of a 1-layer")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        refused(tmp_path, words)


def test_only_the_files_that_are_read_count(tmp_path):
    made = random_checkpoint()
    one, many = write_hf(tmp_path / "one", made), write_shards(tmp_path / "many", made)
    leftovers = ("pytorch_model.bin", "optimizer.pt", "old.safetensors", "training_args.bin")
    for folder in (one, many):
        for name in leftovers:
            with (folder / name).open("wb") as file:
                file.truncate(1 << 40)  # sparse: whoever reads it does not come back
        same(made, load_checkpoint(folder))
    index = "model.safetensors.index.json"
    (one / index).write_text("broken")  # a whole model.safetensors is what others read, too
    same(made, load_checkpoint(one))


# Folders that hold something else


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "pickled pytorch_model.bin can run any code"),
        ("pytorch_model.bin.index.json", "pickled pytorch_model.bin can run any code"),
        ("adapter_model.safetensors", "it holds an adapter: merge it"),
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json, which is missing"),
        ("m.gguf", "GGUF is not read: give the Hugging Face folder"),
        ("other.safetensors", "other.safetensors that name if it is the whole model"),
        ("stories.bin", "stories.bin is a llama2.c model, give that file"),
    ],
)
def test_a_folder_that_holds_another_format_says_what_to_do(tmp_path, name, words):
    folder = write_hf(tmp_path, random_checkpoint())
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"x")
    refused(folder, words)


def test_a_folder_without_config_says_which_to_give(tmp_path):
    refused(tmp_path, "config.json: no such file; give a Hugging Face folder")
    (tmp_path / "m.bin").write_bytes(b"x")
    refused(tmp_path, "m.bin is a llama2.c model, give that file")
    inner = write_hf(tmp_path / "snapshots", random_checkpoint())
    refused(tmp_path, f"give {inner}$")


def test_files_that_only_stand_for_others(tmp_path):
    folder = write_hf(tmp_path, random_checkpoint())
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 98765\n"
    for name in ("config.json", "model.safetensors"):
        path, kept = folder / name, (folder / name).read_bytes()
        path.write_text(pointer)
        refused(folder, f"{name}: is a Git LFS pointer to a file of 98,765 bytes.* 'git lfs pull'")
        path.unlink()
        path.symlink_to("blobs/nowhere")
        refused(folder, f"{name}: a link to a file that is not there; download it again")
        path.unlink()
        path.mkdir()
        refused(folder, f"{name}: not a regular file; give a file, not a folder")
        path.rmdir()
        path.write_bytes(kept)
    load_checkpoint(folder)

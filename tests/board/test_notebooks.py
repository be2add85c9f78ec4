"""The notebooks, executed: against virtual boards, in a kernel of this environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PYNQ, ROOT
from tokenfabric.quant.qmodel import QModel
from tokenfabric.quant.quantize import RECIPES

NOTEBOOKS = ROOT / "notebooks"
STORY = "She saw something shiny under a bush."

pytestmark = pytest.mark.skipif(PYNQ < 4, reason="notebooks need Jupyter and the simulator")


def execute(name, tmp_path, monkeypatch):
    """The outputs of the code cells; fails where one of them does."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("JUPYTER_PATH", str(Path(sys.prefix, "share", "jupyter")))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def shown(outputs, kind):
    """What the cells showed of a MIME type."""
    found = [output.data.get(kind) for cell in outputs for output in cell if "data" in output]
    return [data for data in found if data]


def printed(outputs):
    """What the cells wrote, without the progress bars."""
    lines = [o.text for cell in outputs for o in cell if o.output_type == "stream"]
    return "".join(lines)


def test_first_tokens(tmp_path, monkeypatch):
    monkeypatch.delenv("PYNQ_REMOTE_DEVICES", raising=False)
    outputs = execute("1_first_tokens.ipynb", tmp_path, monkeypatch)
    story, more, both = shown(outputs, "text/html")
    assert STORY in story and "of the DRAM limit" in more and both.count("<small>") == 2
    assert "tokens/s" in printed(outputs)


def test_demo_board(tmp_path):
    """What ``make demo-board`` runs."""
    play = [sys.executable, NOTEBOOKS / "play", NOTEBOOKS / "1_first_tokens.ipynb"]
    environment = {name: v for name, v in os.environ.items() if name != "PYNQ_REMOTE_DEVICES"}
    done = subprocess.run(
        play, capture_output=True, text=True, timeout=600, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert STORY in done.stdout and "(virtual)" in done.stdout


def test_inside_the_softmax(tmp_path, monkeypatch):
    outputs = execute("2_inside_the_softmax.ipynb", tmp_path, monkeypatch)
    assert len(shown(outputs, "image/png")) == 5
    assert "every weight equal: True" in printed(outputs)
    assert "the multiplier, too: True" in printed(outputs)


def test_quantize_your_model(tmp_path, monkeypatch):
    outputs = execute("3_quantize_your_model.ipynb", tmp_path, monkeypatch)
    assert len(shown(outputs, "image/png")) == 4
    divergence, same = re.search(r"w8 +KL (\S+), top-1 (\S+) %", printed(outputs)).groups()
    assert 0 < float(divergence) < 0.001 and float(same) > 98
    model = QModel.read(tmp_path / "my_model.tfm")
    assert model.recipe in RECIPES and model.tokenizer


def test_on_the_board(board, tmp_path, monkeypatch):
    monkeypatch.setenv("PYNQ_REMOTE_DEVICES", board.address)
    monkeypatch.setenv("TOKENFABRIC_BITSTREAM", str(board.bitfile))
    outputs = execute("5_on_the_board.ipynb", tmp_path, monkeypatch)
    assert "(virtual), accelerator tiny" in printed(outputs)
    story, *_ = shown(outputs, "text/html")
    assert STORY in story


def test_how_fast_on_your_board(tmp_path, monkeypatch):
    outputs = execute("4_how_fast_on_your_board.ipynb", tmp_path, monkeypatch)
    assert len(shown(outputs, "image/png")) == 2
    errors = re.findall(r"([+-]\S+)% of the measured cycles", printed(outputs))
    assert len(errors) == 2 and max(abs(float(error)) for error in errors) <= 5

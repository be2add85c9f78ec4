"""The notebooks as files: no outputs, nothing of the machine they ran on, code for every Python."""

import ast
import json
import runpy

import pytest
from conftest import ROOT

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_file_holds(path):
    text = path.read_text(encoding="utf-8")
    strip = runpy.run_path(str(FOLDER / "strip"))["strip"]
    assert text == strip(text), f"run notebooks/strip {path.name}"
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        assert max(map(len, source.split("\n"))) <= 100
        if cell["cell_type"] == "code":
            ast.parse(source, feature_version=(3, 10))


def test_what_is_stripped():
    strip = runpy.run_path(str(FOLDER / "strip"))["strip"]
    cell = {"cell_type": "code", "id": "a", "source": ["1\n"], "metadata": {"tags": ["x"]}}
    cell |= {"execution_count": 3, "outputs": [{"output_type": "stream", "text": "/home/me"}]}
    ran = {"cells": [cell], "metadata": {"language_info": {"version": "3.11.7"}}, "nbformat": 4}
    kept = json.loads(strip(json.dumps(ran)))
    (cell,) = kept["cells"]
    assert (cell["outputs"], cell["execution_count"], cell["metadata"]) == ([], None, {})
    assert cell["source"] == ["1\n"] and "3.11" not in strip(json.dumps(ran))


def test_there_are_notebooks():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


def test_on_a_board_everything_is_done_as_on_a_virtual_one():
    first, board = (
        [c["source"] for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        for path in (NOTEBOOKS[0], NOTEBOOKS[-1])
    )
    assert len(first) > 5 and first[1:] == board[2:]

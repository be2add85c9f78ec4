"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and texts beside the checkout; skips the test without it."""
    path = Path(os.environ.get("TOKENFABRIC_SHARED", ROOT.parent / "shared"))
    if not (path / "models" / "stories260K.bin").exists():
        pytest.skip(f"no real models at {path}; set TOKENFABRIC_SHARED")
    return path

"""Fixtures shared by all tests."""

import os
import signal
import sys
from pathlib import Path

import pytest
from tokenfabric.flow.toolchain import cache_directory

# A shell's background job, as CI may be, ignores SIGINT, and so would every process started here:
# those that test Ctrl-C need it. One BLAS thread per worker: more of them only wait for each other.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(getattr(signal, "SIGHUP", signal.SIGINT)) is signal.SIG_IGN:  # nohup's
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Tests have caches of their own; that yosys is prepared once is enough for all of them.
os.environ.setdefault("YOWASP_CACHE_DIR", str(cache_directory() / "yowasp"))

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "models" / "stories"))  # the trainer of the shipped model


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and texts beside the checkout; skips the test without it."""
    path = Path(os.environ.get("TOKENFABRIC_SHARED", ROOT.parent / "shared"))
    if not (path / "models" / "stories260K.bin").exists():
        pytest.skip(f"no real models at {path}; set TOKENFABRIC_SHARED")
    return path

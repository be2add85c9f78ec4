"""Quantizing gives the same file, byte for byte, whatever BLAS, numpy and the processor do.

A small checkpoint in every environment, the shipped one in this; tests/board does both with the
numpy of PYNQ.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from quantized_hash import FOUND
from tokenfabric.quant.quantize import quantize_checkpoint

from tokenfabric.commands.inputs import load_checkpoint

ENVIRONMENTS = {
    "one thread": {},
    "two threads": {"OPENBLAS_NUM_THREADS": "2"},
    "Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "Zen": {"OPENBLAS_CORETYPE": "Zen"},
    "SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "no fused multiply-add": {"OPENBLAS_CORETYPE": "Nehalem"},
    "numpy's plain loops": {"NPY_DISABLE_CPU_FEATURES": ""},  # filled in: all that it would use
}
KERNELS = {"Zen": "Haswell"}  # where OpenBLAS was built without kernels of its own for it


def cpu_features():
    """As Linux names them; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    return set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()


def dispatched():
    """What numpy chooses among at run time and finds in this processor."""
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    except ImportError:  # numpy 1
        from numpy.core._multiarray_umath import __cpu_dispatch__, __cpu_features__
    return [name for name in __cpu_dispatch__ if __cpu_features__[name]]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_model_file_is_the_same_everywhere(name, tmp_path):
    if name == "SkylakeX" and "avx512f" not in cpu_features():
        pytest.skip("this processor cannot run AVX-512, which OpenBLAS's SkylakeX kernels are of")
    settings = dict(ENVIRONMENTS[name])
    if "NPY_DISABLE_CPU_FEATURES" in settings:
        settings["NPY_DISABLE_CPU_FEATURES"] = " ".join(dispatched())
    unset = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
    environment = {key: value for key, value in os.environ.items() if key not in unset}
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OPENBLAS_VERBOSE": "2"} | settings
    command = [sys.executable, Path(__file__).with_name("quantized_hash.py"), tmp_path / "m.tfm"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    core = settings.get("OPENBLAS_CORETYPE")
    if core and "Core: " in done.stderr:  # OpenBLAS says which kernels it took
        assert f"Core: {core}" in done.stderr or f"Core: {KERNELS.get(core)}" in done.stderr
    assert done.stdout.strip() == FOUND


def test_the_shipped_model_is_the_file_of_the_tests(tmp_path):
    model = quantize_checkpoint(*load_checkpoint(ROOT / "models" / "stories", None))
    model.write(tmp_path / "m.tfm")
    found, want = (
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "m.tfm", ROOT / "tests" / "data" / "stories.tfm")
    )
    assert found == want, "meant? tokenfabric quantize models/stories -o tests/data/stories.tfm"

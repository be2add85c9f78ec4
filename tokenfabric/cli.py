"""The command line: parsing, and what becomes of errors. The commands are in ``commands/``.

Nothing of ours is imported before a command needs it, so that ``--help`` is quick and the base
install, with numpy only, can do all that numpy can.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from tokenfabric.core.errors import UserError, missing_package

__all__ = ["main"]

COMMANDS = (
    "generate",
    "quantize",
    "evaluate",
    "compile",
    "inspect",
    "trace",
    "perf",
    "explore",
    "verilog",
    "synth",
    "board",
    "bitstream",
    "doctor",
)
USER_ERROR, FAILURE, INTERRUPTED, BROKEN_PIPE, SIGNALLED = 2, 1, 130, 141, 128


class _Parser(argparse.ArgumentParser):
    """Bad options are one line like every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see '{self.prog} --help'")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets ``run`` to its function."""
    parser = _Parser(
        prog="tokenfabric",
        description="From a Llama-style checkpoint to tokens streaming off an FPGA.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.set_defaults(run=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name in COMMANDS:
        module = importlib.import_module(f"tokenfabric.commands.{name}")
        summary = str(module.__doc__).splitlines()[0]
        child = commands.add_parser(
            name, help=summary, description=module.__doc__, allow_abbrev=False
        )
        module.add_arguments(child)
        child.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code. 2: bad input, 1: it failed, 130: interrupted.

    For the main thread, since it looks after SIGTERM and SIGHUP while it runs.
    """
    ending = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in ending}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup: it is to go on without its terminal
            signal.signal(number, _terminate)
    try:
        return _guarded(argv)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _guarded(argv: Sequence[str] | None) -> int:
    """Run one command, and make an exit code and at most one line of every error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a story may hold what the terminal cannot show
            stream.reconfigure(errors="replace")
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(str(error), USER_ERROR)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone: nothing more may be written, not even when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        what = error.filename or "the system"
        return _say(f"{what}: {error.strerror}; check the path and its permissions", USER_ERROR)
    except MemoryError:
        return _say("out of memory; use a smaller model or --context", USER_ERROR)
    except ModuleNotFoundError as error:
        return _say(str(missing_package(error)), USER_ERROR)
    except RuntimeError as error:
        from tokenfabric.host.device import DeviceError, DeviceLost, DeviceTimeout
        from tokenfabric.sim.verilator import SimulationError

        if not isinstance(error, (DeviceError, DeviceLost, DeviceTimeout, SimulationError)):
            raise
        return _say(str(error), FAILURE)


def _run(argv: Sequence[str] | None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        from tokenfabric import __version__

        print(f"tokenfabric {__version__}")
        return 0
    if args.run is None:
        raise UserError(f"no command given; there are: {', '.join(COMMANDS)}")
    return int(args.run(args))


def _say(text: str, code: int) -> int:
    print("tokenfabric: error: " + " ".join(text.split()), file=sys.stderr)
    return code


def _terminate(number: int, _: object) -> NoReturn:
    sys.exit(SIGNALLED + number)  # so that everything half-written is removed on the way out


if __name__ == "__main__":
    sys.exit(main())

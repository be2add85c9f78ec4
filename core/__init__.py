"""The contract: what hardware and software share. numpy only."""

__version__ = "0.1.0"

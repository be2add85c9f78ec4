"""Record tests/data/board.jsonl: a run through PYNQ on a virtual board (make transcripts)."""

import os
import sys
from pathlib import Path

from tokenfabric.sim.board import virtual_board

from tokenfabric.cli import main

DATA = Path(__file__).resolve().parents[1] / "data"

if __name__ == "__main__":
    with virtual_board("kv260", preset="tiny") as board:
        os.environ.update(board.environment)
        command = ["generate", "Once upon a time", "--model", str(DATA / "stories.tfm")]
        command += ["--context", "128", "-n", "24", "--on", "board"]
        command += ["--bitstream", str(board.bitfile), "--record", str(DATA / "board.jsonl")]
        sys.exit(main(command))

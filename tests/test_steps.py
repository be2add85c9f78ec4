"""A run of the sequencer against a model of one: the events in order, and their cycles."""

from hashlib import sha256

import pytest
from presets import TINY16
from runs import FAULTS, Job, Run
from tokenfabric.core.config import preset
from tokenfabric.rtl.steps import Steps

# Ports of 4, 8 and 16 bytes: the ring's entry is two beats, one, and half of one.
CONFIGS = {cfg.name: cfg for cfg in (preset("ulx3s"), preset("tiny"), TINY16)}
ALL = pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS)
JOBS = 40

# Of the cycles of all events of the jobs below, as they were when Steps was one state machine.
KNOWN = {"ulx3s": "dba3b2f41bed4a1b", "tiny": "c81be24ad47069bb", "tiny16": "f0dbba255213dd2c"}


def runs_of(cfg):
    """The same ones every time: whole, stopped somewhere, and with every fault."""
    for seed in range(JOBS):
        stop_at = None if seed % 3 else 20 + 17 * seed
        yield Run(Steps(cfg), Job(cfg, seed), seed, stop_at)
    for seed, fault in enumerate([*FAULTS, "position", "position"]):
        yield Run(Steps(cfg), Job(cfg, seed, fault), seed)


@ALL
def test_a_run_is_as_the_model_says_and_takes_as_long_as_ever(cfg):
    known = sha256()
    kinds = set()
    for run in runs_of(cfg):
        run.run().check()
        kinds |= {event[:1] if event[0] != "error" else event for event in run.events}
        known.update(run.fingerprint().encode())
    assert len(kinds) == 9  # among them two errors
    assert known.hexdigest()[:16] == KNOWN[cfg.name]

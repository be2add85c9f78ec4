# amaranth: UnusedElaboratable=no
"""ATTEND: what is asked of memory, of the array and of the softmax, and in which cycle."""

import random

import pytest
from attention_jobs import Attend, Bench
from presets import TINY16
from tokenfabric.core.config import preset
from tokenfabric.rtl.attention import AttentionControl, AttentionPlan

CONFIGS = {name: preset(name) for name in ("tiny", "pynq-z2", "kv260", "ulx3s")}
CONFIGS["tiny16"] = TINY16
STALLS = {"none": (0.0, 2), "some": (0.3, 20), "long": (0.8, 60)}
CASES = [(name, stall) for name in ("tiny", "pynq-z2", "kv260") for stall in STALLS]
CASES += [("ulx3s", "some"), ("tiny16", "some")]


def shapes(cfg):
    """Rows of each group, query heads per KV head: at, below and above ``max_rows`` pairs."""
    most = cfg.max_rows
    return [([1], 1), ([most], 1), ([1], most), ([1], most + 1), ([2] * (most // 2), 2)]


def attends(cfg, seed):
    rng = random.Random(seed)
    return [Attend(cfg, rng, shape) for shape in (*shapes(cfg), None, None, None)]


class PlanBench(Bench):
    def __init__(self, cfg):
        unit = AttentionPlan(cfg)
        streams = {name: getattr(unit, name) for name in ("fetch", "kv", "jobs")}
        super().__init__(cfg, unit, [(unit.row_index, unit.row)], streams)

    def taken(self, ctx, name):
        """A job is handed out before anything is asked for it."""
        asked = len(self.found["fetch"]) + len(self.found["kv"])
        assert name == "jobs" or asked <= 5 * len(self.found["jobs"])


class ControlBench(Bench):
    """``passes``: (table, matmul, softmax) of each pass as they were given."""

    def __init__(self, cfg):
        unit = AttentionControl(cfg)
        streams = {name: getattr(unit, name) for name in ("fetch", "kv", "matmul", "softmax")}
        ports = [(unit.row_index, unit.row), (unit.plan_index, unit.plan_row)]
        busy = {"matmul": unit.matmul_busy, "softmax": unit.softmax_busy}
        super().__init__(cfg, unit, ports, streams, busy, (unit.busy, unit.table_en))
        self.entries, self.passes = [], []

    def watch(self, ctx, now):
        unit = self.unit
        if ctx.get(unit.table_en):
            assert not ctx.get(unit.matmul_busy), "the array still uses the table"
            assert ctx.get(unit.table_index) == len(self.entries)
            self.entries.append(ctx.get(unit.table))
            now += [ctx.get(unit.table_index), ctx.get(unit.table.as_value())]

    def taken(self, ctx, name):
        if name == "matmul":
            self.passes.append([self.entries, self.found["matmul"][-1], None])
            self.entries = []
            assert not (ctx.get(self.unit.softmax_busy) and len(self.passes) % 2 == 0)
        elif name == "softmax":
            assert not ctx.get(self.unit.matmul_busy), "the scores are not complete"
            self.passes[-1][2] = self.found["softmax"][-1]

    def idle(self, ctx):
        return not ctx.get(self.unit.busy)


def fields(payload, names):
    return {name: getattr(payload, name) for name in names}


def check_requests(bench, wanted):
    found = bench.found
    assert [(f.offset, f.beats, f.tag) for f in found["fetch"]] == [
        fetch for attend in wanted for fetch in attend.fetches
    ]
    assert [(c.is_v, c.positions, c.head_chunks) for c in found["kv"]] == [
        command for attend in wanted for command in attend.kv
    ]


def check_passes(bench, wanted):
    """Of a table's entry only one address counts: K's source, V's destination."""
    cfg, expected = bench.cfg, [each for attend in wanted for each in attend.passes]
    assert len(bench.passes) == len(expected)
    for (entries, matmul, softmax), (table, command, scores) in zip(bench.passes, expected):
        is_v = scores is None
        assert [(e.dst if is_v else e.src, e.limit) for e in entries] == table
        if is_v:  # p of pair n: where SoftmaxUnit has it
            scores_of = cfg.max_context // cfg.cols
            assert [e.src for e in entries] == [n * scores_of for n in range(len(entries))]
            assert softmax is None
        else:
            assert fields(softmax, scores) == scores
        assert fields(matmul, command) == command


# (cycles, hash of every cycle) of the first unit that was found right
PLAN_CYCLES = {
    ("tiny", "none"): (492, "cb1fb3cb52c1f65f"),
    ("tiny", "some"): (631, "8a130ec444ecc4a4"),
    ("tiny", "long"): (1940, "5b1a08552fc51c40"),
    ("pynq-z2", "none"): (666, "511beffc2ae6a42d"),
    ("pynq-z2", "some"): (872, "142989933a832415"),
    ("pynq-z2", "long"): (2485, "6370e1d17f7f79ef"),
    ("kv260", "none"): (995, "3784b706c5ef2df8"),
    ("kv260", "some"): (1290, "03ea93028c53f6bb"),
    ("kv260", "long"): (3873, "23fec2205b824987"),
    ("ulx3s", "some"): (615, "fddd37943314f53f"),
    ("tiny16", "some"): (631, "454d3778ccae0752"),
}
CONTROL_CYCLES = {
    ("tiny", "none"): (999, "40a64eabaaf99d78"),
    ("tiny", "some"): (2222, "ae6ae9f04fe63516"),
    ("tiny", "long"): (5639, "66124073c47b7534"),
    ("pynq-z2", "none"): (2347, "0956f21efa75ef45"),
    ("pynq-z2", "some"): (4662, "ac968a7f29dcfecd"),
    ("pynq-z2", "long"): (11740, "6969342ff7d6dcc6"),
    ("kv260", "none"): (1863, "ed4cc761b6a266cf"),
    ("kv260", "some"): (4007, "b8959195e8052db9"),
    ("kv260", "long"): (9603, "42c4b36cb193dc2f"),
    ("ulx3s", "some"): (2083, "603d1d2053b28bcb"),
    ("tiny16", "some"): (1976, "3522976720fd1aee"),
}


@pytest.mark.parametrize(("name", "stall"), CASES)
def test_plan(name, stall):
    """Every fetch, K, V and job of random instructions and row tables, each in its cycle."""
    cfg = CONFIGS[name]
    chance, _ = STALLS[stall]
    wanted = attends(cfg, f"plan {name}")
    bench = PlanBench(cfg).run(wanted, random.Random(stall), chance)
    check_requests(bench, wanted)
    jobs = bench.found["jobs"]
    assert [(j.first, j.rows, j.head, j.heads, j.positions) for j in jobs] == [
        job for attend in wanted for job in attend.jobs
    ]
    last = [n == len(attend.jobs) for attend in wanted for n in range(1, len(attend.jobs) + 1)]
    assert [j.last for j in jobs] == last
    assert bench.digest() == PLAN_CYCLES[name, stall]


@pytest.mark.parametrize(("name", "stall"), CASES)
def test_control(name, stall):
    """Tables and commands of random instructions and row tables, each in its cycle."""
    cfg = CONFIGS[name]
    chance, longest = STALLS[stall]
    wanted = attends(cfg, f"control {name}")
    bench = ControlBench(cfg).run(wanted, random.Random(stall), chance, longest)
    check_requests(bench, wanted)
    check_passes(bench, wanted)
    assert bench.digest() == CONTROL_CYCLES[name, stall]

"""One suite of programs on every simulated device, bit for bit; and what must go wrong does.

The Verilated devices of a preset share one library: building it takes minutes, once.
"""

import re
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core import isa
from tokenfabric.core.config import preset
from tokenfabric.core.image import PAGE
from tokenfabric.core.isa import DESCRIPTOR, RowFlag
from tokenfabric.core.registers import ERROR_TEXT, Error, State
from tokenfabric.core.shape import ModelShape
from tokenfabric.flow.verilog import cached_verilog
from tokenfabric.host.device import DeviceError, raise_error, run
from tokenfabric.host.session import NO_TOKEN, Job, Session, Step
from tokenfabric.host.verify import replay
from tokenfabric.quant.qmodel import Linear, QModel
from tokenfabric.sim.devices import make_device
from tokenfabric.sim.dram import DRAMS

DEADLINE = 120.0  # seconds without a new token
DUMPED = 80  # rows of logits that the memory has room for
SHAPES = {
    # Nothing is a multiple of anything: 3 heads on 1 KV head, partial tiles, vocabulary, groups.
    "odd": ModelShape(dim=96, hidden=200, layers=2, heads=3, kv_heads=1, head_dim=32, vocab=777,
                      context=128, tied=False),
    # A head is not a whole row-block of pynq-z2, nor the model a whole chunk; as many KV heads.
    "narrow": ModelShape(dim=36, hidden=68, layers=1, heads=4, kv_heads=4, head_dim=22, vocab=131,
                         context=256, tied=True),
    "long": ModelShape(dim=32, hidden=32, layers=1, heads=4, kv_heads=2, head_dim=16, vocab=40,
                       context=2048),
    "small": ModelShape(dim=32, hidden=48, layers=1, heads=2, kv_heads=1, head_dim=16, vocab=50,
                        context=64, tied=False),
}  # fmt: skip
PRESETS = ("tiny", "pynq-z2", "kv260", "ulx3s")
each_preset = pytest.mark.parametrize("preset_name", PRESETS)
verilator = pytest.mark.verilator


@lru_cache
def random_model(name):
    model = QModel.random(SHAPES[name], seed=len(name))
    for layer in model.layers:  # as in a quantized model, gate and up differ in their shifts
        up = layer.linears["w3"]
        layer.linears["w3"] = Linear(up.weight, (up.mult >> 3).astype(np.uint16), up.shift - 3)
        if name == "long":
            louder(layer)
    return model


def louder(layer):
    """Saturates every activation somewhere."""
    for matrix, bits in (
        (layer.linears["wq"], 5),
        (layer.linears["wk"], 5),
        (layer.linears["wv"], 3),
        (layer.linears["wo"], 14),
    ):
        matrix.shift -= bits
    for matrix, bits in (
        (layer.linears["w1"], 5),
        (layer.linears["w3"], 5),
        (layer.linears["w2"], 14),
    ):
        matrix.shift -= bits
    layer.norms["attn_norm"].out_shift -= 5
    layer.score_shift -= 4


@lru_cache
def image_of(name, preset_name, slots=1):
    cfg = preset(preset_name)
    model = random_model(name)
    context = min(model.shape.context, cfg.max_context)
    return compile_model(model, cfg, name=name, context=context, slots=slots)


def device_for(image, kind="verilator", **arguments):
    return make_device(kind, preset(image.preset), image.memory(DUMPED), **arguments)


def assert_exact(jobs, image, device, cache=None):
    """Tokens, logits and saturations of the jobs, and the whole KV cache, equal golden's.

    ``cache``: what stood in the cache before.
    """
    golden = device_for(image, "golden")
    if cache is not None:
        golden.write(image.map.kv, cache)
    assert replay(jobs, image, device, golden) is None
    at, size = image.map.kv, image.map.end - image.map.kv
    assert np.array_equal(device.read(at, size), golden.read(at, size))


def row(token, position, slot=0, *, dump=True, stop=False, want=True):
    flags = RowFlag(0)
    for is_set, flag in ((want, RowFlag.WANT_LOGITS), (dump, RowFlag.DUMP_LOGITS)):
        flags |= flag if is_set and want else RowFlag(0)
    flags |= RowFlag.STOP if stop else RowFlag(0)
    return {"token": token, "position": position, "slot": slot, "flags": int(flags)}


def finished_job(device, image, descriptor, rows):
    """The Job of the run that is over on the device."""
    state, done, _ = device.poll()
    assert state is not State.RUNNING
    ring = device.read(image.map.ring, 8 * rows * done).view("<u4").reshape(done, rows, 2)
    job = Job(descriptor, rows, [Step(list(map(int, s[:, 0])), int(s[0, 1])) for s in ring])
    flags = descriptor[isa.DESCRIPTOR_WORDS :].reshape(-1, isa.ROW_WORDS)[:, 2]
    dumping = int(np.count_nonzero(flags & RowFlag.DUMP_LOGITS))
    if dumping and done:
        data = device.read(image.map.logits, dumping * done * image.map.logits_stride)
        job.logits = data.view("<i4").reshape(dumping * done, -1)
    return job


def run_rows(device, image, rows, **settings):
    """One job over the rows, as the image describes it; the image is in memory already."""
    descriptor = image.descriptor(rows, **settings)
    device.write(isa.JOB, descriptor)
    run(device, DEADLINE)
    return finished_job(device, image, descriptor, len(rows))


def loaded(image, kind="verilator", **arguments):
    device = device_for(image, kind, **arguments)
    device.write(PAGE, image.payload)
    return device


# --- the programs -----------------------------------------------------------------------------


def generate(device, image, prompt, count, **settings):
    session = Session(device, image, dump=True, deadline=DEADLINE)
    return list(session.generate(prompt, count, **settings)), session


@pytest.mark.slow
def test_pysim_equals_golden():
    image = image_of("small", "tiny")
    device = device_for(image, "pysim")
    tokens, session = generate(device, image, [5, 6], 2)
    assert len(tokens) == 2 and [job.rows for job in session.jobs] == [2, 1]
    assert_exact(session.jobs, image, device)


@verilator
@each_preset
@pytest.mark.parametrize("name", ["odd", "narrow"])
def test_prompts_of_every_length(name, preset_name):
    """One row, around a step's worth of rows, several steps; and a second prompt after them."""
    image = image_of(name, preset_name)
    most = preset(preset_name).max_rows
    assert image.rows == most
    rng = np.random.default_rng(most)
    for length in (1, 5, most - 1, most, most + 1, 2 * most + 8):
        device = device_for(image)
        prompt = rng.integers(image.vocab, size=length).tolist()
        tokens, session = generate(device, image, prompt, 3)
        more = list(session.generate([tokens[-1], 1], 2))
        assert len(tokens + more) == 5
        assert_exact(session.jobs, image, device)


@verilator
@each_preset
def test_rows_of_several_slots(preset_name):
    """Slots at different positions, several rows of one, some without logits, some not dumped."""
    image = image_of("odd", preset_name, slots=5)
    rng = np.random.default_rng(5)
    device, jobs, used = loaded(image), [], [0] * 5
    most = preset(preset_name).max_rows
    for _ in range(6):
        rows = []
        for slot in rng.permutation(5).tolist():
            for _ in range(int(rng.integers(0, 5))):
                if len(rows) == most:
                    break
                want, dump = rng.random() < 0.7, rng.random() < 0.6
                token = int(rng.integers(image.vocab))
                rows.append(row(token, used[slot], slot, want=want, dump=dump))
                used[slot] += 1
        if rows:
            jobs.append(run_rows(device, image, rows))
    assert len(jobs) > 4 and sum(job.logits is not None for job in jobs) > 2
    assert_exact(jobs, image, device)


@verilator
@each_preset
def test_a_batch_decodes_and_its_rows_stop_at_different_times(preset_name):
    image = image_of("odd", preset_name, slots=4)
    device = loaded(image)
    starts = [(7, 0), (700, 3), (41, 1), (7, 9)]
    rows = [row(t, p, slot, stop=slot != 2) for slot, (t, p) in enumerate(starts)]
    free = run_rows(device, image, rows, steps=12)
    chosen = np.array([step.tokens for step in free.steps])
    assert chosen.shape == (12, 4)
    # The first stops at step 2, another at step 5, the third never asks for it.
    stops = [int(chosen[2, 0]), int(chosen[5, 1]), int(chosen[1, 2])]
    stopped = run_rows(device, image, rows, steps=12, stops=stops)
    assert_exact([free, stopped], image, device)
    ends = [
        next((n for n, t in enumerate(chosen[:, slot]) if t in stops and slot != 2), 11)
        for slot in range(4)
    ]
    found = np.array([step.tokens for step in stopped.steps])
    for slot, end in enumerate(ends):
        assert np.array_equal(found[: end + 1, slot], chosen[: end + 1, slot])
        assert (found[end + 1 :, slot] == NO_TOKEN).all()
    assert len(found) == 12 and ends[0] <= 2 and ends[1] <= 5
    only = [r for slot, r in enumerate(rows) if slot != 2]
    ended = run_rows(device, image, only, steps=12, stops=[*stops, int(chosen[8, 3])])
    assert len(ended.steps) < 12  # all rows have stopped
    assert_exact([free, stopped, ended], image, device)


@verilator
@each_preset
def test_the_end_of_a_long_context(preset_name):
    """A cache of random bytes: every position counts, scores and sums reach their limits."""
    image = image_of("long", preset_name, slots=2)
    rng = np.random.default_rng(9)
    m, last = image.map, image.context - 1
    cache = rng.integers(0, 256, m.end - m.kv, np.uint8)
    scales = m.kv + 2 * m.v_offset - m.kv
    cache[scales:].view("<u2")[:] = rng.integers(1, 1 << 15, (cache.size - scales) // 2)
    device = loaded(image)
    device.write(m.kv, cache)
    rows = [row(3, last, 0), row(4, last - 9, 1), row(5, last - 8, 1)]
    jobs = [run_rows(device, image, rows), run_rows(device, image, [row(1, last - 1, 1)], steps=2)]
    assert_exact(jobs, image, device, cache)
    assert np.count_nonzero(device.saturations()) > 8


@verilator
@each_preset
def test_memory_changes_time_and_never_a_token(preset_name):
    image = image_of("odd", preset_name)
    rng = np.random.default_rng(1)
    prompt = rng.integers(image.vocab, size=9).tolist()
    want, cycles = None, []
    dram = DRAMS[preset(preset_name).dram.name]
    hides_40 = preset_name == "ulx3s"  # its SDRAM is that slow
    for latency in (10, 100, 400) if hides_40 else (10, 40, 200):
        device = device_for(image, dram=dram.replace(latency_cycles=latency))
        tokens, session = generate(device, image, prompt, 4)
        cycles.append(sum(job.steps[-1].cycles for job in session.jobs))
        want = want or tokens
        assert tokens == want
        assert_exact(session.jobs, image, device)
    assert cycles[0] < cycles[1] < cycles[2]
    throttled = set()
    for seed in range(1, 6):
        device = device_for(image)
        device.bus.top.throttle(seed, (0.2, 0.5, 0.8)[seed % 3])
        tokens, session = generate(device, image, prompt, 4)
        assert tokens == want
        throttled.add(session.jobs[-1].steps[-1].cycles)
        assert_exact(session.jobs, image, device)
    assert len(throttled) == 5


@verilator
def test_registers_tell_what_a_run_did():
    image = image_of("odd", "tiny")
    device = loaded(image)
    job = run_rows(device, image, [row(3, 0), row(4, 1, want=False)])
    cfg = preset("tiny")
    [step] = job.steps
    assert step.tokens[1] == NO_TOKEN
    assert device.register("RING_BASE") == image.map.ring and device.register("RING_HEAD") == 1
    assert device.counter("CYCLES") >= step.cycles > 0
    assert 0 < device.counter("ARRAY_BUSY") < device.counter("CYCLES")
    assert device.counter("ARRAY_BUSY") + device.counter("ARRAY_IDLE") <= device.counter("CYCLES")
    blocks = image.map.stream_full
    for port in range(cfg.ports):
        assert device.register(f"READ_BEATS_{port}") >= 16 * blocks
    assert device.register("WRITE_BEATS") > image.map.logits_stride // cfg.port_bytes


# --- checks that must fail do -----------------------------------------------------------------


@verilator
@pytest.mark.slow
def test_a_changed_constant_in_the_hardware_is_found():
    image = image_of("odd", "tiny")
    entry = re.compile(r"(sigmoid3\.\S*base\S*\s*\[2\] = 16'h)([0-9a-f]{4})")
    verilog, changed = entry.subn(
        lambda m: f"{m[1]}{int(m[2], 16) ^ 64:04x}", cached_verilog(preset("tiny"))
    )
    assert changed == 1
    device = device_for(image, verilog=verilog)
    _, session = generate(device, image, [5, 6, 7], 4)
    found = replay(session.jobs, image, device, device_for(image, "golden"))
    assert found is not None and re.match(r"step \d: the logits of row \d differ first", found)


@verilator
@pytest.mark.parametrize("part", ["layers", "classifier"])
def test_a_flipped_weight_bit_is_found(part):
    image = image_of("odd", "tiny")
    device, size = device_for(image), preset("tiny").superblock_bytes
    body, whole = image.map.stream_body * size, image.map.stream_full * size
    session = Session(device, image, dump=True, deadline=DEADLINE)
    at = image.map.stream + (body // 2 if part == "layers" else (body + whole) // 2)
    byte = device.read(at, 1)
    device.write(at, byte ^ np.uint8(64))
    assert len(list(session.generate([5, 6, 7], 3))) == 3
    found = replay(session.jobs, image, device, device_for(image, "golden"))
    assert found is not None and re.match(r"step \d: the logits of row \d differ first", found)
    device.write(at, byte)
    session = Session(device, image, dump=True, deadline=DEADLINE)
    assert len(list(session.generate([5, 6, 7], 3))) == 3
    assert replay(session.jobs, image, device, device_for(image, "golden")) is None


# --- errors, and that the next job works -------------------------------------------------------


@pytest.fixture
def image():
    return image_of("odd", "tiny")


@pytest.fixture
def device(image):
    return loaded(image)


ROWS = [row(5, 0), row(6, 1)]


def assert_works(device, image):
    """The same device still computes what golden does."""
    device.write(isa.JOB, np.zeros(PAGE, np.uint8))
    device.write(PAGE, image.payload)
    device.write(image.map.kv, np.zeros(image.map.end - image.map.kv, np.uint8))
    jobs = [run_rows(device, image, ROWS), run_rows(device, image, [row(7, 2)], steps=2)]
    assert_exact(jobs, image, device)


def fails_with(device, code, descriptor=None):
    if descriptor is not None:
        device.write(isa.JOB, descriptor)
    with pytest.raises(DeviceError, match=ERROR_TEXT[code]) as caught:
        run(device, DEADLINE)
    assert caught.value.code == code
    assert device.poll()[0] is State.ERROR
    return caught.value


@verilator
@pytest.mark.parametrize("number", [1, 2, 20, 60, 200, 400])
def test_read_error(device, image, number):
    device.bus.top.fail_read(number)
    fails_with(device, Error.AXI_READ, image.descriptor(ROWS, steps=2))
    assert_works(device, image)


@verilator
@pytest.mark.parametrize(
    "field", ["program", "stream", "embedding", "rope", "ring", "logits", "v_offset"]
)
def test_what_lies_outside_the_window_is_never_touched(device, image, field):
    descriptor = image.descriptor(ROWS)
    index = [name for name, _ in DESCRIPTOR].index(field)
    bulk, job = (memory.size for memory in device.bus.memory)
    outside = [bulk, isa.JOB - PAGE]
    if field != "v_offset":  # that is added to another address, and addresses wrap
        outside += [isa.JOB + job, 0xFFFF_F000]
    for value in outside:
        descriptor[index] = value
        fails_with(device, Error.WINDOW, descriptor)
        assert device.bus.top.bus_errors == []
    assert_works(device, image)


@verilator
def test_a_window_smaller_than_the_memory(device, image):
    bulk, job = (memory.size for memory in device.bus.memory)
    for name, part, size in (("WINDOW", image.map.kv, bulk), ("JOB", PAGE, job)):
        device._set(name + "_SIZE", part)
        fails_with(device, Error.WINDOW, image.descriptor(ROWS))
        assert not device.read(image.map.ring, 64).any()
        device._set(name + "_SIZE", size)
        assert_works(device, image)
        device.write(image.map.ring, np.zeros(64, np.uint8))


@verilator
@pytest.mark.parametrize("field", ["ring", "logits", "rope"])
def test_a_window_larger_than_the_memory(device, image, field):
    """What the bus answers with an error is an error of the run."""
    size = device.bus.memory[1].size
    device._set("JOB_SIZE", 2 * size)
    descriptor = image.descriptor(ROWS)
    descriptor[[name for name, _ in DESCRIPTOR].index(field)] = isa.JOB + size
    fails_with(device, Error.AXI_READ if field == "rope" else Error.AXI_WRITE, descriptor)
    assert "m_axi_hp" in device.bus.top.bus_errors[0]
    assert_works(device, image)


@verilator
@pytest.mark.parametrize("pc", [0, 1, 7])
def test_illegal_instruction(device, image, pc):
    at = image.map.program + pc * isa.INSTRUCTION_BYTES
    device.write(at, device.read(at, 1) | np.uint8(0x0F))
    error = fails_with(device, Error.ILLEGAL, image.descriptor(ROWS))
    assert error.pc == pc
    assert_works(device, image)


@verilator
def test_a_program_without_an_end(device, image):
    descriptor = image.descriptor(ROWS)
    index = [name for name, _ in DESCRIPTOR].index("program_words")
    descriptor[index] -= 1
    assert fails_with(device, Error.ILLEGAL, descriptor).pc == image.map.program_words - 1
    assert_works(device, image)


@verilator
@pytest.mark.parametrize("port", [0, 1])
@pytest.mark.parametrize("after", [0, 300, 3000])
def test_a_stuck_port_ends_in_the_watchdog(device, image, port, after):
    watchdog = 3000
    device._set("WATCHDOG", watchdog)
    top = device.bus.top
    device.write(isa.JOB, image.descriptor(ROWS, steps=3))
    if after:
        device.start()
        top.run(after)
    top.stick(port)
    if not after:
        device.start()
    # Time for what had been asked for, and for two periods: of the run, and of the drain.
    assert top.run(10 * watchdog) < 4 * watchdog
    with pytest.raises(DeviceError, match=ERROR_TEXT[Error.WATCHDOG]):
        raise_error(device)
    top.stick(port, False)
    assert_works(device, image)


@verilator
def test_a_start_while_a_port_is_stuck(device, image):
    """A burst from the last run still stands on the port: no start, and no lockup."""
    device._set("WATCHDOG", 2000)
    top = device.bus.top
    top.stick(0)
    for _ in range(2):
        fails_with(device, Error.WATCHDOG, image.descriptor(ROWS))
    top.stick(0, False)
    assert_works(device, image)


@verilator
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("magic", 0),
        ("rows", 0),
        ("rows", 5),
        ("rows", 1 << 16),
        ("steps", 0),
        ("program_words", 0),
        ("program_words", 257),
        ("program_words", 1 << 31),
        ("head_bytes", 12),
        ("head_bytes", 72),
        ("context", 513),
    ],
)
def test_bad_descriptors(device, image, field, value):
    descriptor = image.descriptor(ROWS)
    descriptor[[name for name, _ in DESCRIPTOR].index(field)] = value
    fails_with(device, Error.DESCRIPTOR, descriptor)
    assert_works(device, image)


@verilator
def test_positions_beyond_the_context(device, image):
    context = image.context
    fails_with(device, Error.CONTEXT, image.descriptor([row(5, context)]))
    fails_with(device, Error.CONTEXT, image.descriptor([row(5, 0), row(6, 0x1_0000)]))
    descriptor = image.descriptor([row(5, context - 2)], steps=5)
    fails_with(device, Error.CONTEXT, descriptor)
    job = finished_job(device, image, descriptor, 1)
    assert len(job.steps) == 2  # those that fit have been done
    golden = device_for(image, "golden")
    golden.write(PAGE, image.payload)
    golden.write(isa.JOB, descriptor)
    golden.start()
    assert golden.poll() == (State.ERROR, 2, Error.CONTEXT)
    ring = golden.read(image.map.ring, 16).view("<u4")[::2].tolist()
    assert [token for step in job.steps for token in step.tokens] == ring
    assert_works(device, image)


@verilator
def test_stop_ends_a_run_after_the_current_step(device, image):
    descriptor = image.descriptor([row(5, 0)], steps=100)
    device.write(isa.JOB, descriptor)
    device.start()
    with pytest.raises(RuntimeError, match="a run is under way"):
        device.start()
    while device.poll()[1] < 2:
        assert device.poll()[0] is State.RUNNING
    device.stop()
    assert device.wait(DEADLINE) is State.STOPPED
    job = finished_job(device, image, descriptor, 1)
    assert 2 <= len(job.steps) < 20
    descriptor = image.descriptor([row(5, 0)], steps=len(job.steps))
    assert_exact([replace(job, descriptor=descriptor)], image, device)
    assert_works(device, image)


@verilator
def test_a_generator_that_is_closed_stops_its_run(device, image):
    session = Session(device, image, deadline=DEADLINE)
    stream = session.generate([5, 6, 7], 100)
    first = [next(stream) for _ in range(4)]
    stream.close()
    assert device.poll()[0] in (State.STOPPED, State.DONE)
    assert_works(device, image)
    golden = Session(device_for(image, "golden"), image)
    assert first == list(golden.generate([5, 6, 7], 4))


@verilator
def test_reset_ends_a_run_at_once(device, image):
    device.write(isa.JOB, image.descriptor([row(5, 0)], steps=100))
    for cycles in (1, 50, 700, 5000):
        device.start()
        device.bus.top.run(cycles)
        device._set("CONTROL", 4)
        assert device.bus.top.run(2000) < 2000
        assert device.poll()[0] is State.IDLE
    assert_works(device, image)

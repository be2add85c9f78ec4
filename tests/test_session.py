"""The token loop on the golden device against whole forward passes of the model."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from small_models import DUMPED, SMALL, golden, greedy, prompt
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.registers import Error, State
from tokenfabric.host.device import DeviceError, DeviceTimeout
from tokenfabric.host.session import STEPS, Sampler, Session
from tokenfabric.host.verify import replay
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.devices import make_device
from tokenfabric.sim.golden import GoldenDevice

each_device = pytest.mark.parametrize(
    ("kind", "name"),
    [("golden", "pynq-z2"), pytest.param("verilator", "tiny", marks=pytest.mark.verilator)],
)


def several(slots: int, context: int | None = None, name: str = "pynq-z2", kind: str = "golden"):
    """A model with room for several sequences, and a device for it."""
    model, cfg = QModel.random(replace(SMALL, tied=False), 0), preset(name)  # tied: it repeats
    image = compile_model(model, cfg, context=context, slots=slots)
    return model, image, lambda: make_device(kind, cfg, image.memory(DUMPED))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("dump", [False, True])
def test_greedy_tokens_are_those_of_the_model(length, dump):
    model, _, image, device = golden()
    assert image.rows == 16, "the lengths are chosen around it"
    start = prompt(length)
    session = Session(device, image, dump=dump)
    assert list(session.generate(start, 6)) == greedy(model, start, 6)
    assert len(session.tokens) == length + 5


def test_dumped_logits_are_those_of_the_model():
    model, _, image, device = golden()
    start = prompt(18)
    session = Session(device, image, dump=True)
    tokens = list(session.generate(start, 4))
    found = np.concatenate([job.logits for job in session.jobs])[:, : SMALL.vocab]
    assert np.array_equal(found, model.forward(start + tokens[:-1]))


def test_several_turns_continue_one_context():
    model, _, image, device = golden()
    session = Session(device, image)
    history: list[int] = []
    for turn, length in enumerate((3, 17, 1, 0)):
        given = prompt(length, seed=turn)
        tokens = list(session.generate(given, 3))
        assert tokens == greedy(model, history + given, 3)
        history += given + tokens
        assert session.tokens == history[:-1], "the last token goes in with the next turn"
        assert sum(job.rows * len(job.steps) for job in session.jobs) == length + 3 - (turn == 0)
    session.reset()
    assert session.tokens == []
    assert list(session.generate(prompt(3), 3)) == greedy(model, prompt(3), 3)


def test_a_stop_token_ends_the_text_and_is_yielded():
    model, _, image, device = golden()
    for seed in range(20):  # until a text has a token that comes up later for the first time
        start = prompt(5, seed=seed)
        free = greedy(model, start, 8)
        new = [t for i, t in enumerate(free) if i > 1 and t not in free[:i]]
        if new:
            break
    stop = new[0]
    expected = free[: free.index(stop) + 1]
    assert list(Session(device, image).generate(start, 8, stops=[stop])) == expected
    first = list(Session(device, image).generate(start, 8, stops=[free[0]]))
    assert first == free[:1]


def test_a_stop_token_ends_sampling_too():
    _, _, image, device = golden()
    sampler = Sampler(temperature=1.0, seed=3)
    free = list(Session(device, image).generate([1, 2], 8, sampler=sampler))
    cut = list(Session(device, image).generate([1, 2], 8, sampler=sampler, stops=[free[4]]))
    assert cut == free[: free.index(free[4]) + 1]


def test_the_end_of_the_context_ends_the_text():
    model, _, image, device = golden(context=20)
    start = prompt(15)
    session = Session(device, image)
    tokens = list(session.generate(start, 1000))
    assert tokens == greedy(model, start, 6) and len(session.tokens) == 20
    for more in ([1], []):
        with pytest.raises(UserError, match=r"room for 0 of 20; shorten .* or reset the session"):
            session.generate(more, 1)
    session.reset()
    assert list(session.generate(start, 6)) == tokens


@pytest.mark.parametrize(
    ("start", "count", "text"),
    [
        ([], 1, "the prompt is empty"),
        ([1, 96], 1, "token 96 is outside the vocabulary of 96"),
        ([-1], 1, "token -1 is outside"),
        ([1] * 65, 1, "65 tokens, the context has room for 64 of 64; shorten"),
        ([1], 0, "0 tokens to generate; ask for at least 1"),
    ],
)
def test_bad_prompts_are_refused(start, count, text):
    _, _, image, device = golden()
    with pytest.raises(UserError, match=text):
        list(Session(device, image).generate(start, count))


def test_an_image_for_another_accelerator_is_refused():
    _, _, image, _ = golden(name="tiny")
    _, _, _, device = golden()
    with pytest.raises(UserError, match=f"compiled for tiny with fingerprint {image.fingerprint}"):
        Session(device, image)


def test_sampling_is_reproducible_and_depends_on_the_seed():
    _, _, image, device = golden()

    def sample(**options) -> list[int]:
        sampler = Sampler(temperature=1.5, **options)
        return list(Session(device, image).generate(prompt(3), 12, sampler=sampler))

    assert sample(seed=1) == sample(seed=1)
    assert len({tuple(sample(seed=seed)) for seed in range(5)}) == 5
    cold = list(Session(device, image).generate(prompt(3), 12))
    assert sample(seed=1, top_k=1) == cold
    assert sample(seed=1, top_p=1e-9) == cold


def test_sampling_follows_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    rng = np.random.default_rng(0)

    def shares(**options) -> list[float]:
        sampler = Sampler(temperature=1.0, **options)
        chosen = [sampler.choose(logits, rng) for _ in range(4000)]
        return [chosen.count(i) / 4000 for i in range(4)]

    assert np.allclose(shares(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    assert np.allclose(shares(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    assert np.allclose(shares(top_p=0.9), [0.5263, 0.3158, 0.1579, 0], atol=0.03)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
    ],
)
def test_nonsense_samplers_are_refused(options):
    with pytest.raises(UserError, match=str(next(iter(options.values())))):
        Sampler(**options)


def test_a_device_that_makes_no_progress_is_a_timeout():
    _, _, image, device = golden()
    device.start = lambda: None
    device.poll = lambda: (State.RUNNING, 0, Error.NONE)
    with pytest.raises(DeviceTimeout, match=r"no new token within 0\.05 s"):
        list(Session(device, image, deadline=0.05).generate([1], 1))


# --- stopping early ---------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("way", ["break", "exception", "close", "next call"])
@each_device
def test_a_text_that_is_not_read_to_its_end_can_be_continued(kind, name, way, temperature):
    model, image, make = several(1, name=name, kind=kind)
    device, start = make(), prompt(4)
    session = Session(device, image, dump=True)
    stream = session.generate(start, 60, sampler=Sampler(temperature=temperature))
    taken = list(itertools.islice(stream, 3))
    if way == "exception":
        with pytest.raises(ZeroDivisionError):
            raise stream.throw(ZeroDivisionError)
    elif way == "close":
        stream.close()
    elif way == "break":
        del stream
    if way != "next call":
        assert device.poll()[0] is not State.RUNNING
        last = session.jobs[-1]
        assert len(last.steps) == last.descriptor[STEPS] >= 1
        assert kind == "golden" or len(last.steps) < 50, "it was stopped"
        assert replay(session.jobs, image, device, several(1, name=name)[2]()) is None
    assert session.tokens == start + taken[:-1]
    more = list(session.generate([7], 4))
    assert more == greedy(model, [*start, *taken, 7], 4)
    assert session.tokens == [*start, *taken, 7, *more[:-1]]
    assert replay(session.jobs, image, device, several(1, name=name)[2]()) is None


def test_a_call_that_fails_before_its_first_token_changes_nothing(monkeypatch):
    model, _, image, device = golden()
    session = Session(device, image)
    first = list(session.generate(prompt(4), 2))
    starts = 0

    def fail_at_the_second():
        nonlocal starts
        starts += 1
        if starts == 2:
            raise KeyboardInterrupt
        GoldenDevice.start(device)

    monkeypatch.setattr(device, "start", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        list(session.generate(prompt(40), 2))
    monkeypatch.undo()
    assert session.tokens == [*prompt(4), first[0]]
    assert list(session.generate([], 3)) == greedy(model, prompt(4) + first, 3)


# --- several sequences ------------------------------------------------------------------------


def columns(steps) -> list[list[int]]:
    """Of each sequence its tokens, which nothing follows once it has ended."""
    lists = [list(column) for column in zip(*steps)]
    ended = [[*itertools.takewhile(lambda t: t is not None, column)] for column in lists]
    assert all(set(c[len(e) :]) <= {None} for c, e in zip(lists, ended))
    return ended


@each_device
@pytest.mark.parametrize("temperatures", [[0, 0, 0], [1, 0.7, 2], [1.5, 0, 1]])
def test_a_batch_says_what_each_prompt_says_alone(kind, name, temperatures):
    _, image, make = several(3, context=40, name=name, kind=kind)
    prompts = [prompt(19), prompt(1), prompt(38)]  # the last comes to the end of its context
    samplers = [Sampler(temperature=t, seed=i) for i, t in enumerate(temperatures)]
    free = list(Session(make(), image).generate(prompts[0], 12, sampler=samplers[0]))
    stops = [free[5]]
    alone = []
    for one, sampler in zip(prompts, samplers):
        session = Session(make(), image)
        alone.append(list(session.generate(one, 12, sampler=sampler, stops=stops)))
    device = make()
    session = Session(device, image, dump=True)
    assert columns(session.batch(prompts, 12, samplers=samplers, stops=stops)) == alone
    assert len(alone[0]) <= 6 and len(alone[1]) > 3 == len(alone[2])
    for context, one, tokens in zip(session.contexts, prompts, alone):
        assert context.tokens == [*one, *tokens[:-1]] and context.pending == tokens[-1:]
    # a second turn of those that have room, in contexts of different lengths
    more = columns(session.batch([[5, 6], [7]], 4, samplers=samplers[:2]))
    for one, tokens, new, later, sampler in zip(prompts, alone, [[5, 6], [7]], more, samplers):
        whole = Session(make(), image)
        assert later == list(whole.generate([*one, *tokens, *new], 4, sampler=sampler))
    assert replay(session.jobs, image, device, several(3, 40, name)[2]()) is None


def test_a_batch_decodes_on_its_own():
    _, image, make = several(4)
    session = Session(make(), image)
    assert len(columns(session.batch([prompt(2, seed=i) for i in range(4)], 9))[3]) == 9
    assert [(job.rows, len(job.steps)) for job in session.jobs] == [(8, 1), (4, 8)]


def test_more_stop_tokens_than_the_device_takes():
    model, image, make = several(2)
    free = [greedy(model, prompt(3, seed=i), 8) for i in range(2)]
    unused = [t for t in range(SMALL.vocab) if t not in {*free[0], *free[1]}][:4]
    stops = [*unused, free[0][2]]
    found = columns(Session(make(), image).batch([prompt(3), prompt(3, seed=1)], 8, stops=stops))
    for tokens, all_ in zip(found, free):
        end = next((i for i, t in enumerate(all_) if t in stops), 7)
        assert tokens == all_[: end + 1]


def test_prompts_that_do_not_fit_are_refused():
    _, image, make = several(2)
    session = Session(make(), image)
    for prompts in ([], [[1]] * 3):
        with pytest.raises(UserError, match=f"{len(prompts)} prompts at a time, .* room for 2"):
            session.batch(prompts, 1)
    with pytest.raises(UserError, match="65 tokens, the context has room for 64"):
        session.batch([[1], [1] * 65], 1)


def test_a_cache_that_differs_in_another_slot_is_found():
    _, image, make = several(2)
    device = make()
    session = Session(device, image, dump=True)
    list(session.batch([[1], [2, 3]], 3))
    at = next(at for name, layer, _, at, _ in image.kv.tensors(1) if name == "V" and layer)
    device.windows[0][at] ^= 1
    text = "V of layer 1, KV head 0, position 0 of slot 1 differs"
    assert replay(session.jobs, image, device, make()) == text


# --- errors, and that the next session works --------------------------------------------------


@pytest.mark.verilator
@pytest.mark.parametrize("stuck", [False, True])
def test_the_device_works_again_after_an_error(stuck):
    model, image, make = several(1, name="tiny", kind="verilator")
    device, want = make(), greedy(model, prompt(3), 6)
    top = device.bus.top
    session = Session(device, image, deadline=0.5)
    stream = session.generate(prompt(3), 6)
    taken = [next(stream)]
    if stuck:  # long before the watchdog
        top.stick(0)
        with pytest.raises(DeviceTimeout, match=r"no new token within 0\.5 s"):
            list(stream)
        top.stick(0, False)
    else:
        top.fail_read(3)
        with pytest.raises(DeviceError, match="AXI_READ"):
            list(stream)
    assert taken == want[:1] and session.tokens == prompt(3)
    assert list(Session(device, image).generate(prompt(3), 6)) == want
    # and so does the session itself, where it was
    if not stuck:
        assert list(session.generate([], 5)) == want[1:]


@pytest.mark.verilator
def test_a_start_that_waits_in_vain_shows_no_tokens_of_the_run_before():
    model, image, make = several(1, name="tiny", kind="verilator")
    device = make()
    device._set("WATCHDOG", 3000)
    top = device.bus.top
    stream = Session(device, image).generate(prompt(3), 60)
    taken = [next(stream) for _ in range(4)]
    top.stick(0)
    with pytest.raises(DeviceError, match="WATCHDOG"):
        taken += list(stream)
    for _ in range(2):
        with pytest.raises(DeviceError, match="WATCHDOG"):
            list(Session(device, image).generate(prompt(5), 6))
        assert device.poll() == (State.ERROR, 0, Error.WATCHDOG)
    top.stick(0, False)
    assert list(Session(device, image).generate(prompt(3), 6)) == greedy(model, prompt(3), 6)
    assert len(taken) > 3 and taken == greedy(model, prompt(3), len(taken))


@pytest.mark.verilator
def test_a_new_session_ends_what_another_left_running():
    model, image, make = several(1, name="tiny", kind="verilator")
    device = make()
    stream = Session(device, image).generate(prompt(3), 60)
    next(stream), next(stream)
    assert device.poll()[0] is State.RUNNING
    assert list(Session(device, image).generate(prompt(5), 6)) == greedy(model, prompt(5), 6)


# --- samplers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 1e-300}, {2}),
        ({"temperature": 5e-324}, {2}),
        ({"temperature": 999999.0}, {0, 1, 2, 3}),
        ({"temperature": 999999.0, "top_k": 1}, {2}),
        ({"temperature": 999999.0, "top_k": 2}, {1, 2}),
        ({"temperature": 1.0, "top_k": 1000}, {0, 1, 2, 3}),
        ({"temperature": 999999.0, "top_p": 1e-12}, {2}),
    ],
)
def test_extreme_samplers(options, expected):
    logits, rng = np.array([0.0, 1e-12, 2e-12, -1e-12]), np.random.default_rng(0)
    if options["temperature"] < 1:
        logits *= 1e24
    sampler = Sampler(**options)
    assert {sampler.choose(logits, rng) for _ in range(400)} == expected
    assert sampler.choose(np.zeros(1), rng) == 0


@pytest.mark.parametrize("temperature", [1e-6, 1.0])
def test_the_largest_logits_are_sampled_without_a_warning(temperature):
    logits = np.array([-(2.0**31), 2.0**31 - 1, 2.0**31 - 1])
    rng, sampler = np.random.default_rng(0), Sampler(temperature=temperature)
    assert {sampler.choose(logits, rng) for _ in range(50)} == {1, 2}

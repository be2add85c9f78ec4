"""The token loop on the golden device against whole forward passes of the model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from small_models import SMALL, golden, greedy, prompt
from tokenfabric.host.device import DeviceTimeout
from tokenfabric.host.session import Sampler, Session

from tokenfabric.errors import UserError
from tokenfabric.registers import Error, State


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
    for turn, length in enumerate((3, 17, 1)):
        history += prompt(length, seed=turn)
        # the last token of a turn is not in the context yet: it is given with the next prompt
        given = history[len(session.tokens) :]
        tokens = list(session.generate(given, 3))
        assert tokens == greedy(model, history, 3)
        history += tokens


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
    with pytest.raises(UserError, match="room for 0 of 20; shorten the prompt"):
        list(session.generate([1], 1))


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
    "options", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}]
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


def test_a_text_that_is_not_read_to_its_end_leaves_the_session_usable():
    model, _, image, device = golden()
    session = Session(device, image)
    start = prompt(4)
    taken = list(itertools.islice(session.generate(start, 20), 3))
    assert taken == greedy(model, start, 3)
    again = Session(device, image)
    assert list(again.generate(start, 3)) == taken

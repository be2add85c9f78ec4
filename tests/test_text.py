"""Text in, text out: pieces, results, displays, coroutines, and the example of the README."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import re
import sys
import types
from dataclasses import replace

import pytest
from conftest import ROOT
from small_models import SPEAKING, byte_tokenizer, speaking_model
from tokenfabric.compiler.compile import compile_model
from tokenfabric.core.config import preset
from tokenfabric.core.errors import UserError
from tokenfabric.core.registers import State
from tokenfabric.host.device import DeviceError
from tokenfabric.host.session import Session
from tokenfabric.host.text import LLM, Generation
from tokenfabric.quant.qmodel import QModel
from tokenfabric.sim.devices import make_device


def llm(kind: str = "golden", slots: int = 1, **options) -> LLM:
    cfg = preset("tiny")
    image = compile_model(speaking_model(), cfg, slots=slots)
    return LLM(make_device(kind, cfg, image.memory()), image, **options)


class Says(LLM):
    """An LLM whose model says what the test wants; the device decodes nothing."""

    def __init__(self, *texts: bytes):
        super().__init__(llm().session.device, compile_model(speaking_model(), preset("tiny")))
        rows = [[byte + 3 for byte in text] for text in texts]

        def batch(prompts, count, **_):
            for step in range(max(map(len, rows))):
                yield [row[step] if step < len(row) else None for row in rows]

        self.session.batch = batch


def test_text_and_tokens_are_those_of_the_session():
    model = llm()
    tokenizer = model.tokenizer
    generation = model.generate("hello", max_tokens=12)
    assert isinstance(generation, Generation) and model.session.tokens == []
    pieces = list(generation)
    assert "".join(pieces) == generation.text == str(generation) and all(pieces)
    alone = Session(llm().session.device, model.session.image)
    assert generation.tokens == list(alone.generate(tokenizer.encode("hello"), 12))
    whole = tokenizer.decode([*tokenizer.encode("hello"), *generation.tokens])
    assert whole == "hello" + generation.text
    assert list(generation) == [], "it is over"


@pytest.mark.parametrize("bos", [1, None])
def test_a_prompt_begins_with_the_bos_of_the_tokenizer(bos):
    tokenizer = replace(byte_tokenizer(), bos=bos, added=[["<s>", 1, False, False, False]])
    model = speaking_model()
    model.tokenizer = tokenizer.to_bytes()
    image = compile_model(model, preset("tiny"))
    llm = LLM(make_device("golden", preset("tiny"), image.memory()), image)
    begins = [] if bos is None else [bos]
    for prompt, ids in (("a", [*begins, 100]), ("<s>a", [1, 100])):
        generation = llm.generate(prompt, max_tokens=3)
        assert len(generation.tokens) == 3 and generation.stats.prompt_tokens == len(ids)
        assert llm.session.tokens == [*ids, *generation.tokens[:2]]
        assert len(llm.chat("b", max_tokens=1).tokens) == 1  # goes on: nothing begins here
        assert llm.session.tokens == [*ids, *generation.tokens, 101]
    if bos is None:
        with pytest.raises(UserError, match="the prompt is empty; give at least one token"):
            llm.generate("")


def test_characters_come_whole():
    text = "añ漢🦊!"
    generation = Says(text.encode()).generate("x")
    assert list(generation) == list(text) and len(generation.tokens) == len(text.encode())
    cut = Says("ok🦊".encode()[:-1]).generate("x")
    assert list(cut) == ["o", "k", "\ufffd"] and cut.text == "ok\ufffd"


def test_the_text_of_a_generation_that_nobody_iterates_is_the_whole_text():
    model = llm()
    whole = "".join(model.generate("a", max_tokens=9))
    assert model.generate("a", max_tokens=9).text == whole
    assert len(model.generate("a", max_tokens=9).tokens) == 9
    assert model.generate("a", max_tokens=9).stats.tokens == 9
    begun = model.generate("a", max_tokens=9)
    first = next(begun)
    assert begun.text.startswith(first) and len(begun.tokens) < 9, "what there is so far"
    assert first + "".join(begun) == whole == begun.text


def test_chat_goes_on_and_generate_begins_anew():
    model = llm()
    start = model.generate("hello", max_tokens=5)
    told = start.tokens
    history = [*model.tokenizer.encode("hello"), *told]
    for prompt in (" world", "", "x"):
        given = model.tokenizer.encode(prompt, bos=False)
        more = model.chat(prompt, max_tokens=4)
        fresh = Session(llm().session.device, model.session.image)
        assert more.tokens == list(fresh.generate([*history, *given], 4))
        history += given + more.tokens
        assert model.session.tokens == history[:-1]
        assert sum(job.rows for job in model.session.jobs[:-1]) <= len(given) + 1
    assert model.generate("hello", max_tokens=5).tokens == told
    model.session.reset()
    assert model.chat("hello", max_tokens=5).tokens == told, "with the beginning of a text"


def test_a_full_context_is_one_clear_error():
    model = llm()
    assert len(model.generate("hello", max_tokens=1000).tokens) == SPEAKING.context - 5
    with pytest.raises(UserError, match="the context has room for 0 of 64"):
        model.chat("more")
    assert len(model.generate("hello", max_tokens=3).tokens) == 3


@pytest.mark.parametrize("temperature", [0, 1.2])
def test_a_batch_is_each_prompt_alone(temperature):
    model, prompts = llm(slots=3), ["one", "another one", "x"]
    options = {"max_tokens": 10, "temperature": temperature}
    batch = model.generate(prompts, seed=5, **options)
    next(batch[1])
    assert all(g.tokens for g in batch), "they are decoded together"
    for number, (generation, prompt) in enumerate(zip(batch, prompts)):
        list(generation)
        alone = llm().generate(prompt, seed=5 + number, **options)
        assert generation.text == alone.text and generation.tokens == alone.tokens
    more = model.chat(["a", "b", "c"], max_tokens=3)
    assert [len(g.tokens) for g in more] == [3, 3, 3]
    with pytest.raises(UserError, match="4 prompts at a time, the image has room for 3"):
        model.generate(["a"] * 4)


def test_the_model_ends_its_text():
    model = llm()
    token = model.generate("hello", max_tokens=5).tokens[2]
    words = replace(byte_tokenizer(), eos=[token, 2])
    model.tokenizer = type(words).from_bytes(words.to_bytes())
    generation = model.generate("hello", max_tokens=50)
    assert generation.tokens[-1] == token and len(generation.tokens) <= 3


def test_stats():
    stats = llm("golden").generate("hello", max_tokens=6).stats
    assert (stats.prompt_tokens, stats.tokens) == (6, 6) and stats.tokens_per_second > 0
    assert stats.cycles_per_token is None and "cycles" not in str(stats), "golden has no clock"
    once = llm().generate("hello", max_tokens=1).stats
    assert once.tokens == 1 and once.seconds > 0


@pytest.mark.verilator
def test_the_simulated_accelerator_says_the_same_and_how_fast():
    model, prompts = llm("verilator", slots=2), ["hello", "wor"]
    found = model.generate(prompts, max_tokens=20)
    assert [g.text for g in found] == [
        g.text for g in llm(slots=2).generate(prompts, max_tokens=20)
    ]
    stats = found[0].stats
    assert stats.cycles_per_token > 100
    assert stats.board_tokens_per_second == pytest.approx(1e8 / stats.cycles_per_token)
    assert 0 < stats.bandwidth_fraction < 1 and "cycles a token" in str(stats)


@pytest.mark.verilator
@pytest.mark.parametrize("way", ["drop", "close", "next call", "interrupt"])
def test_whoever_stops_reading_stops_the_device(way, monkeypatch):
    model = llm("verilator")
    device = model.session.device
    generation = model.generate("hello", max_tokens=58)
    pieces = [next(generation), next(generation)]
    assert device.poll()[0] is State.RUNNING
    if way == "drop":
        gc.disable()
        del generation
        gc.enable()
    elif way == "close":
        generation.close()
        assert generation.text.startswith("".join(pieces)) and len(generation.tokens) < 58
    elif way == "interrupt":
        poll = device.poll

        def interrupted():
            monkeypatch.setattr(device, "poll", poll)
            raise KeyboardInterrupt

        monkeypatch.setattr(device, "poll", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(generation)
        assert len(generation.tokens) < 58
    if way != "next call":
        assert device.poll()[0] is State.STOPPED
    assert model.generate("x", max_tokens=5).text == llm().generate("x", max_tokens=5).text


@pytest.mark.verilator
def test_an_error_of_the_device_reaches_the_reader_and_the_next_text_works():
    model = llm("verilator")
    generation = model.generate("hello", max_tokens=50)
    next(generation)
    model.session.device.bus.top.fail_read(5)
    with pytest.raises(DeviceError, match="AXI_READ"):
        list(generation)
    assert list(generation) == []
    assert model.generate("x", max_tokens=5).text == llm().generate("x", max_tokens=5).text


# --- coroutines -------------------------------------------------------------------------------


def test_async_for():
    want = llm().generate("hello", max_tokens=12)

    async def read(generation):
        return [piece async for piece in generation]

    assert asyncio.run(read(llm().generate("hello", max_tokens=12))) == list(want)

    async def both(batch):
        return await asyncio.gather(*map(read, batch))

    batch = asyncio.run(both(llm(slots=2).generate(["hello", "hello"], max_tokens=12)))
    assert ["".join(pieces) for pieces in batch] == [want.text] * 2


@pytest.mark.verilator
def test_other_coroutines_run_meanwhile_and_cancelling_stops_the_device():
    model = llm("verilator")
    generation = model.generate("hello", max_tokens=58)
    ticks = 0

    async def read():
        async for _ in generation:
            pass

    async def tick():
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async def main():
        reading, ticking = asyncio.ensure_future(read()), asyncio.ensure_future(tick())
        while len(generation._tokens) < 3:
            await asyncio.sleep(0)
        for task in (reading, ticking):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert ticks > 10 and 3 <= len(generation.tokens) < 58
    assert model.session.device.poll()[0] is not State.RUNNING
    assert list(generation) == []
    assert model.generate("x", max_tokens=5).text == llm().generate("x", max_tokens=5).text


# --- displays ---------------------------------------------------------------------------------


def test_html_is_escaped_and_has_the_figures():
    generation = Says(b"<b>&\n").generate("x < y")
    shown = generation._repr_html_()
    assert "x &lt; y</b>&lt;b&gt;&amp;\n</div>" in shown and "5 tokens in" in shown
    assert repr(generation) == "<Generation 'x < y': 5 tokens, over>"


def test_display_prints_where_there_is_no_notebook(capsys):
    generation = Says(b"hi there").generate("x: ")
    assert repr(generation) == "<Generation 'x: ': 0 tokens, not begun>"
    generation.display()
    assert capsys.readouterr().out.startswith("x: hi there\n\n8 tokens in ")


@pytest.fixture
def notebook(monkeypatch) -> list[str]:
    """What a notebook would show at one place, one drawing after the other, without tags."""
    shown: list[str] = []

    class Handle:
        def update(self, what):
            shown.append(" ".join(re.findall("</b>(.*)</div>", what._repr_html_())))

    def display(what, *, display_id):
        assert display_id is True
        Handle().update(what)
        return Handle()

    package = types.ModuleType("IPython")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    package.display = types.ModuleType("IPython.display")
    package.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", package.display)
    monkeypatch.setattr("tokenfabric.host.text.REDRAW", 0)
    return shown


def test_display_updates_its_place_in_a_notebook(notebook):
    Says(b"abc").generate("").display()
    assert notebook == ["a", "a", "ab", "abc", "abc"]


def test_a_batch_grows_as_one_in_a_notebook(notebook):
    model = Says(b"abc", b"xy")
    model.generate(["", ""]).display()
    assert notebook[0] == "a x" and notebook[-1] == "abc xy" and "ab xy" in notebook


def test_a_batch_is_printed_in_order(capsys):
    model = Says(b"abc", b"xy")
    model.generate(["1: ", "2: "]).display()
    assert re.findall(r"\d: \w+", capsys.readouterr().out) == ["1: abc", "2: xy"]


def test_an_image_without_a_tokenizer_is_refused():
    cfg = preset("tiny")
    image = compile_model(QModel.random(SPEAKING, 0), cfg, name="mute")
    with pytest.raises(UserError, match=r"mute \(tokenizer\): there is none; quantize"):
        LLM(make_device("golden", cfg, image.memory()), image)


# --- the README -------------------------------------------------------------------------------


def test_the_example_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## Streaming.*?```python\n(.*?)```", readme, re.S)[1]
    assert "load(slots=2)" in code
    code = code.replace("load(slots=2)", "load(slots=2, on='golden', context=64)")
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    assert out.getvalue().startswith(", there was a clever girl named Mia.")
    assert out.getvalue().count("tokens in") == 1

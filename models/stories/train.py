"""Train the model that ships here: ``python models/stories/train.py -o models/stories``.

A Llama of half a million weights in plain PyTorch, trained on the stories of
``grammar.py`` beside it and written as a Hugging Face directory. Needs the extra
``tokenfabric[train]``.

One seed fixes the stories, the tokenizer, the initial weights and the order of the batches. The
weights still depend on the number of threads and on the version of PyTorch, which decide the order
of floating-point sums.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from grammar import stories
from tokenfabric.core.errors import UserError

try:
    import torch
    import torch.nn.functional as F
    from llama import BOS, EOS, Shape, Weights, forward, greedy, init_weights
    from model_files import CARD, check_output, write_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from torch import Tensor
except ImportError as error:
    MISSING = f"training needs {error.name}: pip install 'tokenfabric[train]'"
    if __name__ == "__main__":
        print(f"tokenfabric: error: {MISSING}", file=sys.stderr)
        sys.exit(2)
    raise UserError(MISSING) from error

PLATEAU = (1, 2)  # the part of the training, as a fraction, before the learning rate falls
PROMPTS = ("Once upon a time", "One windy day, Lily", "The little fox")


@dataclass(frozen=True)
class Recipe:
    """How the model is trained; every field is an option of the command line."""

    steps: int = 10_000
    minutes: float | None = None
    seed: int = 1
    threads: int = 0
    stories: int = 20_000
    batch: int = 4
    rate: float = 3e-3


# --- the data ----------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocab_size`` tokens: every text can be encoded.

    ``<bos>`` is token 0 and ``<eos>`` token 1; encoding adds neither.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise UserError(
            f"{len(texts)} stories give only {tokenizer.get_vocab_size()} of {vocab_size} tokens; "
            "use more stories"
        )
    return tokenizer


def make_batches(documents: Sequence[Sequence[int]], size: int) -> list[Tensor]:
    """Batches of ``size`` documents of nearly the same length: int64 [size, time], EOS after each.

    Every row is one document from its BOS on, which is how the model meets it when it tells one.
    Sorting leaves a few percent of padding, less than packing several of them into rows would.
    """
    ordered = sorted(documents, key=len)
    batches = []
    for start in range(0, len(ordered), size):
        rows = [torch.tensor(document) for document in ordered[start : start + size]]
        batches.append(torch.nn.utils.rnn.pad_sequence(rows, True, EOS))
    return batches


def loss_of(weights: Weights, shape: Shape, tokens: Tensor) -> tuple[Tensor, int]:
    """The mean cross entropy, in nats, of predicting the next token; and how many there are."""
    logits = forward(weights, shape, tokens[:, :-1])
    counted = tokens[:, :-1] != EOS  # what follows an EOS is padding
    targets = torch.where(counted, tokens[:, 1:], -100)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), int(counted.sum())


@torch.no_grad()
def evaluate(weights: Weights, shape: Shape, batches: Sequence[Tensor]) -> float:
    """The mean cross entropy, in nats, over all tokens of all batches."""
    losses = [loss_of(weights, shape, tokens) for tokens in batches]
    return sum(float(loss) * count for loss, count in losses) / sum(count for _, count in losses)


# --- training ----------------------------------------------------------------------------------


def optimize(
    weights: Weights, shape: Shape, recipe: Recipe, batches: Sequence[Tensor]
) -> tuple[int, int, float]:
    """Train ``weights`` in place; returns the steps, the tokens seen and the seconds it took."""
    # Decay pulls matrices towards zero; the gains of the norms belong near one.
    matrices = [w for w in weights.values() if w.dim() == 2]
    gains = [w for w in weights.values() if w.dim() == 1]
    for w in matrices + gains:
        w.requires_grad_(True)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)
    generator = torch.Generator().manual_seed(recipe.seed)
    order: list[int] = []
    progress = Progress()
    start = time.monotonic()
    step, seen = 0, 0
    steps = recipe.steps if recipe.minutes is None else None
    limit = 60 * (recipe.minutes or 0)
    while step != steps:
        if not order:
            order = torch.randperm(len(batches), generator=generator).tolist()
        seconds = time.monotonic() - start
        if steps is None and step and seconds >= limit * PLATEAU[0] / PLATEAU[1]:
            # The rate did not depend on the number of steps so far: --steps repeats this run.
            steps = -(-step * PLATEAU[1] // PLATEAU[0])
        rate = recipe.rate * schedule(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, count = loss_of(weights, shape, batches[order.pop()])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(matrices + gains, 1.0)
        optimizer.step()
        step += 1
        seen += count
        seconds = max(time.monotonic() - start, 1e-6)
        done = step / steps if steps else min(1.0, seconds / limit)
        if not math.isfinite(value := float(loss.detach())):
            raise UserError(f"the loss is {value} at step {step}; use a --rate below {recipe.rate}")
        progress.show(
            f"{seen / 1e6:7.2f} M tokens  loss {value:.3f}  {seen / seconds:.0f} tok/s  "
            f"{_clock(seconds * (1 - done) / done)} left",
            last=step == steps,
        )
    for w in matrices + gains:
        w.requires_grad_(False)
    return step, seen, time.monotonic() - start


def schedule(step: int, steps: int | None) -> float:
    """The learning rate of a step as a fraction of the peak: warm up, stay, then half a cosine.

    ``steps`` is None as long as the total is not known; it must be before the plateau ends.
    """
    warmup = min(1.0, (step + 1) / 100)
    if steps is None:
        return warmup
    plateau = steps * PLATEAU[0] // PLATEAU[1]
    cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - plateau) / (steps - plateau)))
    return warmup * (0.01 + 0.99 * cosine)


class Progress:
    """One line that rewrites itself on a terminal, a line every 20 seconds elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.shown = -math.inf

    def show(self, line: str, last: bool = False) -> None:
        """Show ``line`` if the time has come, or in any case if it is the ``last``."""
        now = time.monotonic()
        if not last and now - self.shown < (0.5 if self.terminal else 20):
            return
        self.shown = now
        if self.terminal:
            print(f"\r\033[K{line}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def train(
    out: Path,
    recipe: Recipe | None = None,
    shape: Shape | None = None,
    say: Callable[[str], None] = print,
) -> float:
    """Train a model and write it to the directory ``out``; returns the validation loss.

    The directory appears, complete, only at the very end. ``say`` gets the report, line by line.
    """
    recipe, shape = recipe or Recipe(), shape or Shape()
    if recipe.steps < 1 or (recipe.minutes is not None and recipe.minutes <= 0):
        raise UserError("--steps and --minutes must be positive")
    if recipe.stories < 100:
        raise UserError(f"--stories is {recipe.stories}; at least 100 are needed")
    if recipe.batch < 1 or recipe.rate <= 0 or recipe.threads < 0:
        raise UserError("--batch and --rate must be positive, --threads not negative")
    check_output(out)
    try:
        # An hour of training should not end with a directory that cannot be written.
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=out.parent).cleanup()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another -o") from None
    threads = recipe.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers library

    texts = list(dict.fromkeys(stories(recipe.seed, recipe.stories)))
    random.Random(recipe.seed).shuffle(texts)
    held_out = min(1000, len(texts) // 10)
    tokenizer = train_tokenizer(texts[held_out:][:20_000], shape.vocab_size)
    documents = [[BOS, *e.ids, EOS] for e in tokenizer.encode_batch(texts)]
    longest = max(map(len, documents))
    if longest > shape.max_position_embeddings:
        raise UserError(
            f"a story has {longest} tokens, the context only {shape.max_position_embeddings}; use "
            "more --stories, so that the tokenizer learns longer tokens"
        )
    batches = make_batches(documents[held_out:], recipe.batch)
    weights = init_weights(shape, recipe.seed)
    parameters = sum(w.numel() for w in weights.values())
    say(f"{parameters:,} weights, {len(texts):,} stories, {sum(map(len, documents)):,} tokens")

    steps, seen, seconds = optimize(weights, shape, recipe, batches)
    weights = {name: w.to(torch.float16).float() for name, w in weights.items()}
    loss = evaluate(weights, shape, make_batches(documents[:held_out], 50))
    say(f"validation loss {loss:.4f} after {seen:,} tokens in {_clock(seconds)} minutes")
    samples = []
    for prompt in PROMPTS:
        told = greedy(weights, shape, [BOS, *tokenizer.encode(prompt).ids])
        samples.append(tokenizer.decode(told))
        say(f"\n> {samples[-1]}")

    options = [f"--seed {recipe.seed} --threads {threads} --steps {steps}"]
    default = Recipe()
    for name in ("stories", "batch", "rate"):
        if getattr(recipe, name) != getattr(default, name):
            options.append(f"--{name} {getattr(recipe, name)}")
    command = f"python models/stories/train.py -o {shlex.quote(str(out))} {' '.join(options)}"
    card = CARD.format(
        **asdict(shape),
        parameters=parameters,
        stories=len(texts) - held_out,
        seen=seen / 1e6,
        steps=steps,
        loss=loss,
        time=_clock(seconds),
        threads=threads,
        command=command,
        torch=torch.__version__,
        samples="\n\n".join(f"> {sample}" for sample in samples),
    )
    write_model(out, weights, shape, tokenizer, card)
    say(f"\nwrote {out}")
    return loss


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    default = Recipe()
    parser = argparse.ArgumentParser(
        prog="python models/stories/train.py",
        description="Train the stories model and write it as a Hugging Face directory.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory to write")
    parser.add_argument(
        "--steps", type=int, default=default.steps, help="optimizer steps (default %(default)s)"
    )
    parser.add_argument("--minutes", type=float, help="about how long to train, instead of --steps")
    parser.add_argument("--seed", type=int, default=default.seed, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument(
        "--stories", type=int, default=default.stories, help="to generate (default %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=default.batch, help="stories a step (default %(default)s)"
    )
    parser.add_argument(
        "--rate", type=float, default=default.rate, help="peak learning rate (default %(default)s)"
    )
    options = vars(parser.parse_args(argv))
    out = options.pop("output")
    try:
        train(out, Recipe(**options))
    except UserError as error:
        print(f"tokenfabric: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; {out} is as it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

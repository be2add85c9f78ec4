"""Children's stories from a small grammar: the training text of the model that ships here.

A story is one of a dozen plots. A plot is a sequence of beats, each beat a template in which
``[a|b|c]`` is a choice (it may nest, and a branch may be empty) and ``{slot}`` is filled from the
state of the story: who the hero is, which pronouns follow, what colour the lost ball has, where it
turns up. A beat that begins with ``?`` is told in half of the stories. The state is drawn once for
each story, so everything that is said twice agrees.

The vocabulary is deliberately small and the number of combinations large: a model of half a million
weights can learn to tell such stories, and it cannot learn them by heart. The words are in
``words.py``, the plots in ``plots.py``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from plots import CLOSINGS, LIFE, OPENINGS, PLOTS
from tokenfabric.core.errors import UserError
from words import (
    ANIMALS,
    BAKES,
    BOYS,
    BREAKS,
    BUILDS,
    CHILD_HOMES,
    COLORS,
    FEARS,
    GIRLS,
    GUIDES,
    HE_ANIMALS,
    LURES,
    MAGIC,
    PARENTS,
    PET_COLORS,
    PLACES,
    PLANTS,
    PRESENTS,
    RACES,
    RESCUES,
    SHE_ANIMALS,
    TOYS,
    TRAITS,
    WEATHER,
    WISHES,
)

MAX_WORDS = 142  # some 240 tokens: a story fits the 256 of the context


@dataclass(frozen=True)
class Character:
    """Somebody with a name: ``kind`` is girl, boy or an animal, ``pronoun`` is she or he."""

    name: str
    kind: str
    pronoun: str

    @property
    def is_child(self) -> bool:
        """Whether this is a girl or a boy rather than an animal."""
        return self.kind in ("girl", "boy")


@dataclass(frozen=True)
class Story:
    """One story: its text, the plot it follows and everybody in it who has a gender.

    ``others`` holds the pronouns of characters without a name (a parent, an old man).
    """

    text: str
    plot: str
    hero: Character
    friend: Character
    others: tuple[str, ...]


_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_DAY = re.compile(r"([.!?] )One \w+ (day|morning),")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_OBJECT = {"she": "her", "he": "him"}
_POSSESSIVE = {"she": "her", "he": "his"}


def tell(rng: random.Random, plot: str | None = None) -> Story:
    """Return one story, drawn with ``rng`` alone: the same state gives the same story.

    Without ``plot`` one of ``PLOTS`` is drawn. The text is one paragraph of plain ASCII.
    """
    if plot is None:
        plot = rng.choice(list(PLOTS))
    elif plot not in PLOTS:
        raise UserError(f"there is no plot {plot!r}; choose from {', '.join(PLOTS)}")
    while True:
        # Animals mostly have animals for friends, children have children.
        hero = _character(rng, animal=rng.random() < 0.4)
        friend = _character(rng, animal=rng.random() < (0.25 if hero.is_child else 0.7))
        # Two of the same name, or two rabbits, would be hard to tell apart.
        if friend.name == hero.name or (not hero.is_child and friend.kind == hero.kind):
            continue
        slots = _slots(rng, hero, friend)
        beats = [b for b in PLOTS[plot] if not b.startswith("?") or rng.random() < 0.5]
        beats = [rng.choice(OPENINGS), *beats, rng.choice(CLOSINGS)]
        text = " ".join(_fill(rng, beat.removeprefix("?"), slots) for beat in beats)
        if text.startswith("One "):  # the plot's own day is the same one
            text = text[:4] + _DAY.sub(r"\1That \2,", text[4:])
        text = _ARTICLE.sub(r"\1n ", " ".join(text.split()))
        if len(text.split()) <= MAX_WORDS:
            break
    others = [PARENTS[slots["par"]]]
    if "old man" in text:
        others.append("he")
    return Story(text, plot, hero, friend, tuple(others))


def stories(seed: int, count: int) -> Iterator[str]:
    """Yield the texts of ``count`` stories; ``seed`` fixes every one of them."""
    rng = random.Random(seed)
    for _ in range(count):
        yield tell(rng).text


def _fill(rng: random.Random, template: str, slots: Mapping[str, str]) -> str:
    """Decide the choices of a template, innermost first, and fill its slots."""
    # Slots may hold templates themselves, hence the loop.
    while "[" in template or "{" in template:
        while "[" in template:
            template = _CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), template)
        template = template.format_map(slots)
    return template


def _character(rng: random.Random, animal: bool) -> Character:
    pronoun = rng.choice(("she", "he"))
    if animal:
        names = SHE_ANIMALS if pronoun == "she" else HE_ANIMALS
        return Character(rng.choice(names), rng.choice(list(ANIMALS)), pronoun)
    if pronoun == "she":
        return Character(rng.choice(GIRLS), "girl", pronoun)
    return Character(rng.choice(BOYS), "boy", pronoun)


def _slots(rng: random.Random, hero: Character, friend: Character) -> dict[str, str]:
    """Draw the state of one story: every slot any plot may name, whichever plot it will be."""
    par = rng.choice(list(PARENTS))
    color, color2 = rng.sample(COLORS, 2)
    toy, toy2 = rng.sample(list(TOYS), 2)
    place = rng.choice(list(PLACES))
    spot1, spot2, spot3 = rng.sample(PLACES[place], 3)
    pet, stuck, tool, freed = rng.choice(RESCUES)
    fear, step, truth = rng.choice(FEARS)
    thing, stuff, ruin, wiser = rng.choice(BUILDS)
    item, game = rng.choice(BREAKS)
    bake, need, source, owner = rng.choice(BAKES)
    gift, parts, where = rng.choice(PRESENTS)
    needy, wish, granted = rng.choice(WISHES)
    guide = rng.choice([kind for kind in GUIDES if kind != hero.kind])
    slots = {
        "N": hero.name,
        "kind": hero.kind,
        "F": friend.name,
        # The kind of a friend is told once, with the name; a child needs no such word.
        "FF": friend.name if friend.is_child else f"{friend.name} the {friend.kind}",
        "trait": rng.choice(TRAITS),
        "home": rng.choice(CHILD_HOMES) if hero.is_child else ANIMALS[hero.kind],
        "life": rng.choice(LIFE),
        "weather": rng.choice(WEATHER),
        "par": par,
        "Par": par.capitalize(),
        "P_his": _POSSESSIVE[hero.pronoun],
        "color": color,
        "color2": color2,
        "toy": toy,
        "toy2": toy2,
        "toy_did": TOYS[toy][0],
        "toy_do": TOYS[toy][1],
        "place": place,
        "spot1": spot1,
        "spot2": spot2,
        "spot3": spot3,
        "pet": pet,
        "pet_color": rng.choice(PET_COLORS),
        "stuck": stuck,
        "tool": tool,
        "freed": freed,
        "fear": fear,
        "step": step,
        "truth": truth,
        "thing": thing,
        "stuff": stuff,
        "wiser": wiser,
        "ruin": ruin,
        "item": item,
        "game": game,
        "bake": bake,
        "bake_a": bake if bake == "bread" else f"a {bake}",
        "bake_the": f"the {bake}",
        "need": need,
        "source": source,
        "thanks": f'"Thank you, {owner}!" said {{N}}.' if owner in ("hens", "bees") else "",
        "help": "{F} and {N} held hands and went on slowly.",
        "gift": gift,
        "parts": parts,
        "where": where,
        "plant": rng.choice(PLANTS),
        "lure": rng.choice(LURES),
        "guide": guide,
        "guide_a": f"[a kind|an old|a wise] {guide}",
        "magic": rng.choice(MAGIC),
        "needy": needy,
        "wish": wish,
        "granted": granted,
        "race": rng.choice(RACES),
        "someone": rng.choice(("The race began.", "shouted an old bear.", "called {his} {par}.")),
    }
    for prefix, pronoun in (("", hero.pronoun), ("f", friend.pronoun), ("p", PARENTS[par])):
        slots[prefix + "he"] = pronoun
        slots[prefix + "He"] = pronoun.capitalize()
        slots[prefix + "him"] = _OBJECT[pronoun]
        slots[prefix + "his"] = _POSSESSIVE[pronoun]
        slots[prefix + "His"] = _POSSESSIVE[pronoun].capitalize()
    return slots

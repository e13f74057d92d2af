"""English captions of icons, drawn anew each time that a picture is shown.

A record is the JSON beside a picture: ``name`` ("tropical-fish"), ``category``, ``family``
("fluent-emoji-flat"), ``style`` ("flat"), ``keywords`` (["ocean", "beach"]). Every function is
pure; those that choose take a ``random.Random`` and draw from nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import Random
from typing import NamedTuple

from .nouns import Noun, article, noun

Record = Mapping[str, object]

_FRAMES = (
    (60, "{np}"),
    (9, "a picture of {np}"),
    (8, "an icon of {np}"),
    (8, "a drawing of {np}"),
    (4, "an emoji of {np}"),
    (4, "an illustration of {np}"),
    (4, "{bare} icon"),
    (3, "clip art of {np}"),
)
_STYLED_FRAMES = (
    (40, "{np}, {style} style"),
    (20, "{np}, {style} icon"),
    (10, "{np}, {style}"),
    (10, "{np} in {style} style"),
    (10, "{a_style} icon of {np}"),
    (10, "{a_style} drawing of {np}"),
)
_BESIDE = (
    (50, "{left} and {right}"),
    (14, "{left} next to {right}"),
    (6, "{right} next to {left}"),
    (6, "{right} and {left}"),
    (12, "{left} to the left of {right}"),
    (12, "{right} to the right of {left}"),
)
_ON_BACKGROUND = (
    (60, "{np} on {a_colour} background"),
    (15, "{np}, {colour} background"),
    (10, "{np} on {colour}"),
    (8, "{np} against {a_colour} background"),
    (7, "{np} with {a_colour} background"),
)
_BARE = 0.35  # chance that a sentence that begins with the phrase drops its article
_STYLED = 0.35
_WITH_KEYWORDS = 0.10
_KEYWORD_ALONE = 0.03


# "tropical fish icon" but not "man with a beard icon"
_SHORT = re.compile(r"(?!.*\b(?:on|in|with|and|to|of|the|at|under|showing|facing)\b)[^,]+")


class Phrase(NamedTuple):
    """What a picture shows, with its articles and without: "a cat and a pizza", "cat and pizza"."""

    full: str
    bare: str


def bare(record: Record) -> str:
    """The name without an article: "tropical fish"."""
    return noun(str(record["name"])).text


def plain(record: Record) -> str:
    """The name with its article: "a tropical fish", "grapes", "the flag of France"."""
    return str(noun(str(record["name"])))


def style(record: Record) -> str:
    """The words for a family's style without the word style itself: "flat"."""
    words = str(record.get("style") or record.get("family") or "").replace("-", " ").strip()
    return re.sub(r"\s+(style|icons?|emoji)$", "", words)


def styled(record: Record) -> str:
    """The name with article and style: "a tropical fish, flat style"."""
    return f"{plain(record)}, {style(record)} style" if style(record) else plain(record)


def keywords(record: Record) -> list[str]:
    """Usable keywords: English words or short phrases that are not already in the name."""
    name = set(re.findall(r"\w+", bare(record).lower()))
    phrases = []
    for keyword in record.get("keywords") or ():
        text = str(keyword).replace("_", " ").replace("-", " ").strip().lower()
        words = text.split()
        usable = re.fullmatch(r"[a-z' ]{3,24}", text) and len(words) <= 3
        if usable and not name.issuperset(words) and text not in phrases:
            phrases.append(text)
    return phrases


def caption(record: Record, rng: Random) -> str:
    """A random caption of one picture on white: name or keyword, with or without its style."""
    chance = rng.random()
    words = keywords(record) if chance < _KEYWORD_ALONE + _WITH_KEYWORDS else []
    if words and chance < _KEYWORD_ALONE:
        word = rng.choice(words)
        return dress(Phrase(word, word), rng, style(record))
    subject = phrase(noun(str(record["name"])))
    if words:
        listed = rng.sample(words, min(len(words), rng.choice((1, 1, 2, 3))))
        return ", ".join([subject.bare if rng.random() < _BARE else subject.full, *listed])
    return dress(subject, rng, style(record))


def phrase(subject: Noun, adjective: str | None = None) -> Phrase:
    """A noun, with an adjective if given: "a small fish"; a colour replaces one in the name."""
    if adjective:
        subject = subject.described(adjective)
    return Phrase(str(subject), subject.text)


def beside(left: Phrase, right: Phrase, rng: Random) -> Phrase:
    """Two phrases side by side, ``left`` being seen on the left."""
    form = _choose(_BESIDE, rng)
    return Phrase(*(form.format(left=a, right=b) for a, b in zip(left, right, strict=True)))


def on_background(subject: Phrase, colour: str, rng: Random) -> Phrase:
    """ "a rocket" -> "a rocket on a yellow background" and its variants."""
    form = _choose(_ON_BACKGROUND, rng)
    a_colour = f"{article(colour)} {colour}"
    return Phrase(*(form.format(np=np, colour=colour, a_colour=a_colour) for np in subject))


def placed(subject: Phrase, place: str, rng: Random) -> Phrase:
    """ "a fish" in a place such as "in the top left corner"."""
    joint = ", " if rng.random() < 0.15 else " "
    return Phrase(*(f"{np}{joint}{place}" for np in subject))


def dress(subject: Phrase, rng: Random, style: str = "") -> str:
    """Put a phrase into a sentence frame, sometimes one that names the style."""
    if style and rng.random() < _STYLED:
        frame = _choose(_STYLED_FRAMES, rng)
    else:
        frame = _choose(_FRAMES, rng)
        if frame == "{bare} icon" and not _SHORT.fullmatch(subject.bare):
            frame = "{np}"
    drop = frame.startswith("{np}") and rng.random() < _BARE
    return frame.format(
        np=subject.bare if drop else subject.full,
        bare=subject.bare,
        style=style,
        a_style=f"{article(style)} {style}" if style else "",
    )


def _choose(weighted: tuple[tuple[int, str], ...], rng: Random) -> str:
    point = rng.random() * sum(weight for weight, _ in weighted)
    for weight, value in weighted:
        point -= weight
        if point < 0:
            return value
    return weighted[-1][1]

"""Names: what each icon is called, the same in every family, with its category and keywords.

The families name their drawings by different editions of Unicode's list. Here every icon is looked
up (by code point, by label, by an old label) in emojibase, whose label, put into plain words, is
the name. fxemoji, which follows no list, comes with a table of its own, ``fxemoji.txt``.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

# What a caption calls each family, after a look at its pictures.
STYLES = {
    "noto": "noto",  # shaded, with highlights and outlines
    "noto-v1": "old noto",  # flat colours, faces that are blobs
    "fluent-emoji": "gradient",  # soft shading, nearly three-dimensional
    "fluent-emoji-flat": "flat",  # the same drawings in plain colours
    "twemoji": "twemoji",  # flat, dark accents
    "fxemoji": "firefox",  # flat, no outlines
}
CATEGORIES = {
    "smileys-emotion": "smileys and emotion", "people-body": "people and body", "component": "symbols",
    "animals-nature": "animals and nature", "food-drink": "food and drink",
    "travel-places": "travel and places", "activities": "activities", "objects": "objects",
    "symbols": "symbols", "flags": "flags", "people": "people and body", "nature": "animals and nature",
    "places": "travel and places",
}  # fmt: skip
# Labels that no list of old labels explains: icon -> emojibase's label, as a slug.
RENAMED = {
    "asterisk": "keycap-asterisk", "blackbird": "black-bird", "direct-hit": "bullseye",
    "dizzy-face": "face-with-crossed-out-eyes", "exclamation-mark": "red-exclamation-mark",
    "hugging-face": "smiling-face-with-open-hands", "keycap-hashtag": "keycap-hash",
    "keycap-pound": "keycap-hash", "knocked-out-face": "face-with-crossed-out-eyes",
    "man-blonde-hair": "man-blond-hair", "man-deaf": "deaf-man", "man-merpeople": "merman",
    "man-with-bunny-ears": "men-with-bunny-ears", "man-wrestling": "men-wrestling",
    "on-exclamation-arrow": "on-arrow", "person-blonde-hair": "person-blond-hair",
    "person-deaf": "deaf-person", "person-merpeople": "merperson",
    "person-with-bunny-ears": "people-with-bunny-ears", "person-wrestling": "people-wrestling",
    "phoenix-bird": "phoenix", "piata": "pinata", "pound-symbol": "keycap-hash", "pistol": "revolver",
    "pouting-face": "enraged-face", "question-mark": "red-question-mark",
    "up-exclamation-button": "up-button", "woman-blonde-hair": "woman-blond-hair",
    "woman-deaf": "deaf-woman", "woman-merpeople": "mermaid",
    "woman-with-bunny-ears": "women-with-bunny-ears", "woman-wrestling": "women-wrestling",
}  # fmt: skip
RENAMED |= {
    f"person-{who}": who
    for who in ("elf", "fairy", "genie", "mage", "superhero", "supervillain", "vampire", "zombie")
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RENAMED |= {f"digit-{word}": f"keycap-{number}" for number, word in enumerate(DIGITS)}
TONE = re.compile(r"-(medium-light|medium-dark|light|medium|dark)$")


@dataclass(frozen=True)
class Thing:
    """One thing that may be drawn: an entry of emojibase, or an icon that stands alone."""

    name: str  # plain words in lower case
    category: str
    subcategory: str = ""  # emojibase's subgroup, such as "animal-marine"
    emoji: str = ""
    keywords: tuple[str, ...] = field(default=())


def slug(words: str) -> str:
    """Lower-case words joined by hyphens: "Man’s shoe" -> "mans-shoe"."""
    words = unicodedata.normalize("NFKD", words.lower()).replace("’", "").replace("'", "")
    words = words.replace("#", "hash").replace("*", "asterisk")
    return re.sub(r"[^a-z0-9]+", "-", words.encode("ascii", "ignore").decode()).strip("-")


def plain(label: str) -> str:
    """An emojibase label in plain words: "flag: France" -> "flag of france"."""
    words = unicodedata.normalize("NFKD", label.lower().replace("’", "'"))
    words = words.replace("#", "hash").replace("*", "asterisk").replace("&", "and")
    words = re.sub(r"\(.*?\)|[“”\"!]", " ", words.replace(".", ""))
    words = words.encode("ascii", "ignore").decode()
    words = re.sub(r"^keycap: ", "keycap ", words)
    words = re.sub(r"^regional indicator ", "letter ", words)
    words = re.sub(r"^(\w+): bald$", r"bald \1", words)
    words = re.sub(r"^(\w+): (.*hair|beard)$", r"\1 with \2", words)
    words = words.replace(": facing", " facing")
    words = re.sub(r", (?=[^,]*$)", " and ", words) if ": " in words else words
    words = re.sub(r"^couple with heart: (.*)$", r"\1 with heart", words)
    words = re.sub(r"[^a-z0-9', -]", " ", words.replace(": ", " of "))
    return re.sub(r"\s+", " ", words).replace(" - ", " ").strip()


def keyword_list(*lists: list[str]) -> tuple[str, ...]:
    """Keywords in plain words, each once, in order; emoticons and the like are left out."""
    words = (re.sub(r"[_\s]+", " ", word.lower()).strip() for words in lists for word in words)
    return tuple(dict.fromkeys(word for word in words if re.fullmatch(r"[a-z][a-z' -]+", word)))


class Names:
    """The things of emojibase, found by code point, by label, or by a family's old label."""

    def __init__(self, emojibase: Path, emojilib: Path, aliases: dict[str, str] | None = None):
        """``aliases`` maps old icon names to newer ones; the folders are unpacked packages."""
        entries = json.loads((emojibase / "en" / "data.json").read_text())
        groups = json.loads((emojibase / "meta" / "groups.json").read_text())
        tags = json.loads((emojilib / "dist" / "emoji-en-US.json").read_text())
        tags = {emoji.replace("\ufe0f", ""): words for emoji, words in tags.items()}
        self.by_slug: dict[str, Thing] = {}
        self.by_code: dict[str, Thing] = {}
        self.aliases = aliases or {}
        for entry in entries:
            name, emoji = plain(entry["label"]), entry["emoji"]
            words = keyword_list(tags.get(emoji.replace("\ufe0f", ""), []), entry.get("tags", []))
            thing = Thing(
                name,
                CATEGORIES[groups["groups"][str(entry.get("group", 8))]],
                groups["subgroups"].get(str(entry.get("subgroup")), ""),
                emoji,
                tuple(word for word in words if word != name),
            )
            self.by_slug.setdefault(slug(entry["label"]), thing)
            self.by_slug.setdefault(slug(name), thing)
            self.by_code[code(entry["hexcode"])] = thing
        # Where the icon is still called "pistol", no water pistol is drawn.
        revolver = Thing("revolver", "objects", keywords=("pistol", "gun", "weapon"))
        self.by_slug["revolver"] = revolver
        # fxemoji runs its words together: "tropicalfish".
        self.by_letters = {name.replace("-", ""): thing for name, thing in self.by_slug.items()}

    def find(self, icon: str, codepoint: str | None = None) -> Thing | None:
        """The thing that the icon draws, or None when emojibase does not list it."""
        if codepoint and (thing := self.by_code.get(code(codepoint))):
            return thing
        icon = icon.removeprefix("flag-for-")
        for name in (icon, RENAMED.get(icon), self.aliases.get(icon)):
            if name and (thing := self.by_slug.get(name)):
                return thing
        return self.by_letters.get(icon)


def code(hexcode: str) -> str:
    """A sequence of code points in one spelling, without the variation selector."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def has_skin_tone(icon: str, icons: dict) -> bool:
    """Whether the icon repeats another with a skin tone other than the default."""
    if "skin-tone" in icon or re.search(r"-tone[1-5]", icon):
        return True
    # "police-car-light" is no tone of "police-car": that has no medium dark one.
    return f"{TONE.sub('', icon)}-medium-dark" in icons and TONE.search(icon) is not None


def fxemoji_table() -> dict[str, str | None]:
    """fxemoji's icons under the other families' names; None for those to leave out."""
    lines = (Path(__file__).parent / "fxemoji.txt").read_text().splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    return {icon: None if name == "-" else name for icon, name in pairs}

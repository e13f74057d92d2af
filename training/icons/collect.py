"""Collecting: the icons of a family that are worth learning, each with what is known of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from .names import CATEGORIES, STYLES, Names, Thing, fxemoji_table, has_skin_tone, slug
from .render import Drawing


@dataclass(frozen=True)
class Icon:
    """One drawing of one thing by one family."""

    family: str
    icon: str  # its name in the package
    thing: Thing
    drawing: Drawing

    @property
    def key(self) -> str:
        """Unique in all families, and free of dots and slashes: "noto--tropical-fish"."""
        return f"{self.family}--{slug(self.thing.name)}"

    @property
    def order(self) -> str:
        """Sorts icons as if shuffled, so that each shard holds every family."""
        return hashlib.sha256(self.key.encode()).hexdigest()

    @property
    def held_out(self) -> bool:
        """Whether the pair (family, name) is kept for evaluation and never trained on."""
        return is_held_out(self.family, self.thing.name)

    def record(self) -> dict:
        """What the sample's JSON file says."""
        return {
            "name": self.thing.name,
            "category": self.thing.category,
            "subcategory": self.thing.subcategory,
            "family": self.family,
            "style": STYLES[self.family],
            "keywords": list(self.thing.keywords),
            "icon": self.icon,
            "emoji": self.thing.emoji,
        }


def is_held_out(family: str, name: str) -> bool:
    """One pair in twenty, by the SHA-256 of ``family/name``; ``name`` as in the JSON record."""
    return int(hashlib.sha256(f"{family}/{name}".encode()).hexdigest(), 16) % 20 == 0


def load(folder: Path, name: str, default: object = None) -> dict:
    """A JSON file of an unpacked package; ``default`` if it is given and there is none."""
    path = folder / name
    if default is not None and not path.is_file():
        return default
    return json.loads(path.read_text(encoding="utf-8"))


def old_names(folders: dict[str, Path]) -> dict[str, str]:
    """Icons that were renamed, old name -> new name, as the packages' own alias lists say."""
    aliases = {}
    for folder in folders.values():
        for old, alias in load(folder, "icons.json").get("aliases", {}).items():
            if not alias.get("hFlip"):
                aliases.setdefault(old, alias["parent"])
    return aliases


def drawings(package: dict) -> dict[str, Drawing]:
    """Every drawing of a package, its mirrored ones too; hidden (retired) icons are left out."""
    drawn = {}
    for icon, entry in package["icons"].items():
        if not entry.get("hidden"):
            box = {
                side: entry.get(side, package.get(side, default))
                for side, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
            }
            drawn[icon] = Drawing(entry["body"], **box)
    for icon, alias in package.get("aliases", {}).items():
        parent = drawn.get(alias["parent"])
        if parent and alias.get("hFlip"):
            drawn[icon] = replace(parent, flipped=not parent.flipped)
    return drawn


def collect(family: str, folder: Path, names: Names, codes: dict[str, str]) -> list[Icon]:
    """The family's icons by key: no skin-tone repeats, no drawing twice, no name twice.

    ``codes`` maps icon names to code points, where the family lists them.
    """
    package = load(folder, "icons.json")
    categories = load(folder, "metadata.json", default={}).get("categories", {})
    category = {icon: slug(title) for title, icons in categories.items() for icon in icons}
    table = fxemoji_table() if family == "fxemoji" else {}
    drawn = drawings(package)
    icons = []
    for icon, drawing in drawn.items():
        if has_skin_tone(icon, drawn) or table.get(icon, icon) is None:
            continue
        name = table.get(icon) or icon.replace("-", " ")
        thing = names.find(slug(name), codes.get(icon))
        if thing is None:
            own = CATEGORIES.get(category.get(icon, ""), "objects")
            thing = Thing(name, own)
        icons.append(Icon(family, icon, thing, drawing))
    return unique(icons)


def unique(icons: list[Icon]) -> list[Icon]:
    """Of icons with one name or one drawing keep the one whose name is shortest."""
    chosen, seen = [], set()
    for icon in sorted(icons, key=lambda icon: (len(icon.thing.name), icon.thing.name, icon.icon)):
        if icon.key not in seen and icon.drawing not in seen:
            chosen.append(icon)
            seen |= {icon.key, icon.drawing}
    return sorted(chosen, key=lambda icon: icon.key)


def collect_all(folders: dict[str, Path], emojibase: Path, emojilib: Path) -> list[Icon]:
    """The icons of all families, in the order in which shards hold them."""
    names = Names(emojibase, emojilib, old_names(folders))
    codes = {
        family: {icon: code for code, icon in load(folder, "chars.json", default={}).items()}
        for family, folder in folders.items()
    }
    if not codes.get("fluent-emoji"):  # the shaded and the flat drawings share their names
        codes["fluent-emoji"] = codes.get("fluent-emoji-flat", {})
    icons = []
    for family, folder in folders.items():
        icons += collect(family, folder, names, codes[family])
    return sorted(icons, key=lambda icon: icon.order)

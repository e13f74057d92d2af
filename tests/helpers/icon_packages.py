"""Two families of icons, unpacked as npm packages are, and emojibase's and emojilib's files."""

import json

RED = '<path fill="#f00" d="M0 0h8v16H0z"/>'  # the left half of 16 x 16


LABELS = {
    "1F420": ("tropical fish", 3, ["fish"]),
    "1F436": ("dog face", 3, ["pet"]),
    "1F408": ("cat", 3, []),
    "1F431": ("cat face", 3, []),
    "1F44D": ("thumbs up", 1, ["yes"]),
    "1F448": ("backhand index pointing left", 1, []),
    "1F449": ("backhand index pointing right", 1, []),
    "1F45E": ("man’s shoe", 7, []),
    "1F1F3-1F1F4": ("flag: Norway", 9, []),
    "1F1E7-1F1FB": ("flag: Bouvet Island", 9, []),
}


FXEMOJI = ("tropicalfish", "cat", "catside", "notepad")


def body(number):
    """A drawing like no other."""
    return f'<circle fill="#0{number % 10}8" cx="8" cy="8" r="{3 + number / 10}"/>'


def package(folder, icons, **more):
    """An unpacked iconify package; ``icons`` maps names to entries or, for short, to nothing."""
    folder.mkdir(parents=True)
    entries = {name: {"body": body(n)} | entry for n, (name, entry) in enumerate(icons.items())}
    icons = {"icons": entries, "width": 16, "height": 16, "aliases": more.get("aliases", {})}
    (folder / "icons.json").write_text(json.dumps(icons))
    for name in ("metadata", "chars"):
        (folder / f"{name}.json").write_text(json.dumps(more.get(name, {})))
    return folder


def unpacked(root):
    """Two families and the keyword packages, as ``collect_all`` takes them."""
    noto = {
        "tropical-fish": {},
        "dog-face": {},
        "thumbs-up": {},
        "thumbs-up-dark-skin-tone": {},
        "backhand-index-pointing-left": {"body": RED},
        "retired": {"hidden": True},
        "flag-bouvet-island": {"body": body(77)},
        "flag-norway": {"body": body(77)},
        "odd-sign": {},
        "mans-shoe": {},
    }
    aliases = {
        "angel-fish": {"parent": "tropical-fish"},
        "backhand-index-pointing-right": {"parent": "backhand-index-pointing-left", "hFlip": True},
        "hound": {"parent": "dog-face"},
    }
    metadata = {"categories": {"Symbols": ["odd-sign"]}}
    chars = {"1f420": "tropical-fish"}
    folders = {
        "noto": package(root / "a", noto, aliases=aliases, metadata=metadata, chars=chars),
        "fxemoji": package(root / "b", dict.fromkeys(FXEMOJI, {})),
        "twemoji": package(root / "c", {"hound": {}}),
    }
    entries = [
        {
            "label": label,
            "hexcode": code,
            "emoji": "".join(chr(int(part, 16)) for part in code.split("-")),
            "group": group,
            "tags": tags,
        }
        for code, (label, group, tags) in LABELS.items()
    ]
    groups = {"1": "people-body", "3": "animals-nature", "7": "objects", "9": "flags"}
    for name, content in {
        "base/en/data.json": entries,
        "base/meta/groups.json": {"groups": groups, "subgroups": {}},
        "lib/dist/emoji-en-US.json": {"🐠": ["tropical_fish", "nemo", ":D", "swim_well", "fish"]},
    }.items():
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text(json.dumps(content))
    return folders, root / "base", root / "lib"

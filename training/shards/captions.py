"""What captions are good for: whether they say anything to a CLIP, and what to do where not. No PyTorch."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

FEW, MOST = 0.05, 0.5  # shares of all from which something is told
ENOUGH = 8  # captions that one may conclude anything from
SAMPLED = 256  # captions whose embeddings are compared
ALIKE = 0.95  # mean cosine of captions that a text encoder does not tell apart
PIECES = 0.7  # tokens a letter, of a text that is spelled out
FILE_NAME = re.compile(
    r"\S+\.(jpe?g|png|gif|webp|svg|bmp|tiff?|heic|avif)"
    r"|(img|dsc[nf]?|dcim|pxl|mvi|image|photo|pic|picture|scan|screenshot|untitled|file|frame)"
    r"[-_ ()]*\d[\d\W_]*"
    r"|[\d_-]{4,}|[0-9a-f]{12,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    re.IGNORECASE,
)


class Advice(NamedTuple):
    """What is odd about captions, and what to do."""

    kind: str
    told: str


class Tokens(Protocol):
    """Of a CLIP's towers: how a text is cut into tokens, and put together again."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


def script_of(text: str) -> str:
    """The script that most letters of a text are of, such as "Latin" or "Cyrillic"; "" without letters."""
    names = Counter(unicodedata.name(letter, "? ").split()[0] for letter in text if letter.isalpha())
    return names.most_common(1)[0][0].capitalize() if names else ""


def is_file_name(caption: str, key: str = "") -> bool:
    """Whether a caption is what a camera or a program calls files, or the sample's own key with marks."""
    own = caption == key.rsplit("/", 1)[-1] and re.search(r"[-_\d]", caption) is not None
    return own or FILE_NAME.fullmatch(caption.strip()) is not None


def is_mixed(captions: Sequence[str]) -> bool:
    """Whether the captions of one picture are of several scripts."""
    return len({script for one in captions if (script := script_of(one))}) > 1


def is_spelled(caption: str, tokens: Tokens) -> bool:
    """Whether a tokenizer knows no words of a caption's script: it spells it byte by byte, or loses it."""
    letters = [letter for letter in caption if letter.isalpha()]
    if len(letters) < 4 or sum(not letter.isascii() for letter in letters) < len(letters) / 2:
        return False
    ids = tokens.encode(caption)
    if len(ids) >= PIECES * len(letters):
        return True
    kept = Counter(tokens.decode(ids).lower())
    return sum((Counter("".join(letters).lower()) & kept).values()) < len(letters) / 2


@dataclass
class Captions:
    """What is counted of captions, one after the other; ``advice`` says what it comes to."""

    count: int = 0
    spelled: int = 0
    scripts: Counter[str] = field(default_factory=Counter)  # of those that are spelled
    example: str = ""  # one of them
    names: int = 0
    name: str = ""  # one that is a file's name
    said: Counter[int] = field(default_factory=Counter)  # how often each was said, by its hash
    sample: dict[str, None] = field(default_factory=dict)  # different ones
    mixed: int = 0  # pictures with captions of several scripts
    several: int = 0  # pictures with several captions
    cosine: float | None = None  # mean likeness of their embeddings, if a CLIP has read them

    def add(self, caption: str, tokens: Tokens, named: bool) -> None:
        self.count += 1
        self.said[hash(caption.strip().lower())] += 1
        if len(self.sample) < SAMPLED and caption:
            self.sample[caption] = None
        if named:
            self.names, self.name = self.names + 1, self.name or caption
        if is_spelled(caption, tokens):
            self.spelled, self.example = self.spelled + 1, self.example or caption
            self.scripts[script_of(caption)] += 1

    def advice(self) -> list[Advice]:
        """What is odd, the worst first."""
        told: list[Advice] = []
        if not self.count:
            return told
        if self.spelled > FEW * self.count:
            scripts = ", ".join(script for script, _ in self.scripts.most_common(3))
            told.append(Advice("letters that the CLIP does not know", (
                f"{_share(self.spelled, self.count)} captions are {scripts}, which the tokenizer spells byte "
                f"by byte ({self.example!r:.60}): the text encoder knows no word of them. Take captions that "
                "it knows (training.shards --captions first, where those come first), or a CLIP of many "
                "languages (clip: open_clip:xlm-roberta-base-ViT-B-32@laion5b_s13b_b90k)"
            )))  # fmt: skip
        if self.cosine is not None and self.cosine > ALIKE:
            told.append(Advice("captions that the CLIP does not tell apart", (
                f"the text embeddings of {len(self.sample)} different captions have a mean cosine of "
                f"{self.cosine:.3f}: to this CLIP they all say the same. Take another CLIP, or other captions"
            )))  # fmt: skip
        if self.mixed > MOST * max(self.several, ENOUGH):
            told.append(Advice("captions of several languages", (
                f"{_share(self.mixed, self.several)} pictures with several captions have them in several "
                "scripts, and training takes one by chance: most steps learn from a language that a prompt "
                "will not be in. Take the first alone (training.shards --captions first), if that is the one"
            )))  # fmt: skip
        if self.names > FEW * self.count:
            told.append(Advice("captions that are file names", (
                f"{_share(self.names, self.count)} captions are names of files ({self.name!r:.60}), which "
                "say nothing of the picture. Write what is to be seen, in a .txt beside each picture"
            )))  # fmt: skip
        most = max(self.said.values())
        if most > MOST * self.count and self.count >= ENOUGH:
            told.append(Advice("one caption for most pictures", (
                f"{_share(most, self.count)} captions are the same: prompts will hardly matter. Say what is "
                "different about the pictures"
            )))  # fmt: skip
        return told


def _share(some: int, of: int) -> str:
    return f"{some:,} of {of:,} ({some / of:.0%})"

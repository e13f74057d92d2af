"""CLIP's embeddings on disk, one file a shard, as ``training.embed`` writes and training reads them."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unclip.checkpoint import CheckpointError, read_header, save_checkpoint
from unclip.clip import WEIGHTS, digest_of, load_clip, named, same_weights
from unclip.config import ConfigError, looked_up
from unclip.data.reading import ShardError, expand, spelled_out
from unclip.files import parse_json, read_json, written_aside
from unclip.stages import Decoder

MANIFEST, KIND = "embeddings.json", "embeddings"
FACTS = {"clip": str, "dim": int, "tokens": bool, "files": dict, "mean": list, "std": list}  # of a manifest


@dataclass(frozen=True)
class Rows:
    """The embeddings of a shard's pictures and captions; a picture's captions follow one another.

    image:    float32 [N,D], of length 1, of the pictures ``keys``.
    text:     float32 [M,D], of length 1, of the ``captions``.
    picture:  int64 [M], the row of each caption's picture.
    tokens:   float16 [T,W], the hidden states of all captions, one after the other; None if not kept.
    ends:     int64 [M+1], where the states of each caption begin, and end.
    latents:  float16 [N,C,h,w] on the disk, of the pictures; None if not kept.
    """

    keys: list[str]
    captions: list[str]
    image: Tensor
    text: Tensor
    picture: Tensor
    tokens: Tensor | None = None
    ends: Tensor | None = None
    latents: np.ndarray | None = None

    @cached_property
    def row(self) -> dict[str, int]:
        """The row of each key; the first, if it comes twice."""
        return {key: row for row, key in reversed([*enumerate(self.keys)])}

    def captions_of(self, row: int) -> range:
        """The rows of a picture's captions."""
        return range(*torch.searchsorted(self.picture, torch.tensor([row, row + 1])).tolist())

    def states(self, caption: int) -> Tensor:
        """The hidden states [L,W] of a caption."""
        return self.tokens[self.ends[caption] : self.ends[caption + 1]]


def save_rows(path: Path, rows: Rows, **facts: object) -> None:
    """Write a shard's embeddings; ``facts``: "clip" (its identity) and what else is worth knowing."""
    text = json.dumps({"keys": rows.keys, "captions": rows.captions}).encode()
    tensors = {
        "image": rows.image,
        "text": rows.text,
        "picture": rows.picture,
        "samples": torch.frombuffer(bytearray(text), dtype=torch.uint8),
    }
    if rows.tokens is not None:
        tensors |= {"tokens": rows.tokens, "ends": rows.ends}
    latents_file(path).unlink(missing_ok=True)  # of another making
    if rows.latents is not None:
        with written_aside(latents_file(path)) as aside, open(aside, "wb") as file:
            np.save(file, rows.latents)
    save_checkpoint(path, tensors, kind=KIND, config={}, tokens=rows.tokens is not None, **facts)


def load_rows(path: Path) -> Rows:
    """Raises ``CheckpointError`` for what is no such file."""
    latents = read_header(path, KIND).get("latents")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        text = tensors.pop("samples").numpy().tobytes()
        samples = parse_json(text, "its list of samples", keys=list, captions=list)
        kept = None if latents is None else np.load(latents_file(path), mmap_mode="r", allow_pickle=False)
        rows = Rows(samples["keys"], samples["captions"], **tensors, latents=kept)
        _check(rows, latents)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    return rows


def latents_file(path: Path) -> Path:
    """The file of a shard's latents, beside that of its embeddings: it is read a picture at a time."""
    return path.with_suffix(".latents.npy")


def space_of(stage: Decoder) -> dict[str, object]:
    """What a stage's latents are of: the autoencoder's weights, and the shape of a picture's.

    Raises ``ConfigError`` for a stage of pixels.
    """
    if stage.autoencoder is None:
        raise ConfigError("that is a stage of pixels, which has no autoencoder")
    weights = stage.autoencoder.state_dict()
    return {"autoencoder": digest_of(weights, weights.__getitem__), "shape": list(stage.shape)}


def _check(rows: Rows, latents: dict | None = None) -> None:
    """Refuse, by ``ValueError``, rows that do not belong together."""
    n, m = len(rows.keys), len(rows.captions)
    if not all(isinstance(text, str) for text in (*rows.keys, *rows.captions)):
        raise ValueError("a key or a caption that is no text")
    if len(rows.image) != n or len(rows.text) != m or rows.picture.shape != (m,):
        raise ValueError(f"it has {n} keys for {len(rows.image)} pictures, {m} captions for {len(rows.text)}")
    steps = rows.picture.diff()
    if m and (rows.picture[0] < 0 or rows.picture[-1] >= n or (steps < 0).any()):
        raise ValueError("captions of pictures that it does not hold")
    if rows.latents is not None and (rows.latents.dtype, rows.latents.shape) != (
        np.float16,
        (n, *(latents or {}).get("shape", ())),
    ):
        raise ValueError(f"its latents are of {rows.latents.dtype} and {rows.latents.shape}")
    if rows.tokens is not None:
        lengths = rows.ends.diff()
        if (
            rows.ends.shape != (m + 1,)
            or rows.ends[0]
            or rows.ends[-1] != len(rows.tokens)
            or (lengths < 0).any()
        ):
            raise ValueError("hidden states that do not fit its captions")


class Embeddings:
    """A folder of ``training.embed``, file by file.

    clip: the identity of the CLIP. dim, text_dim: widths. tokens: whether hidden states are kept. mean, std:
    float32 [D], of all image embeddings. latents: ``space_of`` what those are of that are kept, or None.
    files: {shard's name without its end: {"pictures", "captions"}}.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            facts = read_json(self.folder / MANIFEST, "the list of embeddings", **FACTS)
            self.clip, self.dim, self.text_dim = facts["clip"], facts["dim"], facts.get("text_dim")
            self.tokens, self.files, self.latents = facts["tokens"], facts["files"], facts.get("latents")
            self.mean, self.std = torch.tensor(facts["mean"]), torch.tensor(facts["std"])
            counts = [entry[what] for entry in self.files.values() for what in ("pictures", "captions")]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason: object = error
            if not (self.folder / MANIFEST).exists():
                reason = f"it has no {MANIFEST}, which training.embed writes at its end{looked_up(folder)}"
            raise ConfigError(f"{folder} holds no embeddings: {reason}") from None
        if not all(type(count) is int and count >= 0 for count in counts) or self.mean.shape != (self.dim,):
            raise ConfigError(f"{self.folder / MANIFEST} is damaged: its counts or its mean are none")
        self.capacity = 8  # files in memory
        self._rows: OrderedDict[str, Rows] = OrderedDict()

    def __getitem__(self, name: str) -> Rows:
        """The embeddings of a shard, by its name without its end."""
        if name not in self._rows:
            if name not in self.files:
                raise ConfigError(f"{self.folder} holds no embeddings of {name}; run training.embed again")
            self._rows[name] = load_rows(self.path(name))
            if len(self._rows) > self.capacity:
                self._rows.popitem(last=False)
        self._rows.move_to_end(name)
        return self._rows[name]

    def path(self, name: str) -> Path:
        """The file of a shard's embeddings."""
        return self.folder / f"{name}.safetensors"

    def names(self, shards: Iterable[str]) -> list[str]:
        """The names of the shards meant, which need not be there; ``ConfigError`` for one of none."""
        names: dict[str, None] = {}
        for item in shards:
            try:
                some = [name_of(path) for path in expand(item)]
            except ShardError:  # the embeddings alone were brought here
                wanted = [name_of(one) for one in spelled_out(item)]
                some = [name for name in sorted(self.files) if any(fnmatch(name, one) for one in wanted)]
            if not some:
                raise ConfigError(f"{self.folder} holds no embeddings of {item}")
            names |= dict.fromkeys(some)
        if missing := [name for name in names if name not in self.files]:
            raise ConfigError(
                f"{self.folder} holds no embeddings of {', '.join(missing[:5])}; run training.embed again"
            )
        return list(names)

    def check_clip(self, source: str | None) -> None:
        """Refuse, by ``ConfigError``, embeddings of another CLIP than ``source``, as ``load_clip`` takes it.

        A model that its name alone identifies is compared by that; another by its weights.
        """
        if source is not None:
            self.check(identity_of(source), source)

    def check(self, known: str, source: str) -> None:
        """The same, of a CLIP whose identity is ``known``."""
        if not same_weights(known, self.clip):
            raise ConfigError(
                f"{self.folder} holds embeddings of the CLIP {self.clip}, but the recipe's "
                f"{source} is {known}; run training.embed with it, or name the other"
            )


def name_of(shard: str | Path) -> str:
    """The name of a shard's embeddings: its own, without its end."""
    return Path(str(shard)).name.split(".tar")[0]


def identity_of(source: str) -> str:
    """``Clip.identity`` of what ``load_clip`` takes; of a published model only what comes before the "#"."""
    kind, _, name = source.partition(":")
    folder = Path(source)
    if kind in ("open_clip", "transformers") and name:
        model, _, tag = name.partition("@")
        local = Path(tag or model).exists()
        if not local:
            return f"{kind}:{model}@{tag}" if kind == "open_clip" else source
    elif (folder / WEIGHTS).is_file():  # the same sum as ``Clip.identity``, without building the network
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            return named(folder.resolve().name, digest_of(file.keys(), file.get_tensor))
    return load_clip(source).identity

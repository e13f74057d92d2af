"""A pool: composed scenes that are drawn once, embedded once, and then only read.

A folder of ``pictures.bin`` (uint8 [M,3,S,S], one after the other), ``samples.jsonl`` (a caption and a key a
line), ``pool.json`` (how many of them count, and what they were made of) and, for stages that are told CLIP's
embeddings, ``embeddings.safetensors``. Scene i depends on the seed and i alone, so a pool whose making was
cut off goes on, and one that is asked for more scenes grows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unclip.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from unclip.clip import same_weights
from unclip.config import Config, ConfigError, Count
from unclip.files import read_json, regular, write_json

FACTS, PICTURES, SAMPLES, EMBEDDINGS = "pool.json", "pictures.bin", "samples.jsonl", "embeddings.safetensors"
AGAIN = "and it is made again"
Drawn = tuple[Tensor, list[str], list[str]]  # uint8 [n,3,S,S], captions, keys


class PoolConfig(Config):
    """Where a pool is kept, and how large it is."""

    folder: str  # made at the first start; on a disk that all machines share
    scenes: Count = 50_000


@dataclass(frozen=True)
class Pool:
    """Scenes by number. image: uint8 [M,3,S,S], mapped from the disk."""

    folder: Path
    image: np.ndarray
    caption: list[str]
    key: list[str]

    def __len__(self) -> int:
        return len(self.caption)

    def pictures(self, rows: list[int] | slice) -> Tensor:
        """uint8 [n,3,S,S]."""
        return torch.from_numpy(np.array(self.image[rows]))

    def embedded(self, clip: str, embed: Callable[[Tensor], Tensor], batch: int = 256) -> Tensor:
        """The scenes' image embeddings, float32 [M,D], by the CLIP of that identity; made where missing.

        embed: uint8 [n,3,S,S] -> [n,D]. ``ConfigError`` if the pool was embedded by another CLIP.
        """
        path, known = self.folder / EMBEDDINGS, torch.zeros(0, 0)
        if path.exists():
            known = self._known(path, clip)
        if len(known) < len(self):
            parts = [] if not len(known) else [known]
            starts = tqdm(range(len(known), len(self), batch), "embedding", unit_scale=batch, unit="pic")
            parts += [embed(self.pictures(slice(i, min(i + batch, len(self))))).float().cpu() for i in starts]
            known = torch.cat(parts)
            save_checkpoint(path, {"image": known}, kind="pool", config={}, dtype=torch.float16, clip=clip)
            known = known.half().float()  # as it will be read
        return known[: len(self)]

    def _known(self, path: Path, clip: str) -> Tensor:
        try:
            tensors, header = load_checkpoint(path, "pool")
            image, by = tensors["image"], header["clip"]
        except (CheckpointError, KeyError) as error:
            raise ConfigError(
                f"the pool's {path} cannot be read ({error}); delete it, and it is made again"
            ) from None
        if not same_weights(by, clip):
            raise ConfigError(
                f"the pool {self.folder} was embedded by the CLIP {by}, not by {clip}; name "
                f"another folder in data.pool, or delete {path}, and it is made again"
            )
        return image


def as_bytes(images: Tensor) -> Tensor:
    """Pictures in [-1,1] -> uint8, as a pool keeps them; what is that already stays as it is."""
    return ((images + 1) * 127.5).round().to(torch.uint8) if images.is_floating_point() else images


def open_pool(config: PoolConfig, size: int, facts: dict, draw: Callable[[int], Iterator[Drawn]]) -> Pool:
    """The pool of a folder, drawn as far as it is not yet.

    size: S. facts: what the scenes depend on besides their number, JSON-able. draw: scenes in batches, for
    ever, from a number on. ``ConfigError`` for a pool of other facts or another size, or one cut short.
    """
    folder, facts = Path(config.folder), {**facts, "format": 1, "size": size}
    count = _kept(folder, facts)
    if count < config.scenes:
        _draw(folder, facts, config.scenes, count, draw)
    captions, keys = zip(*_samples(folder, config.scenes), strict=True)
    image = np.memmap(folder / PICTURES, np.uint8, "r", shape=(config.scenes, 3, size, size))
    return Pool(folder, image, list(captions), list(keys))


def _samples(folder: Path, count: int) -> Iterator[tuple[str, str]]:
    """The captions and keys of the first scenes."""
    with open(regular(folder / SAMPLES), encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, count), 1):
            try:
                caption, key = json.loads(line)
            except (ValueError, TypeError, RecursionError):
                caption = key = None
            if not isinstance(caption, str) or not isinstance(key, str):
                raise ConfigError(f"line {number} of {folder / SAMPLES} is damaged; delete the pool, {AGAIN}")
            yield caption, key


def _kept(folder: Path, facts: dict) -> int:
    """How many scenes the folder holds."""
    path = folder / FACTS
    if not path.exists():
        return 0
    try:
        before = read_json(path, "what a pool holds", count=int)
        count = before.pop("count")
        there = (folder / PICTURES).stat().st_size
        with open(folder / SAMPLES, "rb") as lines:
            samples = sum(1 for _ in lines)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the pool {folder} is damaged ({error}); delete it, {AGAIN}") from None
    other = [
        f"{name} {before.get(name)!r}, not {facts.get(name)!r}"
        for name in sorted({*before, *facts})
        if before.get(name) != facts.get(name)
    ]
    if other:
        raise ConfigError(
            f"the pool {folder} was made with {'; '.join(other)}: name another folder in "
            "data.pool, or delete this one, and it is made again"
        )
    if count < 0 or there < count * 3 * facts["size"] ** 2 or samples < count:
        raise ConfigError(
            f"the pool {folder} is cut short: {PICTURES} has {there:,} bytes and {SAMPLES} "
            f"{samples:,} samples for {count:,} scenes; delete it, and it is made again"
        )
    return count


def _draw(
    folder: Path,
    facts: dict,
    scenes: int,
    count: int,
    draw: Callable[[int], Iterator[Drawn]],
    every: int = 10_000,
) -> None:
    """Draw scenes number ``kept`` and on. From time to time they are counted, so that little is ever lost."""
    folder.mkdir(parents=True, exist_ok=True)
    batches = draw(count)
    with (
        open(folder / PICTURES, "ab") as file,
        open(folder / SAMPLES, "ab+") as lines,
        tqdm(total=scenes, initial=count, desc="drawing", unit="scene") as bar,
    ):
        file.truncate(count * 3 * facts["size"] ** 2)  # what was drawn, but not counted yet
        lines.seek(0)
        lines.truncate(sum(len(line) for line in islice(lines, count)))
        while count < scenes:
            until = min(count + every, scenes)
            while count < until:
                image, captions, keys = next(batches)
                n = min(len(captions), scenes - count)
                file.write(image[:n].numpy().tobytes())
                rows = zip(captions[:n], keys[:n], strict=True)
                lines.writelines(f"{json.dumps(row)}\n".encode() for row in rows)
                count += n
                bar.update(n)
            for one in (file, lines):
                one.flush()
                os.fsync(one.fileno())
            write_json(folder / FACTS, {**facts, "count": count})

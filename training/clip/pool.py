"""The pictures and texts that a CLIP learns from, made once and kept."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.clip import Clip
from unclip.diffusion.noise import Random, rand

from ..data.pool import Drawn, Pool, PoolConfig, as_bytes, open_pool
from ..data.source import Source
from .teacher import Teacher
from .words import fetch_wordnet, vocabulary

if TYPE_CHECKING:
    from .recipe import ClipRecipe


def build_pool(recipe: ClipRecipe, cache: Path, batch: int = 256) -> Pool:
    """The first `recipe.distinct` pictures of the recipe's data, drawn once and kept in `cache`.

    Raises ``ConfigError`` for a pool that is damaged or cut short.
    """
    data = recipe.data.model_copy(update={"heldout": []})
    facts = {"seed": recipe.seed, "data": data.model_dump(mode="json", exclude={"heldout", "workers"})}
    folder = cache / f"pool-{sha256(json.dumps(facts).encode()).hexdigest()[:16]}"

    def draw(start: int) -> Iterator[Drawn]:
        skip = start % batch
        for drawn in Source(data, recipe.seed).batches(batch, start // batch):
            yield as_bytes(drawn.pixels[skip:]), drawn.caption[skip:], drawn.key[skip:]
            skip = 0

    size = data.crop or data.size
    return open_pool(PoolConfig(folder=str(folder), scenes=recipe.distinct), size, facts, draw)


def groups(pool: Pool) -> Tensor:
    """Numbers int64 [M], equal where the names are that the keys of a pool's pictures end with."""
    names = ["+".join(part.split("--")[-1] for part in key.split("+")) for key in pool.key]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names])


def augment(images: Tensor, source: Random) -> Tensor:
    """Small turns, shifts, sizes, brightness and contrast. images: [N, 3, S, S] in [-1, 1]."""
    n = len(images)
    r = rand((n, 6), images.device, source) * 2 - 1  # [N, 6] in [-1, 1]
    angle, scale = 0.15 * r[:, 0], 1 + 0.1 * r[:, 1]
    rows = [
        scale * angle.cos(),
        -scale * angle.sin(),
        0.08 * r[:, 2],
        scale * angle.sin(),
        scale * angle.cos(),
        0.08 * r[:, 3],
    ]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved * (1 + 0.1 * r[:, 4]).view(n, 1, 1, 1) + 0.1 * r[:, 5].view(n, 1, 1, 1)


def vocabulary_of(size: int, clip: Clip, cache: Path) -> list[str]:
    """Everyday words and phrases: the teacher's words, and WordNet's of which all parts are common."""
    words = Teacher().words()
    known = set(words)
    pieces = getattr(clip.towers.tokenizer, "encoder", {})  # of byte pairs
    known |= {piece[:-4] for piece in pieces if re.fullmatch("[a-z]{3,}</w>", piece)}
    return vocabulary(words, known, fetch_wordnet(cache), size)


def teacher_table(parts: Sequence[Sequence[str]], cache: Path, device: torch.device) -> Tensor:
    """The teacher's vectors of some lists of texts, one after the other: float16 [N, T]."""
    teacher = Teacher(device)
    return torch.cat([torch.from_numpy(teacher.table(texts, cache).copy()) for texts in parts])

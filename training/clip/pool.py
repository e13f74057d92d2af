"""The pictures and texts that a CLIP learns from, made once and kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from unclip.clip import Clip
from unclip.diffusion.noise import Random, rand
from unclip.files import written_aside

from ..data.source import Source
from .teacher import Teacher
from .words import fetch_wordnet, vocabulary

if TYPE_CHECKING:
    from .recipe import ClipRecipe


@dataclass(frozen=True)
class Pool:
    """Pictures in memory.

    image: uint8 [M, 3, S, S]. caption: M sentences. group: int64 [M], equal where the names are.
    """

    image: Tensor
    caption: list[str]
    group: Tensor


def build_pool(recipe: ClipRecipe, cache: Path, batch: int = 256) -> Pool:
    """Draws `recipe.distinct` pictures once and keeps them in `cache`."""
    facts = f"{recipe.data.model_dump_json()} {recipe.distinct} {recipe.seed}"
    path = cache / f"pool-{sha256(facts.encode()).hexdigest()[:16]}.pt"
    if not path.exists():
        image = torch.empty(recipe.distinct, 3, recipe.data.size, recipe.data.size, dtype=torch.uint8)
        caption, key, start = [], [], 0
        progress = tqdm(total=len(image), desc="drawing", unit="picture")
        for made in Source(recipe.data, recipe.seed).batches(batch):
            n = min(len(made.image), len(image) - start)
            image[start : start + n] = ((made.image[:n] + 1) * 127.5).round().byte()
            caption, key, start = caption + made.caption[:n], key + made.key[:n], start + n
            progress.update(n)
            if start == len(image):
                break
        progress.close()
        with written_aside(path) as aside:
            torch.save({"image": image, "caption": caption, "key": key}, aside)
    kept = torch.load(path, weights_only=True)
    names = ["+".join(part.split("--")[-1] for part in key.split("+")) for key in kept["key"]]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Pool(kept["image"], kept["caption"], torch.tensor([number[name] for name in names]))


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

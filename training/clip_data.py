"""The pictures and texts that `training.clip` learns from, and what it is measured by."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from training.data import DataConfig, Source
from training.icons.scenes import PLAIN_ONLY, Scenes
from training.pictures import shrink
from training.teacher import Teacher, fetch_wordnet, vocabulary
from unclip.checkpoint import written_aside
from unclip.clip import Clip
from unclip.diffusion.noise import Random, rand
from unclip.noised_clip import NoisedClip

if TYPE_CHECKING:
    from training.clip import ClipRecipe
    from training.clip_parts import Head


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
    r = rand((n, 6), images.device, source) * 2 - 1                     # [N, 6] in [-1, 1]
    angle, scale = 0.15 * r[:, 0], 1 + 0.1 * r[:, 1]
    rows = [scale * angle.cos(), -scale * angle.sin(), 0.08 * r[:, 2],
            scale * angle.sin(), scale * angle.cos(), 0.08 * r[:, 3]]
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


class Evaluation:
    """Held-out pictures against all names, and words that are in no caption."""

    def __init__(self, data: DataConfig, source: Source, unseen: Mapping[str, Sequence[str]]) -> None:
        self.unseen, self.scenes = unseen, source.scenes
        if source.scenes is not None:
            held = Scenes.load(data.heldout, data.size, PLAIN_ONLY) if data.heldout else None
            self.names = [r["name"] for r in source.scenes.records]
            self.heldout = held and held.pictures(range(len(held)))
            self.heldout_names = [r["name"] for r in held.records] if held else []
        else:
            held = source.heldout(2_000)
            self.heldout, self.heldout_names = (held.image, held.caption) if held else (None, [])
            self.names = self.heldout_names

    @torch.no_grad()
    def measure(self, clip: Clip, head: Head | None, table: Tensor | None,
                texts: Sequence[str]) -> dict[str, object]:
        """R@1 and R@5 of held-out (and trained) pictures to names, and top-5 of unseen words."""
        vocabulary = sorted({*self.names, *self.heldout_names})
        text = clip.encode_text(vocabulary).embed
        found: dict[str, object] = {}
        if self.heldout is not None:
            held = self._embed(clip, self.heldout)
            found |= _recall("heldout", held @ text.T, self.heldout_names, vocabulary)
        if self.scenes is not None:
            images = self._embed(clip, self.scenes.pictures(range(len(self.scenes))))
            found |= _recall("trained", images @ text.T, self.names, vocabulary)
            found |= self._words(clip, images)
        if table is not None:
            some = torch.linspace(0, len(texts) - 1, min(len(texts), 5_000)).long().tolist()
            goal = head(table[some].float().to(text.device))
            said = clip.encode_text([texts[i] for i in some]).embed
            found["text_cosine"] = (said * goal).sum(1).mean().item()
        return found

    def _words(self, clip: Clip, images: Tensor) -> dict[str, object]:
        """The five names whose mean picture is nearest to each unseen word."""
        if not self.unseen:
            return {}
        rows = defaultdict(list)
        for i, name in enumerate(self.names):
            rows[name].append(i)
        centres = F.normalize(torch.stack([images[r].mean(0) for r in rows.values()]), dim=-1)
        names, hits, first = list(rows), {}, {}
        near = (clip.encode_text(list(self.unseen)).embed @ centres.T).topk(5).indices.tolist()
        for (word, wanted), best in zip(self.unseen.items(), near, strict=True):
            five = [names[i] for i in best]
            hits[word], first[word] = bool({*five} & {*wanted}), five
        return {"unseen_top5": sum(hits.values()) / len(hits), "unseen": first,
                "missed": [word for word, hit in hits.items() if not hit]}

    @staticmethod
    def _embed(clip: Clip, images: Tensor) -> Tensor:
        parts = images.split(256)
        return torch.cat([clip.encode_image(part.to(clip.mean.device)) for part in parts])


@torch.no_grad()
def measure_noised(clip: NoisedClip, evaluation: Evaluation) -> dict[str, object]:
    """R@1 and R@5 of held-out pictures to names, at four noise levels: the middles of the quarters of t."""
    from training.clip_batches import Noiser  # which imports this module

    if evaluation.heldout is None:
        return {}
    noiser, found, device = Noiser(clip.config), {}, clip.network.text.position.device
    vocabulary = sorted({*evaluation.names, *evaluation.heldout_names})
    text = clip.encode_text(vocabulary)
    x0 = shrink(evaluation.heldout, clip.config.net.image_size)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for quarter in range(4):
        t = torch.full((len(x0),), 1 + (2 * quarter + 1) * (clip.config.net.timesteps - 1) // 8)
        image = torch.cat([clip.encode_image(x.to(device), at.to(device)) for x, at in zip(
            noiser.at(x0, t, noise).split(256), t.split(256), strict=True)])
        found |= _recall(f"heldout_quartile{quarter}", image @ text.T, evaluation.heldout_names, vocabulary)
    return found


def _recall(title: str, scores: Tensor, truth: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Share of rows whose own name is first, and among the first five."""
    index = {name: i for i, name in enumerate(names)}
    own = torch.tensor([index[name] for name in truth], device=scores.device)[:, None]
    best = scores.topk(min(5, len(names))).indices == own
    return {f"{title}_r1": best[:, 0].float().mean().item(),
            f"{title}_r5": best.any(1).float().mean().item()}

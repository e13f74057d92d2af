"""What a CLIP is measured by."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unclip.clip import Clip
from unclip.data.batches import shrink
from unclip.guides.noised_clip import NoisedClip

from ..data.config import DataConfig
from ..data.source import Source
from ..icons.scenes import PLAIN_ONLY, Scenes

if TYPE_CHECKING:
    from .losses import Head


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
    def measure(
        self, clip: Clip, head: Head | None, table: Tensor | None, texts: Sequence[str]
    ) -> dict[str, object]:
        """R@1 and R@5 of held-out and trained pictures to names, top-5 of unseen words; of what there is."""
        vocabulary = sorted({*self.names, *self.heldout_names})
        text = clip.encode_text(vocabulary).embed if vocabulary else None
        metrics: dict[str, object] = {}
        if self.heldout is not None:
            held = self._embed(clip, self.heldout)
            metrics |= _recall("heldout", held @ text.T, self.heldout_names, vocabulary)
        if self.scenes is not None:
            images = self._embed(clip, self.scenes.pictures(range(len(self.scenes))))
            metrics |= _recall("trained", images @ text.T, self.names, vocabulary)
            metrics |= self._words(clip, images)
        if table is not None:
            some = torch.linspace(0, len(texts) - 1, min(len(texts), 5_000)).long().tolist()
            said = clip.encode_text([texts[i] for i in some]).embed
            goal = head(table[some].float().to(said.device))
            metrics["text_cosine"] = (said * goal).sum(1).mean().item()
        return metrics

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
        return {
            "unseen_top5": sum(hits.values()) / len(hits),
            "unseen": first,
            "missed": [word for word, hit in hits.items() if not hit],
        }

    @staticmethod
    def _embed(clip: Clip, images: Tensor) -> Tensor:
        parts = images.split(256)
        return torch.cat([clip.encode_image(part.to(clip.mean.device)) for part in parts])


@torch.no_grad()
def measure_noised(clip: NoisedClip, evaluation: Evaluation) -> dict[str, object]:
    """R@1 and R@5 of held-out pictures to names, at four noise levels: the middles of the quarters of t."""
    from .batches import Noiser  # which imports this module

    if evaluation.heldout is None:
        return {}
    noiser, metrics, device = Noiser(clip.config), {}, clip.network.text.position.device
    vocabulary = sorted({*evaluation.names, *evaluation.heldout_names})
    text = clip.encode_text(vocabulary)
    x0 = shrink(evaluation.heldout, clip.config.net.image_size)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    for quarter in range(4):
        t = torch.full((len(x0),), 1 + (2 * quarter + 1) * (clip.config.net.timesteps - 1) // 8)
        image = torch.cat(
            [
                clip.encode_image(x.to(device), at.to(device))
                for x, at in zip(noiser.at(x0, t, noise).split(256), t.split(256), strict=True)
            ]
        )
        metrics |= _recall(f"heldout_quartile{quarter}", image @ text.T, evaluation.heldout_names, vocabulary)
    return metrics


def _recall(title: str, scores: Tensor, truth: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Share of rows whose own name is first, and among the first five."""
    index = {name: i for i, name in enumerate(names)}
    own = torch.tensor([index[name] for name in truth], device=scores.device)[:, None]
    best = scores.topk(min(5, len(names))).indices == own
    return {f"{title}_r1": best[:, 0].float().mean().item(), f"{title}_r5": best.any(1).float().mean().item()}

"""Pictures that a model draws of held-out captions, as judges see them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from training.icons.captions import styled
from unclip.clip import Clip
from unclip.data.images import to_tensor
from unclip.diffusion.noise import fold
from unclip.options import Options
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish

Judges = Mapping[str, Clip]


@dataclass
class Seen:
    """Pictures as the judges see them: ``embed`` [N,D] by judge and kind, float64 on the CPU."""

    names: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    parts: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)

    def look(self, judges: Judges, kind: str, pictures: Tensor) -> None:
        """Add ``pictures`` [N,3,H,W] in [-1,1], which are of ``kind``."""
        for name, clip in judges.items():
            embed = clip.encode_image(pictures).double().cpu()
            self.parts.setdefault((name, kind), []).append(embed)

    def describe(self, samples: Sequence[dict]) -> None:
        """Add what the shards say of the pictures."""
        self.names += [sample["record"]["name"] for sample in samples]
        self.captions += [styled(sample["record"]) for sample in samples]
        self.keys += [sample["key"] for sample in samples]

    def embed(self, judge: str, kind: str) -> Tensor:
        return torch.cat(self.parts[judge, kind])


def draw(
    pipeline: Pipeline,
    captions: list[str],
    seeds: list[int],
    options: Options,
    pictures: Tensor | None = None,
    classes: Tensor | None = None,
) -> Tensor:
    """One picture a caption, [N,3,S,S] in [-1,1].

    pictures: real pictures whose embeddings the decoder is given; None = the prior's embeddings.
    classes:  int64 [N], for a model of classes.
    """
    embed = None if pictures is None else pipeline.clip.encode_image(pictures)
    texts = captions if pipeline.takes_prompt else None
    wish = pipeline.understood(Wish(seeds, texts, options, classes, embed))
    return pipeline.upsample(pipeline.decode(wish), wish)


@torch.no_grad()
def look_at_heldout(
    pipeline: Pipeline,
    judges: Judges,
    samples: Sequence[dict],
    seed: int,
    batch_size: int,
    options: Options,
    decoder_only: bool,
) -> Seen:
    """Draw a picture for every sample, and show the judges both (kinds "real" and "made")."""
    seen = Seen()
    with tqdm(total=len(samples), desc="drawing", unit="pic") as bar:
        for batch in _batches(samples, batch_size):
            done = len(seen.names)
            seeds = [fold(seed, number) for number in range(done, done + len(batch))]
            real = _pictures(batch, pipeline.device)
            drawn = draw(
                pipeline,
                [styled(sample["record"]) for sample in batch],
                seeds,
                options,
                real if decoder_only else None,
            )
            seen.describe(batch)
            seen.look(judges, "real", real)
            seen.look(judges, "made", drawn.float())
            bar.update(len(batch))
    return seen


@torch.no_grad()
def look_at(judges: Judges, samples: Iterable[dict], device: torch.device, batch_size: int = 64) -> Seen:
    """Show the judges real pictures."""
    seen = Seen()
    with tqdm(desc="reading", unit="pic") as bar:
        for batch in _batches(samples, batch_size):
            seen.describe(batch)
            seen.look(judges, "real", _pictures(batch, device))
            bar.update(len(batch))
    return seen


def _batches(samples: Iterable[dict], n: int) -> Iterator[list[dict]]:
    samples = iter(samples)
    while batch := list(itertools.islice(samples, n)):
        yield batch


def _pictures(samples: Sequence[dict], device: torch.device) -> Tensor:
    return torch.stack([to_tensor(sample["image"]) for sample in samples]).to(device)

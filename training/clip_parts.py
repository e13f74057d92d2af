"""What `training.clip` minimises: pictures against captions, and a text tower against its goal."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip import Clip


def contrastive(image: Tensor, text: Tensor, scale: Tensor, same: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), with soft targets.

    image, text: [N, D] of unit norm. same: [N, N], symmetric, how well text j also fits picture i,
    1 for its own. Returns a scalar.
    """
    logits = scale * image @ text.T                                      # [N, N]
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Head(nn.Linear):
    """A smooth map from the teacher's space to the common one.

    It starts as the known captions' principal directions, half whitened, which is a good map before
    any training. known: float [M, T]. hidden: width of a bent part that starts at zero; 0 for none.
    """

    def __init__(self, known: Tensor, embed_dim: int, hidden: int = 0) -> None:
        super().__init__(known.shape[1], embed_dim)
        mean = known.mean(0)
        basis, spread, _ = torch.linalg.svd((known - mean).T @ (known - mean) / len(known))
        weight = (basis * spread.clamp(min=1e-6) ** -0.25)[:, :embed_dim].T
        self.weight.data.copy_(weight)
        self.bias.data.copy_(-weight @ mean)
        self.bend = None
        if hidden:
            inner, outer = nn.Linear(known.shape[1], hidden), nn.Linear(hidden, embed_dim)
            nn.init.normal_(inner.weight, std=3.0)  # inputs have unit length, and so small entries
            nn.init.zeros_(outer.weight)
            nn.init.zeros_(outer.bias)
            self.bend = nn.Sequential(inner, nn.GELU(), outer)

    def forward(self, vectors: Tensor) -> Tensor:
        """[N, T] -> [N, D] of unit norm."""
        placed = super().forward(vectors)
        if self.bend is not None:
            placed = placed + self.bend(vectors)
        return F.normalize(placed.float(), dim=-1)


class Contrast(nn.Module):
    """The first phase: pictures against their captions, encoded here or, with a head, by the teacher."""

    def __init__(self, clip: Clip, head: Head | None) -> None:
        super().__init__()
        self.towers, self.preprocess, self.head = clip.towers, clip.preprocess, head
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, texts: tuple[Tensor, ...], same: Tensor) -> Tensor:
        """texts: the teacher's vectors, or token ids and mask."""
        image = F.normalize(self.towers.image(self.preprocess(images)).float(), dim=-1)
        if self.head is not None:
            text = self.head(*texts)
        else:
            text = F.normalize(self.towers.text(*texts)[0].float(), dim=-1)
        return contrastive(image, text, self.scale.exp().clamp(max=100), same)


class Distil(nn.Module):
    """The second phase: the text tower says where the head puts the teacher's vector of a text."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.towers = clip.towers

    def forward(self, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
        """1 - cosine, and a little of finding one's own goal among the batch's."""
        said = F.normalize(self.towers.text(ids, mask)[0].float(), dim=-1)
        own = torch.arange(len(goal), device=goal.device)
        return (1 - (said * goal).sum(1)).mean() + 0.1 * F.cross_entropy(20 * said @ goal.T, own)

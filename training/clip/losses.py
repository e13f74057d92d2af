"""What `training.clip` minimises: pictures against captions, and a text tower against its goal."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.clip import Clip
from unclip.guides.noised_clip import NoisedClip


class _Gather(torch.autograd.Function):
    """The rows of all processes; a row's gradient is the sum of what every process makes of it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def gather(rows: Tensor) -> Tensor:
    """[n, ...] of each process -> [N, ...] of all, in the order of their ranks, with gradients."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    return _Gather.apply(rows)


def contrastive(
    image: Tensor,
    text: Tensor,
    scale: Tensor,
    same: Tensor,
    images: Tensor | None = None,
    texts: Tensor | None = None,
) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3), with soft targets.

    image, text: [n, D] of unit norm. same: [n, N], how well text j also fits picture i, and picture j
    text i, 1 for its own. images, texts: [N, D], all that they are told from, if those are not
    themselves: the rows of all processes. Returns a scalar; the mean over processes of equal n is that
    of their whole batch.
    """
    images, texts = image if images is None else images, text if texts is None else texts
    target = same / same.sum(1, keepdim=True)  # [n, N]
    return (
        F.cross_entropy(scale * image @ texts.T, target) + F.cross_entropy(scale * text @ images.T, target)
    ) / 2


def alike(facts: Tensor, every: Tensor, share: float) -> Tensor:
    """How alike samples are, [n, N]: 1 where captions are equal, `share` where names alone are.

    facts: int64 [n, 2], of each sample its caption and its name as numbers; every: [N, 2], of all.
    """
    caption, name = (facts[:, None] == every).unbind(-1)  # [n, N] each
    return torch.where(caption, 1.0, share * name)


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
    """Pictures against captions, those of all processes.

    share: of a picture's probability for a text of the same name.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.gather = share, gather

    def loss(self, image: Tensor, text: Tensor, scale: Tensor, facts: Tensor) -> Tensor:
        """Of this process's embeddings [n, D], of any length. scale: a logarithm. facts: as in `alike`."""
        image, text = (F.normalize(x.float(), dim=-1) for x in (image, text))
        same = alike(facts, self.gather(facts), self.share)
        return contrastive(
            image, text, scale.exp().clamp(max=100), same, self.gather(image), self.gather(text)
        )


class ClipContrast(Contrast):
    """Pictures against their captions, encoded here or, with a head, by the teacher."""

    def __init__(self, clip: Clip, head: Head | None, share: float) -> None:
        super().__init__(share)
        self.towers, self.preprocess, self.head = clip.towers, clip.preprocess, head

    def forward(self, images: tuple[Tensor], texts: tuple[Tensor, ...], facts: Tensor) -> Tensor:
        """images: [n, 3, S, S] in [-1, 1]. texts: the teacher's vectors, or token ids and mask."""
        image = self.towers.image(self.preprocess(*images))
        text = self.towers.text(*texts)[0] if self.head is None else self.head(*texts)
        return self.loss(image, text, self.towers.model.logit_scale, facts)


class NoisedContrast(Contrast):
    """Noised pictures against their captions (Nichol et al. 2021, section 2.4); learns the scale besides."""

    def __init__(self, clip: NoisedClip, share: float) -> None:
        super().__init__(share)
        self.network = clip.network
        self.scale = nn.Parameter(torch.tensor(clip.config.net.logit_scale).log())

    def forward(self, images: tuple[Tensor, Tensor], texts: tuple[Tensor, Tensor], facts: Tensor) -> Tensor:
        """images: noised [n, 3, S, S] and their t in 1..T. texts: token ids and lengths."""
        noised, t = images
        return self.loss(self.network.image(noised, t - 1), self.network.text(*texts), self.scale, facts)


class Distil(nn.Module):
    """The second phase: the text tower says where the head puts the teacher's vector of a text."""

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self.towers = clip.towers

    def forward(self, ids: Tensor, mask: Tensor, goal: Tensor) -> Tensor:
        """1 - cosine, and a little of finding one's own goal among the batch's, of all processes."""
        said = F.normalize(self.towers.text(ids, mask)[0].float(), dim=-1)
        goals = gather(goal)  # [N, D]
        rank = dist.get_rank() if len(goals) > len(goal) else 0
        own = rank * len(goal) + torch.arange(len(goal), device=goal.device)
        return (1 - (said * goal).sum(1)).mean() + 0.1 * F.cross_entropy(20 * said @ goals.T, own)

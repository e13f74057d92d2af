"""How near one set of pictures is to another, and to its words, in a CLIP's embedding space.

Embeddings are [N,D] of length 1. The two distances are torchmetrics' (extra ``evaluate``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_installed() -> None:
    """Raise ``ValueError`` that says what to install if the distances cannot be computed."""
    try:
        import torchmetrics.image  # noqa: F401
    except ImportError:
        raise ValueError('this needs torchmetrics; install it with: pip install "unclip[evaluate]"') from None


def frechet_distance(real: Tensor, drawn: Tensor) -> float:
    """Distance of the Gaussians fitted to two sets (Heusel et al. 2017, eq. 6); N >= 2.

    Few samples bias it upwards: compare it at equal counts only.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    return _compare(FrechetInceptionDistance(_AsTheyAre(real.shape[1])), real, drawn).item()


def caution(count: int, width: int) -> str:
    """What is to be said of a Fréchet distance of ``count`` pictures in ``width`` dimensions; "" for enough.

    A Gaussian's covariance has full rank only if there are more pictures than dimensions.
    """
    if count > width:
        return ""
    return (
        f"A Fréchet distance of {count} pictures in {width} dimensions means nothing by itself: with no more "
        "pictures than dimensions it says how few they are. Take more pictures, or look at other columns."
    )


def kernel_distance(real: Tensor, drawn: Tensor) -> float:
    """Squared maximum mean discrepancy, unbiased, of as many samples from each set; N >= 2.

    The kernel is the cubic polynomial of Binkowski et al. 2018, section 4, (x.y / D + 1)^3. It is
    meant for coordinates of variance near one; here x.y is a cosine, so its weight is 1, not 1/D.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    if len(real) != len(drawn):
        raise ValueError(f"the kernel distance takes sets of one size, not {len(real)} and {len(drawn)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps all features is what we want
        distance = KernelInceptionDistance(
            _AsTheyAre(real.shape[1]), subsets=1, subset_size=len(real), gamma=1.0
        )
    return _compare(distance, real, drawn)[0].item()


class _AsTheyAre(nn.Module):
    """A feature extractor for what is features already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def _compare(distance, real: Tensor, drawn: Tensor):
    """What a torchmetrics distance says of two sets, in float64."""
    distance.update(real.double().cpu(), real=True)
    distance.update(drawn.double().cpu(), real=False)
    with torch.random.fork_rng(devices=[]):  # samples are summed in random order: always the same one
        torch.manual_seed(0)
        return distance.compute()


def name_means(embed: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Each name's mean embedding, of length 1: what its pictures have in common."""
    ids = {name: number for number, name in enumerate(dict.fromkeys(names))}
    index = torch.tensor([ids[name] for name in names])
    sums = torch.zeros(len(ids), embed.shape[1], dtype=embed.dtype).index_add_(0, index, embed)
    return dict(zip(ids, F.normalize(sums, dim=-1), strict=True))


def ranks(embed: Tensor, names: Sequence[str], gallery: dict[str, Tensor]) -> list[int | None]:
    """How many names of ``gallery`` are nearer to each embedding than its own; None = not in there."""
    order = {name: number for number, name in enumerate(gallery)}
    similarity = embed @ torch.stack(list(gallery.values())).T
    return [
        int((row > row[order[name]]).sum()) if name in order else None
        for row, name in zip(similarity, names, strict=True)
    ]


def recall(ranks: Sequence[int | None], k: int) -> float:
    """R@k: the share of ranks below ``k`` among those that are known; NaN if none is."""
    known = [rank for rank in ranks if rank is not None]
    return sum(rank < k for rank in known) / len(known) if known else float("nan")

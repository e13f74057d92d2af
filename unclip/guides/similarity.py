"""CLIP's similarity of text and picture, for a decoder to climb."""

from __future__ import annotations

import torch
from torch import Tensor

from ..clip import Clip
from ..diffusion.noise import Noise
from ..stages.stage import Objective

LEAST = 0.5  # of a picture's side, of a cut's


class Cutouts:
    """Random squares of pictures, the same of a picture in any batch, others at every call.

    What fools a CLIP that only knows clean pictures seldom fools it in every cut, so that a gradient through
    many of them changes what is seen and not single pixels (Crowson 2021, CLIP guided diffusion).

    count: of each picture. noise: a stream for each.
    """

    def __init__(self, count: int, noise: Noise) -> None:
        self.count, self.noise = count, noise

    def __call__(self, picture: Tensor) -> list[list[Tensor]]:
        """Of pictures [N,3,H,W] each one's cuts [1,3,s,s], of half of the shorter side and more."""
        height, width = picture.shape[2:]
        shorter, cuts = min(height, width), []
        for one, places in zip(picture.split(1), self.noise.uniform((self.count, 3)).tolist(), strict=True):
            row = []
            for size, down, right in places:
                side = max(round(shorter * (LEAST + (1 - LEAST) * size)), 1)
                top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
                row.append(one[:, :, top : top + side, left : left + side])
            cuts.append(row)
        return cuts


def similarity(clip: Clip, text: Tensor, scale: float, cutouts: Cutouts | None = None) -> Objective:
    """CLIP's log-probability of texts given their pictures, up to a constant (GLIDE, eq. 6).

    text: CLIP's vectors [N,D] of length 1.
    cutouts: what CLIP sees, of which the mean counts; None = the whole.
    """

    def objective(picture: Tensor) -> Tensor:
        if cutouts is None:
            return scale * clip.logit_scale * (clip.encode_image(picture) * text).sum(-1)
        cuts = [clip.resized(cut) for row in cutouts(picture) for cut in row]
        seen = clip.encode_image(torch.cat(cuts)).unflatten(0, (len(picture), cutouts.count))
        return scale * clip.logit_scale * (seen * text[:, None]).sum(-1).mean(1)

    return objective

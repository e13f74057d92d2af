"""CLIP's similarity of text and picture, for a decoder to climb."""

from __future__ import annotations

from torch import Tensor

from ..clip import Clip
from ..stages.stage import Objective


def similarity(clip: Clip, text: Tensor, scale: float) -> Objective:
    """CLIP's log-probability of texts given their pictures, up to a constant (GLIDE, eq. 6).

    text: CLIP's vectors [N,D] of length 1.
    """

    def objective(picture: Tensor) -> Tensor:
        return scale * clip.logit_scale * (clip.encode_image(picture) * text).sum(-1)

    return objective

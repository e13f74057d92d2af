"""A CLIP that knows noised pictures: its gradient guides a decoder at every noise level.

Nichol et al. 2021, section 2.4: the mean of a step is moved along the gradient of how well the text and
the noised picture agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..checkpoint import Saved, SavedConfig
from ..diffusion.guidance import GradFn
from ..nets.noised_clip import NoisedClipConfig, NoisedClipNet
from ..stages import ScheduleName

if TYPE_CHECKING:
    from ..clip.towers import BytePairs


class NoisedClipStageConfig(SavedConfig):
    """A CLIP of the noised pictures of one process, of ``net.timesteps`` steps."""

    kind: Literal["noised_clip"] = "noised_clip"
    net: NoisedClipConfig
    schedule: ScheduleName = "cosine"  # that of the decoder to be guided


class NoisedClip(Saved):
    """Embeddings of texts and of noised pictures, and the gradient that brings them together."""

    config_class = NoisedClipStageConfig
    config: NoisedClipStageConfig

    def __init__(self, config: NoisedClipStageConfig) -> None:
        super().__init__(config)
        self.network = NoisedClipNet(config.net)

    @cached_property
    def _byte_pairs(self) -> BytePairs:
        from ..clip.byte_pairs import byte_pairs

        return byte_pairs()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """CLIP's byte pairs between their two marks, cut at the context length and padded with 0.

        Returns ids int64 [N,L] and the texts' lengths, int64 [N].
        """
        pairs, length = self._byte_pairs, self.config.net.length
        rows = [[pairs.sot_token_id, *pairs.encode(text)[: length - 2], pairs.eot_token_id] for text in texts]
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return ids, torch.tensor([len(row) for row in rows])

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings of length 1, float32 [N,D]."""
        device = self.network.text.position.device
        ids, lengths = self.tokenize(texts)
        return self.network.encode_text(ids.to(device), lengths.to(device))

    def encode_image(self, x: Tensor, t: Tensor) -> Tensor:
        """Pictures x [N,3,S,S] at levels t int64 [N] in 1..T -> float32 [N,D] of length 1, differentiable."""
        return self.network.encode_image(x, t - 1)  # OpenAI's networks count from 0

    def climb(self, texts: Sequence[str], scale: float = 1.0) -> GradFn:
        """For ``guidance.gradient``: scale * grad_x of the logit of each text given its x_t.

        texts: one a picture. The logit is the cosine of both embeddings times ``net.logit_scale``.
        """
        wanted = self.encode_text(texts)

        def gradient(x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            logits = self.config.net.logit_scale * (self.encode_image(x, t) * wanted).sum()
            return scale * torch.autograd.grad(logits, x)[0]

        return gradient


load_noised_clip = NoisedClip.load

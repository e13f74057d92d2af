"""The autoregressive prior's transformer (Ramesh et al. 2022, unCLIP, sec. 2.2)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..config import Width
from .blocks import Cache, TransformerBlock, normal, timestep_embedding, zero
from .prior import Memory, OfText, PriorConfig


class ARPriorConfig(PriorConfig):
    components: Width  # of the image embedding that are predicted, by decreasing variance
    buckets: int = Field(1024, ge=2, le=1 << 16)  # that a component is quantised into
    similarities: int = Field(64, ge=2, le=1 << 16, multiple_of=2)  # ... and the product of text and image

    @model_validator(mode="after")
    def _parts_go_together(self) -> "ARPriorConfig":
        if self.components > self.embed_dim:
            raise ValueError(
                f"components {self.components} are more than the {self.embed_dim} that an embedding has"
            )
        if not self.timed:
            raise ValueError("timed false is for the diffusion prior; this one knows no time")
        if not self.null_text:
            raise ValueError("null_text false is for the diffusion prior; this one learns 'no text'")
        return self


@dataclass
class Sequence:
    """What has been read of a sequence: keys and values of each block, and which positions are none."""

    caches: list[Cache]
    mask: Tensor  # bool [N, P], False = padding
    count: int = 0  # codes that have been read


class ARPriorTransformer(OfText):
    """A causal transformer that predicts the codes of an image embedding, one after the other.

    The sequence is: text tokens, text embedding, what a memory recalls (if there is one), similarity of
    text and image, codes; the answer about a code is read one position before it.
    """

    config: ARPriorConfig

    def __init__(self, config: ARPriorConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.text = nn.Linear(config.text_dim, width)
        self.text_embed = nn.Linear(config.embed_dim, width)
        self.memory = None
        if config.memory:
            self.memory = Memory(config.memory, config.embed_dim, config.memory_scale)
            self.recalled = nn.Linear(config.embed_dim, width)
        self.tail = 3 if config.memory else 2  # what lies between the text tokens and the codes
        self.similarity = normal(config.similarities + 1, width)  # the last: there is no text
        # Buckets begin as points of a line, so that neighbours are alike; answers are read with them too.
        self.bucket = nn.Parameter(timestep_embedding(torch.arange(config.buckets), width))
        self.position = normal(config.text_length + self.tail + config.components - 1, width)
        self.null_text = normal(config.embed_dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, config.heads, config.dropout, config.attention)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.out = zero(nn.Linear(width, width))
        self.bias = nn.Parameter(torch.zeros(config.buckets))

    def forward(
        self,
        codes: Tensor,
        similarity: Tensor,
        text_embed: Tensor,
        text: Tensor,
        text_mask: Tensor,
        has_text: Tensor | None = None,
    ) -> Tensor:
        """Logits [N, K, B] of every code given those before it.

        codes: int64 [N, K], of 0..B-1; similarity: int64 [N], of 0..``similarities``-1;
        the others as in ``PriorTransformer``.
        """
        prefix, text_mask = self._prefix(similarity, text_embed, text, text_mask, has_text)
        h = torch.cat([prefix, self._codes(codes[:, :-1], 0)], dim=1)  # [N, L+T+K-1, W]
        mask = self.causal(text_mask, h.shape[1])
        for block in self.blocks:
            h = block(h, mask)
        return self._logits(h[:, prefix.shape[1] - 1 :])

    def begin(
        self,
        similarity: Tensor,
        text_embed: Tensor,
        text: Tensor,
        text_mask: Tensor,
        has_text: Tensor | None = None,
    ) -> tuple[Tensor, Sequence]:
        """Logits [N, B] of the first code, and what ``follow`` goes on from."""
        h, text_mask = self._prefix(similarity, text_embed, text, text_mask, has_text)
        known = F.pad(text_mask, (0, self.tail), value=True)
        sequence, mask = Sequence([Cache() for _ in self.blocks], known), self.causal(text_mask, h.shape[1])
        for block, cache in zip(self.blocks, sequence.caches, strict=True):
            h = block(h, mask, cache)
        return self._logits(h[:, -1]), sequence

    def follow(self, code: Tensor, sequence: Sequence) -> Tensor:
        """Logits [N, B] of the code after ``code``, int64 [N]."""
        h = self._codes(code[:, None], sequence.count)  # [N, 1, W]
        sequence.mask = F.pad(sequence.mask, (0, 1), value=True)
        sequence.count += 1
        for block, cache in zip(self.blocks, sequence.caches, strict=True):
            h = block(h, sequence.mask, cache)
        return self._logits(h[:, -1])

    def _prefix(
        self, similarity: Tensor, text_embed: Tensor, text: Tensor, text_mask: Tensor, has_text: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All that comes before the codes, [N, L+T, W], and which text tokens count."""
        length = self.checked_length(text)
        text_embed, text_mask, recalled = self.heard(text_embed, text_mask, has_text)
        if has_text is not None:
            similarity = torch.where(has_text, similarity, self.config.similarities)  # [N]
        tail = [
            self.text_embed(text_embed),  # [N, W]
            *([] if recalled is None else [self.recalled(recalled)]),  # [N, W]
            self.similarity[similarity],  # [N, W]
        ]
        h = torch.cat([self.text(text), torch.stack(tail, dim=1)], dim=1)  # [N, L+T, W]
        first = self.config.text_length
        position = torch.cat([self.position[:length], self.position[first : first + self.tail]])
        return h + position, text_mask

    def _codes(self, codes: Tensor, start: int) -> Tensor:
        """[N, M], of number ``start`` on -> [N, M, W]"""
        first = self.config.text_length + self.tail + start
        return self.bucket[codes] + self.position[first : first + codes.shape[1]]

    def _logits(self, h: Tensor) -> Tensor:
        """[..., W] -> float32 [..., B]"""
        return (self.out(self.norm(h)) @ self.bucket.T + self.bias).float()

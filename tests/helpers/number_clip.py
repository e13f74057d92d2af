"""A CLIP whose embeddings can be told at a glance, and a prior of its widths."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor

DIM, WORDS = 6, 5


NET = {"embed_dim": DIM, "text_dim": WORDS, "text_length": 7, "width": 16, "layers": 1, "heads": 2}


class Clip:
    """Its embedding of a picture is the mean of its halves by colour; of a text, its last word, a number."""

    embed_dim, text_dim, identity = DIM, WORDS, "fake#1"

    def to(self, device: torch.device) -> Clip:
        return self

    def encode_image(self, image: Tensor) -> Tensor:
        return F.normalize(F.adaptive_avg_pool2d(image, (2, 1)).flatten(1), dim=-1)

    def encode_text(self, texts: list[str]) -> SimpleNamespace:
        n, number = len(texts), torch.tensor([float(text.split()[-1]) for text in texts])
        text = SimpleNamespace(
            tokens=number.view(n, 1, 1).expand(n, 4, WORDS),
            mask=torch.ones(n, 4).bool(),
            embed=F.one_hot(number.long() % DIM, DIM).float(),
        )
        text.trimmed = lambda: text
        return text

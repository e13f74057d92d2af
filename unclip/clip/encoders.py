"""What the rest of unclip knows of a CLIP: ``Clip`` encodes, ``Text`` is what becomes of sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError
from ..resources.devices import align
from .identity import digest_of, named
from .towers import OpenClipTowers, PlainTowers, TransformersTowers


@dataclass(frozen=True)
class Text:
    """Encoded sentences.

    embed:  float32 [N, D], unit norm.
    tokens: float32 [N, L, W], hidden states after the last layer norm; zero where masked.
    mask:   bool [N, L], True up to and with the end-of-text token.
    raw:    float32 [N, D], the embedding as CLIP's projection leaves it, of any length (Karlo's).
    """

    embed: Tensor
    tokens: Tensor
    mask: Tensor
    raw: Tensor

    def to(self, device: str | torch.device) -> Text:
        return Text(*(x.to(device) for x in self._parts()))

    def repeat(self, n: int) -> Text:
        """Each sentence `n` times in a row."""
        return Text(*(x.repeat_interleave(n, dim=0) for x in self._parts()))

    def trimmed(self) -> Text:
        """Without the columns at the end that no sentence reaches; on a GPU, whose kernels are compiled for
        a length, up to a multiple of 16.
        """
        length = int(self.mask.sum(1).max())
        if self.mask.device.type == "cuda":
            length = min(-(-length // 16) * 16, self.mask.shape[1])
        return Text(self.embed, self.tokens[:, :length], self.mask[:, :length], self.raw)

    def __getitem__(self, index: slice | Tensor) -> Text:
        return Text(*(x[index] for x in self._parts()))

    def __len__(self) -> int:
        return len(self.embed)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.embed, self.tokens, self.mask, self.raw


class Clip(nn.Module):
    """Two frozen encoders and their statistics; always in eval mode.

    towers: a backend of `unclip.clip.towers`; one without pictures serves for texts alone.
    mean, std: per channel, of pictures in [0, 1]. source: its name.
    exact: saved without a loss; otherwise at half precision.

    Raises ConfigError for statistics that pictures cannot have.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        towers: PlainTowers | OpenClipTowers | TransformersTowers,
        mean: Sequence[float],
        std: Sequence[float],
        source: str,
        exact: bool = False,
    ) -> None:
        super().__init__()
        self.towers, self.source, self.exact = towers, source, exact
        self.image_size: int | None = towers.image_size  # pixels a side; None = it takes no pictures
        self.context_length: int = towers.context_length
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, _channels(name, values, source), persistent=False)
        self._known: Callable[[str], tuple[Tensor, Tensor]] | None = None
        align(self.requires_grad_(False).eval().to(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> Clip:
        """Stays in eval mode: the encoders are frozen."""
        return super().train(False)

    @property
    def logit_scale(self) -> Tensor:
        """The factor on cosine similarities, learned in CLIP's training; ValueError without pictures."""
        self._picture_side("compare texts with pictures")
        return self.towers.model.logit_scale.exp()

    @cached_property
    def embed_dim(self) -> int:
        return self.encode_text([""]).embed.shape[-1]

    @cached_property
    def text_dim(self) -> int:
        return self.encode_text([""]).tokens.shape[-1]

    @cached_property
    def identity(self) -> str:
        """The model's name and a hash of its weights (at half precision, whatever they are saved at)."""
        state = self.towers.model.state_dict()
        return named(self.source, digest_of(state, state.__getitem__))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids int64 [N, L], cut at the context length, and mask bool [N, L]."""
        if self._known is None or not texts:
            return self.towers.tokenize(list(texts))
        ids, mask = zip(*map(self._known, texts), strict=True)
        return torch.cat(ids), torch.cat(mask)

    def remember(self, texts: int) -> None:
        """Keep the ids of the last so many texts, for who says the same ones again and again: OpenCLIP takes
        a tenth of a millisecond for each.
        """
        self._known = lru_cache(texts)(lambda text: self.towers.tokenize([text]))

    def truncated(self, text: str) -> str | None:
        """The end of `text` that does not fit into the context; None if all of it does."""
        ids = self.towers.encode(text)
        room = self.context_length - 2  # start and end of text
        return self.towers.decode(ids[room:]).strip() if len(ids) > room else None

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Text:
        ids, mask = (x.to(self.mean.device) for x in self.tokenize(texts))
        raw, tokens = self.towers.text(ids, mask)
        raw, tokens = raw.float(), tokens.float() * mask[..., None]
        return Text(F.normalize(raw, dim=-1), tokens, mask, raw)

    def encode_image(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [-1, 1], any size. Returns [N, D] of unit norm, differentiable.

        ValueError for a CLIP that takes no pictures.
        """
        return F.normalize(self.towers.image(self.preprocess(images)).float(), dim=-1)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resized to the model's size and normalised by its statistics."""
        return ((self.resized(images) + 1) / 2 - self.mean) / self.std

    def resized(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] at the model's size (bicubic, antialiased)."""
        side = self._picture_side("encode pictures")
        if images.shape[-2:] == (side, side):
            return images
        return F.interpolate(images, (side, side), mode="bicubic", antialias=True)

    def _picture_side(self, purpose: str) -> int:
        if self.image_size is None:
            raise ValueError(
                f"the CLIP {self.source} knows texts alone and cannot {purpose}; a CLIP with both towers can"
            )
        return self.image_size


def _channels(name: str, values: Sequence[float], source: str) -> Tensor:
    """A statistic of three channels, [3, 1, 1], checked."""
    try:
        statistic = torch.tensor(values, dtype=torch.float32, device="cpu")
        sound = statistic.shape == (3,) and bool((statistic.abs() <= 100).all())
        sound = sound and (name == "mean" or bool((statistic > 1e-6).all()))
    except (TypeError, ValueError, RuntimeError):
        sound = False
    if not sound:
        raise ConfigError(f"{source}: {name} {values!r} is not that of three channels of pictures in [0, 1]")
    return statistic.view(3, 1, 1).to(torch.get_default_device())

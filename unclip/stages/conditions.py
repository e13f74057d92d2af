"""The kinds of condition that decoders take; a stage keeps those that its configuration asks for.

A new kind is a class here and its entry in ``KINDS``, and its place in the network. What is drawn, trained,
planned and measured asks the kinds that a stage has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..diffusion.noise import randn
from .condition import Condition, Draws, Values
from .config import DecoderStageConfig, LowRes
from .inpaint import erase, known_latents, known_part
from .low_res import enlarge
from .stage import Conditions, Stage

CLIP_LENGTH = 77  # tokens of CLIP's texts, where nothing says how many


@dataclass(frozen=True)
class ImageEmbedding(Condition):
    """image_embed [N,D] of length 1, which the network gets whitened."""

    width: int
    rate: float  # of training without it
    noise: float  # added in training

    names, empty = ("image_embed",), {"has_image": 0}
    tower, clip_width, setting, need = "image", "embed_dim", "image_embed_dim", "CLIP's embeddings"

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        width = config.net.image_embed_dim
        return None if width is None else cls(width, config.drop_image, config.embed_noise)

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        embed, device = values.get("image_embed"), stage.embed_mean.device
        return {
            "image_embed": torch.zeros(n, self.width, device=device)
            if embed is None
            else stage.whiten(embed),
            "has_image": torch.full((n,), embed is not None, dtype=torch.bool, device=device),
        }

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        embed, present = conditions["image_embed"], conditions["has_image"]
        present = present & ~draws.left_out("image", self.rate, embed)
        if self.noise:
            embed = embed + self.noise * randn(embed.shape, embed.device, draws.generator)
        return {"image_embed": embed, "has_image": present}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        return {"image_embed": torch.zeros(n, self.width, device=device)}


@dataclass(frozen=True)
class _Words(Condition):
    """What texts have in common: in training all of it is left out at once."""

    width: int
    rate: float  # of training without it

    need = "text"

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        (key,) = self.empty
        left_out = draws.left_out("text", self.rate, conditions[key])
        return {key: conditions[key].masked_fill(left_out[:, None], 0)}


@dataclass(frozen=True)
class _ClipWords(_Words):
    """... and those of CLIP. learned: guidance starts from no text, as one that is left out becomes."""

    learned: bool

    tower = "text"

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        width = getattr(config.net, cls.setting)
        if width is None or config.text is not None:
            return None
        return cls(width, config.drop_text, config.null_text == "masked")

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        if not self.learned and self.rate:
            raise ValueError(
                'guidance of this model starts from CLIP\'s encoding of "", which no text '
                "that is left out becomes; train it with drop_text 0 on captions some of "
                "which are empty"
            )
        return super().drop(conditions, draws)


@dataclass(frozen=True)
class Text(_ClipWords):
    """text [N,L,W] with text_mask bool [N,L]: CLIP's states of a text."""

    names, empty = ("text", "text_mask"), {"text_mask": 0}
    clip_width, setting = "text_dim", "text_dim"

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        text, mask = values.get("text"), values.get("text_mask")
        if text is None:
            text = torch.zeros(n, 1, self.width, device=stage.embed_mean.device)
            mask = ~_all(text)
        return {"text": text, "text_mask": _all(text) if mask is None else mask}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        text = torch.zeros(n, CLIP_LENGTH, self.width, device=device)
        return {"text": text, "text_mask": _all(text)}


@dataclass(frozen=True)
class TextVector(_ClipWords):
    """text_embed [N,D]: CLIP's one vector for a text; without one the network gets zeros."""

    names, empty = ("text_embed",), {"text_embed": 0}
    clip_width, setting = "embed_dim", "text_embed_dim"

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        embed = values.get("text_embed")
        if embed is None:
            embed = torch.zeros(n, self.width, device=stage.embed_mean.device)
        return {"text_embed": embed}


@dataclass(frozen=True)
class Tokens(_Words):
    """tokens int64 [N,L] with token_mask bool [N,L], for a text transformer of the stage's own.

    Those that are not given are those of no text, as many (``width``).
    """

    names, empty = ("tokens", "token_mask"), {"token_mask": 0}

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        return None if config.text is None else cls(config.text.length, config.drop_text)

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        tokens, mask = values.get("tokens"), values.get("token_mask")
        if tokens is None:
            tokens = torch.zeros(n, self.width, dtype=torch.int64, device=stage.embed_mean.device)
            mask = ~_all(tokens)
        return {"tokens": tokens, "token_mask": _all(tokens) if mask is None else mask}


@dataclass(frozen=True)
class Class(Condition):
    """classes int64 [N]; -1 = none."""

    count: int
    rate: float  # of training without it; 0 = there is no picture without a class

    names, empty = ("classes",), {"classes": -1}

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        return None if config.net.classes is None else cls(config.net.classes, config.drop_class)

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        classes = values.get("classes")
        if classes is None and not self.rate:
            raise ValueError(
                "this model knows no picture without a class (its drop_class is 0): ask "
                f"for one of 0 to {self.count - 1}"
            )
        if classes is None:
            classes = torch.full((n,), -1, device=stage.embed_mean.device)
        return {"classes": classes}

    def check_null(self, null: Conditions) -> None:
        if not self.rate and (null["classes"] < 0).any():
            raise ValueError(
                "this model knows no picture without a class (its drop_class is 0), from which "
                "guidance would start: its guidance_scale must be 1"
            )

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        classes = conditions["classes"]
        left_out = draws.left_out("class", self.rate, classes)
        return {"classes": torch.where(left_out, torch.full_like(classes, -1), classes)}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        return {"classes": torch.zeros(n, dtype=torch.int64, device=device)}


@dataclass(frozen=True)
class KnownPart(Condition):
    """image [N,3,S,S] in [-1,1] with mask [N,1,S,S], 1 = known: a picture to be inpainted."""

    size: int  # S, where there is no smaller picture
    factor: int | None  # by which that is smaller; None = the stage takes none

    names, joined, channels = ("image", "mask"), "known", 4

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        size, low_res = config.size, config.low_res
        factor = None if low_res is None else size // low_res.size
        return cls(size, factor) if config.inpaint else None

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        factor = self.factor
        low_res = None if factor is None else values.get("low_res")
        if factor is None or low_res is None:
            like = torch.empty(n, 3, self.size, self.size, device=stage.embed_mean.device)
        else:  # a crop passes too
            like = low_res.new_empty(n, 3, *(factor * side for side in low_res.shape[2:]))
        image, mask = values.get("image"), values.get("mask")
        space = stage.autoencoder
        return {
            "known": known_part(image, mask, like)
            if space is None
            else known_latents(image, mask, like, space)
        }

    def drop(self, conditions: Conditions, draws: Draws) -> Conditions:
        return {"known": erase(conditions["known"], draws.generator)}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        return {"image": torch.zeros(n, 3, side, side, device=device)}


@dataclass(frozen=True)
class LowResPicture(Condition):
    """low_res [N,3,s,s] in [-1,1], which an upsampler enlarges; its input has it at full size."""

    config: LowRes
    factor: int

    names, joined, channels, need = ("low_res",), "base", 3, "a smaller picture"

    @classmethod
    def of(cls, config: DecoderStageConfig) -> Self | None:
        low_res = config.low_res
        return None if low_res is None else cls(low_res, config.net.image_size // low_res.size)

    def inputs(self, values: Values, n: int, stage: Stage) -> Conditions:
        low_res = values.get("low_res")
        if low_res is None:
            raise ValueError("an upsampler needs a low-resolution picture")
        return {"base": enlarge(low_res, self.config, self.factor)}

    def blank(self, n: int, side: int, device: torch.device) -> Values:
        return {"low_res": torch.zeros(n, 3, side // self.factor, side // self.factor, device=device)}


def _all(words: Tensor) -> Tensor:
    """The mask bool [N,L] of texts [N,L,...] that leave no place empty."""
    return torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)


# In this order they draw their random numbers, and join the input's channels: neither may change.
KINDS: list[type[Condition]] = [ImageEmbedding, Text, TextVector, Tokens, Class, KnownPart, LowResPicture]


def kinds_of(config: DecoderStageConfig) -> tuple[Condition, ...]:
    """Those that a stage of this configuration takes."""
    return tuple(kind for one in KINDS if (kind := one.of(config)) is not None)


def check_channels(config: DecoderStageConfig, kinds: Sequence[Condition]) -> None:
    """Refuse a network that does not fit the stage; raises ``ValueError``."""
    net, low_res, text = config.net, config.low_res, config.text
    data = config.channels
    channels = data + sum(kind.channels for kind in kinds) + (data - 3) * config.inpaint
    outputs = 2 * data if config.process.variance == "learned" else data
    if (net.in_channels, net.out_channels) != (channels, outputs):
        raise ValueError(
            f"this stage needs a U-Net with in_channels {channels} and out_channels "
            f"{outputs}, not {net.in_channels} and {net.out_channels}"
        )
    if config.autoencoder and (low_res or config.last_network):
        raise ValueError("an upsampler draws pixels: low_res and last_network take no autoencoder")
    if low_res and net.image_size % low_res.size:
        raise ValueError(f"{net.image_size} pixels are no whole multiple of low_res.size {low_res.size}")
    if text and (net.text_dim, net.text_embed_dim) != (text.width, text.width):
        raise ValueError(
            f"a text transformer of width {text.width} needs a U-Net with text_dim and "
            f"text_embed_dim {text.width}, not {net.text_dim} and {net.text_embed_dim}"
        )

"""One interface for three homes of CLIP: our own code, OpenCLIP, transformers.

Each tower pair has `model`, `image_size`, `context_length` and

    tokenize(texts)      -> ids int64 [N, L] and mask bool [N, L], True up to the end-of-text token
    encode(text)         -> ids of a text without start and end;  decode(ids) -> text
    text(ids, mask)      -> pooled and projected [N, D], hidden states after the last norm [N, L, W]
    image(images)        -> [N, D], of pictures that are already resized and normalised; those without
                            a picture tower have the image_size None

Nothing is normalised to unit length here, and no library is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nets.clip import ClipConfig, PlainClip


def read_at(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state at the end of each text: [N, L, W] -> [N, W]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def upto(ids: Tensor, end: int) -> Tensor:
    """Mask [N, L], True up to and with the first `end` token."""
    return (ids == end).int().cumsum(1) - (ids == end).int() == 0


def spelling(marks: Iterable[str]) -> Callable[[str], str]:
    """What takes a tokenizer's control marks in a text apart, so that they are read as ordinary words.

    "<end_of_text>" -> "< end _ of _ text >", which CLIP's byte pairs take for the same words. Whatever its
    case: some tokenizers lower it first.
    """
    apart = {mark.lower(): " ".join(re.findall(r"[^\W_]+|[\W_]+", mark)) for mark in marks}
    pattern = "|".join(re.escape(mark) for mark, words in apart.items() if mark != words.lower())
    if not pattern:
        return lambda text: text
    return lambda text: re.sub(pattern, lambda match: apart[match[0].lower()], text, flags=re.IGNORECASE)


class BytePairs(Protocol):
    """OpenCLIP's own tokenizer, as far as it is used here."""

    sot_token_id: int
    eot_token_id: int

    def __call__(self, texts: list[str], context_length: int) -> Tensor: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


def spelling_marks(tokenizer: Any) -> Any:
    """A tokenizer of OpenCLIP that no longer takes control marks in a text for such."""
    inner = getattr(tokenizer, "tokenizer", None)  # one of transformers
    marks = inner.all_special_tokens if inner else [tokenizer.decoder[i] for i in tokenizer.all_special_ids]
    spell, clean = spelling(marks), getattr(tokenizer, "clean_fn", str)
    tokenizer.clean_fn = lambda text: spell(clean(text))  # which turns "&lt;" into "<"
    return tokenizer


class PlainTowers(nn.Module):
    """OpenCLIP's plain towers in our own code."""

    image_size: int | None
    context_length: int

    def __init__(self, config: ClipConfig, tokenizer: BytePairs) -> None:
        super().__init__()
        self.config = config.model_dump(mode="json")
        self.model, self.tokenizer = PlainClip(config), tokenizer
        self.image_size, self.context_length = config.vision_cfg.image_size, config.text_cfg.context_length

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(texts, self.context_length)
        return ids, upto(ids, self.tokenizer.eot_token_id)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Only columns that some text reaches are computed; causality makes that exact."""
        length = int(mask.sum(1).max())
        hidden = self.model.encode_tokens(ids[:, :length])
        embed = read_at(hidden, mask) @ self.model.text_projection
        return embed, F.pad(hidden, (0, 0, 0, ids.shape[1] - length))

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


class OpenClipTowers(nn.Module):
    """Any OpenCLIP model."""

    image_size: int | None
    context_length: int

    def __init__(self, model: Any, tokenizer: Any, config: dict) -> None:  # OpenCLIP tells no types
        super().__init__()
        self.model, self.tokenizer, self.config = model, spelling_marks(tokenizer), config
        size = model.visual.image_size
        self.image_size = size[0] if isinstance(size, tuple) else size
        self.context_length = model.context_length
        if hasattr(model, "text"):
            model.text.output_tokens = True

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(texts)
        if hasattr(self.tokenizer, "eot_token_id"):
            return ids, upto(ids, self.tokenizer.eot_token_id)
        inner = self.tokenizer.tokenizer  # a tokenizer of transformers
        pad, end = inner.pad_token_id, inner.eos_token_id
        return ids, upto(ids, end) if pad == end else ids != pad

    def encode(self, text: str) -> list[int]:
        if hasattr(self.tokenizer, "eot_token_id"):
            return self.tokenizer.encode(text)
        text = self.tokenizer.clean_fn(text)
        return self.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return getattr(self.tokenizer, "tokenizer", self.tokenizer).decode(ids)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        m = self.model
        if hasattr(m, "text"):
            embed, tokens = m.text(ids)
            return embed, F.pad(tokens, (0, 0, ids.shape[1] - tokens.shape[1], 0))
        hidden = m.transformer(m.token_embedding(ids) + m.positional_embedding, attn_mask=m.attn_mask)
        hidden = m.ln_final(hidden)  # [N, L, W]
        projection = m.text_projection
        end = read_at(hidden, mask)
        return projection(end) if isinstance(projection, nn.Module) else end @ projection, hidden

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


class TransformersTowers(nn.Module):
    """Any CLIPModel of transformers, or a CLIPTextModelWithProjection, which takes no pictures."""

    image_size: int | None
    context_length: int

    def __init__(self, model: Any, tokenizer: Any) -> None:  # of transformers, which tells no narrow types
        super().__init__()
        self.model, self.tokenizer, self.spell = model, tokenizer, spelling(tokenizer.all_special_tokens)
        config = model.config
        self.image_size = config.vision_config.image_size if hasattr(config, "vision_config") else None
        text = getattr(config, "text_config", config)
        self.context_length = min(text.max_position_embeddings, tokenizer.model_max_length)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        batch = self.tokenizer(
            [self.spell(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        return batch["input_ids"], batch["attention_mask"].bool()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(self.spell(text), add_special_tokens=False, verbose=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which state stands for the whole text is for the model's own config to say."""
        out = self.model.text_model(ids)
        return self.model.text_projection(out.pooler_output), out.last_hidden_state

    def image(self, images: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(images).pooler_output)

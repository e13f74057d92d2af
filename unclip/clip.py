"""Frozen CLIP encoders behind one interface, whichever library they come from.

    clip = load_clip("open_clip:ViT-B-32@laion2b_s34b_b79k")
    clip = load_clip("transformers:openai/clip-vit-base-patch32")
    clip = load_clip("path/to/folder")          # one of ours, written by save_clip

Radford et al. 2021 (arXiv:2103.00020).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unclip.checkpoint import CheckpointError, load_strictly, written_aside
from unclip.nets.clip import ClipConfig, PlainClip

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Text:
    """Encoded sentences.

    embed:  float32 [N, D], unit norm.
    tokens: float32 [N, L, W], hidden states after the last layer norm; zero where masked.
    mask:   bool [N, L], True up to and with the end-of-text token.
    """

    embed: Tensor
    tokens: Tensor
    mask: Tensor

    def to(self, device: str | torch.device) -> Text:
        return Text(self.embed.to(device), self.tokens.to(device), self.mask.to(device))

    def repeat(self, n: int) -> Text:
        """Each sentence `n` times in a row."""
        return Text(*(x.repeat_interleave(n, dim=0) for x in (self.embed, self.tokens, self.mask)))

    def trimmed(self) -> Text:
        """Without the columns at the end that no sentence reaches."""
        length = int(self.mask.sum(1).max())
        return Text(self.embed, self.tokens[:, :length], self.mask[:, :length])

    def trimmed(self) -> Text:
        """Without the columns that no text reaches."""
        length = int(self.mask.sum(1).max())
        return Text(self.embed, self.tokens[:, :length], self.mask[:, :length])

    def __getitem__(self, index: slice | Tensor) -> Text:
        return Text(self.embed[index], self.tokens[index], self.mask[index])

    def __len__(self) -> int:
        return len(self.embed)


class Clip(nn.Module):
    """Two frozen encoders and their statistics; always in eval mode.

    towers: a backend below. mean, std: per channel, of pictures in [0, 1]. source: its name.
    """

    def __init__(self, towers: PlainTowers | OpenClipTowers | TransformersTowers, mean: Sequence[float],
                 std: Sequence[float], source: str) -> None:
        super().__init__()
        self.towers, self.source = towers, source
        self.image_size: int = towers.image_size
        self.context_length: int = towers.context_length
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> Clip:
        """Stays in eval mode: the encoders are frozen."""
        return super().train(False)

    @property
    def logit_scale(self) -> Tensor:
        """The factor on cosine similarities, learned in CLIP's training."""
        return self.towers.model.logit_scale.exp()

    @cached_property
    def embed_dim(self) -> int:
        return self.encode_text([""]).embed.shape[-1]

    @cached_property
    def text_dim(self) -> int:
        return self.encode_text([""]).tokens.shape[-1]

    @cached_property
    def identity(self) -> str:
        """The model's name and a hash of its weights (at half precision, as they are saved)."""
        digest = sha256()
        for name, tensor in sorted(self.towers.model.state_dict().items()):
            digest.update(name.encode() + tensor.detach().cpu().half().numpy().tobytes())
        return f"{self.source}#{digest.hexdigest()[:12]}"

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids int64 [N, L], cut at the context length, and mask bool [N, L]."""
        return self.towers.tokenize(list(texts))

    def truncated(self, text: str) -> str | None:
        """The end of `text` that does not fit into the context; None if all of it does."""
        ids = self.towers.encode(text)
        room = self.context_length - 2  # start and end of text
        return self.towers.decode(ids[room:]).strip() if len(ids) > room else None

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Text:
        ids, mask = (x.to(self.mean.device) for x in self.tokenize(texts))
        embed, tokens = self.towers.text(ids, mask)
        tokens = tokens.float() * mask[..., None]
        return Text(F.normalize(embed.float(), dim=-1), tokens, mask)

    def encode_image(self, images: Tensor) -> Tensor:
        """images: [N, 3, H, W] in [-1, 1], any size. Returns [N, D] of unit norm, differentiable."""
        return F.normalize(self.towers.image(self.preprocess(images)).float(), dim=-1)

    def preprocess(self, images: Tensor) -> Tensor:
        """Resized to the model's size (bicubic, antialiased) and normalised by its statistics."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std


def _read_at(hidden: Tensor, mask: Tensor) -> Tensor:
    """The hidden state at the end of each text: [N, L, W] -> [N, W]."""
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]


def _upto(ids: Tensor, end: int) -> Tensor:
    """Mask [N, L], True up to and with the first `end` token."""
    return (ids == end).int().cumsum(1) - (ids == end).int() == 0


class BytePairs:
    """OpenCLIP's tokenizer, from its file alone: its package takes seconds to import."""

    def __init__(self, context_length: int) -> None:
        package = Path(importlib.util.find_spec("open_clip").origin).parent
        spec = importlib.util.spec_from_file_location("_open_clip_tokenizer", package / "tokenizer.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.inner, self.context_length = module._tokenizer, context_length

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = self.inner(texts, self.context_length)
        return ids, _upto(ids, self.inner.eot_token_id)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids)


class PlainTowers(nn.Module):
    """OpenCLIP's plain towers in our own code."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config.model_dump(mode="json")
        self.model = PlainClip(config)
        self.image_size, self.context_length = config.vision_cfg.image_size, config.text_cfg.context_length
        self.tokenizer = BytePairs(self.context_length)
        self.tokenize, self.encode = self.tokenizer.tokenize, self.tokenizer.encode
        self.decode = self.tokenizer.decode

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Only columns that some text reaches are computed; causality makes that exact."""
        length = int(mask.sum(1).max())
        hidden = self.model.encode_tokens(ids[:, :length])
        embed = _read_at(hidden, mask) @ self.model.text_projection
        return embed, F.pad(hidden, (0, 0, 0, ids.shape[1] - length))

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


class OpenClipTowers(nn.Module):
    """Any OpenCLIP model."""

    def __init__(self, model: nn.Module, tokenizer, config: dict) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config = model, tokenizer, config
        size = model.visual.image_size
        self.image_size = size[0] if isinstance(size, tuple) else size
        self.context_length = model.context_length
        if hasattr(model, "text"):
            model.text.output_tokens = True

    @classmethod
    def build(cls, config: dict) -> OpenClipTowers:
        """A fresh model from a `model_cfg`; its text is split by OpenCLIP's own byte pairs."""
        from open_clip.model import CLIP
        from open_clip.tokenizer import SimpleTokenizer

        model = CLIP(**config)
        return cls(model, SimpleTokenizer(context_length=model.context_length), config)

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(texts)
        if hasattr(self.tokenizer, "eot_token_id"):
            return ids, _upto(ids, self.tokenizer.eot_token_id)
        inner = self.tokenizer.tokenizer  # a tokenizer of transformers
        pad, end = inner.pad_token_id, inner.eos_token_id
        return ids, _upto(ids, end) if pad == end else ids != pad

    def encode(self, text: str) -> list[int]:
        if hasattr(self.tokenizer, "eot_token_id"):
            return self.tokenizer.encode(text)
        return self.tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return getattr(self.tokenizer, "tokenizer", self.tokenizer).decode(ids)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        m = self.model
        if hasattr(m, "text"):
            embed, tokens = m.text(ids)
            return embed, F.pad(tokens, (0, 0, ids.shape[1] - tokens.shape[1], 0))
        hidden = m.transformer(m.token_embedding(ids) + m.positional_embedding, attn_mask=m.attn_mask)
        hidden = m.ln_final(hidden)                                      # [N, L, W]
        projection = m.text_projection
        end = _read_at(hidden, mask)
        return projection(end) if isinstance(projection, nn.Module) else end @ projection, hidden

    def image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images)


class TransformersTowers(nn.Module):
    """Any CLIPModel of transformers."""

    def __init__(self, model: nn.Module, tokenizer) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.image_size = model.config.vision_config.image_size
        self.context_length = model.config.text_config.max_position_embeddings

    def tokenize(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = self.tokenizer(texts, padding="max_length", truncation=True,
                             max_length=self.context_length, return_tensors="pt")["input_ids"]
        return ids, _upto(ids, self.tokenizer.eos_token_id)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def text(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.model.text_model(ids).last_hidden_state
        return self.model.text_projection(_read_at(hidden, mask)), hidden

    def image(self, images: Tensor) -> Tensor:
        return self.model.visual_projection(self.model.vision_model(images).pooler_output)


def build_clip(model_cfg: dict | str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Clip:
    """A CLIP with random weights, from an OpenCLIP `model_cfg` or the name of one.

    Raises ValueError for an unknown name.
    """
    if isinstance(model_cfg, str):
        name, model_cfg = model_cfg, _named_config(model_cfg)
    else:
        name = "clip"
    try:
        towers = PlainTowers(ClipConfig.model_validate(model_cfg))
    except ValidationError:  # more than plain towers
        towers = OpenClipTowers.build(model_cfg)
    return Clip(towers, mean, std, name)


def _named_config(name: str) -> dict:
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"OpenCLIP knows no model {name!r}; it knows {', '.join(open_clip.list_models())}")
    return config


def load_clip(source: str | Path, device: str | torch.device = "cpu") -> Clip:
    """`open_clip:NAME[@tag-or-checkpoint]`, `transformers:ID-or-folder`, or a folder of `save_clip`.

    Raises CheckpointError for a folder that is none, ValueError for an unknown name.
    """
    kind, _, name = str(source).partition(":")
    if kind == "open_clip" and name:
        clip = _load_open_clip(name)
    elif kind == "transformers" and name:
        clip = _load_transformers(name)
    else:
        clip = _load_folder(Path(source))
    return clip.to(device)


def _load_open_clip(name: str) -> Clip:
    import open_clip

    name, _, pretrained = name.partition("@")
    _named_config(name)
    model = open_clip.create_model(name, pretrained=pretrained or None)
    mean, std = model.visual.image_mean or MEAN, model.visual.image_std or STD
    towers = OpenClipTowers(model, open_clip.get_tokenizer(name), open_clip.get_model_config(name))
    return Clip(towers, mean, std, f"open_clip:{name}@{pretrained}")


def _load_transformers(name: str) -> Clip:
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    towers = TransformersTowers(CLIPModel.from_pretrained(name), AutoTokenizer.from_pretrained(name))
    try:
        processor = CLIPImageProcessor.from_pretrained(name)
        mean, std = processor.image_mean, processor.image_std
    except OSError:  # a folder without statistics: all CLIPs of OpenAI share these
        mean, std = MEAN, STD
    return Clip(towers, mean, std, f"transformers:{name}")


def _load_folder(folder: Path) -> Clip:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} holds no CLIP: it needs {CONFIG} and {WEIGHTS}")
    described = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    statistics = described["preprocess_cfg"]
    clip = build_clip(described["model_cfg"], statistics["mean"], statistics["std"])
    clip.source = folder.resolve().name
    weights = {name: value.float() for name, value in load_file(folder / WEIGHTS).items()}
    load_strictly(clip.towers.model, weights, str(folder))
    return clip


def save_clip(clip: Clip, folder: str | Path) -> None:
    """Writes a folder that `load_clip` and OpenCLIP's `local-dir:` read, at half precision.

    Raises ValueError for a model of transformers, which has its own `save_pretrained`.
    """
    if isinstance(clip.towers, TransformersTowers):
        raise ValueError("a CLIP of transformers is saved with its own save_pretrained")
    folder = Path(folder)
    mean, std = clip.mean.flatten().tolist(), clip.std.flatten().tolist()
    described = {
        "model_cfg": clip.towers.config,
        "preprocess_cfg": {"size": clip.image_size, "mode": "RGB", "mean": mean, "std": std,
                           "interpolation": "bicubic", "resize_mode": "squash"},
    }  # fmt: skip
    state = clip.towers.model.state_dict()
    weights = {k: v.detach().cpu().half().contiguous() if v.is_floating_point() else v for k, v in state.items()}
    with written_aside(folder / WEIGHTS) as aside:
        save_file(weights, aside, metadata={"format": "pt"})
    with written_aside(folder / CONFIG) as aside:
        aside.write_text(json.dumps(described, indent=2), encoding="utf-8")

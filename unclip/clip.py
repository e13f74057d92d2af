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
from unclip.nets.clip import ClipConfig
from unclip.towers import OpenClipTowers, PlainTowers, TransformersTowers

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


def _byte_pairs():
    """OpenCLIP's tokenizer, from its file alone: its package takes seconds to import."""
    package = Path(importlib.util.find_spec("open_clip").origin).parent
    spec = importlib.util.spec_from_file_location("_open_clip_tokenizer", package / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._tokenizer


def build_clip(model_cfg: dict | str, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Clip:
    """A CLIP with random weights, from an OpenCLIP `model_cfg` or the name of one.

    Raises ValueError for an unknown name.
    """
    if isinstance(model_cfg, str):
        name, model_cfg = model_cfg, _named_config(model_cfg)
    else:
        name = "clip"
    try:
        towers = PlainTowers(ClipConfig.model_validate(model_cfg), _byte_pairs())
    except ValidationError:  # more than our towers can
        towers = _fresh_open_clip(model_cfg)
    return Clip(towers, mean, std, name)


def _fresh_open_clip(model_cfg: dict) -> OpenClipTowers:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    model = CLIP(**model_cfg)
    return OpenClipTowers(model, SimpleTokenizer(context_length=model.context_length), model_cfg)


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
    weights = {key: value.detach().cpu().half().contiguous() if value.is_floating_point() else value
               for key, value in state.items()}
    with written_aside(folder / WEIGHTS) as aside:
        save_file(weights, aside, metadata={"format": "pt"})
    with written_aside(folder / CONFIG) as aside:
        aside.write_text(json.dumps(described, indent=2), encoding="utf-8")

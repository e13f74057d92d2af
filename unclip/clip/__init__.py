"""Frozen CLIP encoders behind one interface, whichever library they come from.

    clip = load_clip("open_clip:ViT-B-32@laion2b_s34b_b79k")
    clip = load_clip("transformers:openai/clip-vit-base-patch32")
    clip = load_clip("path/to/folder")          # one of ours, written by save_clip

Radford et al. 2021 (arXiv:2103.00020).
"""

from .description import MEAN, STD
from .encoders import Clip, Text
from .files import CONFIG, WEIGHTS, build_clip, is_on_hub, load_clip, save_clip
from .halves import load_halves
from .identity import digest_of, named, same_weights, weights_of
from .public import load_openai, load_transformers

__all__ = [
    "CONFIG", "MEAN", "STD", "WEIGHTS", "Clip", "Text", "build_clip", "digest_of", "is_on_hub", "load_clip",
    "load_halves", "load_openai", "load_transformers", "named", "same_weights", "save_clip", "weights_of",
]  # fmt: skip

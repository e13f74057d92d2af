"""Networks: no diffusion, no CLIP, no files. They map tensors to tensors."""

from unclip.nets.classifier import ClassifierConfig, NoisedClassifier
from unclip.nets.prior import PriorConfig, PriorTransformer
from unclip.nets.text import TextConfig, TextTransformer
from unclip.nets.unet import UNet, UNetConfig

__all__ = [
    "ClassifierConfig",
    "NoisedClassifier",
    "PriorConfig",
    "PriorTransformer",
    "TextConfig",
    "TextTransformer",
    "UNet",
    "UNetConfig",
]

"""Networks: no diffusion, no CLIP, no files. They map tensors to tensors."""

from .classifier import ClassifierConfig, NoisedClassifier
from .prior import PriorConfig, PriorTransformer
from .prior_ar import ARPriorConfig, ARPriorTransformer
from .text import TextConfig, TextTransformer
from .unet import UNet, UNetConfig

__all__ = [
    "ARPriorConfig", "ARPriorTransformer", "ClassifierConfig", "NoisedClassifier", "PriorConfig",
    "PriorTransformer", "TextConfig", "TextTransformer", "UNet", "UNetConfig",
]  # fmt: skip

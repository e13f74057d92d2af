"""Stages: where a network and the mathematics of diffusion meet.

A stage knows what its network is told (how to whiten an embedding, when to drop a condition, how a
low-resolution picture joins the input) and how it is sampled by default. ``Prior`` makes CLIP image
embeddings from text by diffusion, and ``ARPrior`` one component after the other; ``Decoder`` makes pictures
from embeddings, text, classes or nothing, and with ``low_res`` it is an upsampler.
"""

from .config import (
    APG,
    AnyPriorConfig,
    ARPriorStageConfig,
    ARSampling,
    DecoderStageConfig,
    Interval,
    LowRes,
    PriorStageConfig,
    Process,
    SamplerName,
    Sampling,
    ScheduleName,
    Steps,
)
from .decoder import Decoder
from .load import STAGES, AnyPrior, load_decoder, load_prior, load_stage
from .low_res import blur3
from .origin import Origin
from .prior import Prior, TextPrior
from .prior_ar import ARPrior
from .stage import Conditions, Objective, Stage

__all__ = [
    "STAGES", "ARPrior", "ARPriorStageConfig", "ARSampling", "AnyPrior", "AnyPriorConfig", "Conditions",
    "APG", "Decoder", "DecoderStageConfig", "Interval", "LowRes", "Objective", "Origin", "Prior",
    "PriorStageConfig", "Process", "SamplerName", "Sampling", "ScheduleName", "Stage", "Steps", "TextPrior",
    "blur3", "load_decoder", "load_prior", "load_stage",
]  # fmt: skip

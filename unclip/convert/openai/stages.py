"""Stages of OpenAI's public models: their configurations, and the weights put into them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import load_strictly
from ...guides.classifier import Classifier, ClassifierStageConfig
from ...stages import Decoder, DecoderStageConfig, LowRes, Process, Sampling
from . import names
from .configs import Arguments, classifier_config, text_config, unet_config

SCHEDULES = {"squaredcos_cap_v2": "cosine", "cosine": "cosine", "linear": "linear"}


def process(args: Arguments) -> Process:
    """The diffusion process that the public scripts would make, and the loss they would train it with."""
    learned, timesteps = bool(args.get("learn_sigma", True)), args.get("diffusion_steps", 1000)
    return Process(
        schedule=SCHEDULES[args["noise_schedule"]],
        timesteps=timesteps,
        time_scale=1000 / timesteps if args.get("rescale_timesteps") else 1.0,
        predicts="x0" if args.get("predict_xstart") else "eps",
        variance="learned" if learned else "large",
        loss="vlb" if args.get("use_kl") else "hybrid" if learned else "simple",
    )


def decoder_config(
    args: Arguments,
    sampling: Mapping[str, Any],
    starts_from: int | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> DecoderStageConfig:
    """The stage that a public U-Net is.

    args, tensors: as in `unet_config`.
    sampling:      fields of `Sampling` that were published with it.
    starts_from:   pixels a side of the smaller picture that it enlarges; None = it enlarges none.

    Classes were never left out in training, so there is no picture without one; a fifth of GLIDE's texts
    were (Nichol et al. 2021, section 2.3), and so are all at once for guidance.
    """
    low_res = None if starts_from is None else LowRes(size=starts_from, blur=0, round_to_8bit=True)
    return DecoderStageConfig(
        net=unet_config(args, tensors),
        text=text_config(args, tensors),
        process=process(args),
        sampling=Sampling(**sampling),
        low_res=low_res,
        inpaint=bool(args.get("inpaint")),
        drop_class=0,
        drop_text=0.2,
    )


def decoder(
    tensors: Mapping[str, Tensor],
    config: DecoderStageConfig,
    new_order: bool = False,
    source: str = "the file",
) -> Decoder:
    """A decoder or an upsampler with the tensors of a public file; eval mode, no gradients.

    new_order: see `openai_names.unet`. Raises CheckpointError unless every tensor has its place.
    """
    ours, unused = names.unet(tensors, config.net, new_order, source)
    places = names.prefixed("network", ours)
    if config.text is not None:
        ours, unused = names.text({name: tensors[name] for name in unused}, source)
        places |= names.prefixed("text", ours)
    stage = Decoder.blank(config)
    places |= {name: torch.empty(value.shape) for name, value in stage.named_buffers()}  # of no embedding
    load_strictly(stage, places, source, unused, torch.float32)
    return stage


def classifier_stage_config(args: Arguments, of: Process, scale: float = 1.0) -> ClassifierStageConfig:
    """The stage that a public classifier is. of: the process of the decoder that it guides.

    scale: how strongly it guides unless it is told otherwise.
    """
    return ClassifierStageConfig(
        net=classifier_config(args), schedule=of.schedule, timesteps=of.timesteps, scale=scale
    )


def classifier(
    tensors: Mapping[str, Tensor],
    config: ClassifierStageConfig,
    new_order: bool = False,
    source: str = "the file",
) -> Classifier:
    """A classifier with the tensors of a public file; eval mode, no gradients."""
    ours, unused = names.classifier(tensors, config.net, new_order, source)
    stage = Classifier.blank(config)
    load_strictly(stage, names.prefixed("network", ours), source, unused, torch.float32)
    return stage

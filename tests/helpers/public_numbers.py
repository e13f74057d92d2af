"""What the public code's networks computed, from tests/fixtures, and our networks with their weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from drawn_weights import drawn
from safetensors import safe_open
from torch import Tensor

from unclip.checkpoint import load_strictly
from unclip.convert.openai import adm
from unclip.nets import NoisedClassifier, UNet


def fixture(path: Path) -> tuple[dict, dict[str, Tensor], dict[str, Tensor]]:
    """Arguments of the constructor, its weights (in the file, or drawn again), and the other tensors."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    weights |= drawn(header["weights"]) if "weights" in header else {}
    return (
        json.loads(header["config"]),
        weights,
        {k: v for k, v in tensors.items() if not k.startswith("weights.")},
    )


def is_classifier(weights: dict[str, Tensor]) -> bool:
    return not any(name.startswith("output_blocks.") for name in weights)


def build(args: dict, weights: dict[str, Tensor], source: str) -> UNet | NoisedClassifier:
    """Our network with their weights."""
    new_order = args.get("use_new_attention_order", False)
    with torch.device("meta"):
        if is_classifier(weights):
            config = adm.classifier_config(args, weights)
            net, (ours, unused) = NoisedClassifier(config), adm.classifier(weights, config, new_order, source)
        else:
            config = adm.unet_config(args, weights)
            net, (ours, unused) = UNet(config), adm.unet(weights, config, new_order, source)
    load_strictly(net, ours, source, unused, torch.float32)
    return net.eval()


def far(out: Tensor, wanted: Tensor) -> float:
    """The largest difference, as a part of the largest value."""
    assert out.shape == wanted.shape
    return float((out.detach() - wanted).abs().max() / wanted.abs().max())

"""Kandinsky 2.2, a public unCLIP: text, prior, and a decoder of latents, 512 pixels.

from_diffusers({"prior": "kandinsky-2-2-prior", "decoder": "kandinsky-2-2-decoder"})   # its two folders
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...checkpoint import CheckpointError
from ...clip import Clip, load_halves
from ...pipeline.pipeline import Pipeline
from ...stages import Decoder, Prior
from ..catalogue import PublicModel
from ..diffusers_layout import read_settings, read_weights
from ..family import StageConfigs
from ..karlo import names as karlo
from ..karlo.pipeline import filled, unwhitened
from . import names
from .configs import RELEASED, decoder_stage, prior_stage

# Where a part lies in the folder of the prior's pipeline, or of the decoder's.
PRIOR = ("prior", "scheduler", "text_encoder", "tokenizer", "image_encoder", "image_processor")
DECODER = ("unet", "scheduler", "movq")
COUNTS = {"text": 694_659_840, "image": 1_844_907_264}  # parameters of the halves of CLIP ViT-bigG-14
DESCRIPTION = "Kandinsky 2.2 (Shakhmatov et al. 2023): unCLIP in latents, text to image, 512 pixels"


def configs(model: PublicModel) -> StageConfigs:
    """The stages of a public model of this family, for a plan; "clip" is the number of CLIP's parameters."""
    values = {part: {**settings, **model.args.get(part, {})} for part, settings in RELEASED.items()}
    return {"prior": prior_stage(values), "decoder": decoder_stage(values), "clip": sum(COUNTS.values())}


def from_diffusers(folders: Mapping[str, Path]) -> Pipeline:
    """The folders of diffusers' KandinskyV22PriorPipeline and KandinskyV22Pipeline, or its inpainting one's,
    as a pipeline on the CPU.

    Raises CheckpointError, which names the part, for what is missing, damaged or of another kind.
    """
    first, second = Path(folders["prior"]), Path(folders["decoder"])
    _check(first, ("KandinskyV22PriorPipeline",), PRIOR)
    _check(second, ("KandinskyV22Pipeline", "KandinskyV22InpaintPipeline"), DECODER)
    clip = load_halves(
        first / "text_encoder",
        first / "image_encoder",
        first / "tokenizer",
        first / "image_processor",
        "kandinsky",
    )
    prior = _prior(first)
    net = prior.config.net
    if (clip.embed_dim, clip.text_dim, clip.context_length) != (net.embed_dim, net.text_dim, net.text_length):
        raise CheckpointError(
            f"the text encoder makes embeddings of {clip.embed_dim}, and {clip.context_length} tokens of "
            f"{clip.text_dim}; the prior takes {net.embed_dim}, and {net.text_length} of {net.text_dim}"
        )
    decoder = _decoder(second, nothing(clip))
    for stage in (prior, decoder):
        stage.facts["clip"] = clip.identity
    return Pipeline(decoder, prior, [], clip, name="kandinsky", description=DESCRIPTION).eval()


@torch.no_grad()
def nothing(clip: Clip) -> Tensor:
    """What Kandinsky's guidance starts from: the embedding [D] of a picture whose normalised pixels are 0.

    Its code calls that picture black; before CLIP's normalisation it is of the mean colour.
    """
    side = clip.image_size or 0
    return clip.towers.image(torch.zeros(1, 3, side, side))[0].float()


def _prior(folder: Path) -> Prior:
    settings = {
        "prior": read_settings(folder / "prior" / "config.json"),
        "prior_scheduler": read_settings(folder / "scheduler" / "scheduler_config.json"),
    }
    config, part = prior_stage(settings, str(folder)), folder / "prior"
    tensors = karlo.prior(read_weights(part), config.net.layers, config.net.heads, str(part))
    return filled(Prior, config, [tensors], part)


def _decoder(folder: Path, null: Tensor) -> Decoder:
    """null: the embedding that guidance starts from."""
    settings = {part: read_settings(folder / part / "config.json") for part in ("unet", "movq")}
    settings["scheduler"] = read_settings(folder / "scheduler" / "scheduler_config.json")
    tensors, source = read_weights(folder / "unet"), str(folder / "unet")
    made = tensors.get("encoder_hid_proj.norm.weight"), tensors.get("encoder_hid_proj.image_embeds.bias")
    if any(value is None for value in made):
        raise CheckpointError(f"{source} lacks encoder_hid_proj, which makes tokens of an image embedding")
    width, rows = (len(value) for value in made if value is not None)
    config = decoder_stage(settings, rows // width, str(folder))
    assert config.autoencoder is not None
    parts = [
        names.decoder(tensors, config.net, source),
        names.autoencoder(read_weights(folder / "movq"), config.autoencoder, str(folder / "movq")),
        ({"network.null_image": null}, []),
        unwhitened(len(null)),
    ]
    return filled(Decoder, config, parts, f"{source} with movq")


def _check(folder: Path, kinds: tuple[str, ...], parts: tuple[str, ...]) -> None:
    kind = read_settings(folder / "model_index.json").get("_class_name")
    if kind not in kinds:
        raise CheckpointError(f"{folder} holds a {kind}, not a {' or a '.join(kinds)}")
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise CheckpointError(f"{folder} lacks the folders {', '.join(missing)}")

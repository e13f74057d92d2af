"""Karlo, a public unCLIP: text, prior, decoder of 64 pixels, upsampler to 256 with two networks.

from_diffusers("karlo-v1-alpha")     # the folder of a UnCLIPPipeline
from_original("karlo/v1.0.alpha")    # the files that kakaobrain/karlo's setup.sh fetches
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ...checkpoint import CheckpointError, load_strictly
from ...clip import Clip, load_openai, load_transformers
from ...pipeline.pipeline import Pipeline
from ...stages import Decoder, Prior
from ...stages.config import StageConfig
from ..catalogue import PublicModel
from ..diffusers_layout import read_settings, read_weights
from ..family import StageConfigs
from ..tensors import read
from . import names
from .configs import RELEASED, UNTOLD, Configs, Untold, original_configs, stage_configs

S = TypeVar("S", Prior, Decoder)
PARTS = ("prior", "decoder", "text_proj", "super_res_first", "super_res_last")
SCHEDULERS = ("prior_scheduler", "decoder_scheduler", "super_res_scheduler")
ORIGINAL = {
    "prior": "prior-ckpt*.ckpt", "decoder": "decoder-ckpt*.ckpt", "upsampler": "improved-sr-ckpt*.ckpt",
    "clip": "ViT-L-14.pt", "statistics": "ViT-L-14_stats.th",
}  # fmt: skip
PREFIXES = {"prior": "model.", "decoder": "model.", "upsampler": "model_first_steps."}
LAST = "model_last_step."  # the upsampler's second network
TEXT_ENCODER = 123_650_304  # parameters of the text half of CLIP ViT-L/14
DESCRIPTION = "Karlo v1.0.alpha (Lee et al. 2022, Kakao Brain): unCLIP, text to image, 256 pixels"


def configs(model: PublicModel | None = None) -> StageConfigs:
    """The stages of a public model of this family, for a plan; None = the released one's.

    "clip" is the number of the text encoder's parameters.
    """
    stages = stage_configs(model.args if model and model.args else RELEASED)
    return {
        "prior": stages["prior"],
        "decoder": stages["decoder"],
        "upsamplers": [stages["upsampler"]],
        "clip": TEXT_ENCODER,
    }


def from_diffusers(folder: str | Path) -> Pipeline:
    """The folder that diffusers' UnCLIPPipeline is kept in, as a pipeline on the CPU.

    Raises CheckpointError, which names the part, for what is missing, damaged or of another kind.
    """
    folder = Path(folder)
    _check_parts(folder)
    settings = {part: read_settings(folder / part / "config.json") for part in PARTS}
    settings |= {part: read_settings(folder / part / "scheduler_config.json") for part in SCHEDULERS}
    config = stage_configs(settings, str(folder))
    shape = config["prior"].net
    prior = filled(
        Prior,
        config["prior"],
        [names.prior(read_weights(folder / "prior"), shape.layers, shape.heads, str(folder / "prior"))],
        folder / "prior",
    )
    net, source = config["decoder"].net, str(folder / "decoder")
    decoder = filled(
        Decoder,
        config["decoder"],
        [
            names.unet(read_weights(folder / "decoder"), net, source),
            names.text_proj(read_weights(folder / "text_proj"), str(folder / "text_proj")),
            unwhitened(net.image_embed_dim or 0),
        ],
        f"{source} with text_proj",
    )
    net, source = config["upsampler"].net, str(folder / "super_res_first")
    upsampler = filled(
        Decoder,
        config["upsampler"],
        [
            names.unet(read_weights(folder / "super_res_first"), net, source),
            names.unet(read_weights(folder / "super_res_last"), net, source, "last"),
            unwhitened(0),
        ],
        f"{source} with super_res_last",
    )
    clip = load_transformers(folder / "text_encoder", folder / "tokenizer")
    return _pipeline(prior, decoder, upsampler, clip)


def from_original(folder: str | Path, untold: Untold = UNTOLD) -> Pipeline:
    """The published files, as a pipeline on the CPU; CLIP has its picture tower too.

    untold: what the files do not say.

    Raises CheckpointError, which names the file, for what is missing, damaged or of another kind.
    """
    files = _original_files(Path(folder))
    published = {part: read(files[part]) for part in PREFIXES}
    config = _configs_of(published, untold, str(folder))
    source = {part: str(file) for part, file in files.items()}
    mean, std = _statistics(files["statistics"])
    prior = filled(
        Prior,
        config["prior"],
        [
            names.original_prior(published["prior"], config["prior"].net.layers, source["prior"]),
            ({"embed_mean": mean, "embed_std": std}, []),
        ],
        source["prior"],
    )
    net = config["decoder"].net
    decoder = filled(
        Decoder,
        config["decoder"],
        [
            names.original_unet(published["decoder"], net, source["decoder"]),
            unwhitened(net.image_embed_dim or 0),
        ],
        source["decoder"],
    )
    net = config["upsampler"].net
    last, others = names.without(LAST, published["upsampler"])
    first = {name: published["upsampler"][name] for name in others}
    upsampler = filled(
        Decoder,
        config["upsampler"],
        [
            names.original_unet(first, net, source["upsampler"], PREFIXES["upsampler"]),
            names.original_unet(last, net, source["upsampler"], "", "last"),
            unwhitened(0),
        ],
        source["upsampler"],
    )
    return _pipeline(prior, decoder, upsampler, _openai(files["clip"], untold))


def _pipeline(prior: Prior, decoder: Decoder, upsampler: Decoder, clip: Clip) -> Pipeline:
    clip.source = "karlo"
    net = prior.config.net
    if (clip.embed_dim, clip.text_dim, clip.context_length) != (net.embed_dim, net.text_dim, net.text_length):
        raise CheckpointError(
            f"the text encoder makes embeddings of {clip.embed_dim}, and {clip.context_length} tokens of "
            f"{clip.text_dim}; the prior takes {net.embed_dim}, and {net.text_length} of {net.text_dim}"
        )
    for stage in (prior, decoder):
        stage.facts["clip"] = clip.identity
    return Pipeline(decoder, prior, [upsampler], clip, name="karlo", description=DESCRIPTION).eval()


def filled(kind: type[S], config: StageConfig, parts: list[names.Renamed], source: str | Path) -> S:
    """A stage without a second copy of any of its weights."""
    stage = kind.blank(config)
    tensors = {name: value for ours, _ in parts for name, value in ours.items()}
    unused = [name for _, others in parts for name in others]
    load_strictly(stage, tensors, str(source), unused, torch.float32)
    return stage


def unwhitened(dim: int) -> names.Renamed:
    """The statistics of a stage that takes embeddings as they come."""
    return {"embed_mean": torch.zeros(dim), "embed_std": torch.ones(dim)}, []


def _check_parts(folder: Path) -> None:
    kind = read_settings(folder / "model_index.json").get("_class_name")
    if kind != "UnCLIPPipeline":
        raise CheckpointError(f"{folder} holds a {kind}, not a UnCLIPPipeline, which Karlo is")
    parts = (*PARTS, *SCHEDULERS, "text_encoder", "tokenizer")
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise CheckpointError(f"{folder} lacks the folders {', '.join(missing)}")


def _original_files(folder: Path) -> dict[str, Path]:
    matches = {part: sorted(folder.glob(pattern)) for part, pattern in ORIGINAL.items()}
    if missing := [ORIGINAL[part] for part, files in matches.items() if not files]:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}")
    if several := [str(file) for files in matches.values() if len(files) > 1 for file in files]:
        raise CheckpointError(f"{folder} holds several files of one kind; leave one of {', '.join(several)}")
    return {part: files[0] for part, files in matches.items()}


def _configs_of(published: Mapping[str, Mapping[str, Tensor]], untold: Untold, source: str) -> Configs:
    inside = {part: names.without(prefix, published[part])[0] for part, prefix in PREFIXES.items()}
    try:
        return original_configs(inside, untold)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source} does not hold Karlo's networks: {error}") from None


def _statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of CLIP's image embeddings."""
    try:
        mean, std = torch.load(path, map_location="cpu", weights_only=True)
        return mean.flatten(), std.flatten()
    except Exception as error:  # a damaged pickle can lead to any
        raise CheckpointError(f"{path} holds no mean and standard deviation: {error}") from None


def _openai(path: Path, untold: Untold) -> Clip:
    """OpenAI's own file is a program with weights (TorchScript), of which only the weights are used."""
    try:
        with zipfile.ZipFile(path) as archive:
            program = any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        program = False
    if not program:
        return load_openai(read(path), str(path), untold.head_channels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is on its way out
            tensors = torch.jit.load(path, map_location="cpu").state_dict()
    except RuntimeError as error:
        raise CheckpointError(f"{path} cannot be read: it is damaged or cut short ({error})") from None
    return load_openai(tensors, str(path), untold.head_channels)

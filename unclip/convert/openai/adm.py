"""ADM (guided-diffusion), improved DDPM, their upsamplers and classifiers, as pipelines.

Dhariwal & Nichol 2021; Nichol & Dhariwal 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...config import Config
from ...pipeline.pipeline import Pipeline
from ..catalogue import PublicModel
from ..tensors import read
from .configs import args_from, classifier_config, unet_config
from .names import classifier, unet
from .stages import classifier as classifier_stage
from .stages import classifier_stage_config, decoder, decoder_config

__all__ = ["args_from", "classifier", "classifier_config", "configs", "pipeline", "unet", "unet_config"]


def configs(
    model: PublicModel, tensors: Mapping[str, Mapping[str, Tensor]] | None = None
) -> dict[str, Config | list[Config]]:
    """Our stage configurations of a model: "decoder", and if it has them "upsamplers" and "classifier".

    tensors: of its files, by role, whose shapes count more than the model's arguments.
    """
    tensors, args = tensors or {}, model.args
    base = decoder_config(args["decoder"], model.sampling["decoder"], None, tensors.get("decoder"))
    found: dict[str, Config | list[Config]] = {"decoder": base, "upsamplers": []}
    if "upsampler" in args:
        found["upsamplers"] = [
            decoder_config(
                args["upsampler"],
                model.sampling["upsampler"],
                args["upsampler"]["small_size"],
                tensors.get("upsampler"),
            )
        ]
    if "classifier" in args:
        scale = model.classifier_scale
        found["classifier"] = classifier_stage_config(args["classifier"], base.process, scale)
    return found


def pipeline(files: Mapping[str, str | Path], model: PublicModel) -> Pipeline:
    """A model from its files, by role: decoder, and if it has them upsampler and classifier.

    Raises CheckpointError for a file that is damaged or does not fit, tensor by tensor.
    """
    tensors = {role: read(path) for role, path in files.items()}
    planned, args = configs(model, tensors), model.args

    def built(role: str, config: Config) -> object:
        make = classifier_stage if role == "classifier" else decoder
        new_order = bool(args[role].get("use_new_attention_order"))
        return make(tensors.pop(role), config, new_order, str(files[role]))

    upsamplers = [built("upsampler", config) for config in planned["upsamplers"]]
    guide = built("classifier", planned["classifier"]) if "classifier" in planned else None
    return Pipeline(
        built("decoder", planned["decoder"]),
        upsamplers=upsamplers,
        classifier=guide,
        name=model.name,
        description=model.about,
    )

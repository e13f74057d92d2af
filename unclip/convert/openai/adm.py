"""ADM (guided-diffusion), improved DDPM, their upsamplers and classifiers, as pipelines.

Dhariwal & Nichol 2021; Nichol & Dhariwal 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...pipeline.pipeline import Pipeline
from ...stages import Decoder, DecoderStageConfig
from ..catalogue import PublicModel
from ..family import StageConfigs
from ..tensors import read
from .configs import args_from, classifier_config, unet_config
from .names import classifier, unet
from .stages import classifier as classifier_stage
from .stages import classifier_stage_config, decoder, decoder_config

__all__ = ["args_from", "classifier", "classifier_config", "configs", "pipeline", "unet", "unet_config"]


def configs(model: PublicModel, tensors: Mapping[str, Mapping[str, Tensor]] | None = None) -> StageConfigs:
    """Our stage configurations of a model: "decoder", and if it has them "upsamplers" and "classifier".

    tensors: of its files, by role, whose shapes count more than the model's arguments.
    """
    tensors, args = tensors or {}, model.args
    base = decoder_config(args["decoder"], model.sampling["decoder"], None, tensors.get("decoder"))
    stages: StageConfigs = {"decoder": base, "upsamplers": []}
    if "upsampler" in args:
        stages["upsamplers"] = [
            decoder_config(
                args["upsampler"],
                model.sampling["upsampler"],
                args["upsampler"]["small_size"],
                tensors.get("upsampler"),
            )
        ]
    if "classifier" in args:
        scale = model.classifier_scale
        stages["classifier"] = classifier_stage_config(args["classifier"], base.process, scale)
    return stages


def pipeline(files: Mapping[str, str | Path], model: PublicModel) -> Pipeline:
    """A model from its files, by role: decoder, and if it has them upsampler and classifier.

    Raises CheckpointError for a file that is damaged or does not fit, tensor by tensor.
    """
    tensors = {role: read(path) for role, path in files.items()}
    planned, args = configs(model, tensors), model.args

    def weights(role: str) -> tuple[dict[str, Tensor], bool, str]:
        """What is in a file, in which order its heads are, and what it is called."""
        return tensors.pop(role), bool(args[role].get("use_new_attention_order")), str(files[role])

    def built(role: str, config: DecoderStageConfig) -> Decoder:
        own, new_order, source = weights(role)
        return decoder(own, config, new_order, source)

    upsamplers = [built("upsampler", config) for config in planned["upsamplers"]]
    guide = None
    if "classifier" in planned:
        own, new_order, source = weights("classifier")
        guide = classifier_stage(own, planned["classifier"], new_order, source)
    return Pipeline(
        built("decoder", planned["decoder"]),
        upsamplers=upsamplers,
        classifier=guide,
        name=model.name,
        description=model.about,
    )

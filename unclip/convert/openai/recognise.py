"""Which model of ADM or improved DDPM a file holds: by its name, or by the shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from torch import Tensor

from ...checkpoint import CheckpointError
from ..catalogue import MODELS, PublicModel
from ..tensors import read
from . import adm
from .configs import Arguments


def model_of(path: Path) -> tuple[PublicModel, str]:
    """The model whose file this is, and the file's role in it: decoder, upsampler or classifier.

    What is called as it was published is believed to be that, and then has to fit it tensor by tensor.
    Of models with the same network, such as those of LSUN's scenes, the first is taken.

    Raises ``CheckpointError`` for a file that fits none.
    """
    own = [(model, _own_role(model)) for model in MODELS.values() if model.family == "adm"]
    for model, role in own:
        if model.files[role].name == path.name:
            return model, role
    tensors = read(path)
    for model, role in own:
        if _fits(tensors, model.args[role], role):
            return model, role
    raise CheckpointError(
        f"{path} holds none of the models that are known by the shapes of their tensors: "
        f"{', '.join(model.name for model, _ in own)}"
    )


def _own_role(model: PublicModel) -> str:
    return "decoder" if model.serves is None else next(role for role in model.files if role != "decoder")


def _fits(tensors: Mapping[str, Tensor], args: Arguments, role: str) -> bool:
    """Whether the shapes tell the same network as the arguments of the public constructor."""
    try:
        if role == "classifier":
            return _fits_classifier(tensors, args)
        return bool(adm.args_from(tensors)) and adm.unet_config(args, tensors) == adm.unet_config(args)
    except (ValidationError, ValueError, KeyError, IndexError):
        return False  # shapes of some other network


def _fits_classifier(tensors: Mapping[str, Tensor], args: Arguments) -> bool:
    config = adm.classifier_config(args)
    blocks = {name.split(".")[1] for name in tensors if name.startswith("input_blocks.")}
    pool = config.widths[-1], config.grid_sizes[-1] ** 2 + 1
    return (
        tensors["time_embed.0.weight"].shape == (config.emb_channels, config.channels)
        and len(blocks) == len(config.widths) * (config.num_res_blocks + 1)
        and tensors["out.2.positional_embedding"].shape == pool
        and len(tensors["out.2.c_proj.bias"]) == config.classes
    )

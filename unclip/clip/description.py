"""What a CLIP's folder says of itself, checked before anything is built of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ..checkpoint import CheckpointError
from ..config import Config, ConfigError, parse_config
from ..files import read_json
from ..nets.clip import ClipConfig, Depth, Pixels, Width

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of OpenAI's
MOST = 2**22  # no number of a CLIP is greater; the largest are the sizes of vocabularies
LARGEST = 2**24  # bytes of a description
# By which OpenCLIP would go to the network, whatever the rest says.
FETCHED = (
    ("vision_cfg", "timm_model_name"),
    ("text_cfg", "hf_model_name"),
    ("text_cfg", "hf_tokenizer_name"),
)
OUT_OF_RANGE = re.compile("greater_than|less_than|finite_number|value_error")


def read_description(path: Path) -> dict:
    """The JSON object of a file; ``CheckpointError`` for what is none, or holds absurd numbers."""
    try:
        described = read_json(path, "the description of a CLIP", LARGEST)
        for key, number in _numbers(described):
            if not abs(number) <= MOST:
                raise ValueError(f"its {key} is {number}")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a CLIP's description: {brief(error)}") from None
    return described


def _numbers(values: object, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers, and where they stand."""
    if isinstance(values, int | float):
        yield key, values
    elif isinstance(values, dict | list):
        for name, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _numbers(value, f"{key}.{name}".lstrip("."))


def plain_config(model_cfg: object, source: str) -> ClipConfig | dict:
    """An OpenCLIP `model_cfg` as that of our towers; as it is, if only OpenCLIP has such towers.

    Raises ``ConfigError`` for numbers that no towers can have.
    """
    try:
        return ClipConfig.model_validate(model_cfg)
    except ValidationError as error:
        kinds = [item["type"] for item in error.errors()]
    beyond = "extra_forbidden" in kinds or _is_theirs(model_cfg)
    if isinstance(model_cfg, dict) and beyond and not any(map(OUT_OF_RANGE.search, kinds)):
        return model_cfg
    return parse_config(ClipConfig, model_cfg, source)  # which says what is wrong


def _is_theirs(model_cfg: object) -> bool:
    """Whether known keys have values that only OpenCLIP takes: oblong pictures, a ResNet without patches."""
    vision = model_cfg.get("vision_cfg") if isinstance(model_cfg, dict) else None
    if not isinstance(vision, dict):
        return False
    return isinstance(vision.get("image_size"), list | tuple) or vision.get("patch_size", 0) is None


def to_fetch(model_cfg: dict) -> str | None:
    """The first part of an OpenCLIP `model_cfg` that would be fetched, "key: value"; None = it is whole."""
    for tower, key in FETCHED:
        part = model_cfg.get(tower)
        name = part.get(key) if isinstance(part, dict) else None
        if name and not (
            key == "timm_model_name" and re.fullmatch(r"[\w.]+", str(name))
        ):  # one that timm has
            return f"{tower}.{key}: {name}"
    return None


def local_only(model_cfg: dict) -> dict:
    """The same, to build towers whose weights come after: those that timm and transformers publish are not
    fetched. ``ConfigError`` for what would read other files, or fetch tools.
    """
    vision, text = dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
    if set(text.get("tokenizer_kwargs") or ()) - {"clean"}:
        raise ConfigError(f"text_cfg.tokenizer_kwargs {text['tokenizer_kwargs']}: only `clean` is known here")
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
    return {**model_cfg, "vision_cfg": vision, "text_cfg": text}


def statistics_of(described: dict) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pictures in [0, 1]; OpenAI's where nothing is said."""
    said = described.get("preprocess_cfg") or {}
    if not isinstance(said, dict):
        raise ConfigError(f"preprocess_cfg is {said!r}, which says no mean and std")
    return said.get("mean", MEAN), said.get("std", STD)


class TransformersTower(Config, extra="ignore"):
    """What a configuration of transformers says of a tower's shape; all else in it is left unread."""

    hidden_size: Width = 1
    intermediate_size: int = Field(1, gt=0, le=MOST)
    projection_dim: Width | None = 1
    num_hidden_layers: Depth = 1
    num_attention_heads: Width = 1
    num_channels: Literal[3] = 3
    image_size: Pixels = 1
    patch_size: Pixels = 1
    vocab_size: int = Field(1, gt=0, le=MOST)
    max_position_embeddings: int = Field(1, ge=3, le=2**16)
    hidden_act: str = ""
    layer_norm_eps: float = Field(0, ge=0, le=1)
    attention_dropout: float = Field(0, ge=0, lt=1)
    initializer_range: float = Field(0, ge=0, le=1)
    initializer_factor: float = Field(0, ge=0, le=10)
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None


def transformers_config(described: dict, source: str) -> dict:
    """What transformers shall build, from its config.json of a CLIP; ``ConfigError`` for absurd numbers."""

    def tower(values: dict) -> dict:
        return parse_config(TransformersTower, values, source).model_dump(exclude_unset=True)

    whole = {"model_type": described["model_type"], **tower(described)}
    for key in ("text_config", "vision_config") if described["model_type"] == "clip" else ():
        parts = (described.get(name) or {} for name in (key, f"{key}_dict"))  # old ones have the second, too
        values: dict = {}
        for part in parts:
            if not isinstance(part, dict):
                raise ConfigError(f"{source}: its {key} is {part!r}, which describes no tower")
            values |= part
        whole[key] = tower(values)
    return whole


def brief(error: BaseException, longest: int = 300) -> str:
    """What an error of another library says, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]}..."

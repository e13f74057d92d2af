"""CLIPs of other people: OpenCLIP's by name, those of transformers, and OpenAI's own file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_strictly, no_weights
from ..config import ConfigError, parse_config
from ..nets.clip import ClipConfig
from ..resources.weightless import parameters, weightless
from .byte_pairs import byte_pairs
from .description import MEAN, STD, brief, local_only, read_description, transformers_config
from .encoders import Clip
from .towers import OpenClipTowers, PlainTowers, TransformersTowers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

OTHER_CONFIG = "config.json"  # of transformers
FILES = r".*\.(json|safetensors|bin)"  # of a folder of transformers, that must not be something else
CLASSES = {"clip": "CLIPModel", "clip_text_model": "CLIPTextModelWithProjection"}  # of transformers, by kind


HALVES = {"clip_text_model": CLASSES["clip_text_model"], "clip_vision_model": "CLIPVisionModelWithProjection"}


def fresh_open_clip(model_cfg: dict, source: str) -> OpenClipTowers:
    """Any of OpenCLIP's towers, with random weights; ``ConfigError`` for what it cannot build."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    try:
        config = local_only(model_cfg)
        text = config["text_cfg"]
        model = CLIP(**config)
        more, length = text.get("tokenizer_kwargs") or {}, model.context_length
        if words := text.get("hf_tokenizer_name"):
            return OpenClipTowers(
                model, HFTokenizer(words, length, trust_remote_code=False, **more), model_cfg
            )
        return OpenClipTowers(model, SimpleTokenizer(context_length=length, **more), model_cfg)
    except ConfigError:
        raise
    except Exception as error:  # of a configuration that it did not write, it may say anything
        raise ConfigError(f"OpenCLIP cannot build {source}: {brief(error)}") from None


def named_config(name: str) -> dict:
    """OpenCLIP's `model_cfg` of that name; ValueError for an unknown one. Nothing is fetched."""
    import open_clip

    config = None if ":" in name else open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"OpenCLIP knows no model {name!r}; it knows {', '.join(open_clip.list_models())}")
    return config


def load_open_clip(name: str) -> Clip:
    """NAME@tag, fetched if it is not here; NAME@checkpoint, a file; or hf-hub:ID, fetched.

    Raises ValueError for what OpenCLIP does not know, for a name alone, which would stand for random
    weights, and CheckpointError for weights that cannot be fetched or read.
    """
    import open_clip

    name, _, pretrained = name.partition("@")
    if not name.startswith("hf-hub:"):
        _check_weights(name, pretrained)
    source = f"open_clip:{name}@{pretrained}"
    if Path(pretrained).is_file() and (reason := no_weights(pretrained)):
        raise CheckpointError(f"{pretrained} cannot be read: {reason}")
    try:
        with _unlogged():
            model = open_clip.create_model(name, pretrained=pretrained or None, require_pretrained=True)
            tokenizer, config = open_clip.get_tokenizer(name), open_clip.get_model_config(name)
    except Exception as error:  # of a network or a file that fails in any way
        raise CheckpointError(
            f"{source} cannot be loaded: {brief(error)}; a file serves, too: open_clip:{name}@FILE"
        ) from None
    mean, std = model.visual.image_mean or MEAN, model.visual.image_std or STD
    return all_finite(Clip(OpenClipTowers(model, tokenizer, config), mean, std, source))


def _check_weights(name: str, pretrained: str) -> None:
    """Refuse what names no weights: OpenCLIP would draw them at random."""
    import open_clip

    named_config(name)
    if Path(pretrained).is_file() or pretrained and open_clip.get_pretrained_cfg(name, pretrained):
        return
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none is published"
    lacking = f"there is no file and no tag {pretrained!r}" if pretrained else "it names no weights"
    raise ConfigError(
        f"open_clip:{name}{'@' * bool(pretrained)}{pretrained}: {lacking}; write open_clip:{name}@TAG "
        f"(tags: {tags}) or open_clip:{name}@FILE"
    )


@contextmanager
def _unlogged() -> Iterator[None]:
    """OpenCLIP logs what it then raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def all_finite(clip: Clip) -> Clip:
    """The same; ``CheckpointError`` if it holds weights that are no numbers."""
    for name, weight in clip.towers.model.state_dict().items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{clip.source} is damaged: its {name} holds what is no number")
    return clip


def load_transformers(model: str | Path, tokenizer: str | Path | None = None) -> Clip:
    """A CLIPModel of transformers, or a CLIPTextModelWithProjection, which takes no pictures.

    model:     a name on the hub, which is fetched if it is not here, or a folder, of which nothing is.
    tokenizer: likewise; None = it lies with the model.

    Raises CheckpointError for what cannot be fetched, is damaged, or holds another model.
    """
    import transformers

    ours = {"local_files_only": Path(model).is_dir(), "trust_remote_code": False}
    named = "dtype" if int(transformers.__version__.partition(".")[0]) > 4 else "torch_dtype"
    if ours["local_files_only"]:
        check_files(Path(model))
    try:
        config = described(model, ours)
        kind = CLASSES[config.model_type]
        with quiet():
            network, info = getattr(transformers, kind).from_pretrained(
                model, config=config, output_loading_info=True, **{named: torch.float32}, **ours
            )
        pieces = transformers.AutoTokenizer.from_pretrained(tokenizer or model, **ours)
        towers = TransformersTowers(network, pieces)
        mean, std = (MEAN, STD) if towers.image_size is None else statistics(model, ours)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can lead to any
        raise CheckpointError(f"{model} cannot be read as a CLIP of transformers: {brief(error)}") from None
    check_complete(info, str(model))
    return all_finite(Clip(towers, mean, std, f"transformers:{model}", exact=True))


def check_files(folder: Path) -> None:
    """Refuse a folder that holds what stands in the place of weights or settings."""
    for path in sorted(folder.iterdir()):
        if re.fullmatch(FILES, path.name) and path.is_file() and (reason := no_weights(path)):
            raise CheckpointError(f"{path} cannot be read: {reason}")


def described(model: str | Path, ours: dict, kind: str | None = None) -> PreTrainedConfig:
    """The configuration of a CLIP, of which a folder's says only what shapes the networks.

    kind: which it must be; None = any that is a CLIP that reads.

    So it names no code, no kernels and no other files, and a network that is much larger than the folder's
    weights is never built.
    """
    import transformers

    if not Path(model).is_dir():
        config = transformers.AutoConfig.from_pretrained(model, **ours)
        _check_kind(model, config.model_type, kind)
        return config
    said = read_description(Path(model) / OTHER_CONFIG)
    _check_kind(model, said.get("model_type"), kind)
    config = transformers.AutoConfig.for_model(**transformers_config(said, str(model)))
    with weightless():
        needed = parameters(getattr(transformers, {**CLASSES, **HALVES}[config.model_type])(config))
    held = sum(
        file.stat().st_size for file in Path(model).iterdir() if file.suffix in (".safetensors", ".bin")
    )
    if needed > held:
        raise CheckpointError(
            f"{model} does not fit its {OTHER_CONFIG}: that asks for {needed:,} weights, but the files "
            f"with weights have {held:,} bytes"
        )
    return config


def _check_kind(model: str | Path, kind: object, wanted: str | None) -> None:
    if kind != wanted if wanted else kind not in CLASSES:
        raise CheckpointError(f"{model} holds a model of type {kind!r}, not a {wanted or 'CLIP'}")


@contextmanager
def quiet() -> Iterator[None]:
    """transformers shows no progress of its own inside."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def statistics(model: str | Path, ours: dict) -> tuple[list[float], list[float]]:
    from transformers import CLIPImageProcessor

    try:
        processor = CLIPImageProcessor.from_pretrained(model, local_files_only=ours["local_files_only"])
    except OSError:  # a folder without statistics: all CLIPs of OpenAI share these
        return list(MEAN), list(STD)
    return list(processor.image_mean), list(processor.image_std)


def check_complete(info: dict, source: str) -> None:
    """transformers fills what a file lacks with random numbers; here that is an error."""
    wrong = {
        kind: sorted(
            str(name) for name in info.get(f"{kind}_keys", ()) if "position_ids" not in str(name)
        )  # a table of 0, 1, 2, ...: old files hold it
        for kind in ("missing", "unexpected", "mismatched")
    }
    if any(wrong.values()):
        raise CheckpointError(
            f"{source} does not fit its config.json:\n"
            f"  missing: {wrong['missing']}\n  unexpected: {wrong['unexpected']}\n"
            f"  of another shape: {wrong['mismatched']}"
        )


def load_openai(tensors: Mapping[str, Tensor], source: str, head_width: int = 64) -> Clip:
    """A vision-transformer CLIP of OpenAI, from the tensors of its file.

    Its sizes are read from the shapes. Raises CheckpointError for what is no such CLIP.
    """
    facts = ("input_resolution", "context_length", "vocab_size")  # the file says these in so many words
    tensors = {name: value.float() for name, value in tensors.items() if name not in facts}
    config = parse_config(ClipConfig, _sizes(tensors, source, head_width), source)
    with weightless():
        towers = PlainTowers(config, byte_pairs())
    towers.model.to_empty(device="cpu")
    load_strictly(towers.model, tensors, source)
    return Clip(towers, MEAN, STD, source, exact=True)


def _sizes(tensors: Mapping[str, Tensor], source: str, head_width: int) -> dict:
    """OpenCLIP's `model_cfg`, from the shapes."""

    def layers(prefix: str) -> int:
        inside = (name.removeprefix(prefix) for name in tensors if name.startswith(prefix))
        return len({name.partition(".")[0] for name in inside})

    needed = (
        "visual.conv1.weight",
        "visual.positional_embedding",
        "text_projection",
        "positional_embedding",
        "token_embedding.weight",
    )
    if missing := [name for name in needed if name not in tensors]:
        raise CheckpointError(f"{source} is no vision-transformer CLIP of OpenAI: it lacks {missing}")
    patch, width = tensors["visual.conv1.weight"].shape[-1], tensors["text_projection"].shape[0]
    side = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
    vision = {
        "image_size": side * patch,
        "patch_size": patch,
        "head_width": head_width,
        "width": len(tensors["visual.conv1.weight"]),
        "layers": layers("visual.transformer.resblocks."),
    }
    text = {
        "context_length": len(tensors["positional_embedding"]),
        "width": width,
        "vocab_size": len(tensors["token_embedding.weight"]),
        "layers": layers("transformer.resblocks."),
        "heads": width // head_width,
    }
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "vision_cfg": vision,
        "text_cfg": text,
        "quick_gelu": True,
    }

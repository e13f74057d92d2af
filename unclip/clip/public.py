"""CLIPs of other people: OpenCLIP's by name, those of transformers, and OpenAI's own file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import CheckpointError, load_strictly
from ..config import parse_config
from ..nets.clip import ClipConfig
from ..resources.weightless import weightless
from .encoders import Clip
from .towers import OpenClipTowers, PlainTowers, TransformersTowers

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def byte_pairs():
    """OpenCLIP's tokenizer, from its file alone: its package takes seconds to import."""
    package = Path(importlib.util.find_spec("open_clip").origin).parent
    spec = importlib.util.spec_from_file_location("_open_clip_tokenizer", package / "tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._tokenizer


def fresh_open_clip(model_cfg: dict) -> OpenClipTowers:
    """Any of OpenCLIP's towers, with random weights."""
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    model = CLIP(**model_cfg)
    return OpenClipTowers(model, SimpleTokenizer(context_length=model.context_length), model_cfg)


def named_config(name: str) -> dict:
    """OpenCLIP's `model_cfg` of that name; ValueError for an unknown one."""
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"OpenCLIP knows no model {name!r}; it knows {', '.join(open_clip.list_models())}")
    return config


def load_open_clip(name: str) -> Clip:
    """NAME[@tag-or-checkpoint]."""
    import open_clip

    name, _, pretrained = name.partition("@")
    named_config(name)
    model = open_clip.create_model(name, pretrained=pretrained or None)
    mean, std = model.visual.image_mean or MEAN, model.visual.image_std or STD
    towers = OpenClipTowers(model, open_clip.get_tokenizer(name), open_clip.get_model_config(name))
    return Clip(towers, mean, std, f"open_clip:{name}@{pretrained}")


def load_transformers(model: str | Path, tokenizer: str | Path | None = None) -> Clip:
    """A CLIPModel of transformers, or a CLIPTextModelWithProjection, which takes no pictures.

    model:     a name on the hub, or a folder. tokenizer: likewise; None = it lies with the model.

    Raises CheckpointError for a folder that is damaged or holds another model.
    """
    import transformers

    local = {"local_files_only": Path(model).is_dir()}
    named = "dtype" if int(transformers.__version__.partition(".")[0]) > 4 else "torch_dtype"
    how = {"output_loading_info": True, named: torch.float32, **local}
    try:
        config = transformers.AutoConfig.from_pretrained(model, **local)
        classes = {
            "clip": transformers.CLIPModel,
            "clip_text_model": transformers.CLIPTextModelWithProjection,
        }
        if config.model_type not in classes:
            raise CheckpointError(f"{model} holds a model of type {config.model_type!r}, not a CLIP")
        with quiet():
            made, info = classes[config.model_type].from_pretrained(model, **how)
        pieces = transformers.AutoTokenizer.from_pretrained(tokenizer or model, **local)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can lead to any
        raise CheckpointError(f"{model} cannot be read as a CLIP of transformers: {error}") from None
    _check_complete(info, str(model))
    mean, std = (MEAN, STD) if config.model_type != "clip" else _statistics(model, local)
    return Clip(TransformersTowers(made, pieces), mean, std, f"transformers:{model}", exact=True)


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


def _statistics(model: str | Path, local: dict) -> tuple[list[float], list[float]]:
    from transformers import CLIPImageProcessor

    try:
        processor = CLIPImageProcessor.from_pretrained(model, **local)
    except OSError:  # a folder without statistics: all CLIPs of OpenAI share these
        return list(MEAN), list(STD)
    return list(processor.image_mean), list(processor.image_std)


def _check_complete(info: dict, source: str) -> None:
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

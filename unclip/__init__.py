"""unclip: text to pictures in the style of GLIDE and unCLIP, trained and run by one code base.

    from unclip import generate
    generate("a goldfish").save("goldfish.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from .pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["DEFAULT_MODEL", "Pipeline", "generate", "known_models", "load", "shipped_models"]

DEFAULT_MODEL = "icons"
_SHIPPED = Path(__file__).parent / "pretrained"


def __getattr__(name: str) -> object:
    """``unclip.Pipeline``, imported when first asked for: torch is not needed to say the version."""
    if name == "Pipeline":
        from .pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'unclip' has no attribute '{name}'")


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/model.json"))


def known_models() -> list[str]:
    """Names that ``load`` knows: those that come with the package, and the public ones, which are fetched."""
    from .convert.models import MODELS

    return [*shipped_models(), *MODELS]


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    dtype: str | torch.dtype = "float32",
    offload: bool = False,
) -> Pipeline:
    """Load a model by name (see ``known_models``), or from a folder or file.

    name_or_path: a name; a pipeline directory; the checkpoint of a decoder that takes neither text nor
                  embeddings, or the folder of its run; a public model in its original layout: GLIDE's
                  folder of .pt files, a .pt file of ADM or improved DDPM, Karlo's folder of .ckpt files
                  or that of diffusers.
    device:       "cpu", "cuda", ...; None takes a GPU if there is one.
    dtype:        of the weights: "float32", or "bfloat16" for half the memory.
    offload:      stages stay in the computer's memory and go to the device one at a time, while they work.

    The weights of a public name are fetched when it is first asked for, into $UNCLIP_CACHE or
    ~/.cache/unclip (Karlo's into the Hugging Face hub's cache).

    Raises ``ValueError`` for an unknown name, a folder that is not a model, a stage that is none by
    itself, a file that is damaged or does not fit, or one that cannot be fetched.
    """
    path = _local(name_or_path)
    if path is not None:
        from .pipeline import Pipeline

        return Pipeline.load(path, device, dtype, offload)
    from . import convert

    return convert.load(name_or_path, device, dtype, offload)


def _local(name_or_path: str | Path) -> Path | None:
    """The pipeline directory or checkpoint of ours that is meant; None for a public model.

    Raises ``ValueError`` for what is neither.
    """
    if str(name_or_path) in shipped_models():
        return _SHIPPED / str(name_or_path)
    if str(name_or_path) in known_models():
        return None
    path = Path(name_or_path)
    ours = ("model.json", "decoder.safetensors")
    if path.is_dir() and any((path / file).exists() for file in ours):
        return path
    if path.is_file() and path.suffix == ".safetensors":
        from .checkpoint import is_ours

        if is_ours(path):
            return path
    from .convert import recognised

    if recognised(path):
        return None
    if path.is_dir() or path.is_file() and path.suffix == ".safetensors":
        return path  # for the error that says what it lacks
    raise ValueError(f"there is no model '{name_or_path}': no folder or checkpoint of that name, "
                     f"and the known models are: {', '.join(known_models())}")


@lru_cache(maxsize=1)
def _loaded(name_or_path: str, device: str | None, dtype: str, offload: bool) -> Pipeline:
    return load(name_or_path, device, dtype, offload)


def generate(
    prompt: str | Sequence[str],
    *,
    model: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    dtype: str = "float32",
    offload: bool = False,
    **options: object,
) -> Image | list[Image]:
    """Draw a picture of ``prompt``, or a list of pictures for a list of prompts.

    model:   a name, a folder or a file, as ``load`` takes it, like device, dtype and offload; the last
             one used stays in memory.
    options: those of ``Pipeline.generate``: n, seed, steps, guidance_scale, negative_prompt, ...
    """
    return _loaded(str(model), device, dtype, offload).generate(prompt, **options)

"""unclip: text to pictures in the style of GLIDE and unCLIP, trained and run by one code base.

from unclip import generate
generate("a goldfish").save("goldfish.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .models import DEFAULT_MODEL, known_models, load, shipped_models

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline.pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["DEFAULT_MODEL", "Pipeline", "generate", "known_models", "load", "shipped_models"]


def __getattr__(name: str) -> object:
    """``unclip.Pipeline``, imported when first asked for: torch is not needed to say the version."""
    if name == "Pipeline":
        from .pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'unclip' has no attribute '{name}'")


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

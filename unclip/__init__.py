"""unclip: text to pictures in the style of GLIDE and unCLIP, trained and run by one code base.

from unclip import generate
generate("a goldfish").save("goldfish.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .models import DEFAULT_MODEL, known_models, load, shipped_models
from .version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline.pipeline import Pipeline

__all__ = [
    "DEFAULT_MODEL", "Pipeline", "__version__", "edit", "generate", "inpaint", "interpolate", "known_models",
    "load", "redraw", "save", "shipped_models", "upscale", "vary",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """``unclip.Pipeline``, imported when first asked for: torch is not needed to say the version."""
    if name == "Pipeline":
        from .pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'unclip' has no attribute '{name}'")


@lru_cache(maxsize=1)
def _loaded(name_or_path: str, device: str | None, dtype: str, offload: bool) -> Pipeline:
    return load(name_or_path, device, dtype, offload)


def _asked(verb: str, *args: object, model: str | Path, **options: object) -> Any:
    """A method of the model that is named, which stays in memory; the last one used does."""
    where = {name: options.pop(name, default) for name, default in WHERE.items()}
    return getattr(_loaded(str(model), *where.values()), verb)(*args, **options)


WHERE = {"device": None, "dtype": "float32", "offload": False}


def generate(
    prompt: str | Sequence[str] | None = None, *, model: str | Path = DEFAULT_MODEL, **options: object
) -> Image | list[Image]:
    """Draw a picture of ``prompt``, or a list of pictures for a list of prompts.

    model:   a name, a folder or a file, as ``load`` takes it; the last one used stays in memory.
    options: device, dtype and offload of ``load``, and those of ``Pipeline.generate``: n, seed, steps,
             guidance_scale, negative_prompt, ...
    """
    return _asked("generate", prompt, model=model, **options)


def save(picture: Image, path: str | Path) -> None:
    """Write a picture as a PNG that says how it was made, which PIL's own ``save`` would leave out."""
    from .data.images import save_png

    save_png(picture, path)


def vary(
    picture: Image | str | Path, n: int = 4, *, model: str | Path = DEFAULT_MODEL, **options: object
) -> list[Image]:
    """Pictures of what CLIP sees in one; model and options as in ``generate`` and ``Pipeline.vary``."""
    return _asked("vary", picture, n, model=model, **options)


def interpolate(
    a: Image | str | Path,
    b: Image | str | Path,
    n: int = 5,
    *,
    model: str | Path = DEFAULT_MODEL,
    **options: object,
) -> list[Image]:
    """Pictures on the way from a to b, each a picture or a text; as ``Pipeline.interpolate``."""
    return _asked("interpolate", a, b, n, model=model, **options)


def edit(
    picture: Image | str | Path,
    source: str,
    target: str,
    strength: float = 0.3,
    *,
    model: str | Path = DEFAULT_MODEL,
    **options: object,
) -> Image | list[Image]:
    """The picture, moved as the text ``target`` differs from ``source``; as ``Pipeline.edit``."""
    return _asked("edit", picture, source, target, strength, model=model, **options)


def redraw(
    picture: Image | str | Path,
    prompt: str | Sequence[str] | None = None,
    strength: float = 0.6,
    *,
    model: str | Path = DEFAULT_MODEL,
    **options: object,
) -> Image | list[Image]:
    """The picture, drawn over as a prompt says; as ``Pipeline.redraw``."""
    return _asked("redraw", picture, prompt, strength, model=model, **options)


def inpaint(
    picture: Image | str | Path,
    mask: Image | str | Path,
    prompt: str | Sequence[str] | None = None,
    *,
    model: str | Path = DEFAULT_MODEL,
    **options: object,
) -> Image | list[Image]:
    """The picture with the part that is white in ``mask`` drawn anew; as ``Pipeline.inpaint``."""
    return _asked("inpaint", picture, mask, prompt, model=model, **options)


def upscale(
    picture: Image | str | Path,
    prompt: str | None = None,
    *,
    model: str | Path = DEFAULT_MODEL,
    **options: object,
) -> Image:
    """The picture, of any size, enlarged by the model's upsamplers; as ``Pipeline.upscale``."""
    return _asked("upscale", picture, prompt, model=model, **options)

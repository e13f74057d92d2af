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
    from PIL.Image import Image

    from .pipeline import Pipeline

__version__ = "0.1.0"
__all__ = ["DEFAULT_MODEL", "Pipeline", "generate", "known_models", "load"]

DEFAULT_MODEL = "icons"
_SHIPPED = Path(__file__).parent / "pretrained"


def __getattr__(name: str) -> object:
    """``unclip.Pipeline``, imported when first asked for: torch is not needed to say the version."""
    if name == "Pipeline":
        from .pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'unclip' has no attribute '{name}'")


def known_models() -> list[str]:
    """Names that ``load`` knows: the models that are shipped with the package."""
    return sorted(path.parent.name for path in _SHIPPED.glob("*/model.json"))


def load(name_or_folder: str | Path = DEFAULT_MODEL, device: str | None = None) -> Pipeline:
    """Load a model by name (see ``known_models``) or from a pipeline directory.

    A decoder that takes neither text nor embeddings is a model too: its checkpoint (.safetensors),
    or the folder of its run.

    device: "cpu", "cuda", ...; None takes a GPU if there is one.

    Raises ``ValueError`` for an unknown name, a folder that is not a model, a stage that is none by
    itself, or a damaged file.
    """
    from .pipeline import Pipeline

    if str(name_or_folder) in known_models():
        return Pipeline.load(_SHIPPED / str(name_or_folder), device)
    path = Path(name_or_folder)
    if not path.is_dir() and not (path.is_file() and path.suffix == ".safetensors"):
        raise ValueError(f"there is no model '{name_or_folder}': no folder or checkpoint of that name, "
                         f"and the known models are: {', '.join(known_models()) or 'none'}")
    return Pipeline.load(path, device)


@lru_cache(maxsize=1)
def _loaded(name_or_folder: str, device: str | None) -> Pipeline:
    return load(name_or_folder, device)


def generate(
    prompt: str | Sequence[str],
    *,
    model: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    **options: object,
) -> Image | list[Image]:
    """Draw a picture of ``prompt``, or a list of pictures for a list of prompts.

    model:   a name or a folder, as ``load`` takes it; the last one used stays in memory.
    options: those of ``Pipeline.generate``: n, seed, steps, guidance_scale, negative_prompt, ...
    """
    return _loaded(str(model), device).generate(prompt, **options)

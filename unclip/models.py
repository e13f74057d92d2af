"""Models by name or path: those that come with the package, your own, and the public ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from .pipeline.pipeline import Pipeline

DEFAULT_MODEL = "icons"
SHIPPED = Path(__file__).parent / "pretrained"


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model.json"))


def known_models() -> list[str]:
    """Names that ``load`` knows: those that come with the package, and the public ones, which are fetched."""
    from .convert.catalogue import MODELS

    return [*shipped_models(), *MODELS]


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str | None = None,
    dtype: str | torch.dtype = "float32",
    offload: bool = False,
    downloads: bool = False,
) -> Pipeline:
    """Load a model by name (see ``known_models``), or from a folder or file.

    name_or_path: a name; a pipeline directory; the checkpoint of a decoder that takes neither text nor
                  embeddings, or the folder of its run; a public model in its original layout: GLIDE's
                  folder of .pt files, a .pt file of ADM or improved DDPM, Karlo's folder of .ckpt files
                  or that of diffusers, a folder with the two of Kandinsky.
    device:       "cpu", "cuda", ...; None takes a GPU if there is one.
    dtype:        of the weights: "float32", or "bfloat16" for half the memory.
    offload:      stages stay in the computer's memory and go to the device one at a time, while they work.
    downloads:    whether a folder's CLIP may fetch what its description names (a tower of timm, a tokenizer
                  of the hub); without it a folder reaches no network.

    The weights of a public name are fetched when it is first asked for, into $UNCLIP_CACHE or
    ~/.cache/unclip (Karlo's and Kandinsky's into the Hugging Face hub's cache).

    Raises ``ValueError`` for an unknown name, a folder that is not a model, a stage that is none by
    itself, a file that is damaged or does not fit, or one that cannot be fetched.
    """
    path = find(name_or_path)
    if path is not None:
        from .pipeline.pipeline import Pipeline

        return Pipeline.load(path, device, dtype, offload, downloads)
    from . import convert

    return convert.load(name_or_path, device, dtype, offload)


def find(name_or_path: str | Path) -> Path | None:
    """The pipeline directory or checkpoint of ours that is meant; None for a public model.

    Raises ``ValueError`` for what is neither.
    """
    if str(name_or_path) in shipped_models():
        return SHIPPED / str(name_or_path)
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
    from .config import looked_up

    raise ValueError(
        f"there is no model '{name_or_path}': no folder or checkpoint of that name{looked_up(path)}, "
        f"and the known models are: {', '.join(known_models())}"
    )

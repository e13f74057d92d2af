"""The tokenizer of a stage that has a text transformer of its own."""

from __future__ import annotations

from unclip.config import ConfigError
from unclip.nets.text import TextConfig
from unclip.stages.tokenizer import GlideTokenizer


def tokenizer_of(name: str | None, text: TextConfig) -> GlideTokenizer:
    """``glide``: GLIDE's, whose two files are fetched once; or a folder that ``GlideTokenizer.load`` reads.

    Raises ``ConfigError`` without a name, or for a tokenizer with more tokens than ``text`` knows.
    """
    if name is None:
        raise ConfigError(
            "this stage has a text transformer of its own; the recipe must name a tokenizer: "
            "glide, or a folder"
        )
    if name == "glide":
        tokenizer = GlideTokenizer.from_files(*_published(), text.length)
    else:
        tokenizer = GlideTokenizer.load(name, text.length)
    if tokenizer.vocab_size > text.vocab_size:
        raise ConfigError(
            f"stage.text.vocab_size is {text.vocab_size}, but the tokenizer {name} has "
            f"{tokenizer.vocab_size} tokens"
        )
    return tokenizer


def _published() -> list:
    """The files of GLIDE's vocabulary, on this machine."""
    from unclip.convert import fetch
    from unclip.convert.catalogue import MODELS

    glide = MODELS["glide"]
    return [
        fetch.fetch(glide.files[role], fetch.place_of(glide, glide.files[role]))
        for role in ("encoder", "vocab")
    ]

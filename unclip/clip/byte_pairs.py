"""OpenCLIP's tokenizer without OpenCLIP, nor what it mends texts with where there is nothing to mend."""

from __future__ import annotations

import sys
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from .towers import BytePairs, spelling_marks


@cache
def byte_pairs() -> BytePairs:
    """OpenCLIP's tokenizer, from its file alone: its package takes seconds to import."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise ImportError("OpenCLIP is not installed: pip install open_clip_torch")
    loader = SourceFileLoader("_open_clip_tokenizer", str(Path(package.origin).with_name("tokenizer.py")))
    module = ModuleType(loader.name)
    module.__file__ = loader.path  # beside which it looks for its vocabulary
    mender, before = ModuleType("ftfy"), sys.modules.get("ftfy")
    mender.__dict__["fix_text"] = mended
    sys.modules["ftfy"] = mender
    try:
        loader.exec_module(module)
    finally:
        sys.modules.pop("ftfy")
        sys.modules.update({} if before is None else {"ftfy": before})
    return spelling_marks(module._tokenizer)


def mended(text: str) -> str:
    """As ftfy leaves a text. Plain letters it does not change, and need not be imported for: 0.1 s."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return ftfy.fix_text(text)

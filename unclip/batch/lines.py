"""Files of prompts, one a line."""

from __future__ import annotations

from pathlib import Path


def read_prompts(path: str | Path) -> dict[int, str]:
    """Prompts by line number, counted from 1; raises ``ValueError`` if there are none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = {number: line.strip() for number, line in enumerate(file, 1)}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    prompts = {number: line for number, line in lines.items() if line and not line.startswith("#")}
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line, for example: a goldfish")
    return prompts

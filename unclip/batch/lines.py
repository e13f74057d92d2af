"""Files of prompts, one a line."""

from __future__ import annotations

from pathlib import Path

from ..files import impostor, start_of
from ..options import LONGEST

MOST = 1_000_000  # lines of a file


def read_prompts(path: str | Path) -> dict[int, str]:
    """Prompts by line number, counted from 1; blank lines and those that begin with # are none.

    Raises ``ValueError`` for what is no regular file, no UTF-8 text, too long (of no line more is read than
    may be in it), or without a prompt.
    """
    if reason := impostor(start_of(path)):
        raise ValueError(f"{path} holds no prompts: {reason}")
    prompts: dict[int, str] = {}
    number = 0
    with open(path, encoding="utf-8-sig") as file:
        try:
            while line := file.readline(LONGEST + 2):
                number += 1
                if len(line.rstrip("\n")) > LONGEST:
                    raise ValueError(f"{path}: line {number} is longer than {LONGEST:,} characters")
                if number > MOST:
                    raise ValueError(f"{path} has more than {MOST:,} lines; cut it into several files")
                if line.strip() and not line.strip().startswith("#"):
                    prompts[number] = line.strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {number + 1} or soon after is not UTF-8 text: {error}") from None
    if not prompts:
        raise ValueError(f"{path} holds no prompt; write one a line, for example: a goldfish")
    return prompts

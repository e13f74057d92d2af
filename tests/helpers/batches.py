"""Batches of three prompts, and what they have left."""

from __future__ import annotations

import json
from pathlib import Path

from unclip.app.batch import main
from unclip.batch import album

PROMPTS = "# animals\n\na goldfish\n  Cat & dog!  \na goldfish\n"
FILES = ["0000/0003-a-goldfish.png", "0000/0004-cat-dog.png", "0000/0005-a-goldfish.png"]


def run(prompts: Path, out: Path, tiny_model: Path, *options: str) -> int:
    return main([str(prompts), str(out), "--model", str(tiny_model), *options])


def index(out: Path, name: str = album.INDEX) -> list[dict]:
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def pictures(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))

"""Rows of prompts in, a folder of pictures out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Unpack

from tqdm import tqdm

from ..files import words
from ..options import Asked
from ..pipeline.checks import integer
from ..pipeline.drawing import drawn
from ..pipeline.pipeline import Pipeline
from ..pipeline.prompts import cuts
from ..pipeline.request import wish_of
from .album import Album


def file_name(line: int, prompt: str, k: int) -> str:
    """The file of picture ``k`` of a line: the first bears the words alone, so that N may grow."""
    return f"{line:04d}-{words(prompt)}{f'-{k + 1}' if k else ''}.png"


def draw(
    pipeline: Pipeline,
    prompts: dict[int, str],
    folder: str | Path,
    *,
    n: int = 1,
    seed: int = 0,
    batch_size: int = 16,
    overwrite: bool = False,
    metadata: bool = True,
    **options: Unpack[Asked],
) -> int:
    """Draw what ``folder`` lacks of ``n`` pictures of each of ``prompts``; returns how many those were.

    prompts: by line number, as ``read_prompts`` gives them.
    metadata: whether each picture says how it was made.
    options: fields of ``Options``.

    Raises ``ValueError`` for what ``generate`` refuses, before anything is written, and as ``Album`` does.
    """
    wish = wish_of(pipeline, list(prompts.values()), n=n, seed=seed, **options)
    batch_size, settings = integer("batch_size", batch_size, 1), wish.options.model_dump()
    model = f"{pipeline.name} {pipeline.digest()}"
    rows: list[dict[str, Any]] = [
        {"file": file_name(line, prompt, k), "line": line, "prompt": prompt, "k": k}
        for line, prompt in prompts.items()
        for k in range(n)
    ]
    facts = {"seed": seed, "model": model}
    with Album(folder, prompts, {"model": model, "seed": seed, **settings}, overwrite) as album:
        missing = [number for number, row in enumerate(rows) if row["file"] not in album]
        _note_cuts(pipeline, "the negative prompt", settings["negative_prompt"] or "")
        pictures, noted = drawn(pipeline, wish.rows(missing).batches(batch_size)), set()
        with tqdm(total=len(rows), initial=len(rows) - len(missing), unit="pic", smoothing=0.05) as bar:
            for number in missing:
                line, prompt = rows[number]["line"], rows[number]["prompt"]
                if line not in noted:
                    noted.add(line)
                    _note_cuts(pipeline, f"line {line}", prompt)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="the prompt is longer")  # said with its line
                    picture = next(pictures)
                album.add(rows[number] | facts, picture, metadata)
                bar.update()
    return len(missing)


def _note_cuts(pipeline: Pipeline, where: str, text: str) -> None:
    for cut in cuts(text, pipeline.clip, pipeline.tokenizer):
        warnings.warn(f"{where} {cut}", stacklevel=3)

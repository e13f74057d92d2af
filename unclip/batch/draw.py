"""Rows of prompts in, a folder of pictures out."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from ..config import parse_config
from ..files import words
from ..options import Options
from ..pipeline.pipeline import Pipeline
from ..pipeline.prompts import contexts
from .album import Album


def identity(pipeline: Pipeline) -> str:
    """The model's name and a digest of all that its pictures depend on: weights and configurations."""
    digest = hashlib.sha256()
    for stage in (pipeline.prior, pipeline.decoder, *pipeline.upsamplers):
        digest.update(b"" if stage is None else stage.config.model_dump_json().encode())
    for name, value in pipeline.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return f"{pipeline.name} {digest.hexdigest()[:12]}"


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
    **options: object,
) -> int:
    """Draw what ``folder`` lacks of ``n`` pictures of each of ``prompts``; returns how many those were.

    prompts: by line number, as ``read_prompts`` gives them.
    options: fields of ``Options``.

    Raises ``ValueError`` for an option out of range, and as ``Album`` does.
    """
    settings = parse_config(Options, options, source="the call").model_dump()
    for name, value in (("n", n), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    model = identity(pipeline)
    album = Album(folder, prompts, {"model": model, "seed": seed, **settings}, overwrite)
    rows = {
        line: [
            {
                "file": file_name(line, prompt, k),
                "line": line,
                "prompt": prompt,
                "k": k,
                "seed": seed,
                "model": model,
            }
            for k in range(n)
        ]
        for line, prompt in prompts.items()
    }
    todo = [line for line, wanted in rows.items() if any(row["file"] not in album for row in wanted)]
    missing = sum(row["file"] not in album for line in todo for row in rows[line])
    _warn_of_cuts(pipeline, [("the negative prompt", settings["negative_prompt"] or "")])
    total, size = len(prompts) * n, max(1, batch_size // n)
    with album, tqdm(total=total, initial=total - missing, unit="pic", smoothing=0.05) as bar:
        for start in range(0, len(todo), size):
            lines = todo[start : start + size]
            _warn_of_cuts(pipeline, [(f"line {line}", prompts[line]) for line in lines])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="the prompt is longer")  # said with its line
                pictures = pipeline.generate(
                    [prompts[line] for line in lines], n=n, seed=seed, batch_size=batch_size, **settings
                )
            wanted = [row for line in lines for row in rows[line]]
            for row, picture in zip(wanted, pictures, strict=True):
                if row["file"] not in album:
                    album.add(row, picture)
                    bar.update()
    return missing


def _warn_of_cuts(pipeline: Pipeline, texts: Iterable[tuple[str, str]]) -> None:
    """Say what of each (where, text) does not fit into the model's context."""
    encoders = contexts(pipeline.clip, pipeline.tokenizer) if pipeline.takes_prompt else []
    for where, text in texts:
        for encoder, length in encoders:
            cut = encoder.truncated(text)
            if cut:
                warnings.warn(
                    f"{where} is longer than {length} tokens; this was cut off: '{cut}'", stacklevel=3
                )

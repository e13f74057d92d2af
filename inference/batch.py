"""A picture for every line of a file, in batches. Run again, it makes only what is missing.

    python -m inference.batch prompts.txt out/
    python -m inference.batch prompts.txt out/ -n 4 --seed 7 --guidance-scale 3 --batch-size 64

Blank lines and lines that begin with # are skipped. Line 12, "a goldfish", becomes
``out/0012-a-goldfish.png``, the picture that ``unclip "a goldfish"`` draws with the same seed (but for
rounding, which depends on the batch); the others of -n become ``0012-a-goldfish-2.png`` and on.
``out/index.jsonl`` lists the complete pictures, ``out/batch.json`` says how they were drawn; other
options or prompts need --overwrite.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from unclip import cli
from unclip.config import parse_config
from unclip.options import Options
from unclip.pipeline import Pipeline
from unclip.prompts import contexts

from .album import Album


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m inference.batch", description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("prompts", type=Path, help="text file (UTF-8), a prompt a line")
    add("output", type=Path, help="folder for the pictures")
    add("-n", type=int, default=1, metavar="N", help="pictures a prompt (default 1)")
    add("--batch-size", type=int, default=16, metavar="B", help="pictures drawn at a time (default 16)")
    add("--overwrite", action="store_true", help="replace pictures of other options or prompts")
    cli.add_model(made)
    cli.add_options(made)
    return made


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
    return f"{line:04d}-{cli.words(prompt)}{f'-{k + 1}' if k else ''}.png"


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
    rows = {line: [{"file": file_name(line, prompt, k), "line": line, "prompt": prompt, "k": k,
                    "seed": seed, "model": model} for k in range(n)] for line, prompt in prompts.items()}
    todo = [line for line, wanted in rows.items() if any(row["file"] not in album for row in wanted)]
    missing = sum(row["file"] not in album for line in todo for row in rows[line])
    _warn_of_cuts(pipeline, [("the negative prompt", settings["negative_prompt"] or "")])
    total, size = len(prompts) * n, max(1, batch_size // n)
    with album, tqdm(total=total, initial=total - missing, unit="pic", smoothing=0.05) as bar:
        for start in range(0, len(todo), size):
            lines = todo[start:start + size]
            _warn_of_cuts(pipeline, [(f"line {line}", prompts[line]) for line in lines])
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="the prompt is longer")  # said with its line
                pictures = pipeline.generate([prompts[line] for line in lines], n=n, seed=seed,
                                             batch_size=batch_size, **settings)
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
                cli.note(f"{where} is longer than {length} tokens; this was cut off: '{cut}'")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        start = time.perf_counter()
        prompts = read_prompts(args.prompts)
        pipeline = cli.loaded(args)
        made = draw(pipeline, prompts, args.output, n=args.n, seed=args.seed, batch_size=args.batch_size,
                    overwrite=args.overwrite, **cli.options_from(args))
        print(f"{args.output}: {made} pictures made of {len(prompts) * args.n}  (model {args.model}, "
              f"seed {args.seed}, {time.perf_counter() - start:.1f} s)")

    return cli.run("inference.batch", work)


if __name__ == "__main__":
    sys.exit(main())

"""One table over several models of the same pictures: what each costs, and how near it comes.

    python -m inference.ladder data/digits --judge runs/ladder/judge runs/ladder/1-toy runs/ladder/2-ddpm
    python -m inference.ladder SHARDS --judge runs/icons/judge MODEL MODEL:guidance_scale=3 -n 461
    python -m inference.ladder data/digits --judge runs/ladder/judge \\
        runs/ladder/4-improved-ddpm:classifier=runs/ladder/5-classifier:classifier_scale=2

MODEL[:option=value]: a model's folder and how it is sampled (the fields of ``pipeline.Options``, and
classifier), if not as its recipe says. SHARDS: a folder with heldout-*.tar and train-*.tar.

- Bits per dimension: the bound on the held-out pictures, given their classes or captions if the model
  takes them, without guidance; so it is that of the model, and a row with options has none. A flow
  has none either: it is an equation to follow, not a chain of noisy steps. --bits takes fewer pictures.
- Frechet distance of -n drawn pictures to all held-out ones, in the features of --judge: a classifier
  (training.classifier) that was trained apart and guides none of them, or a CLIP. Real training
  pictures, as many, show what chance leaves. Classes and captions are those of the held-out pictures.
- Seconds a picture, drawn --batch-size at a time, on this machine; the upsamplers' too.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from training.icons.captions import styled
from unclip import load
from unclip.app import cli
from unclip.app.options import add_device
from unclip.clip import load_clip
from unclip.command_line import Parser
from unclip.config import parse_config
from unclip.data.batches import classes_of, shrink, stack
from unclip.data.reading import expand, read_shards
from unclip.diffusion.noise import fold
from unclip.files import write_json
from unclip.guides.classifier import load_classifier
from unclip.options import Options
from unclip.pipeline.pipeline import Pipeline
from unclip.resources.devices import default_device

from .measure import metrics
from .measure.drawn import draw
from .measure.likelihood import likelihood

Features = Callable[[Tensor], Tensor]  # pictures [N,3,S,S] in [-1,1] -> [N,D]


@dataclass(frozen=True)
class Entry:
    """A row of the table: a model, and how it is sampled."""

    model: str
    options: Options
    classifier: str | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """Of "MODEL:option=value:..."; ``ConfigError`` for an unknown option or a bad value."""
        model, *pairs = text.split(":")
        options = dict(pair.partition("=")[::2] for pair in pairs)
        classifier = options.pop("classifier", None)
        return cls(model, parse_config(Options, options, source=text), classifier)

    @property
    def plain(self) -> bool:
        """Sampled as its recipe says."""
        return self.classifier is None and self.options == Options()

    def load(self, device: str | None) -> Pipeline:
        pipeline = load(self.model, device)
        if self.classifier is not None:
            pipeline.guide_with(load_classifier(self.classifier, pipeline.device))
        return pipeline


def judge(source: str, device: torch.device) -> Features:
    """The features of a classifier's run or checkpoint, else of a CLIP."""
    path = Path(source)
    if path.suffix == ".safetensors" or (path / "classifier.safetensors").is_file():
        classifier = load_classifier(path, device)
        return lambda picture: classifier.features(shrink(picture, classifier.config.net.image_size))
    return load_clip(source, device).encode_image


@torch.no_grad()
def seen(features: Features, pictures: Tensor, n: int = 64) -> Tensor:
    """Features [N,D] of pictures [N,3,S,S], float64 on the CPU."""
    return torch.cat([features(part).double().cpu() for part in pictures.split(n)])


@dataclass(frozen=True)
class Comparison:
    """What all rows have in common."""

    heldout: list[dict]  # samples of the shards
    size: int  # their height in pixels
    real: Tensor  # their features [N,D]
    features: Features
    device: torch.device
    n: int  # pictures drawn of each model
    batch_size: int
    seed: int
    bits: int | None = None  # held-out pictures for the bits per dimension; None = all, 0 = none

    def row(self, entry: Entry) -> dict:
        """What the table says of one entry."""
        pipeline = entry.load(str(self.device))
        start = time.perf_counter()
        drawn = self.draw(pipeline, entry.options)
        seconds = (time.perf_counter() - start) / self.n
        numbers = {
            "model": entry.model,
            "classifier": entry.classifier,
            "options": entry.options.model_dump(exclude_defaults=True),
            "steps": entry.options.steps or pipeline.decoder.config.sampling.steps,
            "frechet": metrics.frechet_distance(self.real, seen(self.features, drawn)),
            "seconds_per_picture": seconds,
        }
        if entry.plain and pipeline.decoder.schedule.name != "flow" and self.bits != 0:
            numbers["likelihood"] = likelihood(
                pipeline.decoder,
                self.some(),
                clip=pipeline.clip,
                tokenizer=pipeline.tokenizer,
                size=self.size,
                batch_size=self.batch_size,
                seed=self.seed,
            )
        return numbers

    def some(self) -> list[dict]:
        """The held-out samples whose likelihood is computed, from all parts of the shards."""
        return self.heldout if self.bits is None else self.heldout[:: -(-len(self.heldout) // self.bits)]

    def draw(self, pipeline: Pipeline, options: Options) -> Tensor:
        """[n,3,S,S] in [-1,1], of the captions and classes of the held-out pictures in turn."""
        chosen, pictures = list(itertools.islice(itertools.cycle(self.heldout), self.n)), []
        for start in tqdm(range(0, self.n, self.batch_size), desc=pipeline.name):
            part = chosen[start : start + self.batch_size]
            captions = [styled(s["record"]) if "style" in s["record"] else s["caption"] for s in part]
            classes = None
            if pipeline.classes:
                classes = classes_of(stack(part, self.size), pipeline.classes).to(pipeline.device)
            seeds = [fold(self.seed, start + k) for k in range(len(part))]
            pictures.append(draw(pipeline, captions, seeds, options, classes=classes))
        return torch.cat(pictures)


def measure(
    folder: Path,
    entries: Sequence[Entry],
    source: str,
    *,
    n: int,
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
    bits: int | None = None,
) -> dict:
    """The report that ``table`` shows, JSON-able. ``ValueError`` for shards that hold too little."""
    heldout = list(read_shards(expand(str(folder / "heldout-*.tar"))))
    train = list(read_shards(expand(str(folder / "train-*.tar")), shuffle=10_000, seed=fold(seed)))
    if len(heldout) < 2 or len(train) < n:
        raise ValueError(
            f"{folder} has {len(heldout)} held-out and {len(train)} training pictures; the "
            f"table needs at least 2 and {n}"
        )
    size, where = min(heldout[0]["image"].size), torch.device(device or default_device())
    features = judge(source, where)
    real, known = (seen(features, stack(some, size).image.to(where)) for some in (heldout, train[:n]))
    comparison = Comparison(heldout, size, real, features, where, n, batch_size, seed, bits)
    return {
        "rows": [comparison.row(entry) for entry in entries],
        "floor": metrics.frechet_distance(real, known),
        "n": n,
        "heldout": len(heldout),
        "caution": metrics.caution(min(n, len(heldout)), real.shape[1]),
        "judge": source,
        "seed": seed,
        "where": f"{where}, {torch.get_num_threads()} threads, {batch_size} at a time",
    }


def table(report: dict) -> str:
    """A report as Markdown."""
    lines = [
        "| model | steps | bits per dimension | Fréchet distance | seconds a picture |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in report["rows"]:
        how = [f"{key} {value}" for key, value in row["options"].items()]
        how += [f"classifier {Path(row['classifier']).name}"] if row["classifier"] else []
        bits = f"{row['likelihood']['bits_per_dim']:.3f}" if "likelihood" in row else ""
        lines.append(
            f"| {', '.join([Path(row['model']).name, *how])} | {row['steps']} | {bits} | "
            f"{row['frechet']:.3f} | {row['seconds_per_picture']:.3f} |"
        )
    lines.append(f"| real training pictures | | | {report['floor']:.3f} | |")
    return "\n".join(lines) + (
        f"\n\n{report['n']} pictures of each against {report['heldout']} held-out "
        f"ones, in the features of {Path(report['judge']).name}; {report['where']}."
        + (f"\n\n{report['caution']}" if report["caution"] else "")
    )


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.ladder", description=__doc__)
    add = parser.add_argument
    add("shards", type=Path, help="folder with heldout-*.tar and train-*.tar")
    add("models", nargs="+", metavar="MODEL[:option=value]", help="a row of the table")
    add("--judge", required=True, help="a classifier's run, or a CLIP, to see the pictures with")
    add("-n", type=int, default=460, metavar="N", help="pictures drawn of each (default 460)")
    add("--batch-size", type=int, default=92, metavar="B", help="pictures drawn at a time (default 92)")
    add(
        "--bits",
        type=int,
        metavar="N",
        help="held-out pictures, at most, for the bits per dimension (default: all; 0: none)",
    )
    add("--seed", type=int, default=0, help="another seed draws other pictures (default 0)")
    add("--json", type=Path, metavar="FILE", help="write the report there too")
    cli.add_overwrite(parser)
    add_device(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_intermixed_args(argv)

    def work() -> None:
        metrics.check_installed()
        if args.json:
            cli.check_writable(args.json, args.overwrite)
        if args.n < 2 or args.batch_size < 1 or (args.bits or 0) < 0:
            raise ValueError("-n must be at least 2, --batch-size at least 1, and --bits no less than 0")
        entries = [Entry.parse(text) for text in args.models]
        report = measure(
            args.shards,
            entries,
            args.judge,
            n=args.n,
            batch_size=args.batch_size,
            seed=args.seed,
            device=args.device,
            bits=args.bits,
        )
        if args.json:
            write_json(args.json, report)
        print(table(report))

    return cli.run("inference.ladder", work)


if __name__ == "__main__":
    sys.exit(main())

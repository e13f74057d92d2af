"""Measure a model on held-out pictures: distances, likeness to the caption, and retrieval by name.

    python -m inference.evaluate icons data/icons/64
    python -m inference.evaluate MODEL 'SHARDS/heldout-*.tar' --train-shards 'SHARDS/train-*.tar' \\
        --judge runs/icons/judge --json report.json

SHARDS as ``training.icons`` writes them. One picture is drawn for each held-out pair of family and
name, from the caption "a tropical fish, flat style". It is compared in the image embeddings of the
model's own CLIP, which flatters, and of each --judge, a CLIP trained apart:

- Frechet and kernel distance to the real held-out pictures; floor: that of as many training pictures.
- CLIP similarity: cosine of a picture and its caption; ceiling: that of the real held-out pictures.
- R@1, R@5: how often a picture's own name is among the nearest 1 or 5 of all names, a name being the
  mean of its real training pictures; ceiling: the real held-out pictures.

--decoder-only gives the decoder the embeddings of the real held-out pictures: what is still lost is
lost by the decoder and the upsamplers, not by the prior.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from unclip.app import cli
from unclip.app.options import add_options, options_from
from unclip.clip import Clip, load_clip
from unclip.command_line import Parser
from unclip.config import parse_config
from unclip.data.reading import expand, read_shards
from unclip.diffusion.noise import fold
from unclip.files import write_json
from unclip.options import Options
from unclip.pipeline.pipeline import Pipeline

from .measure import metrics
from .measure.drawn import Judges, Seen, look_at, look_at_heldout


@torch.no_grad()
def judge(name: str, clip: Clip, heldout: Seen, train: Seen, seed: int = 0) -> dict:
    """Everything that one judge has to say: a row of numbers for each kind of picture."""
    real, ours, known = heldout.embed(name, "real"), heldout.embed(name, "made"), train.embed(name, "real")
    count = min(len(real), len(known))
    chosen = torch.randperm(len(known), generator=torch.Generator().manual_seed(fold(seed)))[:count]
    text = torch.cat([clip.encode_text(part).embed.double().cpu() for part in _parts(heldout.captions)])
    gallery = metrics.name_means(known, train.names)
    ranks = {
        kind: metrics.ranks(embed, heldout.names, gallery) for kind, embed in (("made", ours), ("real", real))
    }

    def row(kind: str, embed: Tensor) -> dict[str, float]:
        return {
            "similarity": (embed * text).sum(1).mean().item(),
            "r1": metrics.recall(ranks[kind], 1),
            "r5": metrics.recall(ranks[kind], 5),
        }

    def distances(embed: Tensor) -> dict[str, float]:
        return {
            "frechet": metrics.frechet_distance(real[:count], embed),
            "kernel": metrics.kernel_distance(real[:count], embed),
        }

    rows = {
        "generated": row("made", ours) | distances(ours[:count]),
        "real held-out (ceiling)": row("real", real),
        "real training (floor)": distances(known[chosen]),
        "chance": {
            "similarity": (real.mean(0) @ text.mean(0)).item(),
            "r1": 1 / len(gallery),
            "r5": min(1.0, 5 / len(gallery)),
        },
    }
    ceiling = rows["real held-out (ceiling)"]["r1"]
    return {
        "clip": clip.identity,
        "caution": metrics.caution(count, ours.shape[1]),
        "names": len(gallery),
        "rows": rows,
        "r1_of_ceiling": rows["generated"]["r1"] / ceiling if ceiling else None,
        "ranks": ranks,
    }


def _parts(texts: list[str], n: int = 256) -> Iterator[list[str]]:
    return (texts[start : start + n] for start in range(0, len(texts), n))


def evaluate(
    pipeline: Pipeline,
    heldout: Sequence[str],
    train: Sequence[str],
    *,
    options: Options,
    judges: Judges | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    decoder_only: bool = False,
) -> dict:
    """Measure ``pipeline``; returns a report, JSON-able, that ``table`` shows.

    heldout, train: shards of icons.
    options:        how pictures are drawn; its negative prompt is not used.
    judges:         CLIPs by name, besides the model's own.
    limit:          held-out pictures to use, chosen at random by ``seed``; None = all.

    Raises ``ValueError`` if there is nothing to compare or the model does not fit the question.
    """
    metrics.check_installed()
    if not pipeline.takes_prompt or (decoder_only and not pipeline.decoder.takes_image):
        what = "image embeddings" if decoder_only else "prompts"
        raise ValueError(f"the model {pipeline.name} takes no {what}, which this measures")
    judges = {**({} if pipeline.clip is None else {"its own CLIP": pipeline.clip}), **(judges or {})}
    if not judges:
        raise ValueError(f"the model {pipeline.name} has no CLIP of its own to judge it: name one (--judge)")
    samples = list(itertools.islice(read_shards(heldout, shuffle=10_000, seed=fold(seed)), limit))
    if len(samples) < 2:
        raise ValueError("there must be at least two held-out pictures to measure a model on")
    start = time.perf_counter()
    seen = look_at_heldout(pipeline, judges, samples, seed, batch_size, options, decoder_only)
    seconds = time.perf_counter() - start
    learnt = look_at(judges, read_shards(train), pipeline.device)
    if len(learnt.names) < 2 or set(seen.names).isdisjoint(learnt.names):
        raise ValueError("the training shards hold no picture of any held-out name: nothing to compare with")
    verdicts = {name: judge(name, clip, seen, learnt, seed) for name, clip in judges.items()}
    pictures = [
        {
            "key": key,
            "caption": caption,
            **{
                f"{kind} rank, {name}": one["ranks"][kind][i]
                for name, one in verdicts.items()
                for kind in ("made", "real")
            },
        }
        for i, (key, caption) in enumerate(zip(seen.keys, seen.captions, strict=True))
    ]
    return {
        "model": pipeline.name,
        "seed": seed,
        "decoder_only": decoder_only,
        "options": options.model_dump(exclude_none=True),
        "heldout": len(seen.names),
        "known_names": sum(name in set(learnt.names) for name in seen.names),
        "training": len(learnt.names),
        "seconds_per_picture": seconds / len(samples),
        "judges": {name: {k: v for k, v in one.items() if k != "ranks"} for name, one in verdicts.items()},
        "pictures": pictures,
    }


def table(report: dict) -> str:
    """A report as Markdown."""
    columns = (
        ("frechet", "Fréchet distance", "{:.4f}"),
        ("kernel", "kernel distance", "{:.4f}"),
        ("similarity", "CLIP similarity", "{:.3f}"),
        ("r1", "R@1", "{:.1%}"),
        ("r5", "R@5", "{:.1%}"),
    )
    lines = [
        "| judge | pictures | " + " | ".join(title for _, title, _ in columns) + " |",
        "|---|---|" + "--:|" * len(columns),
    ]
    for name, verdict in report["judges"].items():
        for kind, row in verdict["rows"].items():
            cells = [form.format(row[key]) if key in row else "" for key, _, form in columns]
            lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    shares = ", ".join(
        f"{verdict['r1_of_ceiling']:.0%} by {name}"
        if verdict["r1_of_ceiling"] is not None
        else f"none to speak of by {name}"
        for name, verdict in report["judges"].items()
    )
    names = next(iter(report["judges"].values()))["names"]
    cautions = dict.fromkeys(
        verdict["caution"] for verdict in report["judges"].values() if verdict["caution"]
    )
    return "\n".join(lines) + (
        f"\n\n{report['heldout']} held-out pictures"
        f"{' (decoder alone, from their real embeddings)' if report['decoder_only'] else ''}, "
        f"{report['known_names']} of whose names are among the {names} of {report['training']} training "
        f"pictures; R@1 as a share of the real pictures': {shares}."
        + "".join(f"\n\n{caution}" for caution in cautions)
    )


def shard_sets(shards: str, train: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(held-out, training) shards: of a folder by their names, else as given."""
    folder = Path(shards)
    if folder.is_dir():
        shards, train = str(folder / "heldout-*.tar"), train or [str(folder / "train-*.tar")]
    if not train:
        raise ValueError("name the training shards too (--train-shards): they are what a name looks like")
    return expand([shards]), expand(train)


def parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m inference.evaluate", description=__doc__)
    add = parser.add_argument
    add("model", help="a model's name or folder")
    add("shards", help="folder with heldout-*.tar and train-*.tar, or the held-out shards")
    add("--train-shards", nargs="+", metavar="TAR", help="training shards, if not in that folder")
    add("--judge", action="append", default=[], metavar="CLIP", help="a CLIP to judge with (may repeat)")
    add("--limit", type=int, metavar="N", help="held-out pictures to use (default: all)")
    add("--batch-size", type=int, default=32, metavar="B", help="pictures drawn at a time (default 32)")
    add("--decoder-only", action="store_true", help="give the decoder real embeddings, not the prior's")
    add("--json", type=Path, metavar="FILE", help="write the report there too, with every picture's rank")
    cli.add_overwrite(parser)
    add_options(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parser().parse_args(argv)

    def work() -> None:
        metrics.check_installed()
        if args.json:
            cli.check_writable(args.json, args.overwrite)
        if args.negative_prompt:
            raise ValueError("--negative-prompt has no use here")
        if args.batch_size < 1 or (args.limit is not None and args.limit < 2):
            raise ValueError("--batch-size must be at least 1, and --limit at least 2")
        options = parse_config(Options, options_from(args), source="the command line")
        heldout, train = shard_sets(args.shards, args.train_shards)
        pipeline = cli.loaded(args)
        judges = {source: load_clip(source, pipeline.device) for source in args.judge}
        report = evaluate(
            pipeline,
            heldout,
            train,
            judges=judges,
            limit=args.limit,
            seed=args.seed,
            batch_size=args.batch_size,
            decoder_only=args.decoder_only,
            options=options,
        )
        if args.json:
            write_json(args.json, report)
        print(table(report))

    return cli.run("inference.evaluate", work)


if __name__ == "__main__":
    sys.exit(main())

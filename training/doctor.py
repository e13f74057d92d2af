"""Look through shards before training: what they hold, and what is wrong with them.

    python -m training.doctor data/mine
    python -m training.doctor 'data/mine/train-*.tar' --clip runs/clip/clip --embeddings data/mine/embeddings
    python -m training.doctor data/mine --json > report.json

Every file is read and every picture decoded. The exit code is 1 if anything is wrong: tars that are damaged,
cut short or other than their manifest says, pictures or texts that cannot be read, pictures without a caption
and captions without a picture, what is no caption or no class, keys that come twice, files that lead out of
their folder or are too large, embeddings of other samples or of another CLIP. Long captions and small
pictures are counted, but are not wrong; nor are captions that say little to a CLIP, of which is told what to
do: in letters that it does not know or (with --clip) all alike to it, in several languages, file names, the
same one for most pictures.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from unclip.command_line import WORKERS, Parser, check_numbers

from .shards.captions import ENOUGH, Captions
from .shards.examine import Examined, Problem, examine
from .shards.parallel import ordered

if TYPE_CHECKING:
    from unclip.clip import Clip

    from .data.embeddings import Embeddings

SHOWN = 5  # of each kind of problem in the table
LISTED = 10_000  # problems in the JSON


@dataclass
class Report:
    """What was found in all shards; counts but for ``problems``."""

    shards: int = 0
    samples: int = 0
    pictures: int = 0
    captions: int = 0
    several: int = 0  # samples with more than one caption
    empty: int = 0  # captions
    sides: list[int] = field(default_factory=list)  # the shorter side of each picture
    aspects: list[float] = field(default_factory=list)  # the longer by the shorter side
    letters: list[int] = field(default_factory=list)  # of each caption
    tokens: list[int] = field(default_factory=list)
    truncated: int = 0  # captions that are longer than the text encoder reads
    context: int = 0  # tokens that it reads, start and end included
    said: Captions = field(default_factory=Captions)
    problems: list[Problem] = field(default_factory=list)

    def add(self, shard: Examined) -> None:
        self.shards += 1
        self.samples += len(shard.keys)
        self.pictures += len(shard.sizes)
        self.captions += len(shard.captions)
        self.several += shard.several
        self.said.several, self.said.mixed = self.several, self.said.mixed + shard.mixed
        self.empty += sum(not caption for caption in shard.captions)
        self.sides += [min(size) for size in shard.sizes]
        self.aspects += [max(size) / max(min(size), 1) for size in shard.sizes]
        self.letters += [len(caption) for caption in shard.captions]
        self.problems += shard.problems


def look(
    shards: Sequence[str], clip: Clip | None = None, workers: int = 1, embeddings: str | Path | None = None
) -> Report:
    """Look through ``shards``; ``clip`` says how captions are cut into tokens (None: as OpenAI's CLIPs do).

    embeddings: a folder of ``training.embed``, which is compared with the samples and, if it is given,
    with ``clip``.
    """
    tokenizer = clip or _usual_clip()
    report, seen = Report(context=tokenizer.context_length), {}
    rows = None
    if embeddings is not None:
        rows, wrong = _check_folder(embeddings, None if clip is None else clip.identity)
        report.problems += wrong
    died = Problem("unreadable picture", "", "", "a file in this shard ends the process that decodes it")
    done = ordered(
        examine,
        shards,
        min(workers, len(shards)),
        died=lambda shard: Examined(shard, problems=[died._replace(shard=shard)]),
    )
    for shard, content in tqdm(done, "looking", len(shards), unit=" shards", leave=False):
        report.add(content)
        _read_captions(report, tokenizer, content)
        report.problems += _twice(content, seen)
        if rows is not None:
            report.problems += _check_file(rows, shard, content.keys)
    if clip is not None:
        report.said.cosine = _likeness(clip, list(report.said.sample))
    return report


def _check_folder(folder: str | Path, identity: str | None) -> tuple[Embeddings, list[Problem]]:
    """A folder of embeddings, and whether it is of another CLIP."""
    from .data.embeddings import Embeddings  # late: a worker needs no PyTorch

    embeddings = Embeddings(folder)
    if identity in (None, embeddings.clip):
        return embeddings, []
    reason = f"they are of {embeddings.clip}, the CLIP is {identity}"
    return embeddings, [Problem("embeddings of another CLIP", str(folder), "", reason)]


def _check_file(folder: Embeddings, shard: str, keys: Sequence[str]) -> list[Problem]:
    """What does not fit between a shard's samples and its embeddings."""
    from unclip.checkpoint import CheckpointError, read_header
    from unclip.config import ConfigError

    from .data.embeddings import name_of

    name, kind = name_of(shard), "embeddings that do not match"
    try:
        rows = folder[name]
        clip = read_header(folder.folder / f"{name}.safetensors")["clip"]
    except (ConfigError, CheckpointError, KeyError) as error:
        return [Problem(kind, shard, "", str(error))]
    problems = []
    if clip != folder.clip:
        problems.append(Problem("embeddings of another CLIP", shard, "", f"{clip}, the others {folder.clip}"))
    known, there = set(rows.keys), set(keys)
    problems += [
        Problem(kind, shard, key, "a sample without an embedding") for key in keys if key not in known
    ]
    problems += [
        Problem(kind, shard, key, "an embedding without a sample") for key in rows.keys if key not in there
    ]
    for what, values in (("image", rows.image), ("text", rows.text)):
        if not bool(values.isfinite().all()):
            problems.append(Problem(kind, shard, "", f"{what} embeddings that are not finite"))
    return problems


def _usual_clip() -> Clip:
    """A CLIP that is good for its tokenizer alone: OpenAI's byte pairs, 77 tokens."""
    from unclip.clip import build_clip

    text = {"context_length": 77, "width": 8, "layers": 1, "heads": 1}
    return build_clip(
        {
            "embed_dim": 8,
            "text_cfg": text,
            "vision_cfg": {"image_size": 8, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
        }
    )


def _read_captions(report: Report, clip: Clip, content: Examined) -> None:
    room = clip.context_length - 2  # start and end of the text
    for caption, named in zip(content.captions, content.named, strict=True):
        count = len(clip.towers.encode(caption))
        report.tokens.append(count + 2)
        report.truncated += count > room
        report.said.add(caption, clip.towers, named)


def _likeness(clip: Clip, captions: Sequence[str]) -> float | None:
    """The mean cosine of the embeddings of different captions; None for too few."""
    n = len(captions)
    if n < ENOUGH:
        return None
    embed = clip.encode_text(captions).embed.double()
    return float((embed.sum(0).square().sum() - n) / (n * (n - 1)))


def _twice(content: Examined, seen: dict[str, str]) -> Iterable[Problem]:
    """Keys that came before, in this shard or another."""
    for key in content.keys:
        if key in seen:
            other = os.path.basename(seen[key])
            yield Problem("key that comes twice", content.shard, key, f"also in {other}")
        seen.setdefault(key, content.shard)


def as_json(report: Report) -> dict:
    """The report for programs."""
    return {
        "ok": not report.problems,
        "shards": report.shards,
        "samples": report.samples,
        "pictures": report.pictures,
        "captions": report.captions,
        "samples_with_several_captions": report.several,
        "empty_captions": report.empty,
        "truncated_captions": report.truncated,
        "context": report.context,
        "shorter_side": _spread(report.sides),
        "aspect": _spread(report.aspects),
        "caption_letters": _spread(report.letters),
        "caption_tokens": _spread(report.tokens),
        "advice": [advice._asdict() for advice in report.said.advice()],
        "wrong": dict(Counter(problem.kind for problem in report.problems)),
        "problems": [problem._asdict() for problem in report.problems[:LISTED]],
    }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    cut = statistics.quantiles(values, n=20) if len(values) > 1 else [values[0]] * 19
    return {
        "least": min(values),
        "p5": cut[0],
        "median": statistics.median(values),
        "p95": cut[18],
        "most": max(values),
    }


def as_table(report: Report) -> str:
    """The report for people."""
    facts = as_json(report)
    lines = [
        f"{'shards':<22}{report.shards:>10,}",
        f"{'samples':<22}{report.samples:>10,}",
        f"{'readable pictures':<22}{report.pictures:>10,}",
        f"{'captions':<22}{report.captions:>10,}   {report.several:,} samples have several",
        f"{'  empty':<22}{report.empty:>10,}",
        f"{'  cut off':<22}{report.truncated:>10,}   longer than the {report.context} tokens read",
        "",
        f"{'':<22}" + "".join(f"{name:>10}" for name in ("least", "5%", "median", "95%", "most")),
    ]
    for title, name in (
        ("shorter side, pixels", "shorter_side"),
        ("longer / shorter side", "aspect"),
        ("caption, letters", "caption_letters"),
        ("caption, tokens", "caption_tokens"),
    ):
        spread = facts[name] or {}
        lines.append(f"{title:<22}" + "".join(f"{value:>10,.4g}" for value in spread.values()))
    advice = [f"look: {kind}. {told}" for kind, told in report.said.advice()]
    if not report.problems:
        return "\n".join([*lines, "", *(advice or ["nothing is wrong"])])
    lines += ["", *advice, "wrong:"]
    for kind, count in sorted(facts["wrong"].items()):
        lines.append(f"{count:>8,}  {kind}")
        some = [problem for problem in report.problems if problem.kind == kind][:SHOWN]
        lines += [f"{'':>12}{os.path.basename(p.shard)} {p.key}: {p.reason}" for p in some]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m training.doctor", description=__doc__)
    parser.add_argument("shards", nargs="+", help="paths, globs, brace ranges, folders or URLs")
    parser.add_argument("--clip", help="the CLIP that will be trained with, whose tokens are counted")
    parser.add_argument("--embeddings", help="a folder of training.embed, to compare with the samples")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    args = parser.parse_args(argv)
    check_numbers(args, workers=WORKERS)
    from unclip.data.reading import expand

    clip = None
    if args.clip is not None:
        from unclip.clip import load_clip

        clip = load_clip(args.clip)
    report = look(expand(args.shards), clip, args.workers, args.embeddings)
    print(json.dumps(as_json(report), indent=1) if args.json else as_table(report))
    sys.exit(1 if report.problems else 0)


if __name__ == "__main__":
    from .programs import run

    run(main)

"""Pictures and captions from anywhere -> shards."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import __version__ as pillow
from tqdm import tqdm

from unclip.data.indexed import MANIFEST
from unclip.data.pictures import colour
from unclip.files import make_folder, read_json, remove_own, sha256_of

from .parallel import ordered
from .prepare import Item, Made, Options, prepare
from .sources import Columns, SourceError, items_of

if TYPE_CHECKING:
    from unclip.data.writing import ShardWriter

LEFT_OUT = "left-out.jsonl"
# What this program puts into a folder.
OWN = rf"(train|heldout)-\d+\.tar|\.(train|heldout)\.partial|{re.escape(MANIFEST)}|{re.escape(LEFT_OUT)}"
DIED = "the process that read it died (a fault in a decoder, or too little memory)"


@dataclass
class Result:
    """What was made: counts by split, the manifest, and as (name, reason) the samples that were left out,
    and the captions that were, of samples that are used.
    """

    counts: Counter[str] = field(default_factory=Counter)
    left: list[tuple[str, str]] = field(default_factory=list)
    unsaid: list[tuple[str, str]] = field(default_factory=list)
    manifest: dict = field(default_factory=dict)
    captions: int = 0
    renamed: int = 0  # samples whose key another had before
    sizes: Counter[int] = field(default_factory=Counter)  # by the bits of the shorter side


def build(
    source: str,
    out: Path,
    options: Options,
    columns: Columns | None = None,
    heldout: float = 0.0,  # share of the samples, chosen by their keys
    per_shard: int = 1000,
    workers: int = 1,
    overwrite: bool = False,  # replace what an earlier run has made there
) -> Result:
    """Write shards of ``source`` into the folder ``out``; see above. ``SourceError`` before work starts, or
    when nothing can be used; then nothing is written.
    """
    _check(out, heldout, per_shard, overwrite)
    colour(options.background)
    items, total = items_of(source, columns)
    partial_ = out.parent / f".{out.name}.partial"
    remove_own(partial_, OWN)  # what a run that was killed has left
    make_folder(partial_)
    try:
        result = _write(partial_, items, total, options, heldout, per_shard, workers)
        if not result.counts.total():
            why = "".join(f"\n  {name}: {reason}" for name, reason in result.left[:10])
            raise SourceError(f"no sample of {source} can be used{why}")
        _put(partial_, out)
    finally:
        remove_own(partial_, OWN)
    return result


def _check(out: Path, heldout: float, per_shard: int, overwrite: bool) -> None:
    if not 0 <= heldout < 1:
        raise SourceError(f"--heldout must lie between 0 and 1, not {heldout}")
    if per_shard < 1:
        raise SourceError(f"--per-shard must be at least 1, not {per_shard}")
    if not out.exists() or out.is_dir() and not any(out.iterdir()):
        return
    if not out.is_dir() or not _ours(out):
        raise SourceError(f"{out} is there already and holds other things; choose another folder")
    if not overwrite:
        raise SourceError(f"{out} holds shards already; choose another folder, or say --overwrite")


def _ours(out: Path) -> bool:
    """Whether a folder holds nothing but what this program has written."""
    try:
        files = read_json(out / MANIFEST, "the manifest", files=dict)["files"]
    except (OSError, ValueError):
        return False
    return {path.name for path in out.iterdir()} <= {*files, MANIFEST, LEFT_OUT}


def _put(source: Path, out: Path) -> None:
    """Put a finished folder in its place."""
    old = out.parent / f".{out.name}.old"
    remove_own(old, OWN)
    if out.exists():
        os.replace(out, old)
    os.replace(source, out)
    remove_own(old, OWN)


def _write(
    folder: Path, items, total: int | None, options: Options, heldout: float, per_shard: int, workers: int
) -> Result:
    from unclip.data.writing import ShardWriter  # late: the workers need no PyTorch

    result, keys = Result(), set()
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(ShardWriter(folder, split, per_shard))
            for split in ("train", "heldout")
        }
        done = ordered(partial(prepare, options=options), items, workers, died=lambda _: DIED)
        bar = stack.enter_context(tqdm(done, "making shards", total, unit=" samples", smoothing=0.05))
        for item, sample in bar:
            if not isinstance(sample, Made):
                result.left.append((item.name, sample))
                continue
            key = _unused(item, keys)
            result.renamed += key != item.key
            split = "heldout" if _number(key) < heldout * 2**64 else "train"
            writers[split].write(key, sample.files)
            result.counts[split] += 1
            result.captions += sample.captions
            result.sizes[min(sample.size).bit_length()] += 1
            result.unsaid += [(item.name, reason) for reason in sample.unusable]
    result.manifest = manifest(
        result, writers, {**asdict(options), "heldout": heldout, "per_shard": per_shard}
    )
    named = [{"name": name, "reason": reason} for name, reason in result.left]
    named += [{"name": name, "reason": reason, "caption": True} for name, reason in result.unsaid]
    (folder / LEFT_OUT).write_text("".join(json.dumps(one) + "\n" for one in named), encoding="utf-8")
    (folder / MANIFEST).write_text(json.dumps(result.manifest, indent=1) + "\n", encoding="utf-8")
    return result


def manifest(result: Result, writers: Mapping[str, ShardWriter], options: dict) -> dict:
    """What the shards hold that were written, split by split, and how they were made."""
    sizes = sorted(result.sizes.items())
    return {
        "format": 1,
        "samples": dict(sorted(result.counts.items())),
        "captions": result.captions,
        "left_out": len(result.left),
        "captions_left_out": len(result.unsaid),
        "renamed": result.renamed,
        "shorter_side": {f"{2 ** (bits - 1)}-{2**bits - 1}": count for bits, count in sizes},
        "options": options,
        "encoder": f"Pillow {pillow}",
        "files": {
            path.name: {"samples": count, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for writer in writers.values()
            for path, count in zip(writer.paths, writer.counts, strict=True)
        },
    }


def _unused(item: Item, keys: set[int]) -> str:
    """The item's key, or with a number after it if another sample has it."""
    key, number = item.key, 1
    while _number(key) in keys:
        number += 1
        key = f"{item.key}-{number}"
    keys.add(_number(key))
    return key


def _number(key: str) -> int:
    """64 bits that stand for a key, and choose its split."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")


def summary(result: Result, out: Path) -> str:
    """What a user wants to know at the end."""
    counts = ", ".join(f"{count:,} {split}" for split, count in sorted(result.counts.items(), reverse=True))
    lines = [
        f"{out}: {counts} samples, {result.manifest['captions']:,} captions, "
        f"{len(result.manifest['files'])} shards"
    ]
    if result.left:
        lines.append(f"left out: {len(result.left):,} (all are named in {out / LEFT_OUT})")
        reasons = Counter(reason for _, reason in result.left)
        first = {reason: name for name, reason in reversed(result.left)}
        lines += [
            f"  {count:>6,}  {reason}, such as {first[reason]}" for reason, count in reasons.most_common(12)
        ]
    if result.unsaid:
        name, reason = result.unsaid[0]
        lines.append(f"captions left out: {len(result.unsaid):,}, such as {name}: {reason}")
    if result.manifest["renamed"]:
        lines.append(f"renamed: {result.manifest['renamed']:,} whose key another sample had before")
    return "\n".join(lines)

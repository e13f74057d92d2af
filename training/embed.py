"""Embed shards with a CLIP, once, so that training needs neither the CLIP nor, for a prior, the pictures.

    python -m training.embed data/mine --clip open_clip:ViT-B-32@laion2b_s34b_b79k --tokens
    python -m training.embed 'data/mine/train-*.tar' --clip runs/clip --out data/mine/of-my-clip
    accelerate launch -m training.embed data/mine --clip open_clip:ViT-L-14@openai --tokens
    python -m training.prior configs/shards/prior.yaml data.embeddings=data/mine/embeddings

Writes a file beside each shard's name into OUT (``embeddings`` beside the shards): the embeddings of its
pictures (of the square in the middle) and of all their captions by key, and with --tokens the text encoder's
states, which a prior and a text-conditioned decoder need to do without the CLIP; and embeddings.json with the
CLIP's identity, counts, mean and standard deviation. The same command again goes on with what is missing.
With --latents a decoder of latents need not see the pictures either (``data.latents``): theirs are kept, too.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from unclip.checkpoint import CheckpointError, read_header
from unclip.clip import Clip, load_clip
from unclip.command_line import WORKERS, Parser, check_numbers
from unclip.config import ConfigError
from unclip.data.batches import floats, pixels
from unclip.data.indexed import Indexed, on_disk
from unclip.data.pictures import GAP, open_picture, square
from unclip.data.reading import expand, stream
from unclip.data.samples import picture_of, texts_of
from unclip.files import make_folder, read_json, write_json
from unclip.stages import Decoder, load_decoder

from .data.embeddings import KIND, MANIFEST, Rows, latents_file, load_rows, name_of, save_rows, space_of
from .programs import PATIENCE, run


def embed(
    shards: Sequence[str],
    out: Path,
    clip: Clip,
    tokens: bool = False,
    size: int | None = None,
    batch: int = 64,
    workers: int = 1,
    background: str = "white",
    space: Decoder | None = None,
) -> dict:
    """Embed ``shards`` into ``out``, shared out among the processes; returns the manifest (of the first).

    size:  side in pixels at which CLIP is shown the pictures; None: its own.
    space: a decoder whose autoencoder's latents of the pictures are kept, too.

    Samples that cannot be read are left out, counted and told. ``ConfigError`` when two shards have one name,
    or nothing can be read.
    """
    names = Counter(map(name_of, shards))
    if twice := [name for name, count in names.items() if count > 1]:
        raise ConfigError(
            f"{len(twice)} names are those of several shards ({twice[0]}): embed their folders "
            "into different --out"
        )
    if clip.image_size is None:
        raise ConfigError("this CLIP has no image tower")
    _check_out(out, names)
    state, size = PartialState(), size or clip.image_size
    facts = {"clip": clip.identity, "size": size, "background": background}
    facts |= {"latents": None if space is None else space_of(space)}
    show = Show(clip, space, size, background, batch, workers)
    mine = shards[state.process_index :: state.num_processes]
    for shard in tqdm(mine, "embedding", unit=" shards", disable=not state.is_main_process):
        path = out / f"{name_of(shard)}.safetensors"
        now = {**facts, "tokens": tokens, "bytes": os.path.getsize(shard) if on_disk(shard) else None}
        if not _done(path, now):
            rows, skipped = _embedded(_samples(shard), show, tokens)
            now.pop("tokens")
            save_rows(path, rows, **now, skipped=skipped)
    state.wait_for_everyone()
    manifest = _manifest(out, shards, facts, tokens) if state.is_main_process else {}
    state.wait_for_everyone()
    return manifest


def _check_out(out: Path, names: Iterable[str]) -> None:
    """Refuse, by ``ValueError``, a folder where files that are not embeddings would be replaced. Those that
    are damaged are made again, if the folder's list has them.
    """
    make_folder(out)
    known, listed = {}, out / MANIFEST
    if listed.exists():
        known = read_json(listed, "the list of embeddings", clip=str, files=dict)["files"]
    for path in (out / f"{name}.safetensors" for name in names if name not in known):
        if path.exists() and not _is_ours(path):
            raise ConfigError(f"{path} holds no embeddings, and is not replaced; choose another --out")


def _is_ours(path: Path) -> bool:
    try:
        return read_header(path)["kind"] == KIND
    except CheckpointError:
        return False


def _done(path: Path, facts: dict) -> bool:
    """Whether a file is there already, and of the same shard, CLIP and settings."""
    try:
        header = read_header(path, KIND)
    except CheckpointError:
        return False
    whole = facts["latents"] is None or latents_file(path).is_file()
    return whole and all(header.get(name) == value for name, value in facts.items())


def _samples(shard: str) -> Iterator[dict[str, Any]]:
    if not on_disk(shard):
        yield from stream(shard)
        return
    content = Indexed([shard])
    for number in range(len(content.index(shard).entries)):
        yield content[0, number]


class Shown(NamedTuple):
    """A sample as it is shown: its key, its captions, its picture uint8 [3,S,S] for CLIP, and the one for the
    autoencoder (None without one)."""

    key: str
    captions: list[str]
    picture: Tensor
    large: Tensor | None


@dataclass(frozen=True)
class Show:
    """Who is shown the pictures, and how."""

    clip: Clip
    space: Decoder | None
    size: int  # pixels a side for CLIP
    background: str
    batch: int
    workers: int

    def __call__(self, sample: dict) -> Shown | str:
        """A raw sample, or why it is skipped."""
        try:
            captions = texts_of(sample).captions
            picture = self._at(sample, self.size)
            large = None if self.space is None else self._at(sample, self.space.size)
        except ValueError as error:
            return f"skipped {sample['__key__']}: {error}"
        return Shown(sample["__key__"], captions, picture, large)

    def _at(self, sample: dict, size: int) -> Tensor:
        picture = open_picture(picture_of(sample), GAP * size)
        return pixels(square(picture, size, background=self.background))

    def latents(self, rows: Sequence[Shown]) -> np.ndarray | None:
        """The latents float16 [N,C,h,w] of pictures."""
        if self.space is None:
            return None
        pictures = torch.stack([row.large for row in rows if row.large is not None])
        with torch.no_grad():
            latents = self.space.to_data(floats(pictures.to(self.clip.mean.device)), {})
        if latents.abs().max() > torch.finfo(torch.float16).max:
            raise ConfigError(
                "its latents are too large for half precision: the autoencoder needs latent_scale"
            )
        return latents.half().cpu().numpy()


@torch.no_grad()
def _embedded(samples: Iterator[dict], show: Show, tokens: bool) -> tuple[Rows, int]:
    """A shard's embeddings, and how many of its samples could not be read."""
    clip, batch = show.clip, show.batch
    keys: list[str] = []
    captions: list[list[str]] = []  # of each picture
    images, skipped = [torch.zeros(0, clip.embed_dim)], 0
    latents = [] if show.space is None else [np.zeros((0, *show.space.shape), np.float16)]
    with ThreadPoolExecutor(show.workers) as threads:
        while raw := list(islice(samples, batch)):
            rows = list(threads.map(show, raw))
            for reason in (row for row in rows if isinstance(row, str)):
                print(reason, file=sys.stderr)
                skipped += 1
            rows = [row for row in rows if isinstance(row, Shown)]
            if not rows:
                continue
            pictures = floats(torch.stack([row.picture for row in rows]))
            images.append(clip.encode_image(pictures.to(clip.mean.device)).float().cpu())
            latents += [] if (made := show.latents(rows)) is None else [made]
            keys += [row.key for row in rows]
            captions += [row.captions for row in rows]
    texts = [caption for one in captions for caption in one]
    owners = [number for number, one in enumerate(captions) for _ in one]
    embed, states, ends = _said(texts, clip, batch, tokens)
    kept = np.concatenate(latents) if latents else None
    return Rows(
        keys, texts, torch.cat(images), embed, torch.tensor(owners).long(), states, ends, kept
    ), skipped


def _said(
    texts: Sequence[str], clip: Clip, batch: int, tokens: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Captions' embeddings [M,D]; and if asked for, their hidden states [T,W] and where each ends [M+1]."""
    embeds, states, lengths = [torch.zeros(0, clip.embed_dim)], [torch.zeros(0, clip.text_dim).half()], [0]
    for start in range(0, len(texts), batch):
        text = clip.encode_text(texts[start : start + batch])
        embeds.append(text.embed.float().cpu())
        if tokens:
            states.append(text.tokens[text.mask].half().cpu())
            lengths += text.mask.sum(1).tolist()
    if not tokens:
        return torch.cat(embeds), None, None
    return torch.cat(embeds), torch.cat(states), torch.tensor(lengths).cumsum(0)


def _manifest(out: Path, shards: Sequence[str], facts: dict, tokens: bool) -> dict:
    """Count what is there, measure it, and say so; what was embedded before, and alike, belongs to it."""
    files, total, squares, skipped, width = {}, 0.0, 0.0, 0, 0
    same = {**facts, "tokens": tokens}
    for name in sorted(path.stem for path in out.glob("*.safetensors") if _done(path, same)):
        path = out / f"{name}.safetensors"
        rows = load_rows(path)
        skipped += read_header(path)["skipped"]
        files[name] = {"pictures": len(rows.keys), "captions": len(rows.captions)}
        total, squares = total + rows.image.double().sum(0), squares + rows.image.double().square().sum(0)
        width = rows.tokens.shape[1] if tokens else width
    count = sum(entry["pictures"] for entry in files.values())
    if not count:
        raise ConfigError(f"no sample can be read from {', '.join(shards[:3])}")
    mean = total / count
    std = ((squares - count * mean.square()) / max(count - 1, 1)).clamp(min=0).sqrt()
    manifest = {
        **facts,
        "format": 1,
        "dim": len(mean),
        "text_dim": width or None,
        "tokens": tokens,
        "pictures": count,
        "captions": sum(entry["captions"] for entry in files.values()),
        "skipped": skipped,
        "files": files,
        "mean": mean.tolist(),
        "std": std.tolist(),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m training.embed", description=__doc__)
    add = parser.add_argument
    add("shards", nargs="+", help="paths, globs, brace ranges, folders or URLs")
    add("--clip", required=True, help="as a recipe names it: a folder, open_clip:NAME@TAG, transformers:ID")
    add("--out", type=Path, help="the folder to write to (default: embeddings, beside the first shard)")
    add("--latents", type=Path, metavar="DECODER", help="a decoder of latents; keep the pictures' in it, too")
    add("--tokens", action="store_true", help="keep the text encoder's states, too")
    add("--size", type=int, help="pixels at which CLIP is shown the pictures (default: its own size)")
    add("--background", default="white", help="colour behind what is transparent (default white)")
    add("--batch", type=int, default=64, help="pictures encoded at once (default 64)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads that decode (default: one a core)")
    args = parser.parse_args(argv)
    check_numbers(args, batch=(1, 1 << 16), workers=WORKERS, size=(1, 4096))
    shards = expand(args.shards)
    if args.out is None and "://" in shards[0]:
        raise ConfigError("these shards are URLs; say where the embeddings go with --out")
    device = PartialState(timeout=PATIENCE).device
    clip = load_clip(args.clip, device)
    out = args.out or Path(shards[0]).parent / "embeddings"
    space = None if args.latents is None else load_decoder(args.latents, device)
    settings = (args.tokens, args.size, args.batch, args.workers, args.background, space)
    total = embed(shards, out, clip, *settings)
    if total:
        print(
            f"{out}: {total['pictures']:,} pictures and {total['captions']:,} captions of "
            f"{len(total['files'])} shards, by {total['clip']}; {total['skipped']:,} samples skipped",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run(main)

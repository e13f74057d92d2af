"""GLIDE's tokenizer: GPT-2's byte pairs over lower-cased text, padded with the end-of-text token.

Nichol et al. 2021; Radford et al. 2019 (GPT-2). The byte pairs are merged by Hugging Face's `tokenizers`;
the vocabulary is that of two files, which are published with GLIDE.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import CheckpointError
from ..config import Config, Width, looked_up, parse_config
from ..files import parse_json, read_whole, write_json, written_aside

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ENCODER, VOCAB, SIZES = "encoder.json.gz", "vocab.bpe.gz", "tokenizer.json"


MOST_BYTES = 64 << 20  # of a vocabulary; GLIDE's are of 1.5 MB


class Sizes(Config):
    """``tokenizer.json``."""

    length: Width


class GlideTokenizer:
    """Texts -> tokens of a text transformer.

    encoder: the number of each byte pair; the last is the end of text, which pads.
    merges:  pairs in the order in which they are merged.
    length:  tokens a text is cut or padded to.
    """

    def __init__(self, encoder: Mapping[str, int], merges: Sequence[tuple[str, str]], length: int = 128):
        self.encoder, self.merges, self.length = dict(encoder), list(merges), length

    @property
    def vocab_size(self) -> int:
        return len(self.encoder)

    @property
    def end(self) -> int:
        """The end-of-text token. Texts begin and end without a mark: it only pads them."""
        return self.vocab_size - 1

    @cached_property
    def _pairs(self) -> Tokenizer:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        pairs = Tokenizer(models.BPE(self.encoder, self.merges))
        pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        pairs.decoder = decoders.ByteLevel()
        return pairs

    def encode(self, text: str) -> list[int]:
        """All tokens of a text, neither cut nor padded."""
        return self._pairs.encode(text.lower()).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The lower-cased text that these tokens are of."""
        return self._pairs.decode(list(ids))

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """ids int64 [N, length] and mask bool [N, length], False = padding."""
        rows = [self.encode(text)[: self.length] for text in texts]
        ids = torch.full((len(rows), self.length), self.end)
        for to, row in zip(ids, rows, strict=True):
            to[: len(row)] = torch.tensor(row, dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return ids, torch.arange(self.length) < lengths[:, None]

    def truncated(self, text: str) -> str | None:
        """The end of `text` that does not fit; None if all of it does."""
        rest = self.encode(text)[self.length :]
        return self.decode(rest).strip() if rest else None

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``load`` reads: the two files as GLIDE has them, and the length."""
        folder = Path(folder)
        lines = ["#version: 0.2", *map(" ".join, self.merges), ""]
        for name, text in ((ENCODER, json.dumps(self.encoder)), (VOCAB, "\n".join(lines))):
            with written_aside(folder / name) as aside:
                aside.write_bytes(gzip.compress(text.encode(), mtime=0))
        write_json(folder / SIZES, {"length": self.length})

    @classmethod
    def load(cls, folder: str | Path, length: int | None = None) -> GlideTokenizer:
        """From the folder that ``save`` wrote, or one with GLIDE's two files.

        length: None = what the folder says, else 128.
        """
        folder = Path(folder)
        if length is None and (folder / SIZES).is_file():
            length = parse_config(Sizes, _json(folder / SIZES), str(folder / SIZES)).length
        return cls.from_files(folder / ENCODER, folder / VOCAB, 128 if length is None else length)

    @classmethod
    def from_files(cls, encoder: str | Path, vocab: str | Path, length: int = 128) -> GlideTokenizer:
        """From GLIDE's `encoder.json` and `vocab.bpe`, compressed or not.

        Raises CheckpointError for a file that is absent, damaged, or holds something else.
        """
        numbers = _json(Path(encoder))
        lines = _text(Path(vocab)).split("\n")[1:-1]  # the first names a version
        pairs = [line.split() for line in lines]
        if sorted(map(repr, numbers.values())) != sorted(map(repr, range(len(numbers)))):
            raise CheckpointError(f"{encoder} is no table of byte pairs and their numbers")
        if not pairs or any(len(pair) != 2 or "".join(pair) not in numbers for pair in pairs):
            raise CheckpointError(f"{vocab} is no list of the pairs that {encoder} numbers")
        return cls(numbers, [(first, second) for first, second in pairs], length)


def _json(path: Path) -> dict:
    try:
        return parse_json(_text(path), str(path))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _text(path: Path) -> str:
    if not path.exists():
        raise CheckpointError(f"there is no vocabulary file {path}{looked_up(path)}")
    try:
        data = read_whole(path, MOST_BYTES)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    try:
        if data[:2] != b"\x1f\x8b":
            return data.decode()
        with gzip.open(BytesIO(data)) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it holds more than {MOST_BYTES:,} bytes")
        return text.decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from None

"""Where pictures go: files in folders, tars of samples, or Parquet; a block of rows at a time."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..data.images import LEVEL, grid, save_png, to_tensor
from ..data.writing import tar_of
from ..files import written_aside
from ..provenance import KEY, png_info
from .album import file_name

THUMB, ON_SHEET = 128, 256  # pixels of a contact sheet's pictures, and how many there are

Add = Callable[[Mapping[str, Any], Image.Image], str]
"""Takes what is known of a picture (line, prompt, k, ...) and the picture; returns its file."""


class Sink(Protocol):
    """keeps: whether pictures stay if a block is not finished."""

    keeps: bool

    def of(self, block: int) -> AbstractContextManager[Add]:
        """Inside, what writes the pictures of a block; a file of several is there whole in the end."""
        ...


class Pictures:
    """A PNG each, a folder for every thousand lines."""

    keeps = True

    def __init__(self, folder: Path, metadata: bool) -> None:
        self.folder, self.metadata = folder, metadata

    @contextmanager
    def of(self, block: int) -> Iterator[Add]:
        def add(row: Mapping[str, Any], picture: Image.Image) -> str:
            file = file_name(row["line"], row["named"], row["k"])
            save_png(picture, self.folder / file, self.metadata)
            return file

        yield add


class Shards:
    """A tar a block, of samples as img2dataset and ``training.shards`` have them: KEY.png, .txt and .json."""

    keeps = False

    def __init__(self, folder: Path, metadata: bool) -> None:
        self.folder, self.metadata = folder, metadata

    @contextmanager
    def of(self, block: int) -> Iterator[Add]:
        file = f"shards/{block:06d}.tar"
        with tar_of(self.folder / file) as write:
            numbers = iter(range(10**9))

            def add(row: Mapping[str, Any], picture: Image.Image) -> str:
                data, key = encoded(picture, self.metadata), f"{block:06d}{next(numbers):05d}"
                told = {name: value for name, value in row.items() if name != "named"} | {
                    "key": key,
                    "caption": row.get("prompt"),
                    "status": "success",
                    "width": picture.width,
                    "height": picture.height,
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
                files = {
                    "png": data,
                    "txt": (row.get("prompt") or "").encode(),
                    "json": json.dumps(told).encode(),
                }
                write(key, files)
                return file

            yield add


class Tables:
    """A Parquet file a block: a row a picture, ``image`` as Hugging Face's datasets read it."""

    keeps = False

    def __init__(self, folder: Path, metadata: bool) -> None:
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise ValueError('Parquet is written with pyarrow: pip install "unclip[parquet]"') from None
        self.folder, self.metadata = folder, metadata

    @contextmanager
    def of(self, block: int) -> Iterator[Add]:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        fields = {
            "line": pa.int64(),
            "k": pa.int64(),
            "seed": pa.int64(),
            "id": pa.string(),
            "prompt": pa.string(),
        }
        schema = pa.schema({"image": image, **fields, "record": pa.string()})
        file = f"tables/{block:06d}.parquet"
        with written_aside(self.folder / file) as aside, ParquetWriter(aside, schema) as writer:

            def add(row: Mapping[str, Any], picture: Image.Image) -> str:
                held = {
                    "bytes": encoded(picture, self.metadata),
                    "path": file_name(row["line"], row["named"], row["k"]),
                }
                values = {name: row.get(name) for name in fields}
                record = picture.info.get(KEY) if self.metadata else None
                writer.write_table(
                    pa.Table.from_pylist([{"image": held, **values, "record": record}], schema)
                )
                return file

            yield add


class Sheeted:
    """Another sink, and of each block a contact sheet of its first pictures."""

    def __init__(self, sink: Sink, folder: Path) -> None:
        self.sink, self.folder, self.keeps = sink, folder, False

    @contextmanager
    def of(self, block: int) -> Iterator[Add]:
        small: list[Image.Image] = []
        with self.sink.of(block) as write:

            def add(row: Mapping[str, Any], picture: Image.Image) -> str:
                if len(small) < ON_SHEET:
                    side = min(THUMB, picture.width)
                    small.append(picture.resize((side, side), Image.Resampling.LANCZOS))
                return write(row, picture)

            yield add
        if small:
            import torch

            sheet = grid(torch.stack([to_tensor(one) for one in small]))
            save_png(sheet, self.folder / f"sheets/{block:06d}.png")


def encoded(picture: Image.Image, metadata: bool) -> bytes:
    """A picture as the bytes of a PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=LEVEL, pnginfo=png_info(picture) if metadata else None)
    return file.getvalue()


SINKS: dict[str, Callable[[Path, bool], Sink]] = {"pictures": Pictures, "shards": Shards, "parquet": Tables}

"""Tars that are cut, damaged, or hold what they should not: each is used or named."""

from __future__ import annotations

import itertools
import tarfile
from pathlib import Path

import pytest
from shards import encoded, noise
from tars import good, tar_of

from training.data.config import DataConfig
from training.data.source import Source
from training.shards.build import build
from training.shards.prepare import Options
from unclip.data.reading import read_shards
from unclip.data.tars import BLOCK

TEXT = "a caption"


PNG = encoded(noise(8, 8))


def patched(path: Path, at: int, data: bytes) -> Path:
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


def link(name: str, kind: bytes, to: str = "") -> tuple:
    return name, b"", ("type", kind), ("linkname", to)


def sized(size: bytes) -> bytes:
    """The header of a file of that size, with the checksum that it should have."""
    header = tarfile.TarInfo("a.png").tobuf(tarfile.GNU_FORMAT)[:BLOCK]
    header = header[:124] + size + header[136:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


TARS = {
    # name -> (how it is made, keys that are used, reasons that are named)
    "cut": (lambda p: p.write_bytes(tar_of(p, *good("a"), *good("b")).read_bytes()[:2600]), ["a"],
            ["cut short"]),
    "cut between": (lambda p: p.write_bytes(tar_of(p, *good("a"), *good("b")).read_bytes()[:2048]), ["a"],
                    ["without its end mark"]),
    "links": (lambda p: tar_of(p, *good("a"), link("b.png", tarfile.SYMTYPE, "/etc/passwd"), ("b.txt", b"b"),
                               link("c.png", tarfile.LNKTYPE, "a.png")),
              ["a"], ["a link", "a link", "without a picture"]),
    "out": (lambda p: tar_of(p, *good("a"), *good("../b"), *good("/tmp/c"), *good("d/../../e")), ["a"],
            ["leads out"] * 6),
    "devices": (lambda p: tar_of(p, link("n.png", tarfile.CHRTYPE), link("f.png", tarfile.FIFOTYPE),
                                 link("d", tarfile.DIRTYPE), *good("a")), ["a"], ["no file"] * 2),
    "twice": (lambda p: tar_of(p, *good("a"), *good("b"), *good("a")), ["a", "a-2", "b"], []),
    "thrice": (lambda p: tar_of(p, *good("a"), ("a.txt", b"other")), ["a"], ["twice in one sample"]),
    "no tar": (lambda p: p.write_bytes(b"this is no tar " * 100), [], ["this is no tar"]),
    "empty": (lambda p: p.write_bytes(b""), [], ["an empty file"]),
    "damaged": (lambda p: patched(tar_of(p, *good("a"), *good("b")), 2048 + 20, b"\xff\xfe"), ["a"],
                ["damaged at byte 2,048"]),
    "a size of -1": (lambda p: patched(tar_of(p, *good("a")), 0, sized(b"-0000000001\0")), [],
                     ["no valid size"]),
    "a size of 8 EiB": (lambda p: patched(tar_of(p, *good("a")), 0, sized(b"\x80\0\0\0\x7f" + b"\xff" * 7)),
                        [], ["cut short"]),
    "long names": (lambda p: tar_of(p, *good("x" * 300), *good("\u732b" * 60)), 2, []),
    "no captions": (lambda p: tar_of(p, ("a.png", PNG), ("b.json", b'{"caption": 7}'), ("b.png", PNG),
                                     *good("c")), ["c"], ["without a caption"] * 2),
    "deep record": (lambda p: tar_of(p, *good("a"), *good("b"), ("b.json", b"[" * 100_000)), ["a"],
                    ["too deep"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_each_tar_is_used_or_named(name, form, tmp_path, monkeypatch):
    make, keys, reasons = TARS[name]
    monkeypatch.setattr(tarfile, "DEFAULT_FORMAT", form)
    monkeypatch.setattr(tarfile.TarFile, "format", form)
    (tmp_path / "in").mkdir()
    make(tmp_path / "in" / "hostile.tar")
    tar_of(tmp_path / "in" / "sound.tar", *good("sound"))
    result = build(str(tmp_path / "in"), tmp_path / "out", Options())
    found = sorted(sample["key"] for sample in read_shards(tmp_path / "out"))
    if isinstance(keys, int):
        assert len(found) == keys + 1
    else:
        assert found == sorted([*keys, "sound"])
    named = [reason for _, reason in result.left]
    for reason in reasons:
        assert any(reason in other for other in named), (reason, named)
    assert len(named) >= len(reasons) and all("hostile.tar" in item for item, _ in result.left)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    sound = Source(DataConfig(shards=[str(tmp_path / "in")], size=8, max_corrupt=1.0))
    assert "sound" in {key for batch in itertools.islice(sound.batches(2), 6) for key in batch.key}

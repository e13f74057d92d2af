"""One rule of captions for folder, table and shard: none is lost or altered, what cannot be used is named."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from shards import encoded, noise
from tiny_models import tiny_clip

from training.doctor import as_json, look
from training.shards.build import LEFT_OUT, Result, build
from training.shards.prepare import Options
from training.shards.tables import SourceError
from unclip.data.reading import expand, read_shards
from unclip.data.samples import LONGEST, NoCaption, joined, texts_of

pytestmark = pytest.mark.attack
PNG = encoded(noise(8, 8))
HALF = "half \ud800 a letter"
# name -> (the .txt, the record, the captions that come out, what is named of the others)
CASES: dict[str, tuple[bytes | None, dict, list[str], list[str]]] = {
    "beside": (b"alt", {"captions": ["one", "two"]}, ["alt", "one", "two"], []),
    "the first again": (b"one", {"captions": ["one", "two"]}, ["one", "two"], []),
    "another again": (b"two", {"captions": ["one", "two"]}, ["two", "one"], []),
    "lines": (b"one\r\n\n two \n", {}, ["one", "two"], []),
    "mark": (b"\xef\xbb\xbfone", {}, ["one"], []),
    "both keys": (None, {"caption": "three", "captions": ["one", "two"]}, ["one", "two", "three"], []),
    "img2dataset": (b"one", {"caption": "one", "key": "0"}, ["one"], []),
    "recaptioned": (b"one", {"caption": "two"}, ["one", "two"], []),
    "null in it": (None, {"captions": ["good", None]}, ["good"], ["captions, number 2: null"]),
    "null first": (None, {"captions": [None, "good"]}, ["good"], ["captions, number 1: null"]),
    "null beside": (b"alt", {"captions": [None, 7, ["a"], {}]}, ["alt"],
                    ["number 1: null", "number 2: a number", "number 3: a list", "number 4: an object"]),
    "a string": (None, {"captions": "good"}, ["good"], []),
    "a string beside": (b"alt", {"captions": "good"}, ["alt", "good"], []),
    "a number": (b"alt", {"captions": 7, "caption": False}, ["alt"],
                 ["captions, number 1: a number", "caption, number 1: true or false"]),
    "latin-1": ("caf\xe9".encode("latin-1"), {"caption": "good"}, ["good"],
                [".txt, number 1: a caption that is no UTF"]),
    "half": (b"good", {"captions": [HALF]}, ["good"], ["number 1: a caption that is no UTF-8"]),
    "endless": (b"good", {"captions": ["x" * (LONGEST + 1)]}, ["good"], ["1,048,577 letters, more than"]),
}  # fmt: skip


def record(values: dict) -> bytes:
    return json.dumps(values).encode()


def written(top: Path, kind: str) -> Path:
    """The cases, as a folder of files or as a shard."""
    files = {}
    for number, (txt, values, *_) in enumerate(CASES.values()):
        files[f"{number:02d}.png"] = PNG
        files |= {f"{number:02d}.txt": txt} if txt is not None else {}
        files |= {f"{number:02d}.json": record(values)} if values else {}
    top.mkdir()
    if kind == "folder":
        for name, data in files.items():
            (top / name).write_bytes(data)
        return top
    with tarfile.open(top / "a.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return top / "a.tar"


@pytest.mark.parametrize("name", CASES)
def test_every_caption_of_a_sample_counts(name):
    txt, values, captions, unusable = CASES[name]
    raw = {"txt": txt, "json": record(values)} if txt is not None else {"json": record(values)}
    texts = texts_of(raw)
    assert texts.captions == captions and texts.record == json.loads(record(values))
    assert len(texts.unusable) == len(unusable)
    assert all(part in reason for part, reason in zip(unusable, texts.unusable, strict=True))


@pytest.mark.parametrize("kind", ["folder", "shard", "pipe"])
def test_folder_and_shard_agree_and_manifest_and_doctor_count_alike(kind, tmp_path):
    source = str(written(tmp_path / "in", kind))
    source = f"pipe:cat {source}" if kind == "pipe" else source
    result = build(source, tmp_path / "out", Options())
    samples = {sample["key"]: sample["captions"] for sample in read_shards(tmp_path / "out")}
    assert samples == {f"{n:02d}": captions for n, (_, _, captions, _) in enumerate(CASES.values())}
    report = as_json(look(expand(tmp_path / "out"), tiny_clip()))
    assert report["ok"] and report["captions"] == result.manifest["captions"] == sum(
        map(len, samples.values())
    )
    assert report["samples"] == result.manifest["samples"]["train"] == len(CASES)
    named(result, tmp_path / "out", sum(len(unusable) for *_, unusable in CASES.values()))
    if kind == "shard":  # as it is
        report = as_json(look([source], tiny_clip()))
        assert report["captions"] == result.manifest["captions"] and not report["ok"]
        assert report["wrong"] == {"unusable caption": len(result.unsaid)}


def named(result: Result, out: Path, count: int) -> None:
    lines = [json.loads(line) for line in (out / LEFT_OUT).read_text().splitlines()]
    assert len(result.unsaid) == count == result.manifest["captions_left_out"] and not result.left
    assert [(one["name"], one["reason"]) for one in lines if one["caption"]] == result.unsaid
    assert result.manifest["left_out"] == 0


TABLE = {"image": [f"{n}.png" for n in range(4)],
         "caption": ["plain", ["one", None, "two"], None, ["", 7]]}  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_table_follows_the_same_rule(kind, tmp_path):
    for name in TABLE["image"]:
        (tmp_path / name).write_bytes(PNG)
    rows = [dict(zip(TABLE, row, strict=True)) for row in zip(*TABLE.values(), strict=True)]
    if kind == "jsonl":
        (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        import pyarrow

        lists = [[text] if isinstance(text, str) else text for text in TABLE["caption"][:3]] + [["", None]]
        parquet.write_table(pyarrow.table({**TABLE, "caption": lists}), tmp_path / "t.parquet")
    result = build(str(tmp_path / f"t.{kind}"), tmp_path / "out", Options())
    assert [sample["captions"] for sample in read_shards(tmp_path / "out")] == [["plain"], ["one", "two"]]
    assert result.unsaid == [(f"t.{kind}, row 2", "the table, number 2: null in place of a caption")]
    assert [name for name, _ in result.left] == [f"t.{kind}, row 3", f"t.{kind}, row 4"]
    assert [reason for _, reason in result.left] == ["a picture without a caption", "an empty caption"]


def test_letters_of_another_encoding_are_named_and_never_altered(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(PNG)
    rows = ["path,caption,name", "a.png,un caf\xe9,x", "b.png,a cafe,x", "c.png,fine,caf\xe9"]
    (tmp_path / "t.csv").write_bytes("\n".join(rows).encode("latin-1"))
    result = build(str(tmp_path / "t.csv"), tmp_path / "out", Options())
    assert [sample["caption"] for sample in read_shards(tmp_path / "out")] == ["a cafe"]
    assert result.left == [
        ("t.csv, row 1", "the table, number 1: a caption that is no UTF-8 text"),
        ("t.csv, row 3", "a name that is no UTF-8 text"),
    ]
    (tmp_path / "wide.csv").write_bytes("\n".join(rows).encode("utf-16"))
    with pytest.raises(SourceError, match="is UTF-16; save it as UTF-8"):
        build(str(tmp_path / "wide.csv"), tmp_path / "more", Options())


def test_a_comma_that_cuts_a_caption_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "t.csv").write_text("path,caption\na.png,a cat, sleeping\na.png,a dog\n")
    result = build(str(tmp_path / "t.csv"), tmp_path / "out", Options())
    assert [sample["caption"] for sample in read_shards(tmp_path / "out")] == ["a dog"]
    assert result.left[0][1] == "a row of more cells than the table has columns; quote what has commas"


def test_records_keep_what_is_no_caption(tmp_path):
    values = {"captions": ["one", "two"], "caption": "one", "class": 3, "name": "\ud800", "more": [1]}
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(PNG)
    (tmp_path / "in" / "a.json").write_bytes(record(values))
    build(str(tmp_path / "in"), tmp_path / "out", Options())
    (sample,) = read_shards(tmp_path / "out")
    assert sample["record"] == {"captions": ["one", "two"], "class": 3, "name": "\ud800", "more": [1]}


@pytest.mark.parametrize("uncaptioned", [False, True])
def test_what_is_no_caption_is_named_though_pictures_without_one_are_taken(tmp_path, uncaptioned):
    (tmp_path / "in").mkdir()
    for name in "abc":
        (tmp_path / "in" / f"{name}.png").write_bytes(PNG)
    (tmp_path / "in" / "a.json").write_bytes(record({"captions": [None]}))
    (tmp_path / "in" / "c.txt").write_bytes(b"a cat")
    result = build(str(tmp_path / "in"), tmp_path / "out", Options(uncaptioned=uncaptioned))
    assert ("a.png", "the record's captions, number 1: null in place of a caption") in result.left
    assert len(result.left) == (1 if uncaptioned else 2)


def test_without_any_caption_the_reason_says_what_stands_there():
    with pytest.raises(NoCaption, match="^a sample without a caption$"):
        joined(None, {})
    with pytest.raises(
        NoCaption, match="caption; the record's caption, number 1: a number in place of"
    ) as raised:
        joined(None, {"caption": 7})
    assert raised.value.unusable and joined(b"", {}).captions == [""] == joined(b" \n", {}).captions
    assert joined(b"\n", {"caption": "a"}).captions == ["a"]


def test_the_doctor_names_a_class_that_is_none(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, value in enumerate((3, "seven", True, -2, 1.5)):
            for kind, data in (("png", PNG), ("txt", b"a"), ("json", record({"class": value}))):
                info = tarfile.TarInfo(f"{number}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    report = look([str(tmp_path / "a.tar")], tiny_clip())
    assert [(one.kind, one.key) for one in report.problems] == [("no class", str(n)) for n in (1, 2, 3, 4)]

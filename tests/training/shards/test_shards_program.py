"""``training.shards``: anybody's captioned pictures become shards, the same each time, whole or not."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from shards import encoded, noise, uneven

from training.programs import run
from training.shards.__main__ import main
from training.shards.build import build
from training.shards.prepare import Options
from training.shards.sources import Columns, SourceError
from unclip.data.indexed import stated_count
from unclip.data.reading import read_shards


def made(source: object, out: Path, **options: object):
    more = {
        name: options.pop(name)
        for name in ("columns", "heldout", "per_shard", "workers", "overwrite")
        if name in options
    }
    return build(str(source), out, Options(**options), **more)


def samples(out: Path, split: str = "train") -> dict[str, dict]:
    return {sample["key"]: sample for sample in read_shards(f"{out}/{split}-*.tar")}


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve captioned pictures, two of them in a folder below."""
    top = tmp_path / "pictures"
    (top / "more").mkdir(parents=True)
    for number in range(12):
        stem = top / ("more" if number > 9 else "") / f"{number:02d}"
        stem.with_suffix(".png").write_bytes(encoded(noise(8, 6, number)))
        stem.with_suffix(".txt").write_text(f"noise {number}\n")
    return top


# From a folder


def test_a_folder_becomes_shards(pictures, tmp_path):
    (pictures / "00.txt").write_text("a cat\n\n a small   cat \na cat\n")
    (pictures / "01.json").write_text('{"class": 3}')
    (pictures / ".hidden.png").touch()
    (pictures / "README.md").write_text("no picture, and no caption")
    result = made(pictures, tmp_path / "out", per_shard=5)
    found = samples(tmp_path / "out")
    assert list(found) == [f"{n:02d}" for n in range(10)] + ["more/10", "more/11"] and not result.left
    assert found["00"]["captions"] == ["a cat", "a small cat"] and found["02"]["caption"] == "noise 2"
    assert found["01"]["record"] == {"class": 3}
    assert found["more/11"]["image"].tobytes() == noise(8, 6, 11).tobytes()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["samples"] == {"train": 12} and manifest["captions"] == 13
    for name, entry in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
        assert stated_count(str(tmp_path / "out" / name)) == entry["samples"]
    assert [entry["samples"] for entry in manifest["files"].values()] == [5, 5, 2]


def test_the_same_input_gives_the_same_bytes_whatever_the_workers(pictures, tmp_path):
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        made(pictures, tmp_path / name, workers=workers, size=4, heldout=0.3)
    assert contents(tmp_path / "one") == contents(tmp_path / "again") == contents(tmp_path / "two")
    assert "heldout-000000.tar" in contents(tmp_path / "one")
    train, heldout = (samples(tmp_path / "one", split) for split in ("train", "heldout"))
    assert len(train) + len(heldout) == 12 and not train.keys() & heldout.keys()


# Tables


ROWS = [
    ("0.png", "a cat", 'a "small", cat'),
    ("1.png", "two\nlines", ""),
    ("../2.png", "out", ""),
    ("none.png", "none", ""),
    ("3.png", "", "only here"),
]


def tables(pictures: Path, kind: str) -> Path:
    for number in range(4):
        (pictures / f"{number}.png").write_bytes(encoded(noise(4, 4, number)))
    path = pictures / f"table.{kind}"
    if kind in ("csv", "tsv"):
        with open(path, "w", newline="") as file:
            csv.writer(file, delimiter="," if kind == "csv" else "\t").writerows(
                [("file_name", "text", "other"), *ROWS]
            )
    elif kind == "jsonl":
        lines = [json.dumps({"file_name": p, "text": [a, b]}) for p, a, b in ROWS]
        path.write_text("\n".join([*lines, "{", "7"]))
    else:
        pytest.importorskip("pyarrow")
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(
            pyarrow.table({"file_name": [p for p, _, _ in ROWS], "text": [[a, b] for _, a, b in ROWS]}), path
        )
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_of_paths_and_captions(tmp_path, kind):
    (tmp_path / "in").mkdir()
    (tmp_path / "2.png").write_bytes(encoded(noise(4, 4)))
    columns = Columns(captions=("text", "other") if kind in ("csv", "tsv") else ())
    result = made(tables(tmp_path / "in", kind), tmp_path / "out", columns=columns)
    found = samples(tmp_path / "out")
    assert {key: sample["captions"] for key, sample in found.items()} == {
        "000000000": ["a cat", 'a "small", cat'],
        "000000001": ["two lines"],
        "000000004": ["only here"],
    }
    assert found["000000004"]["image"].tobytes() == noise(4, 4, 3).tobytes()
    reasons = [reason for _, reason in result.left]
    assert "../2.png leads out" in reasons[0] and reasons[1] == "there is no file none.png"
    assert len(reasons) == (4 if kind == "jsonl" else 2)
    assert all(reason.startswith("a row that is no JSON object: ") for reason in reasons[2:])
    wider = Columns(captions=columns.captions, root=tmp_path)
    with pytest.raises(SourceError, match="no sample of .* can be used\n.*row 1: there is no file 0.png"):
        made(tmp_path / "in" / f"table.{kind}", tmp_path / "wider", columns=wider)


def test_tables_of_bytes(tmp_path):
    data = encoded(noise(40, 40))
    text = base64.b64encode(data).decode()
    assert len(text) > 4096
    rows = [
        {"image": text, "caption": "a", "key": "x.y/../z", "class": 2},
        {"image": "data:image/png;base64,??"},
        {"image": None, "caption": "a"},
        {"caption": "a"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = made(tmp_path / "t.jsonl", tmp_path / "out")
    (found,) = samples(tmp_path / "out").values()
    assert found["key"] == "x_y/z" and found["record"] == {"class": 2}
    assert found["image"].tobytes() == noise(40, 40).tobytes()
    assert [reason.split(":")[0] for _, reason in result.left] == [
        "a picture that is neither a path nor base64",
        "a row without a picture",
        "a row without a picture",
    ]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"image": [{"bytes": data, "path": None}], "text": ["a"]}), tmp_path / "t.parquet"
    )
    made(tmp_path / "t.parquet", tmp_path / "parquet")
    assert samples(tmp_path / "parquet")["000000000"]["image"].size == (40, 40)


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.csv", "path,words\n1.png,a\n", "none of the columns caption,.*but path, words; name it with"),
        ("a.csv", "", "none of the columns image,.*but none at all"),
        ("a.parquet", "no Parquet", "is no Parquet"),
        ("a.pdf", "", "neither a folder"),
        ("none.tar", None, "no shards at"),
        ("none.csv", None, "neither a folder, nor a table"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_message(tmp_path, name, text, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises((SourceError, ValueError), match=said):
        made(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SourceError, match=r'pip install "unclip\[parquet\]"'):
        made(tmp_path / "a.parquet", tmp_path / "out")


# From shards


def test_shards_become_shards(tmp_path):
    """In img2dataset's layout; the same key in two shards is two samples."""
    (tmp_path / "in").mkdir()
    paths = uneven(tmp_path / "in", [3, 2], caption="in the record", url="http://x", width=8)
    os.replace(paths[1], tmp_path / "in" / "00001.tar")
    (tmp_path / "in" / "00002.tar").write_bytes(paths[0].read_bytes())
    result = made(tmp_path / "in", tmp_path / "out")
    found = samples(tmp_path / "out")
    assert list(found) == ["0003", "0004", "0000", "0001", "0002", "0000-2", "0001-2", "0002-2"]
    assert result.manifest["renamed"] == 3
    assert found["0000-2"]["caption"] == "picture 0" and found["0000"]["record"]["url"] == "http://x"
    piped = made(f"pipe:cat {paths[0]}", tmp_path / "piped")
    assert piped.counts == {"train": 3}


# Whole or not at all


def test_what_is_there_is_replaced_only_when_asked_and_only_if_it_is_ours(pictures, tmp_path):
    out = tmp_path / "out"
    made(pictures, out)
    before = contents(out)
    with pytest.raises(SourceError, match="holds shards already; choose another folder, or say --overwrite"):
        made(pictures, out)
    (pictures / "00.png").unlink()
    result = made(pictures, out, overwrite=True)
    assert contents(out) != before and result.counts.total() == 11
    assert result.left == [("00.txt", "a caption without a picture")]
    (out / "mine.txt").write_text("precious")
    with pytest.raises(SourceError, match="holds other things"):
        made(pictures, out, overwrite=True)
    assert (out / "mine.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures"]


def test_nothing_is_left_of_a_run_that_fails(pictures, tmp_path, monkeypatch):
    def stopped(*_: object, **__: object):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.shards.build.sha256_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(pictures, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_the_command(pictures, tmp_path, capsys):
    (pictures / "bad.png").write_text("no picture")
    (pictures / "bad.txt").write_text("a caption")
    command = [str(pictures), str(tmp_path / "out"), "--workers", "1", "--size", "4", "--heldout", "0.3"]
    run(lambda: main(command))
    said = capsys.readouterr().err
    assert "train, " in said and "left out: 1 " in said and "this is no picture, such as bad.png" in said
    for more, message in (
        (["--size", "0"], "--size must be at least 1"),
        ([], "say --overwrite"),
        (["--heldout", "1"], "--heldout must lie"),
        (["--background", "sky"], "no colour"),
    ):
        out = "other" if more else "out"
        with pytest.raises(SystemExit):
            run(lambda command=[str(pictures), str(tmp_path / out), *more]: main(command))
        assert message in capsys.readouterr().err

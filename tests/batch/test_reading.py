"""Files of rows: every format says the same, and a line that cannot be used costs no other."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from unclip.batch.asking import COLUMNS
from unclip.batch.reading import LONGEST_LINE, Source, Unusable, read_prompts

pytestmark = pytest.mark.attack
ROWS = [
    {"prompt": "a goldfish", "seed": 7},
    {"prompt": 'a "red"\ncar, new', "steps": 25},
    {"prompt": "ein Hügel"},
]
CSV = 'prompt,seed,steps\na goldfish,7,\n"a ""red""\ncar, new",,25\n,,\nein Hügel,,\n'
FILES = {
    "rows.csv": CSV.encode(),
    "rows.tsv": CSV.replace(",", "\t").replace("car\t", "car,").encode(),
    "rows.jsonl": ("\ufeff" + "\n\n".join(map(json.dumps, ROWS))).encode(),
}


def rows(path: Path, **how: object) -> list[tuple[int, object]]:
    source = Source(path, columns=COLUMNS, **how)
    found = [
        (row.line, str(row.values) if isinstance(row.values, Unusable) else row.values) for row in source
    ]
    assert source.once or source.share in (None, 1.0)
    return found


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_all_formats_say_the_same(name, packed, tmp_path):
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(FILES[name]) if packed else FILES[name])
    values = [{key: str(value) for key, value in one.items()} for _, one in rows(path)]
    assert values == [{key: str(value) for key, value in row.items()} for row in ROWS]
    assert [line for line, _ in rows(path)] == ([1, 3, 5] if "jsonl" in name else [2, 3, 6])


def test_parquet_and_text(tmp_path):
    columns = {name: [row.get(name) for row in ROWS] for name in ("prompt", "seed", "steps")}
    pa.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    assert rows(tmp_path / "rows.parquet") == list(enumerate(ROWS, 1))
    (tmp_path / "rows.txt").write_bytes('\ufeff a cat \r\n\n  # a dog\na "dog", old'.encode())
    assert rows(tmp_path / "rows.txt") == [(1, {"prompt": "a cat"}), (4, {"prompt": 'a "dog", old'})]


def test_standard_input_is_read_once(monkeypatch):
    reading, writing = os.pipe()
    os.write(writing, gzip.compress(b"a cat\na dog\n"))
    os.close(writing)
    monkeypatch.setattr(sys, "stdin", os.fdopen(reading))
    assert rows(Path("-")) == [(1, {"prompt": "a cat"}), (2, {"prompt": "a dog"})]


BAD = {  # lines among good ones, and what is said of them
    "b.txt": (b"a caf\xe9\n", "is not UTF-8 text: invalid continuation byte at byte 6"),
    "c.txt": (b"x" * (10 << 20) + b"\n", "is longer than 1,048,576 bytes"),
    "d.jsonl": (b"{\n", "it is no JSON"),
    "e.jsonl": (b'[{"prompt": "x"}]\n', "it holds no JSON object"),
    "f.jsonl": (b'{"a":' * 50_000 + b"\n", "nested too deep|no JSON"),
    "g.csv": (b"a,b\n", "has 2 fields, and there are 1 columns"),
    "h.csv": (b'"a"b\n', "is no csv"),
    "i.csv": (b'"\xff"\n', "is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named_and_costs_no_other(name, tmp_path):
    line, said = BAD[name]
    good = {".txt": b"a cat\n", ".jsonl": b'{"prompt": "a cat"}\n', ".csv": b"a cat\n"}[Path(name).suffix]
    head = b"prompt\n" if name.endswith("csv") else b""
    (tmp_path / name).write_bytes(head + good + line + good)
    (first, a), (bad, reason), (last, b) = rows(tmp_path / name)
    assert a == b == {"prompt": "a cat"} and (bad - first, last - first) == (1, 2)
    assert re.search(said, reason)


REFUSED = {
    "a.csv": (
        b"prompt,guidence_scale\n",
        "column 'guidence_scale', which means nothing.*--ignore guidence_scale",
    ),
    "b.csv": (b"prompt,prompt\n", "column 'prompt' twice"),
    "c.csv": (b"", "is empty; its first line names the columns"),
    "d.parquet": (b"PAR1 and more", "is damaged"),
    "e.doc": (b"a cat\n", "its name ends in none of .txt, .csv"),
    "f.txt": (b"<!doctype html>\n", "holds no prompts: it is a page of the web"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_read_at_all_is_refused(name, tmp_path):
    content, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        rows(tmp_path / name)


def test_columns_are_passed_over_where_that_is_said(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,category\na cat,animals\n")
    assert rows(tmp_path / "a.csv", ignored=["category"]) == [(2, {"prompt": "a cat"})]


def test_a_compressed_file_that_is_cut_says_from_where(tmp_path):
    whole = gzip.compress("".join(f"cat {number}\n" for number in range(9_999)).encode())
    (tmp_path / "a.txt.gz").write_bytes(whole[:-2000])
    *good, (last, reason) = rows(tmp_path / "a.txt.gz")
    assert 100 < len(good) < 9_999 and last == len(good) + 1 and "is damaged from here on" in reason


def test_what_never_ends_is_read_in_little_memory(tmp_path):
    """A line of 64 MB out of a small file, of which nothing is kept."""
    file = io.BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        for _ in range(64):
            packed.write(bytes(1 << 20))
    (tmp_path / "a.txt.gz").write_bytes(file.getvalue())
    tracemalloc.start()
    ((_, reason),) = rows(tmp_path / "a.txt.gz")
    assert "is longer than" in reason and tracemalloc.get_traced_memory()[1] < 16 * LONGEST_LINE
    tracemalloc.stop()


def test_lines_of_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("zeros", "a device")):
        with pytest.raises(ValueError, match=f"{name} is {kind}, not a file"):
            Source(tmp_path / name, "txt")


@pytest.mark.parametrize(
    "content, said", [(b"a caf\xe9\n", "line 1: .*UTF-8"), (b"# a\n \n", "holds no prompt")]
)
def test_a_list_of_prompts_is_whole_or_refused(content, said, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_prompts(tmp_path / "a.txt")

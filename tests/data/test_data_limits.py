"""Nothing hangs, nothing takes memory before it is checked: pipes, devices, bombs, names, odd JSON."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import socket
import tarfile
import threading
import tracemalloc
from pathlib import Path

import pytest
from shards import encoded, noise, uneven
from tars import good, tar_bytes
from tiny_models import tiny_clip

from training.data.config import DataConfig
from training.data.embeddings import Embeddings
from training.data.source import Source
from training.doctor import as_json, look
from training.shards.build import build
from training.shards.prepare import Options
from training.shards.tables import SourceError
from unclip.config import ConfigError
from unclip.data import reading
from unclip.data.addresses import variants
from unclip.data.indexed import MANIFEST, on_disk, stated_count
from unclip.data.reading import ShardError, expand, spelled_out, stream
from unclip.data.tars import LARGEST, index

pytestmark = pytest.mark.attack
PNG = encoded(noise(8, 8))


# What is no file


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


SPOILT = pytest.mark.parametrize(
    "spoil, said", [(fifo, "a pipe"), (zeros, "a device")], ids=["fifo", "zeros"]
)


@SPOILT
def test_a_shard_that_is_no_file_is_refused_in_words(tmp_path, spoil, said):
    spoil(tmp_path / "a.tar")
    uneven(tmp_path / "sound", [2])
    for typed in (tmp_path / "a.tar", tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/{{a,b}}.tar"):
        with pytest.raises(ShardError, match=f"a.tar is {said}, not a file"):
            expand(str(typed))
        with pytest.raises(ValueError, match=f"a.tar is {said}, not a file"):
            Source(DataConfig(shards=[str(typed)], size=8))
    with pytest.raises(ValueError, match=f"is {said}"):
        index(tmp_path / "a.tar")
    for name in (str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar"):
        assert not on_disk(name)
        (last,) = stream(name, waits=())
        assert f"is {said}, not a file" in last["__error__"]
    if spoil is fifo:
        with pytest.raises(ShardError, match=f"is read as 'pipe:cat {tmp_path}/a.tar'"):
            expand(str(tmp_path / "a.tar"))


@SPOILT
@pytest.mark.parametrize("end", [".png", ".txt", ".json"])
def test_a_picture_a_caption_or_a_record_that_is_no_file_is_named(tmp_path, spoil, said, end):
    top = tmp_path / "in"
    top.mkdir()
    for key in "ab":
        (top / f"{key}.png").write_bytes(PNG)
        (top / f"{key}.txt").write_text("a caption")
    (top / f"a{end}").unlink(missing_ok=True)
    spoil(top / f"a{end}")
    result = build(str(top), tmp_path / "out", Options())
    assert result.left == [("a.png", f"this is {said}, not a file")] and result.counts == {"train": 1}


@SPOILT
@pytest.mark.parametrize("end", [".csv", ".jsonl", ".parquet"])
def test_a_table_or_its_picture_that_is_no_file_is_named(tmp_path, spoil, said, end):
    spoil(tmp_path / f"t{end}")
    with pytest.raises(ValueError, match=f"t{end} is {said}, not a file"):
        build(str(tmp_path / f"t{end}"), tmp_path / "out", Options())
    spoil(tmp_path / "a.png")
    (tmp_path / "s.csv").write_text("path,caption\na.png,a cat\n")
    with pytest.raises(SourceError, match=f"a.png is {said}, not a file"):
        build(str(tmp_path / "s.csv"), tmp_path / "out", Options())


@SPOILT
def test_a_manifest_that_is_no_file_is_refused_or_passed_over(tmp_path, spoil, said):
    (path,) = uneven(tmp_path, [2])
    spoil(tmp_path / MANIFEST)
    assert stated_count(str(path)) is None
    assert len(next(Source(DataConfig(shards=[str(path)], size=8)).batches(2)).key) == 2
    spoil(tmp_path / "embeddings.json")
    with pytest.raises(ConfigError, match=f"embeddings.json is {said}, not a file"):
        Embeddings(tmp_path)


# What does not go on


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(reading, "PATIENCE", 0.3)


def test_a_program_that_stalls_is_given_up_and_what_came_is_kept(tmp_path, impatient):
    (path,) = uneven(tmp_path, [5])
    *samples, last = stream(f"pipe:head -c 4000 {path}; exec sleep 60")
    assert [one["__key__"] for one in samples] == ["0000", "0001"]
    assert "TimeoutError" in last["__error__"] and "has sent nothing for 0.3 seconds" in last["__error__"]
    *samples, last = stream(f"pipe:cat {path}; exec sleep 60")  # that it has more to do is told, too
    assert len(samples) == 5 and "has sent nothing" in last["__error__"]
    *_, last = stream(f"pipe:cat {path}; exec >&-; sleep 60")
    assert "does not end" in last["__error__"]
    report = as_json(look([f"pipe:cat {path}; exec sleep 60"], tiny_clip()))
    assert report["samples"] == 5 and report["wrong"] == {"damaged tar": 1}


def test_a_reader_that_stops_early_does_not_wait_for_the_program(tmp_path):
    (path,) = uneven(tmp_path, [5])
    samples = stream(f"pipe:cat {path}; exec sleep 600")
    assert next(samples)["__key__"] == "0000"
    samples.close()


def test_a_program_that_fails_is_told(tmp_path):
    (path,) = uneven(tmp_path, [3])
    *samples, last = stream(f"pipe:cat {path}; exit 3")
    assert len(samples) == 3 and "ended with status 3" in last["__error__"]


def test_a_server_that_stalls_is_given_up(tmp_path, impatient):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.tar"
        connections: list[socket.socket] = []
        threading.Thread(target=lambda: connections.append(server.accept()[0]), daemon=True).start()
        (last,) = stream(url, waits=())
    assert f"{url} has sent nothing for 0.3 seconds" in last["__error__"]


def test_zeros_without_end_are_refused():
    (last,) = stream("pipe:cat /dev/zero")
    assert "more than 64 MiB follow its end mark" in last["__error__"]


# Bombs


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("end", PACKERS)
def test_bombs_are_refused_in_little_memory(tmp_path, end, monkeypatch):
    monkeypatch.setattr(reading, "SLACK", 1 << 24)
    header, pack = tarfile.TarInfo("b.bin"), PACKERS[end]
    header.size = 1 << 27
    path = tmp_path / f"a.tar.{end}"
    path.write_bytes(pack(tar_bytes(*good("a"))[:-8192] + header.tobuf()) + pack(bytes(1 << 21)) * 32)
    tracemalloc.start()
    samples = [*stream(str(path))]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [one["__key__"] for one in samples] == ["a", "b", str(path)] and most < 1 << 25
    assert "unpacks to more than 200 times its size" in samples[-1]["__error__"]


def test_large_members_are_refused_by_their_kind(tmp_path):
    """Without being read: the files are holes."""
    path, blocks = tmp_path / "a.tar", []
    sizes = {"a.txt": (1 << 20) + 1, "b.json": (1 << 24) + 1, "c.png": LARGEST + 1, "d.txt": 1 << 20}
    for name, size in sizes.items():
        header = tarfile.TarInfo(name)
        header.size = size
        blocks.append((header.tobuf(), size))
    with open(path, "wb") as file:
        for header, size in blocks:
            file.write(header)
            file.truncate(file.tell() + -(-size // 512) * 512)
            file.seek(0, 2)
        file.write(bytes(1024))
    content = index(path)
    assert [name for name, _ in content.problems] == ["a.txt", "b.json", "c.png"]
    assert all("bytes are more than" in reason for _, reason in content.problems)
    assert [entry.key for entry in content.entries] == ["d"]
    refused: dict[str, str] = {}
    assert [one["__key__"] for one in stream(str(path), problems=refused)] == ["d"]
    assert list(refused.items()) == content.problems


def test_of_kinds_that_are_not_used_only_the_names_are_read(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(*good("a"), ("a.mp4", b"x" * 5000)))
    for samples in (stream(str(path)), stream(f"pipe:cat {path}")):
        (one,) = samples
        assert one["mp4"] == b"" and one["png"] == PNG
    assert next(Source(DataConfig(shards=[str(path)], size=8)).batches(1)).key == ["a"]


def test_caption_and_record_files_have_bounds(tmp_path):
    top = tmp_path / "in"
    top.mkdir()
    for key in "abc":
        (top / f"{key}.png").write_bytes(PNG)
        (top / f"{key}.txt").write_text("a caption")
    os.truncate(top / "a.txt", 200 << 20)
    (top / "b.json").touch()
    os.truncate(top / "b.json", 200 << 20)
    result = build(str(top), tmp_path / "out", Options())
    assert [name for name, _ in result.left] == ["a.png", "b.png"] and result.counts == {"train": 1}
    assert all("is larger than" in reason for _, reason in result.left)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_endless_row_is_named_and_the_next_is_read(tmp_path, kind, monkeypatch):
    from training.shards import tables

    monkeypatch.setattr(tables, "CELL", 1000)
    (tmp_path / "a.png").write_bytes(PNG)
    rows = [("a.png", "x" * 5000), ("a.png", "fine")]
    if kind == "csv":
        text = "path,caption\n" + "".join(f"{path},{caption}\n" for path, caption in rows)
    else:
        text = "".join(json.dumps({"path": path, "caption": caption}) + "\n" for path, caption in rows)
    (tmp_path / f"t.{kind}").write_text(text)
    result = build(str(tmp_path / f"t.{kind}"), tmp_path / "out", Options())
    assert result.counts == {"train": 1} and len(result.left) == 1
    assert "larger than" in result.left[0][1] or "more than" in result.left[0][1]


def test_tars_that_were_joined_are_named(tmp_path):
    joined = tmp_path / "a.tar"
    joined.write_bytes(tar_bytes(*good("a")) + tar_bytes(*good("b")))
    content = index(joined)
    assert [entry.key for entry in content.entries] == ["a"]
    assert "more follows its end mark at byte 2,048" in content.problems[0][1]
    samples = [*stream(f"pipe:cat {joined}")]
    assert samples[0]["__key__"] == "a" and "more follows its end mark" in samples[1]["__error__"]
    assert as_json(look([str(joined)], tiny_clip()))["wrong"] == {"damaged tar": 1}


def test_what_a_stream_leaves_out_is_named_as_on_a_disk(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes(*good("a"), ("a.txt", b"again"), ("../b.png", PNG)))
    wrong = [look([name], tiny_clip()).problems for name in (str(path), f"pipe:cat {path}")]
    assert [[(one.kind, one.key, one.reason) for one in some] for some in wrong] == [[
        ("refused file", "a.txt", "twice in one sample; the first is used"),
        ("refused file", "../b.png", "a name that leads out of its folder"),
    ]] * 2  # fmt: skip
    for number, name in enumerate((str(path), f"pipe:cat {path}")):
        left = build(name, tmp_path / f"out{number}", Options()).left
        assert [reason for _, reason in left] == [one.reason for one in wrong[0]]


# Names


@pytest.mark.parametrize("pattern, count", [
    ("a.tar", 1), ("a-{0..9}.tar", 10), ("{000..009..3}", 4), ("{9..0}", 10), ("{a,b}{c,d}", 4),
    ("{a,{b,c}d}", 3), ("{x}", 1), ("{x{1,2}}", 2), ("a::b{1,2}", 3), (r"\{a,b\}", 1), ("{,}", 2),
    ("{{a,b},{0..2}}", 5), ("}{", 1),
])  # fmt: skip
def test_names_are_counted_as_they_are_written_out(pattern, count):
    assert variants(pattern) == count
    if pattern != "}{":
        assert len(spelled_out(pattern)) == count


@pytest.mark.parametrize("pattern", [
    "{0..999999999}", "{a,b}" * 30, "{a..z}" * 9, f"{{0..{'9' * 5000}}}",
    "{" * 99_999 + "a,b" + "}" * 99_999, "{" * 2000 + "a,b" + "}" * 2000,
    "{{a,b}" + "{a,b}" * 30 + ",c}", "{0..99999}::{0..99999}",
])  # fmt: skip
def test_a_name_that_stands_for_too_many_is_refused(pattern):
    with pytest.raises(ShardError, match="stands for more than 100,000 shards"):
        expand(f"x-{pattern}.tar")

"""A folder of pictures: what is damaged is made again, and what is not ours is not touched."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from unclip.app.batch import main
from unclip.batch import draw as batch
from unclip.batch.album import OPTIONS, Album
from unclip.files import remove_leftovers
from unclip.options import LONGEST

pytestmark = pytest.mark.attack
FILES = ["0000/0001-a-cat.png", "0000/0002-a-dog.png"]


REASONS = ["UTF-8", "longer than 1,048,576 bytes", "10,000", "no character"]


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[str]:
    """The texts that are drawn, each as a picture of its own."""
    texts: list[str] = []

    def drawn(pipeline, wishes):
        for wish in wishes:
            for text in wish.texts:
                texts.append(text)
                yield Image.new("RGB", (4, 4), (len(texts), 0, 0))

    monkeypatch.setattr(batch, "drawn", drawn)
    model = tiny_pipeline()
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model)
    (tmp_path / "lines.txt").write_text("a cat\na dog\n")
    return texts


def draw(folder: Path, *options: str) -> int:
    return main([str(folder.parent / "lines.txt"), str(folder), *options])


@pytest.fixture
def out(tmp_path, asked) -> Path:
    """A folder with both pictures."""
    assert draw(tmp_path / "out") == 0 and asked == ["a cat", "a dog"]
    asked.clear()
    return tmp_path / "out"


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("spoil, options", [
    (lambda path: path.write_bytes(b""), []), (halved, []), (Path.unlink, []), (flipped, ["--verify"]),
])  # fmt: skip
def test_a_picture_that_is_not_whole_is_made_again(out, asked, spoil, options):
    before = (out / FILES[0]).read_bytes()
    spoil(out / FILES[1])
    assert draw(out, *options) == 0 and asked == ["a dog"]
    assert Image.open(out / FILES[1]).size == (4, 4) and (out / FILES[0]).read_bytes() == before
    assert draw(out, *options) == 0 and names(out) == FILES and len(asked) == 1


def test_leftovers_that_somebody_may_be_writing_are_left(tmp_path):
    old, new = tmp_path / ".a.png.abcdefgh.partial", tmp_path / ".a.png.hgfedcba.partial"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    remove_leftovers(tmp_path, r"a\.png", seconds=60)
    assert not old.exists() and new.exists()


def test_pictures_that_are_in_no_index_are_not_replaced(tmp_path, asked, capsys):
    mine = tmp_path / "out" / FILES[1]
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    assert draw(tmp_path / "out") == 2
    assert f"{FILES[1]} is in no index" in capsys.readouterr().err and mine.read_bytes() == b"mine"
    assert draw(tmp_path / "out", "--overwrite") == 0 and names(tmp_path / "out") == FILES


def test_what_a_killed_worker_left_half_is_removed_and_nothing_else(out, asked):
    left = ["0000/.0001-a-cat.png.k2_x9abc.partial", "index/.000000-0123456789abcdef.jsonl.abcd1234"]
    mine = [
        "0000/.0001-a-cat.png.partial",
        "0000/.notes.abcdefgh.partial",
        "0000/.0009-x.png.abcdefgh.partial",
    ]
    for name in (*left, *mine):
        (out / name).write_text("half")
    (out / FILES[1]).unlink()
    assert draw(out) == 0
    assert [name for name in (*left, *mine) if (out / name).exists()] == mine


@pytest.mark.parametrize("line, said", [
    (b"[]\n", "it holds no JSON object"),
    (b"words\n", "it is no JSON"),
    (b"[" * 99_999 + b"\n", "nested too deep"),
    (b'{"file": "0000/0001-a.png", "line": "1"}\n', "its 'line' must be a int"),
    (b'{"line": 1, "file": "../mine.png"}\n', "which this program does not write"),
    (b'{"line": 1, "file": "/etc/passwd"}\n', "which this program does not write"),
    (b'{"line": 1, "file": "0000/../../0001-mine.png"}\n', "which this program does not write"),
    (b'{"a": "\xff"}\n', "not UTF-8"),
    (b'"' + b"x" * (1 << 21) + b'"\n', "is damaged"),
])  # fmt: skip
def test_an_index_of_something_else_is_refused_and_nothing_is_removed(out, asked, line, said, capsys):
    mine = out.parent / "mine.png"
    mine.write_bytes(b"mine")
    (block,) = (out / "index").iterdir()
    block.write_bytes(line)
    for options in ([], ["--overwrite", "--seed", "3"]):
        assert draw(out, *options) == 2
        assert said in capsys.readouterr().err
        assert block.read_bytes() == line and mine.read_bytes() == b"mine" and names(out) == FILES


def test_an_index_that_leads_out_by_a_link_removes_nothing_there(out, asked):
    elsewhere = out.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0001-a-cat.png").write_bytes(b"mine")
    for path in (out / "0000").iterdir():
        path.unlink()
    (out / "0000").rmdir()
    (out / "0000").symlink_to(elsewhere)
    Album(out, {"seed": 1}, overwrite=True)
    assert (elsewhere / "0001-a-cat.png").read_bytes() == b"mine"


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 99_999, b"\xff\xfe{}", b"null"])
def test_odd_json_beside_the_pictures_is_one_message(out, text, capsys):
    (out / OPTIONS).write_bytes(text)
    assert draw(out) == 2
    assert "batch.json, what the pictures were drawn with, is damaged" in capsys.readouterr().err


def test_a_folder_of_another_version_is_refused_and_left_as_it_is(tmp_path, asked, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / OPTIONS).write_text(json.dumps({"model": "icons 1", "seed": 0}))
    (tmp_path / "out" / "0001-a-cat.png").write_bytes(b"of then")
    for options in ([], ["--overwrite"]):
        assert draw(tmp_path / "out", *options) == 2
        assert "another version of unclip, whose folders were of another form" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["0001-a-cat.png"]


def test_a_disk_that_fills_up_costs_what_it_was_writing_and_says_so(tmp_path, asked, monkeypatch, capsys):
    save, count = Image.Image.save, []

    def full(picture: Image.Image, file, *args, **how) -> None:
        count.append(1)
        if len(count) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(picture, file, *args, **how)

    monkeypatch.setattr(Image.Image, "save", full)
    assert draw(tmp_path / "out", "--batch-size", "1") == 2
    assert "the disk is full" in capsys.readouterr().err and names(tmp_path / "out") == FILES[:1]
    assert draw(tmp_path / "out", "--batch-size", "1") == 0 and names(tmp_path / "out") == FILES


def test_rows_that_cannot_be_prompts_are_named_and_the_rest_goes_on(tmp_path, asked, capsys):
    lines = [b"a cat", b"a caf\xe9", b"x" * (10 << 20), b"y" * (LONGEST + 1), b"a dog", b"a\x00b"]
    (tmp_path / "lines.txt").write_bytes(b"\n".join(lines) + b"\n")
    assert draw(tmp_path / "out") == 1
    assert names(tmp_path / "out") == ["0000/0001-a-cat.png", "0000/0005-a-dog.png"]
    errors = [json.loads(line) for line in (tmp_path / "out/errors.jsonl").read_text().splitlines()]
    assert [row["line"] for row in errors] == [2, 3, 4, 6]
    for row, said in zip(errors, REASONS, strict=True):
        assert said in row["error"]


def test_many_equal_prompts_have_a_file_each_and_no_prompt_is_a_mistake(tmp_path, asked, capsys):
    (tmp_path / "lines.txt").write_text("a cat\n" * 1234)
    assert draw(tmp_path / "out") == 0
    assert len(names(tmp_path / "out")) == 1234 and len(list((tmp_path / "out/0001").iterdir())) == 235
    (tmp_path / "lines.txt").write_text("# nothing\n\n")
    assert draw(tmp_path / "empty") == 2
    assert "holds no prompt" in capsys.readouterr().err

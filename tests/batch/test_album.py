"""A folder of pictures: what counts as made, what is removed, what is never replaced; odd files in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import tiny_pipeline

from unclip.batch import draw as batch
from unclip.batch.album import INDEX, OPTIONS, Album
from unclip.batch.lines import read_prompts
from unclip.files import remove_leftovers, sole
from unclip.options import LONGEST

pytestmark = pytest.mark.attack
LINES = {1: "a cat", 2: "a dog"}
FILES = ["0001-a-cat.png", "0002-a-dog.png"]


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The texts that are drawn, each as a picture of its own."""
    texts: list[str] = []

    def drawn(pipeline, wishes):
        for wish in wishes:
            for text in wish.texts:
                texts.append(text)
                yield Image.new("RGB", (4, 4), (len(texts), 0, 0))

    monkeypatch.setattr(batch, "drawn", drawn)
    return texts


def draw(folder: Path, **options: object) -> int:
    return batch.draw(tiny_pipeline(), LINES, folder, **options)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b""), halved, flipped, Path.unlink])
def test_a_picture_that_is_not_whole_is_made_again(tmp_path, asked, spoil):
    draw(tmp_path)
    before = (tmp_path / FILES[0]).read_bytes()
    spoil(tmp_path / FILES[1])
    asked.clear()
    assert draw(tmp_path) == 1 and asked == ["a dog"]
    assert Image.open(tmp_path / FILES[1]).size == (4, 4) and (tmp_path / FILES[0]).read_bytes() == before
    assert draw(tmp_path) == 0 and names(tmp_path) == [*FILES, OPTIONS, INDEX]


def test_what_a_killed_run_left_half_is_removed_and_nothing_else(tmp_path, asked):
    draw(tmp_path)
    left = [".0001-a-cat.png.k2_x9abc.partial", ".0009-x.png.abcdefgh", ".index.jsonl.abcd1234"]
    mine = [
        ".0001-a-cat.png.partial",
        ".notes.abcdefgh.partial",
        "0001-a-cat.png.abcdefgh.partial",
        ".cat.png",
    ]
    for name in (*left, *mine):
        (tmp_path / name).write_text("half")
    draw(tmp_path)
    assert names(tmp_path) == sorted([*FILES, OPTIONS, INDEX, *mine])


def test_leftovers_that_somebody_may_be_writing_are_left(tmp_path):
    old, new = tmp_path / ".a.png.abcdefgh.partial", tmp_path / ".a.png.hgfedcba.partial"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    remove_leftovers(tmp_path, r"a\.png", seconds=60)
    assert not old.exists() and new.exists()


def test_two_at_once_in_one_folder_are_refused(tmp_path, asked):
    draw(tmp_path)
    with sole(tmp_path, "draws into"), pytest.raises(ValueError, match="another process draws into"):
        draw(tmp_path)
    assert draw(tmp_path) == 0
    with Album(tmp_path, LINES, json.loads((tmp_path / OPTIONS).read_text())), pytest.raises(ValueError):
        draw(tmp_path)


def test_pictures_that_are_in_no_index_are_not_replaced(tmp_path, asked):
    (tmp_path / FILES[1]).write_bytes(b"mine")
    with pytest.raises(ValueError, match=rf"{FILES[1]} is in no index.*--overwrite"):
        draw(tmp_path)
    assert names(tmp_path) == [FILES[1]] and (tmp_path / FILES[1]).read_bytes() == b"mine"
    assert draw(tmp_path, overwrite=True) == 2


@pytest.mark.parametrize("line, said", [
    (b"[]\n", "line 1 of .*is damaged: it holds no JSON object"),
    (b"words\n", "line 1 of .*is damaged: it is no JSON"),
    (b"[" * 99_999 + b"\n", "line 1 of .*nested too deep"),
    (b'{"file": "0001-a.png", "line": "1", "prompt": "a", "k": 0}\n', "its 'line' must be a int"),
    (b'{"file": "0001-a.png", "line": 1, "prompt": ["a"], "k": 0}\n', "its 'prompt' must be a str"),
    (b'{"file": "0001-a.png", "line": 1, "prompt": "a"}\n', "its 'k' must be a int"),
    (b'{"line": 1, "prompt": "a", "k": 1}\n', "which this program does not write"),
    (b'{"a": "\xff"}\n', "not UTF-8"),
    (b'"' + b"x" * (1 << 21) + b'"\n', "is damaged"),
])  # fmt: skip
def test_an_index_of_something_else_is_refused_and_left_as_it_is(tmp_path, asked, line, said):
    (tmp_path / INDEX).write_bytes(line)
    with pytest.raises(ValueError, match=said):
        draw(tmp_path)
    assert (tmp_path / INDEX).read_bytes() == line and names(tmp_path) == [INDEX]


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 99_999, b"\xff\xfe{}", b"null"])
def test_odd_json_beside_the_pictures_is_one_message(tmp_path, asked, text):
    draw(tmp_path)
    (tmp_path / OPTIONS).write_bytes(text)
    with pytest.raises(ValueError, match=r"batch\.json, what the pictures were drawn with, is damaged"):
        draw(tmp_path)


def test_an_index_that_is_a_pipe_is_refused(tmp_path, asked):
    draw(tmp_path)
    to_fifo(tmp_path / INDEX)
    with pytest.raises(ValueError, match=r"index\.jsonl is a pipe"):
        draw(tmp_path)


@pytest.mark.parametrize("text, said", [
    ("a cat\n".encode("utf-16"), "not UTF-8"),
    ("a café\n".encode("latin-1"), "line 1 or soon after is not UTF-8"),
    (b"a cat\n" + b"x" * (LONGEST + 1), "line 2 is longer than 10,000 characters"),
    (b"# " + b"x" * 3_000_000 + b"\n", "line 1 is longer than 10,000 characters"),
    (b"\n" * 1_000_001, "more than 1,000,000 lines"),
    (b"\n \n# a cat\n", "holds no prompt"),
])  # fmt: skip
def test_lines_that_cannot_be_prompts(tmp_path, text, said):
    path = tmp_path / "lines.txt"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=said):
        read_prompts(path)


def test_lines_of_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("zeros", "a device")):
        with pytest.raises(ValueError, match=f"{name} is {kind}, not a file"):
            read_prompts(tmp_path / name)


def test_the_longest_line_is_read(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("\ufeffa cat\r\n" + "x" * LONGEST + "\n", encoding="utf-8")
    assert read_prompts(path) == {1: "a cat", 2: "x" * LONGEST}

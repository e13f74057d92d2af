"""Files: only regular ones are read, of a size that can be, and odd JSON is one error that names it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from unclip.files import parse_json, read_json, read_whole, regular

pytestmark = pytest.mark.attack


def test_a_file_and_a_link_to_it_are_regular(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert regular(tmp_path / "a") == tmp_path / "a" and regular(str(tmp_path / "b")) == tmp_path / "b"
    assert read_whole(tmp_path / "b", 5) == b"12345"
    with pytest.raises(ValueError, match=r"a is larger than 4 bytes"):
        read_whole(tmp_path / "a", 4)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))


@pytest.mark.parametrize("spoil, said", [
    (lambda path: None, "there is no file x"),
    (Path.mkdir, "x is a folder, not a file"),
    (fifo, "x is a pipe, not a file"),
    (listening, "x is something else, not a file"),
    (lambda path: path.symlink_to("/dev/zero"), "x is a device, not a file"),
    (lambda path: path.symlink_to(path), "'x' cannot be read: "),
], ids=["nothing", "folder", "fifo", "socket", "zeros", "circle"])  # fmt: skip
@pytest.mark.parametrize(
    "read", [regular, lambda path: read_whole(path, 9), lambda path: read_json(path, "a list")]
)
def test_what_is_no_file_is_refused_without_opening_it(tmp_path, monkeypatch, read, spoil, said):
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    path = Path("x")
    spoil(path)
    with pytest.raises(ValueError, match=said):
        read(path)


def test_a_name_that_no_file_can_have():
    with pytest.raises(ValueError, match="cannot be read: "):
        regular("a\0b")


@pytest.mark.parametrize("text, said", [
    (b"", "it is no JSON"),
    (b"{", "it is no JSON"),
    (b"[1, 2]", "it holds no JSON object, but a list"),
    (b"null", "it holds no JSON object, but a NoneType"),
    (b"[" * 100_000, "nested too deep"),
    (b'{"a": ' * 100_000, "nested too deep"),
    (b'{"a": "\xff\xfe"}', "not UTF-8"),
    (b"9" * 5000, "it is no JSON"),
    ('{"files": {}}'.encode("utf-16"), "not UTF-8"),
    (b"{}", "its 'files' must be a dict, not None"),
    (b'{"files": []}', r"its 'files' must be a dict, not \[\]"),
    (b'{"files": {}, "seen": "7"}', "its 'seen' must be a int or float, not '7'"),
    (b'{"files": {}, "seen": true}', "its 'seen' must be a int or float, not True"),
])  # fmt: skip
def test_odd_json_is_one_error(tmp_path, text, said):
    path = tmp_path / "list.json"
    path.write_bytes(text)
    kinds = {"files": dict, "seen": (int, float)}
    with pytest.raises(ValueError, match=rf"list\.json, a list, is damaged: .*{said}") as raised:
        read_json(path, "a list", **kinds)
    assert type(raised.value) is ValueError
    with pytest.raises(ValueError, match=rf"line 3 is damaged: .*{said}"):
        parse_json(text, "line 3", **kinds)


def test_json_that_is_sound(tmp_path):
    path, values = tmp_path / "list.json", {"files": {"a": 1}, "seen": 7, "word": "é"}
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(json.dumps(values, ensure_ascii=False), encoding=encoding)
        assert read_json(path, "a list", files=dict, seen=(int, float), word=str) == values
    with pytest.raises(ValueError, match="larger than 10 bytes"):
        read_json(path, "a list", most=10)
    assert parse_json('{"a": null}', "it") == {"a": None}

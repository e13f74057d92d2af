"""Captions that say little to a CLIP are told, each with what to do; those that say something are not."""

from __future__ import annotations

import json

import pytest
import torch
from shards import encoded, noise
from tiny_models import tiny_clip

from training.doctor import as_json, as_table, look
from training.shards.__main__ import main as make_shards
from training.shards.captions import is_file_name, is_mixed, is_spelled, script_of
from unclip.data.reading import expand, read_shards
from unclip.data.writing import ShardWriter


class Unknowing:
    """A tokenizer that has one mark for all that it does not know."""

    def encode(self, text: str) -> list[int]:
        return [1 if word.isascii() else 0 for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join("[UNK]" if one == 0 else "word" for one in ids)


TOWERS = tiny_clip().towers


STRANGE = ["красный кот на стуле", "一匹の赤い猫", "κόκκινη γάτα", "قطة حمراء", "빨간 고양이"]
KNOWN = ["a red cat", "a b c d", "Müllers Straße, Zürich", "con mèo màu đỏ", "\U0001f431 1234 !!", "", "猫"]


@pytest.mark.parametrize("caption", STRANGE)
def test_letters_that_a_tokenizer_does_not_know(caption):
    assert is_spelled(caption, TOWERS) and is_spelled(caption, Unknowing())
    assert not is_file_name(caption)


@pytest.mark.parametrize("caption", KNOWN)
def test_letters_that_it_knows_or_that_are_too_few(caption):
    assert not is_spelled(caption, TOWERS)


def test_scripts():
    names = {"a cat": "Latin", "кот cat кошка": "Cyrillic", "猫": "Cjk", "12": "", "": "", "É": "Latin"}
    assert {text: script_of(text) for text in names} == names
    assert is_mixed(["a cat", "кошка"]) and not is_mixed(["a cat", "un gato", "12"]) and not is_mixed([])


def test_names_of_files():
    for name in ("IMG_2041.JPG", "DSC00012", "20240131_120501", "Screenshot 2024-01-31", "image (3)", "c.png",
                 "9f86d081884c7d65", "550e8400-e29b-41d4-a716-446655440000", "PXL_2023"):  # fmt: skip
        assert is_file_name(name), name
    for caption in (
        "a picture of 3 cats",
        "cat",
        "images of cats",
        "photo",
        "file a complaint",
        "decade",
        "1984",
        "",
    ):
        assert is_file_name(caption) == (caption == "1984"), caption
    assert is_file_name("red-cat_2", "folder/red-cat_2") and not is_file_name("cat", "folder/cat")


def shards(folder, captions: list[list[str]]):
    with ShardWriter(folder, "train", 5) as writer:
        for number, several in enumerate(captions):
            record = json.dumps({"captions": several}).encode()
            writer.write(f"{number}", {"png": encoded(noise(8, 8, number)), "json": record})
    return expand(folder)


def kinds(report) -> list[str]:
    return [advice["kind"] for advice in as_json(report)["advice"]]


WORDS = ["red", "blue", "small", "old", "wild", "tame", "happy", "sleepy", "striped", "fat", "thin", "young"]


def test_captions_that_are_well_are_not_spoken_of(tmp_path):
    report = look(
        shards(tmp_path, [[f"a {word} cat", f"one {word} cat, drawn"] for word in WORDS]), tiny_clip()
    )
    assert kinds(report) == [] and "nothing is wrong" in as_table(report)
    assert report.said.cosine < 0.95


def test_each_kind_is_told_with_what_to_do(tmp_path):
    for name, captions, kind, what in (
        ("a", [[f"кот {word} спит", "кошка"] for word in "абвгдежзик"], "letters that the CLIP does not know",
         "20 of 20 (100%) captions are Cyrillic"),
        ("b", [[f"a cat {word}", f"кот {word} или кошка"] for word in WORDS], "captions of several languages",
         "training.shards --captions first"),
        ("c", [[f"IMG_{n:04}.jpg"] for n in range(9)], "captions that are file names", "'IMG_0000.jpg'"),
        ("d", [["a photo"]] * 9 + [["a cat"]], "one caption for most pictures", "9 of 10 (90%) captions"),
    ):  # fmt: skip
        report = look(shards(tmp_path / name, captions))
        assert (
            kind in kinds(report) and what in as_table(report) and "nothing is wrong" not in as_table(report)
        )
        assert as_json(report)["ok"]  # they can be trained on
    few = look(shards(tmp_path / "few", [["a photo"]] * 3))
    assert kinds(few) == []


def test_a_clip_to_which_all_is_the_same(tmp_path, monkeypatch):
    clip = tiny_clip()
    where = shards(tmp_path, [[f"a {word} cat"] for word in WORDS])
    text = clip.towers.text
    same = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))

    def dull(ids, mask):
        raw, tokens = text(ids, mask)
        return raw * 0.01 + same.expand(len(raw), -1)[:, :1], tokens

    embed = clip.encode_text([f"a {word} cat" for word in WORDS]).embed
    cosines = embed @ embed.T
    mean = (cosines.sum() - cosines.diag().sum()) / (12 * 11)
    torch.testing.assert_close(look(where, clip).said.cosine, float(mean), atol=1e-5, rtol=0)
    monkeypatch.setattr(clip.towers, "text", dull)
    report = look(where, clip)
    assert kinds(report) == ["captions that the CLIP does not tell apart"] and "12 different" in as_table(
        report
    )


def test_of_several_captions_the_first_may_be_taken_alone(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.png").write_bytes(encoded(noise(8, 8)))
        (tmp_path / "in" / f"{name}.txt").write_text(f"a cat {name}\nкошка\n")
    for choice, count in (("all", 2), ("first", 1)):
        make_shards([str(tmp_path / "in"), str(tmp_path / choice), "--captions", choice, "--workers", "1"])
        samples = list(read_shards([str(tmp_path / choice)]))
        assert [sample["captions"] for sample in samples] == [[f"a cat {n}", "кошка"][:count] for n in "ab"]

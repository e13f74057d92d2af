"""Rows with options, verbs and pictures of their own, and the forms that their pictures are written in."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from batches import FILES, index, run
from pictures import pixels
from PIL import Image

from unclip.batch import album
from unclip.data.reading import read_shards
from unclip.provenance import record_of

pytestmark = pytest.mark.usefixtures("float32", "loaded")


ROWS = [
    {"prompt": "a cat", "seed": 3, "n": 2, "steps": 2, "custom_id": "one"},
    {"verb": "vary", "image": "in.png", "spread": 0.5, "steps": 4},
    {"verb": "redraw", "image": "in.png", "prompt": "a dog", "strength": 0.5},
    {"verb": "inpaint", "image": "in.png", "mask": "mask.png", "prompt": "a dog"},
    {"verb": "interpolate", "a": "in.png", "b": "a dog", "n": 2, "steps": 3},
    {"verb": "edit", "image": "in.png", "source": "a cat", "target": "a dog", "steps": 3},
    {"verb": "upscale", "image": "in.png"},
    {"custom_id": "two", "method": "POST", "url": "/v1/images/generations",
     "body": {"model": "dall-e-2", "prompt": "a cat", "n": 1, "size": "64x64", "user": "me"}},
]  # fmt: skip
BAD = {
    '{"prompt": ""}': "the row has no prompt",
    '{"prompt": "x", "sepia": 1}': "sepia: unknown key",
    '{"prompt": "x", "seed": 1.5}': "seed",
    '{"prompt": "x", "n": 0}': "n: Input should be greater than or equal to 1",
    '{"prompt": "x\\u0000"}': "no character of a text",
    '{"verb": "vary", "image": "../in.png"}': "leads out of the folder of prompts",
    '{"verb": "vary", "image": "/etc/passwd"}': "leads out of the folder of prompts",
    '{"verb": "vary", "image": "link.png"}': "leads out of the folder of prompts",
    '{"verb": "vary", "image": "none.png"}': "there is no file",
    '{"verb": "vary", "image": "rows.jsonl"}': "cannot be used as a picture",
    '{"verb": "vary"}': "to vary needs image",
    '{"verb": "vary", "image": "in.png", "strength": 1}': "to vary takes no strength",
    '{"verb": "dance"}': "verb",
    '{"body": {"prompt": "x", "size": "1024x1024"}}': "size '1024x1024' is not 64x64",
    '{"url": "/v1/chat/completions", "body": {}}': "is not /v1/images/generations",
    "{": "no JSON",
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Good rows, and between them bad ones."""
    path = tmp_path / "in/rows.jsonl"
    path.parent.mkdir()
    Image.effect_noise((64, 64), 90).convert("RGB").save(path.parent / "in.png")
    Image.linear_gradient("L").resize((64, 64)).save(path.parent / "mask.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "outside.png")
    (path.parent / "link.png").symlink_to("../outside.png")
    path.write_text("\n".join([*map(json.dumps, ROWS), *BAD]) + "\n")
    return path


def test_rows_with_options_and_verbs_of_their_own(rows, tmp_path, tiny_model, pipeline, capsys):
    out = tmp_path / "out"
    assert run(rows, out, tiny_model, "--seed", "5") == 1
    assert f"{len(BAD)} rows could not be drawn" in capsys.readouterr().err
    for row, said in zip(index(out, album.ERRORS), BAD.values(), strict=True):
        assert re.search(said, row["error"]), row
    source, mask = rows.parent / "in.png", rows.parent / "mask.png"
    wanted = [
        *pipeline.generate("a cat", seed=3, n=2, steps=2),
        *pipeline.vary(source, 1, spread=0.5, seed=5, steps=4),
        pipeline.redraw(source, "a dog", 0.5, seed=5),
        pipeline.inpaint(source, mask, "a dog", seed=5),
        *pipeline.interpolate(source, "a dog", 2, seed=5, steps=3),
        pipeline.edit(source, "a cat", "a dog", seed=5, steps=3),
        pipeline.upscale(source, seed=5),
        pipeline.generate("a cat", seed=5),
    ]
    listed = index(out)
    assert [(row["line"], row["k"]) for row in listed] == [
        (1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (5, 0), (5, 1), (6, 0), (7, 0), (8, 0),
    ]  # fmt: skip
    for row, picture in zip(listed, wanted, strict=True):
        drawn = Image.open(out / row["file"])
        assert np.abs(np.asarray(drawn, dtype=int) - np.asarray(picture, dtype=int)).max() <= 1
        assert record_of(drawn).verb == row.get("verb", "generate")
    assert [row.get("id") for row in listed][:2] == ["one", "one"] and listed[-1]["id"] == "two"
    assert run(rows, out, tiny_model, "--seed", "5") == 1  # and nothing is drawn again
    assert "0 pictures made of 10" in capsys.readouterr().out


def test_a_picture_depends_on_neither_order_nor_company(tmp_path, tiny_model, pipeline):
    texts = [f"picture {number}" for number in range(7)]
    drawn = {}
    for name, order, how in (("a", texts, ("--batch-size", "2")), ("b", texts[::-1], ("--block", "3"))):
        (tmp_path / f"{name}.txt").write_text("\n".join(order))
        assert run(tmp_path / f"{name}.txt", tmp_path / name, tiny_model, *how) == 0
        drawn[name] = {row["prompt"]: pixels(tmp_path / name / row["file"]) for row in index(tmp_path / name)}
    for text in texts:
        assert abs(drawn["a"][text] - drawn["b"][text]).max() <= 1


def test_shards_are_read_as_others_write_them(prompts, tmp_path, tiny_model, pipeline, capsys):
    out = tmp_path / "out"
    options = ("--shards", "-n", "2", "--block", "2", "--sheet")
    assert run(prompts, out, tiny_model, *options) == 0
    tars = sorted((out / "shards").iterdir())
    assert [path.name for path in tars] == ["000000.tar", "000001.tar"]
    with tarfile.open(tars[0]) as tar:
        assert sorted(tar.getnames())[:3] == ["00000000000.json", "00000000000.png", "00000000000.txt"]
        told = json.load(tar.extractfile("00000000003.json"))
        second = Image.open(io.BytesIO(tar.extractfile("00000000003.png").read()))
    assert (told["line"], told["k"], told["caption"], told["width"]) == (4, 1, "Cat & dog!", 64)
    assert record_of(second).k == 1
    assert len(list(read_shards([str(path) for path in tars]))) == 6
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["000000.png", "000001.png"]
    before = tars[0].read_bytes()
    tars[0].unlink()
    capsys.readouterr()
    assert run(prompts, out, tiny_model, *options) == 0
    assert "4 pictures made of 6" in capsys.readouterr().out and tars[0].read_bytes() == before


def test_parquet_has_a_row_a_picture(prompts, tmp_path, tiny_model):
    out = tmp_path / "out"
    assert run(prompts, out, tiny_model, "--parquet", "--no-metadata") == 0
    rows = pyarrow.parquet.read_table(out / "tables/000000.parquet").to_pylist()
    assert [(row["line"], row["prompt"], row["record"]) for row in rows] == [
        (3, "a goldfish", None), (4, "Cat & dog!", None), (5, "a goldfish", None),
    ]  # fmt: skip
    assert rows[1]["image"]["path"] == FILES[1]
    assert Image.open(io.BytesIO(rows[1]["image"]["bytes"])).size == (64, 64)

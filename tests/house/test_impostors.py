"""What stands in the place of a file that should have been fetched is named, by every reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from clips import of_transformers
from shards import encoded, noise

from training.data.embeddings import MANIFEST, Embeddings
from training.doctor import look
from training.shards.build import LEFT_OUT, build
from training.shards.prepare import Options
from training.shards.sources import items_of
from training.tasks.recipes import PictureRecipe
from unclip.batch.reading import read_prompts
from unclip.checkpoint import CheckpointError
from unclip.clip import load_clip
from unclip.config import load_config
from unclip.data.tars import index
from unclip.data.writing import ShardWriter
from unclip.files import read_json
from unclip.pipeline.canvas import opened

pytestmark = pytest.mark.attack

IMPOSTORS = {
    "a pointer of Git LFS.*`git lfs pull`": b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n",
    "a page of the web": b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n",
}
READERS: dict[str, Callable[[Path], object]] = {
    "recipe.yaml": lambda path: load_config(PictureRecipe, path),
    "lines.txt": read_prompts,
    "picture.png": opened,
    "table.csv": lambda path: items_of(str(path)),
    "table.jsonl": lambda path: items_of(str(path)),
    "table.parquet": lambda path: items_of(str(path)),
    "values.json": lambda path: read_json(path, "values"),
    MANIFEST: lambda path: Embeddings(path.parent),
}


@pytest.mark.parametrize("said", IMPOSTORS)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_names_what_stands_in_a_files_place(tmp_path, name, said):
    (tmp_path / name).write_bytes(IMPOSTORS[said])
    with pytest.raises(ValueError, match=said):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("said", IMPOSTORS)
@pytest.mark.parametrize("length", [0, 2000])
def test_a_tar_that_is_none_says_what_it_is(tmp_path, said, length):
    path = tmp_path / "a.tar"
    path.write_bytes(IMPOSTORS[said].ljust(length, b"\n"))
    content = index(path)
    assert not content.entries and said.partition(".*")[0] in content.problems[0][1]
    (problem,) = look([str(path)]).problems
    assert said.partition(".*")[0] in problem.reason


@pytest.mark.parametrize("said", IMPOSTORS)
def test_in_a_folder_and_in_shards_it_is_no_picture_and_no_caption(tmp_path, said):
    folder, fake = tmp_path / "in", IMPOSTORS[said]
    folder.mkdir()
    picture = encoded(noise(8, 8))
    samples = {"a": (fake, b"a cat"), "b": (picture, fake), "c": (picture, b"a dog")}
    with ShardWriter(tmp_path / "shards", "train") as writer:
        for name, (image, text) in samples.items():
            (folder / f"{name}.png").write_bytes(image)
            (folder / f"{name}.txt").write_bytes(text)
            writer.write(name, {"png": image, "txt": text})
    words = said.partition(".*")[0]
    for source in (folder, tmp_path / "shards"):
        result = build(str(source), tmp_path / f"of-{source.name}", Options())
        assert result.counts.total() == 1 and len(result.left) == 2
        assert all(words in reason for _, reason in result.left)
        left = (tmp_path / f"of-{source.name}" / LEFT_OUT).read_text()
        assert all(words in json.loads(line)["reason"] for line in left.splitlines())
    report = look([str(tmp_path / "shards" / "train-000000.tar")])
    assert [problem.key for problem in report.problems] == ["a", "b"]
    assert all(words in problem.reason for problem in report.problems)


@pytest.mark.parametrize("content, said", [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>404</html>", "a page of the web"),
    (b"", "it is empty"),
])  # fmt: skip
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_what_stands_in_the_place_of_a_file_of_others_is_named(name, content, said, tmp_path):
    of_transformers(tmp_path / "theirs")
    (tmp_path / "theirs" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: .*{said}"):
        load_clip(tmp_path / "theirs")
    for name in ("weights.pt", "weights.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} cannot be read: .*{said}"):
            load_clip(f"open_clip:RN50@{tmp_path / name}")

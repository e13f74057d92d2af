"""GLIDE's tokenizer: its tokens on awkward texts, what is cut and padded, and its files.

The two vocabulary files are published with GLIDE and not kept here. UNCLIP_GLIDE_TOKENIZER may name the
folder that holds them.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from places import ROOT, fixtures
from tiny_glide import tiny_files

from unclip.checkpoint import CheckpointError
from unclip.stages.tokenizer import ENCODER, VOCAB, GlideTokenizer

PUBLISHED = Path(os.environ.get("UNCLIP_GLIDE_TOKENIZER", ROOT.parent / "shared/data/glide-tokenizer"))
(CASES,) = fixtures("glide/tokens.json")


@pytest.fixture
def tokenizer(tmp_path) -> GlideTokenizer:
    return GlideTokenizer.load(tiny_files(tmp_path / "tiny"), length=6)


@pytest.mark.skipif(not (PUBLISHED / ENCODER).is_file(), reason="GLIDE's vocabulary files are not here")
def test_it_makes_the_published_tokens_and_masks(tmp_path):
    published = GlideTokenizer.load(PUBLISHED)
    assert (published.vocab_size, published.end, published.length) == (50257, 50256, 128)
    cases = json.loads(CASES.read_text())
    ids, mask = published.tokenize([case["text"] for case in cases])
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids.tolist() == [case["tokens"] for case in cases]
    assert mask.tolist() == [case["mask"] for case in cases]
    published.save(tmp_path)
    again = GlideTokenizer.load(tmp_path)
    assert (again.encoder, again.merges, again.length) == (published.encoder, published.merges, 128)
    assert published.encode("<|endoftext|>")[-1] != published.end  # a text cannot end itself


def test_text_is_lower_cased_merged_and_padded(tokenizer):
    ids, mask = tokenizer.tokenize(["Fish", "", "a fish"])
    number = tokenizer.encoder
    assert ids[0].tolist() == [number["fish"]] + [tokenizer.end] * 5
    assert mask.sum(1).tolist() == [1, 0, 3]
    assert (ids[1] == tokenizer.end).all()
    assert ids[2].tolist()[:3] == [number["a"], number["Ġ"], number["fish"]]
    assert tokenizer.tokenize([])[0].shape == (0, 6)


def test_what_does_not_fit_is_told(tokenizer):
    assert tokenizer.truncated("a fish") is None
    assert tokenizer.truncated("fish fish fish FISH fish") == "fish fish"
    assert tokenizer.tokenize(["fish " * 9])[1].all()


def test_a_folder_is_the_same_bytes_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "one")
    again = GlideTokenizer.load(tmp_path / "one")
    again.save(tmp_path / "two")
    assert again.length == 6
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_damaged_files_are_refused_by_name(tmp_path):
    folder = tiny_files(tmp_path / "tiny")
    data = (folder / VOCAB).read_bytes()
    for name, content, told in [
        (VOCAB, data[:-9], "damaged or cut short"),
        (ENCODER, b"{", "is damaged"),
        (ENCODER, b'{"a": 3}', "no table of byte pairs"),
        (VOCAB, b"one\n", "no list of the pairs"),
        (VOCAB, b"#\nf i\nq x\n", "no list of the pairs"),
    ]:
        tiny_files(folder)
        (folder / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=told) as error:
            GlideTokenizer.load(folder)
        assert name in str(error.value)
    (folder / ENCODER).unlink()
    with pytest.raises(CheckpointError, match="there is no vocabulary file"):
        GlideTokenizer.load(folder)

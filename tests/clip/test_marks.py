"""Control marks of the tokenizers in a text are words like any other: none ends it."""

from __future__ import annotations

import sys
from random import Random

import pytest
import torch
from clips import byte_pair_tokenizer
from tiny_glide import tiny_files
from tiny_models import tiny_clip

from unclip.clip.byte_pairs import byte_pairs, mended
from unclip.clip.towers import OpenClipTowers, TransformersTowers, spelling
from unclip.stages.tokenizer import GlideTokenizer

pytestmark = pytest.mark.attack
MARKS = (
    "<end_of_text>",
    "<start_of_text>",
    "<END_OF_TEXT>",
    "&lt;end_of_text&gt;",
    "<end_of_<end_of_text>text>",
)
ORDINARY = (
    "a goldfish",
    "Two cats, and a slice of pizza!!",
    "end of text, start_of_text <b>&amp; 1 < 2</b>",
    "don't 1234 日本語 \u00e9\u00e8 \U0001f420 <|x|> [SEP] </s>",
    "",
)


def test_a_mark_is_read_as_its_words():
    clip = tiny_clip()
    for mark in MARKS:
        ids = clip.towers.encode(f"fish {mark} cat")
        assert not {49406, 49407} & {*ids}
        assert [ids[0], ids[-1]] == clip.towers.encode("fish cat")
        assert clip.tokenize([f"fish {mark} cat"])[1].sum() == min(len(ids) + 2, 16)
    ids = clip.towers.encode("fish <end_of_text> cat")
    assert clip.towers.decode(ids) == "fish < end _ of _ text > cat "
    assert "cat" in clip.truncated("<end_of_text> " * 3 + "cat")  # what it takes of the context is told


def test_the_tokens_of_ordinary_texts_stay():
    from open_clip.tokenizer import SimpleTokenizer

    plain = SimpleTokenizer()
    for text in ORDINARY:
        assert byte_pairs().encode(text) == plain.encode(text)


def test_marks_in_the_tokenizers_of_transformers(tmp_path):
    pieces = byte_pair_tokenizer(tmp_path)

    class Model(torch.nn.Module):
        config = type("Config", (), {"max_position_embeddings": 40})

    towers = TransformersTowers(Model(), pieces)
    for text in ORDINARY:
        before = pieces(text, add_special_tokens=False)["input_ids"]
        assert towers.encode(text) == before
        assert towers.tokenize([text])[0][0, 1 : 1 + len(before)].tolist() == before
    for mark in ("<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>"):
        ids, mask = towers.tokenize([f"fish {mark} cat"])
        assert mask.sum() > 5 and ids[0, int(mask.sum()) - 2] == towers.encode("cat")[0]
        assert not {pieces.bos_token_id, pieces.eos_token_id} & {*towers.encode(f"fish {mark} cat")}


def test_marks_in_the_tokenizers_that_open_clip_borrows(tmp_path):
    """Its own cleaning turns "&lt;" into "<" before transformers sees it."""
    from open_clip.tokenizer import HFTokenizer

    byte_pair_tokenizer(tmp_path).save_pretrained(tmp_path)
    plain = HFTokenizer(str(tmp_path), 40)

    class Model(torch.nn.Module):
        visual = type("Visual", (), {"image_size": 8})
        context_length = 40

    towers = OpenClipTowers(Model(), HFTokenizer(str(tmp_path), 40), {})
    for text in ORDINARY:
        assert torch.equal(towers.tokenize([text])[0], plain([text]))
        assert towers.encode(text) == plain([text])[0, 1 : 1 + len(towers.encode(text))].tolist()
    for mark in ("<|endoftext|>", "&lt;|endoftext|&gt;"):
        ids, mask = towers.tokenize([f"fish {mark} cat"])
        assert mask.sum() > 5 and ids[0, int(mask.sum()) - 2] == towers.encode("cat")[0]


def test_glides_byte_pairs_know_no_mark(tmp_path):
    tokenizer = GlideTokenizer.load(tiny_files(tmp_path))
    for mark in ("<|endoftext|>", "<end_of_text>"):
        ids = tokenizer.encode(f"a {mark} b")
        assert tokenizer.end not in ids and tokenizer.decode(ids) == f"a {mark} b"


def test_signs_that_are_tokens_too_stay_whole():
    """Some pad with "!": that a text ends with one is nothing to take apart."""
    assert spelling(["!", "<pad>"])("Hi! <PAD> </s>") == "Hi! < pad > </s>"
    assert spelling(["!"])("!") == "!"


def test_plain_texts_need_no_mending_and_others_are_mended(monkeypatch):
    """What ftfy does to texts is done to all it would change, and it is not imported for the rest."""
    monkeypatch.delitem(sys.modules, "ftfy", raising=False)
    assert byte_pairs.__wrapped__().encode("A goldfish, <1> of [2] ~ 3!")
    assert "ftfy" not in sys.modules
    import ftfy

    rng = Random(0)
    plain = ["".join(rng.choices([chr(code) for code in range(32, 127)], k=60)) for _ in range(200)]
    for text in (
        *plain,
        "&lt;b&gt; &amp;",
        "caf\u00c3\u00a9",
        "\ufb01sh",
        "a\r\nb\x1b[1m",
        "\u201cone\u201d",
    ):
        assert mended(text) == ftfy.fix_text(text)

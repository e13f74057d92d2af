"""Sentences in both of their encodings: repeated, cut, padded and cut off together."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_glide import tokenizer
from tiny_models import tiny_clip

from unclip.pipeline.prompts import Prompts, encode

CPU = torch.device("cpu")


def both() -> Prompts:
    return encode(["a cat", "a car"], tiny_clip(), tokenizer(), CPU)


def same(one: Prompts, two: Prompts) -> bool:
    pairs = zip(parts(one), parts(two), strict=True)
    return one.texts == two.texts and all(torch.equal(a, b) for a, b in pairs)


def parts(some: Prompts) -> list[torch.Tensor]:
    clip = [] if some.clip is None else [some.clip.embed, some.clip.tokens, some.clip.mask, some.clip.raw]
    return clip + ([] if some.ids is None else [some.ids, some.mask])


def test_each_kind_is_there_where_the_model_has_it():
    clip, own = tiny_clip(), tokenizer()
    for one, two in ((clip, own), (clip, None), (None, own)):
        made = encode(["a cat"], one, two, CPU)
        assert made.texts == ["a cat"] and len(made) == 1
        assert (made.clip is None) == (one is None)
        assert (made.ids is None) == (made.mask is None) == (two is None)
    made = both()
    ids, mask = own.tokenize(made.texts)
    assert torch.equal(made.ids, ids) and torch.equal(made.mask, mask)
    assert torch.equal(made.clip.tokens, clip.encode_text(made.texts).trimmed().tokens)


@pytest.mark.parametrize("clip, own", [(True, True), (True, False), (False, True)])
def test_repeating_and_taking_a_part_are_the_same_for_all_kinds(clip, own):
    made = encode(["a cat", "a car"], tiny_clip() if clip else None, tokenizer() if own else None, CPU)
    twice = made.repeat(2)
    assert twice.texts == ["a cat", "a cat", "a car", "a car"] and len(twice) == 4
    pairs = zip(parts(made), parts(twice), strict=True)
    assert all(
        torch.equal(many[2 * k + j], one[k]) for one, many in pairs for k in range(2) for j in range(2)
    )
    assert same(twice[2:], made[1:].repeat(2)) and same(made[:1], twice[:1])
    assert len(parts(twice)) == 4 * clip + 2 * own


def test_padding_is_masked_and_nothing_else_changes():
    made = encode(["a cat in a hat"], tiny_clip(), None, CPU)
    short = encode([""], tiny_clip(), tokenizer(), CPU)
    padded, length = short.padded_like(made), short.clip.tokens.shape[1]
    assert padded.clip.tokens.shape[1] == made.clip.tokens.shape[1] > length
    assert torch.equal(padded.clip.tokens[:, :length], short.clip.tokens)
    assert not padded.clip.tokens[:, length:].any() and not padded.clip.mask[:, length:].any()
    assert torch.equal(padded.clip.mask[:, :length], short.clip.mask)
    assert torch.equal(padded.clip.embed, short.clip.embed) and torch.equal(padded.ids, short.ids)
    plain = encode([""], None, tokenizer(), CPU)
    assert plain.padded_like(made) is plain


def test_what_is_cut_off_is_said_of_each_context_once():
    long = "ab " * 30
    with pytest.warns(UserWarning) as said:
        encode([long, long], tiny_clip(), tokenizer(), CPU)
    assert [str(one.message).partition("; ")[0] for one in said] == [
        "the prompt is longer than 16 tokens",
        "the prompt is longer than 6 tokens",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(["a cat"], tiny_clip(), None, CPU)

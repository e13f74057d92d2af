"""What ``training.shards`` and ``training.embed`` are asked to take and show, by what they write."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
from PIL import Image
from shards import encoded, noise
from tiny_models import tiny_clip

from training import embed
from training.data.embeddings import load_rows
from training.shards import __main__ as shards
from unclip.clip import Clip
from unclip.data.images import to_tensor
from unclip.data.reading import read_shards
from unclip.data.writing import ShardWriter

CLEAR = Image.merge("RGBA", (*noise(16, 16, 1).split(), Image.linear_gradient("L").resize((16, 16))))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty pictures, of which every fourth has no caption and every fifth an empty one."""
    top = tmp_path / "pictures"
    top.mkdir()
    for number in range(40):
        (top / f"{number:02d}.png").write_bytes(encoded(noise(4, 4, number)))
        if number % 4:
            (top / f"{number:02d}.txt").write_text("" if number % 5 == 0 else f"noise {number}")
    return top


def keys(out: Path, split: str) -> set[str]:
    return {sample["key"] for path in out.glob(f"{split}-*.tar") for sample in read_shards(path)}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6])
def test_the_share_that_is_held_out_is_chosen_by_the_keys(pictures, tmp_path, share):
    """A key belongs to it or not, whatever else there is, and to more of a larger share."""
    shards.main(
        [str(pictures), str(tmp_path / "out"), "--heldout", str(share), "--workers", "1", "--uncaptioned"]
    )
    every = {f"{number:02d}" for number in range(40)}
    chosen = {
        key
        for key in every
        if int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") < share * 2**64
    }
    assert abs(len(chosen) - 40 * share) < 8
    assert keys(tmp_path / "out", "heldout") == chosen and keys(tmp_path / "out", "train") == every - chosen
    said = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert said["samples"] == {
        split: count for split, count in (("heldout", len(chosen)), ("train", 40 - len(chosen))) if count
    }
    assert said["options"]["heldout"] == share and said["options"]["uncaptioned"] is True


@pytest.mark.parametrize("uncaptioned", [False, True])
def test_pictures_without_a_caption_are_taken_only_when_asked_for(pictures, tmp_path, uncaptioned):
    shards.main([str(pictures), str(tmp_path / "out"), "--workers", "1", *["--uncaptioned"] * uncaptioned])
    made = {sample["key"]: sample["caption"] for sample in read_shards(f"{tmp_path}/out/train-*.tar")}
    said = {f"{n:02d}": f"noise {n}" if n % 4 and n % 5 else "" for n in range(40)}
    assert made == {key: text for key, text in said.items() if text or uncaptioned}
    left = (tmp_path / "out" / "left-out.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in left]
    assert reasons.count("a picture without a caption") == (0 if uncaptioned else 10)
    assert reasons.count("an empty caption") == (0 if uncaptioned else 6) and len(left) == 40 - len(made)


@pytest.fixture
def clear(tmp_path: Path) -> str:
    """A shard of one half-transparent picture with two captions, and of one that cannot be read."""
    with ShardWriter(tmp_path, "clear") as writer:
        record = {"captions": ["a cat", "a dog that runs"]}
        writer.write("a", {"png": encoded(CLEAR), "json": json.dumps(record).encode()})
        writer.write("b", {"png": b"no picture", "txt": b"broken"})
    return str(writer.paths[0])


@pytest.fixture
def clip(monkeypatch: pytest.MonkeyPatch) -> Clip:
    """The only CLIP there is."""
    made = tiny_clip()
    monkeypatch.setattr(embed, "load_clip", lambda source, device: made)
    return made


@pytest.mark.parametrize(
    "words, colour",
    [([], "white"), (["--background", "black"], "black"), (["--background", "#102030"], "#102030")],
)
def test_clip_is_shown_pictures_on_the_colour_of_choice(clear, clip, tmp_path, words, colour):
    embed.main([clear, "--clip", "some", "--workers", "1", *words])
    found = load_rows(tmp_path / "embeddings" / "clear-000000.safetensors").image
    on = {name: clip.encode_image(to_tensor(CLEAR, name)[None]) for name in ("white", "black", "#102030")}
    torch.testing.assert_close(found, on[colour], atol=1e-5, rtol=0)
    assert all((found - other).abs().max() > 1e-3 for name, other in on.items() if name != colour)
    assert json.loads((tmp_path / "embeddings" / "embeddings.json").read_text())["background"] == colour


def test_clip_is_shown_pictures_of_the_size_asked_for(clear, clip, tmp_path, monkeypatch):
    shown, real = [], clip.encode_image
    monkeypatch.setattr(
        clip, "encode_image", lambda pictures: (shown.append(pictures.shape), real(pictures))[1]
    )
    for words, size in (([], 16), (["--size", "8"], 8)):
        embed.main([clear, "--clip", "some", "--workers", "1", "--out", str(tmp_path / str(size)), *words])
        assert shown.pop() == (1, 3, size, size) and not shown
        assert json.loads((tmp_path / str(size) / "embeddings.json").read_text())["size"] == size


def test_a_picture_is_decoded_no_smaller_than_resizing_needs(clear, clip, monkeypatch):
    asked, real = [], embed.open_picture
    monkeypatch.setattr(embed, "open_picture", lambda data, least: asked.append(least) or real(data, least))
    embed.main([clear, "--clip", "some", "--workers", "1", "--size", "8"])
    assert set(asked) == {24}


@pytest.mark.parametrize("words", [["--background", "black"], ["--size", "8"], ["--tokens"]])
def test_what_is_asked_for_anew_is_embedded_anew_and_else_nothing(clear, clip, tmp_path, words, monkeypatch):
    written, real = [], embed.save_rows
    monkeypatch.setattr(
        embed, "save_rows", lambda *args, **facts: (written.append(facts), real(*args, **facts))[1]
    )
    for more, count in (([], 1), ([], 1), (words, 2), (words, 2)):
        embed.main([clear, "--clip", "some", "--workers", "1", *more])
        assert len(written) == count
    assert all(facts["bytes"] == Path(clear).stat().st_size and facts["skipped"] == 1 for facts in written)
    rows = load_rows(tmp_path / "embeddings" / "clear-000000.safetensors")
    assert (rows.tokens is not None) == (words == ["--tokens"])


def test_a_shard_that_is_elsewhere_is_read_as_it_comes(clip, tmp_path, monkeypatch):
    sample = {"__key__": "far", "png": encoded(CLEAR), "txt": b"a cat"}
    monkeypatch.setattr(embed, "stream", lambda shard: iter([sample] if shard == "http://x/a.tar" else []))
    made = embed.embed(["http://x/a.tar"], tmp_path, clip)
    assert made["pictures"] == 1 and load_rows(tmp_path / "a.safetensors").keys == ["far"]


@pytest.mark.parametrize("tokens", [False, True])
def test_what_a_shard_holds_is_written_with_the_states_if_asked_for(clear, clip, tmp_path, tokens):
    made = embed.embed([clear], tmp_path / "out", clip, tokens, batch=1)
    rows, text = (
        load_rows(tmp_path / "out" / "clear-000000.safetensors"),
        clip.encode_text(["a cat", "a dog that runs"]),
    )
    assert rows.keys == ["a"] and rows.captions == ["a cat", "a dog that runs"]
    torch.testing.assert_close(rows.text, text.embed.cpu(), atol=1e-6, rtol=0)
    assert (made["pictures"], made["captions"], made["skipped"], made["tokens"]) == (1, 2, 1, tokens)
    assert made["text_dim"] == (clip.text_dim if tokens else None) and made["dim"] == clip.embed_dim
    if tokens:
        assert rows.ends.tolist() == [0, *text.mask.sum(1).cumsum(0).tolist()]
        torch.testing.assert_close(rows.tokens, text.tokens[text.mask].half(), atol=2e-3, rtol=0)

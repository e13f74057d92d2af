"""``training.doctor``: what is wrong with shards is told before training, and what is well is not."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from shards import encoded, noise, uneven
from tiny_models import tiny_clip

from training import embed
from training.doctor import as_json, as_table, look, main
from training.programs import run
from unclip.clip import save_clip
from unclip.data.reading import expand
from unclip.data.writing import ShardWriter


def member(tar: tarfile.TarFile, name: str, data: bytes = b"", **more: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def exit_code(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(lambda: main([*argv, "--workers", "1"]))
    return stopped.value.code


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips") / "clip"
    save_clip(tiny_clip(), folder)
    return folder


def test_sound_shards_pass_and_are_counted(tmp_path, clip, capsys):
    with ShardWriter(tmp_path, "train", 3) as writer:
        for number, last in enumerate(("cat", "dog", "cow", "fox", "bat", "rat", "owl")):
            long = " ".join([*["cat"] * 19, last])
            captions = [long, "a cat", ""][: 1 + number % 3]
            writer.write(
                f"{number}",
                {"png": encoded(noise(10 + number, 8)), "json": json.dumps({"captions": captions}).encode()},
            )
    report = look(expand(tmp_path), tiny_clip())
    told = as_json(report)
    counts = [told[name] for name in ("shards", "samples", "pictures", "captions")]
    assert told["ok"] and counts == [3, 7, 7, 13]
    assert told["samples_with_several_captions"] == 4 and told["empty_captions"] == 2
    assert told["truncated_captions"] == 7 and told["context"] == 16  # of 20 words and two ends
    assert told["caption_tokens"]["most"] == 22 and told["caption_letters"]["most"] == len(long)
    assert told["shorter_side"]["least"] == told["shorter_side"]["most"] == 8
    assert told["aspect"]["most"] == 2
    assert "nothing is wrong" in as_table(report)
    assert exit_code([str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] and printed["truncated_captions"] == 0 and printed["context"] == 77
    assert exit_code([str(tmp_path), "--clip", str(clip)]) == 0
    assert "7   longer than the 16 tokens" in capsys.readouterr().out


def hurt(folder: Path) -> None:
    """A shard with one of each thing that can be wrong, and others that are no shards or not whole."""
    picture, text = encoded(noise(8, 8)), b"a caption"
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for key, files in {
            "good": {"png": picture, "txt": text}, "cut": {"png": picture[:60], "txt": text},
            "words": {"jpg": b"these are words", "txt": text}, "alone": {"png": picture},
            "said": {"txt": text}, "latin": {"png": picture, "txt": b"\xff"},
            "record": {"png": picture, "txt": text, "json": b"["}, "again": {"png": picture, "txt": text},
        }.items():  # fmt: skip
            for kind, data in files.items():
                member(tar, f"{key}.{kind}", data)
        member(tar, "again.txt", text)
        member(tar, "link.png", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        member(tar, "../out.png", picture)
        member(tar, "/abs.png", picture)
    with ShardWriter(folder, "b") as writer:
        writer.write("good", {"png": picture, "txt": text})
    (folder / "c.tar").write_bytes(b"no tar at all" * 100)
    (folder / "d.tar").write_bytes((folder / "a.tar").read_bytes()[:2000])
    (folder / "e.tar").write_bytes(b"")


WRONG = {
    "damaged tar": 3,
    "unreadable picture": 2,
    "no caption": 1,
    "no picture": 1,
    "unreadable text": 2,
    "refused file": 4,
    "key that comes twice": 2,
}


def test_what_is_wrong_is_told_by_kind_and_place(tmp_path, capsys):
    hurt(tmp_path / "in")
    told = as_json(look(expand(tmp_path / "in")))
    assert not told["ok"] and told["wrong"] == WRONG
    found = {(Path(p["shard"]).name, p["key"], p["kind"]): p["reason"] for p in told["problems"]}
    assert "runcated" in found["a.tar", "cut", "unreadable picture"]
    assert found["a.tar", "words", "unreadable picture"] == "this is no picture"
    assert found["a.tar", "said", "no picture"] == "a sample without a picture, only txt"
    assert "a.tar" in found["b-000000.tar", "good", "key that comes twice"]
    assert found["a.tar", "link.png", "refused file"].startswith("a link")
    assert "leads out" in found["a.tar", "../out.png", "refused file"]
    assert found["c.tar", "", "damaged tar"] == "this is no tar"
    assert "cut short" in found["d.tar", "", "damaged tar"]
    assert exit_code([str(tmp_path / "in")]) == 1
    table = capsys.readouterr().out
    for kind, count in WRONG.items():
        assert f"{count:>8,}  {kind}" in table
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_urls_are_looked_through_too(tmp_path):
    (path,) = uneven(tmp_path, [3])
    assert as_json(look([f"pipe:cat {path}"]))["samples"] == 3
    wrong = as_json(look([f"pipe:head -c 3000 {path}"]))["wrong"]
    assert wrong["damaged tar"] == 1


@pytest.mark.parametrize(
    "argv, said",
    [
        (["nowhere/*.tar"], "no shards at nowhere"),
        (["DATA", "--clip", "nowhere"], "nowhere holds no CLIP"),
        (["DATA", "--embeddings", "nowhere"], "nowhere holds no embeddings"),
    ],
)
def test_mistakes_are_one_message_and_another_exit_code(tmp_path, argv, said, capsys):
    uneven(tmp_path, [1])
    assert exit_code([item.replace("DATA", str(tmp_path)) for item in argv]) == 2
    assert said in capsys.readouterr().err


def test_embeddings_that_do_not_match(tmp_path, clip):
    folder, other = tmp_path / "data", tmp_path / "other" / "clip"
    uneven(folder, [3, 2])
    embed.main([str(folder), "--clip", str(clip), "--workers", "1"])
    shards, kept = expand(folder), folder / "embeddings"
    sound = look(shards, embeddings=kept)
    assert not sound.problems
    # another CLIP
    save_clip(tiny_clip(1), other)
    (problem,) = look(shards, embed.load_clip(str(other)), embeddings=kept).problems
    assert problem.kind == "embeddings of another CLIP" and "they are of clip#" in problem.reason
    # samples that came or went since
    with ShardWriter(folder, "shard-0") as writer:
        for key in ("0000", "0001", "new"):
            writer.write(key, {"png": encoded(noise(8, 8)), "txt": b"a"})
    told = {(p.key, p.reason) for p in look(shards, embeddings=kept).problems}
    assert told == {("new", "a sample without an embedding"), ("0002", "an embedding without a sample")}
    # a file of another CLIP among them, and one that is damaged
    embed.main([shards[1], "--clip", str(other), "--workers", "1", "--out", str(tmp_path / "theirs")])
    shutil.copy(tmp_path / "theirs" / "shard-1-000000.safetensors", kept)
    (kept / "shard-0-000000.safetensors").write_bytes(b"")
    kinds = [p.kind for p in look(shards, embeddings=kept).problems]
    assert kinds == ["embeddings that do not match", "embeddings of another CLIP"]

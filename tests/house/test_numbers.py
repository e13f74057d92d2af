"""Numbers on command lines have bounds, and what stands in a program's way is not replaced or removed."""

from __future__ import annotations

from pathlib import Path

import pytest
from shards import encoded, noise
from tiny_models import tiny_clip, tiny_pipeline

import inference.denoising
import inference.gallery
import training.doctor
import training.embed
import training.shards.__main__ as shards
import unclip.app.command
from inference.convert import convert
from training.digits import build as digits
from unclip.clip import save_clip
from unclip.files import make_folder, remove_own

pytestmark = pytest.mark.attack


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> Path:
    """A folder with one picture, where the program runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(noise(8, 8)))
    (tmp_path / "in" / "a.txt").write_text("a cat")
    return tmp_path


SHARDS, EMBED, DOCTOR = ["in", "out"], ["x.tar", "--clip", "clip"], ["x.tar"]


@pytest.mark.parametrize("main, line, said", [
    (shards.main, [*SHARDS, "--max-aspect", "nan"], "--max-aspect must be at least 1, not nan"),
    (shards.main, [*SHARDS, "--max-aspect", "-1"], "--max-aspect must be at least 1, not -1"),
    (shards.main, [*SHARDS, "--max-aspect", "inf"], "--max-aspect must be at most 65,536, not inf"),
    (shards.main, [*SHARDS, "--quality", "101"], "--quality must be at most 100, not 101"),
    (shards.main, [*SHARDS, "--size", "1000000000"], "--size must be at most 65,536, not 1,000,000,000"),
    (shards.main, [*SHARDS, "--min-size", "0"], "--min-size must be at least 1, not 0"),
    (shards.main, [*SHARDS, "--per-shard", "0"], "--per-shard must be at least 1, not 0"),
    (shards.main, [*SHARDS, "--workers", "1000000"], "--workers must be at most 1,024"),
    (training.embed.main, [*EMBED, "--workers", "-1"], "--workers must be at least 1, not -1"),
    (training.embed.main, [*EMBED, "--size", "1000000"], "--size must be at most 4,096"),
    (training.embed.main, [*EMBED, "--batch", "1000000000"], "--batch must be at most 65,536"),
    (training.doctor.main, [*DOCTOR, "--workers", "0"], "--workers must be at least 1, not 0"),
    (training.doctor.main, [*DOCTOR, "--workers", "1000000"], "--workers must be at most 1,024"),
])  # fmt: skip
def test_programs_of_training_refuse_numbers_before_work(pictures, main, line, said):
    with pytest.raises(ValueError, match=said):
        main(line)
    assert [path.name for path in pictures.iterdir()] == ["in"]


@pytest.mark.parametrize("main, line, said", [
    (inference.gallery.main, ["icons", "a.png", "-n", "1000000000"], "--n must be at most 10,000"),
    (inference.gallery.main, ["icons", "a.png", "--side", "1000000000"], "--side must be at most 4,096"),
    (inference.denoising.main, ["icons", "x.tar", "a.png", "--size", "-1"], "--size must be at least 1"),
    (inference.denoising.main, ["icons", "x.tar", "a.png", "-n", "1000000000"], "--n must be at most 10,000"),
    (unclip.app.command.main, ["--plan", "-n", "0"], "n must be at least 1, not 0"),
    (unclip.app.command.main, ["--plan", "-n", "1000000000"], "n must be at most 1,000,000"),
    (unclip.app.command.main, ["a", "--strip", "s.png", "-n", "65"], "--strip shows at most 64 pictures"),
])  # fmt: skip
def test_programs_that_draw_refuse_numbers_before_work(pictures, monkeypatch, capsys, main, line, said):
    for module in ("unclip.app.cli", "inference.denoising"):
        monkeypatch.setattr(f"{module}.load", lambda *_: pytest.fail("a model was loaded"))
    assert main(line) == 2
    assert said in capsys.readouterr().err


# What stands in the way


def precious(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.txt").write_text("precious")
    return path


@pytest.mark.parametrize("name", [".out.partial", ".out.old"])
def test_making_shards_removes_only_what_it_has_put_there(pictures, name):
    shards.main(["in", "out", "--workers", "1"])
    before = sorted(path.name for path in (pictures / "out").iterdir())
    kept = precious(pictures / name)
    with pytest.raises(ValueError, match="thesis.txt is in the way"):
        shards.main(["in", "out", "--workers", "1", "--overwrite"])
    assert (kept / "thesis.txt").read_text() == "precious"
    assert sorted(path.name for path in (pictures / "out").iterdir()) == before
    (kept / "thesis.txt").rename(kept / "train-000000.tar")  # as a run that was killed leaves it
    shards.main(["in", "out", "--workers", "1", "--overwrite"])
    assert not kept.exists()


def test_writing_a_model_removes_only_what_it_has_put_there(pictures):
    model = tiny_pipeline().save("tiny")
    kept = precious(pictures / ".new.partial")
    with pytest.raises(ValueError, match="thesis.txt is in the way"):
        convert(str(model), pictures / "new")
    assert (kept / "thesis.txt").exists() and not (pictures / "new").exists()


def test_embeddings_replace_nothing_but_embeddings(pictures):
    shards.main(["in", "out", "--workers", "1"])
    save_clip(tiny_clip(), "clip")
    tiny_pipeline().save("tiny")
    line = ["out", "--clip", "clip", "--workers", "1", "--out", "there"]
    Path("there").mkdir()
    theirs = Path("there/train-000000.safetensors")
    for content in (b"precious", Path("tiny/decoder.safetensors").read_bytes()):
        theirs.write_bytes(content)
        with pytest.raises(ValueError, match="train-000000.safetensors holds no embeddings, and is not repl"):
            training.embed.main(line)
        assert theirs.read_bytes() == content
    theirs.unlink()
    Path("there/embeddings.json").write_text('{"precious": 1}')
    with pytest.raises(ValueError, match="embeddings.json"):
        training.embed.main(line)
    assert Path("there/embeddings.json").read_text() == '{"precious": 1}'
    Path("there/embeddings.json").unlink()
    training.embed.main(line)
    training.embed.main(line)  # its own


def test_digits_replace_no_shards(tmp_path):
    (tmp_path / "train-000000.tar").write_bytes(b"precious")
    with pytest.raises(ValueError, match="holds shards already"):
        digits(tmp_path)
    assert (tmp_path / "train-000000.tar").read_bytes() == b"precious"


def test_a_link_in_the_way_is_not_followed(tmp_path):
    kept = precious(tmp_path / "kept")
    (tmp_path / "aside").symlink_to(kept)
    with pytest.raises(ValueError, match="aside is in the way"):
        remove_own(tmp_path / "aside", ".*")
    assert (kept / "thesis.txt").exists()
    remove_own(tmp_path / "nothing", ".*")


@pytest.mark.parametrize("name", ["file", "file/below", "a\0b"])
def test_what_cannot_be_a_folder_is_said_with_its_name(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made a folder: "):
        make_folder(tmp_path / name)

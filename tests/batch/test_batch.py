"""``unclip batch``: what it makes, what it makes again, and what it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from batches import FILES, PROMPTS, index, pictures, run
from pictures import pixels
from PIL import Image

import unclip
import unclip.app.command
from inference import gallery
from inference.benchmark import measure, overhead, table
from unclip.batch import album
from unclip.batch import draw as batch
from unclip.files import words
from unclip.pipeline.drawing import Drawing
from unclip.provenance import record_of

pytestmark = pytest.mark.usefixtures("float32", "loaded")


def test_a_picture_a_line_and_an_index(prompts, tmp_path, tiny_model, pipeline, capsys):
    out = tmp_path / "deep" / "out"
    assert run(prompts, out, tiny_model, "--seed", "7", "--batch-size", "2") == 0
    assert pictures(out) == FILES
    rows = index(out)
    assert [row["file"] for row in rows] == FILES
    size = (out / FILES[1]).stat().st_size
    wanted = {"file": FILES[1], "line": 4, "prompt": "Cat & dog!", "k": 0, "seed": 7, "bytes": size}
    assert {name: value for name, value in rows[1].items() if name != "row"} == wanted
    settings = json.loads((out / album.OPTIONS).read_text())
    assert settings["model"] == f"{pipeline.name} {pipeline.digest()}" and settings["seed"] == 7
    assert "3 pictures made of 3" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {
        "0000", "index", "leases", album.INDEX, album.ERRORS, album.OPTIONS,
    }  # fmt: skip
    made = record_of(out / FILES[1])
    assert (made.prompt, made.seed, made.k, made.n) == ("Cat & dog!", 7, 0, 1)


def test_same_as_unclip_draws(prompts, tmp_path, tiny_model, pipeline):
    out, alone = tmp_path / "out", tmp_path / "alone.png"
    options = ("--seed", "3", "--steps", "3", "--guidance-scale", "1.5", "--negative-prompt", "a car")
    assert run(prompts, out, tiny_model, "-n", "2", *options) == 0
    command = ["Cat & dog!", "-o", str(alone), "--model", str(tiny_model), *options]
    assert unclip.app.command.main(command) == 0
    assert abs(pixels(out / FILES[1]) - pixels(alone)).max() <= 1  # a batch rounds otherwise
    drawn = pipeline.generate("Cat & dog!", n=2, seed=3, steps=3, guidance_scale=1.5, negative_prompt="a car")
    second = pixels(out / "0000/0004-cat-dog-2.png")
    assert abs(second - np.asarray(drawn[1])).max() <= 1 < abs(second - pixels(alone)).max()


def test_again_makes_only_what_is_missing(prompts, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    run(prompts, out, tiny_model)
    before = {file: (out / file).stat().st_mtime_ns for file in FILES}
    wanted = pixels(out / FILES[1])
    (out / FILES[1]).unlink()
    with open(prompts, "a") as file:
        file.write("a red car\n")
    capsys.readouterr()
    assert run(prompts, out, tiny_model) == 0
    assert "2 pictures made of 4" in capsys.readouterr().out
    assert [row["file"] for row in index(out)] == [*FILES, "0000/0006-a-red-car.png"] == pictures(out)
    assert all((out / file).stat().st_mtime_ns == before[file] for file in (FILES[0], FILES[2]))
    assert abs(pixels(out / FILES[1]) - wanted).max() <= 1


def test_more_pictures_a_prompt_later(prompts, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    run(prompts, out, tiny_model)
    capsys.readouterr()
    assert run(prompts, out, tiny_model, "-n", "2", "--batch-size", "1") == 0
    assert "3 pictures made of 6" in capsys.readouterr().out
    assert [(row["line"], row["k"]) for row in index(out)] == [(i, k) for i in (3, 4, 5) for k in (0, 1)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [(["--seed", "1"], "seed 0, not 1"), (["--steps", "3"], "steps the model's default, not 3")],
)
def test_other_options_are_refused_unless_overwritten(prompts, tmp_path, tiny_model, capsys, changed, said):
    out = tmp_path / "out"
    run(prompts, out, tiny_model)
    old = pixels(out / FILES[0])
    assert run(prompts, out, tiny_model, *changed) == 2
    message = capsys.readouterr().err
    assert said in message and "--overwrite" in message
    assert (pixels(out / FILES[0]) == old).all()
    assert run(prompts, out, tiny_model, *changed, "--overwrite") == 0
    assert (pixels(out / FILES[0]) != old).any() and pictures(out) == FILES
    assert run(prompts, out, tiny_model, *changed) == 0


def test_other_words_are_refused_unless_overwritten(prompts, tmp_path, tiny_model, capsys):
    out = tmp_path / "out"
    run(prompts, out, tiny_model)
    kept = (out / FILES[0]).stat().st_mtime_ns
    prompts.write_text(PROMPTS.replace("Cat & dog!", "cat, dog"))  # the same file name
    assert run(prompts, out, tiny_model) == 2
    assert "line 4 was 'Cat & dog!' and is 'cat, dog'" in capsys.readouterr().err
    assert run(prompts, out, tiny_model, "--overwrite") == 0
    assert index(out)[1]["prompt"] == "cat, dog" and pictures(out) == FILES
    assert (out / FILES[0]).stat().st_mtime_ns == kept


def test_another_model_is_refused(prompts, tmp_path, tiny_model, pipeline, monkeypatch, capsys):
    other = unclip.load(tiny_model)
    assert other.digest() == pipeline.digest()
    other.decoder.embed_mean += 1e-3
    assert run(prompts, tmp_path / "out", tiny_model) == 0
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: other)
    assert run(prompts, tmp_path / "out", tiny_model) == 2
    assert re.search("model tiny .*, not tiny", capsys.readouterr().err)


def test_stopped_in_the_middle(prompts, tmp_path, tiny_model, monkeypatch, capsys):
    """Between two batches, and in the midst of a file: what was listed stays, the rest is drawn again."""
    out = tmp_path / "out"
    save, calls = Image.Image.save, []

    def interrupted(picture: Image.Image, file, *args, **how) -> None:
        calls.append(file)
        if len(calls) == 3:
            file.write(b"half a picture")
            raise KeyboardInterrupt
        save(picture, file, *args, **how)

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run(prompts, out, tiny_model, "--batch-size", "1") == 130
    assert pictures(out) == FILES[:2] and index(out) == []
    assert [path.name for path in (out / "leases").iterdir()] == []
    assert run(prompts, out, tiny_model, "--batch-size", "1") == 0
    assert [row["file"] for row in index(out)] == FILES == pictures(out)
    assert "1 pictures made of 3" in capsys.readouterr().out
    assert not list(out.rglob(".*")) and not list(out.rglob("*.part"))


def test_a_killed_run_leaves_a_usable_folder(prompts, tmp_path, tiny_model, capsys):
    """Pictures that are listed by no complete block, and half a line of one that was begun."""
    out = tmp_path / "out"
    run(prompts, out, tiny_model, "--batch-size", "1")
    (block,) = (out / "index").iterdir()
    lines = block.read_text().splitlines()
    block.with_suffix(".part").write_text(lines[0] + "\n" + lines[1][:20])
    block.unlink()
    capsys.readouterr()
    assert run(prompts, out, tiny_model, "--batch-size", "1") == 0
    assert "2 pictures made of 3" in capsys.readouterr().out
    assert [row["file"] for row in index(out)] == FILES


def test_a_long_prompt_is_noted_with_its_line(tmp_path, tiny_model, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na " + "very " * 20 + "long list\n")
    assert run(prompts, tmp_path / "out", tiny_model, "-n", "2") == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert len(notes) == 1
    assert "line 2 is longer than 16 tokens" in notes[0] and "long list" in notes[0]


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (None, [], "there is no file"),
        (b"a cat\n", ["-n", "0"], "-n must be at least 1"),
        (b"a cat\n", ["--batch-size", "0"], "--batch-size must be at least 1"),
        (b"a cat\n", ["--shards", "--parquet"], "give one of them"),
        (b"a cat\n", ["--steps", "0"], "steps"),
        (b"a cat\n", ["--sampler", "euler"], "unknown sampler"),
    ],
)
def test_bad_input_is_one_message(tmp_path, tiny_model, capsys, content, options, said):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    if content is not None:
        prompts.write_bytes(content)
    assert run(prompts, out, tiny_model, *options) == 2
    assert said in capsys.readouterr().err
    assert not pictures(out)


def test_memory_that_runs_out_costs_no_picture(tmp_path, pipeline, monkeypatch):
    """A device that holds two pictures, asked for five at a time."""
    real, sizes = batch.drawn, []

    def small(model, wishes):
        (wish,) = wishes
        sizes.append(len(wish))
        if len(wish) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from real(model, [wish])

    monkeypatch.setattr(batch, "drawn", small)
    drawn = list(batch.draw(pipeline, ["a cat", {"prompt": "a dog", "seed": 9}], n=5, batch_size=5))
    assert [(row["row"], row["k"]) for row in drawn] == [(row, k) for row in (0, 1) for k in range(5)]
    assert sizes == [5, 2, 2, 1, 2, 2, 1]
    monkeypatch.setattr(batch, "drawn", real)
    for row, picture in zip(drawn[:5], pipeline.generate("a cat", n=5), strict=True):
        assert np.abs(np.asarray(row["picture"], dtype=int) - np.asarray(picture, dtype=int)).max() <= 1
    with pytest.raises(RuntimeError, match="something else"):
        monkeypatch.setattr(batch, "drawn", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
        list(batch.draw(pipeline, ["a cat"]))


def test_an_engine_of_somebody_elses_reads_any_number_of_rows(pipeline):
    """They are taken as they are needed."""
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield {"prompt": "a cat", "steps": 1, "mine": 1} if len(taken) == 2 else "a cat"

    rows = batch.draw(pipeline, endless(), batch_size=4, steps=1, prior_steps=1)
    first = next(rows)
    assert first["prompt"] == "a cat" and first["k"] == 0 and first["picture"].size == (64, 64)
    assert len(taken) == batch.BLOCK
    some = [next(rows) for _ in range(batch.BLOCK)]
    assert [row["error"] for row in some if "error" in row] == ["mine: unknown key"]
    with pytest.raises(ValueError, match="steps"):
        next(batch.draw(pipeline, ["a cat"], steps=0))


def test_output_that_is_a_file(prompts, tiny_model, capsys):
    assert run(prompts, prompts, tiny_model) == 2
    assert "cannot be made a folder" in capsys.readouterr().err


def test_an_unknown_device_is_refused_at_once(prompts, tmp_path, tiny_model, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(prompts, tmp_path / "out", tiny_model, "--device", "abacus")
    assert stopped.value.code == 2 and "abacus" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A goldfish!", "a-goldfish"),
        ("../../etc/passwd", "etc-passwd"),
        ("???", "picture"),
        ("un café", "un-café"),
        ("金魚" * 40, "金魚" * 13),
        ("x" * 200, "x" * 80),
    ],
)
def test_file_names(text, name):
    assert words(text) == name


@pytest.mark.bitwise
def test_gallery(prompts, tmp_path, tiny_model, pipeline):
    sheet = tmp_path / "sheet.png"
    command = [str(tiny_model), str(sheet), "-n", "2", "--side", "32", "--seed", "5", "--prompts"]
    assert gallery.main([*command, str(prompts)]) == 0
    from_file = pixels(sheet)
    assert from_file.shape == (3 * 36, 160 + 2 * 36, 3)
    assert gallery.main([*command, "a goldfish", "Cat & dog!", "a goldfish", "--overwrite"]) == 0
    assert (pixels(sheet) == from_file).all()
    second = pipeline.generate("Cat & dog!", n=2, seed=5)[1].resize((32, 32), Image.Resampling.LANCZOS)
    assert abs(from_file[38:70, 196:228] - np.asarray(second)).max() <= 1
    assert (from_file[36:72, :160] < 128).any()  # the caption


def test_captions_wrap_between_words():
    font = gallery.ImageFont.load_default(14)
    lines = gallery.wrapped("a very small red fish in the sea", font, 80)
    assert " ".join(lines) == "a very small red fish in the sea" and len(lines) > 2
    assert all(font.getlength(line) <= 80 for line in lines)


def test_the_benchmark_draws_the_same_pictures_both_ways(pipeline, monkeypatch):
    drawn, real = [], Drawing.decode

    def decode(self, wish):
        drawn.append((wish.texts, list(wish.seeds)))
        return real(self, wish)

    monkeypatch.setattr(Drawing, "decode", decode)
    ((bare, batched),) = overhead(pipeline, 3, 2, rounds=1)
    assert bare > 0 < batched and len(drawn) == 4 and drawn[:2] == drawn[2:]


def test_benchmark_times_every_stage(pipeline):
    times = measure(pipeline, 2, bf16=False, seconds=1e-3)
    assert list(times) == ["text", "prior", "decoder", "upsampler 64"]
    assert all(seconds > 0 for seconds in times.values())
    last = table([("fp32", 2, times), ("bf16", 2, {k: v / 2 for k, v in times.items()})]).splitlines()[-1]
    assert last.startswith("| bf16 | 2 |") and last.endswith("| 2.00x |")


def test_it_is_a_verb_of_the_command(monkeypatch):
    monkeypatch.setattr("unclip.app.batch.main", lambda argv: argv)
    assert unclip.app.command.main(["batch", "lines.txt", "out"]) == ["lines.txt", "out"]

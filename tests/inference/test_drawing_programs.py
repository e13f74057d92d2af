"""How the programs that draw many pictures cut them into calls of a model, which here only takes notes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageFilter
from shards import noise
from tiny_glide import model as glide
from tiny_models import tiny_pipeline

from inference import benchmark, gallery
from inference.measure import parts, resizing
from unclip.app import batch as command
from unclip.batch import draw as batch
from unclip.diffusion.noise import fold
from unclip.options import Options
from unclip.pipeline.request import Wish

GREY = Image.new("RGB", (4, 4), "grey")


class Noted:
    """Notes every call of ``generate``; each picture is of another colour."""

    takes_prompt, name, classes = True, "noted", 3

    def __init__(self) -> None:
        self.calls = []

    def generate(self, prompts=None, **options):
        self.calls.append((prompts, options))
        count = (1 if prompts is None else len(prompts)) * options["n"]
        made = [Image.new("RGB", (4, 4), (len(self.calls), k, 0)) for k in range(count)]
        return made[0] if prompts is None and count == 1 else made


@pytest.mark.parametrize("n, batch_size, cuts", [(2, 4, [2, 1]), (4, 3, [1, 1, 1]), (1, 9, [3])])
def test_the_gallery_asks_for_whole_rows(n, batch_size, cuts):
    made, prompts = Noted(), ["a", "b", "c"]
    rows = gallery.draw(made, prompts, 8, n=n, batch_size=batch_size, seed=5, steps="3")
    assert [len(some) for some, _ in made.calls] == cuts
    assert [prompt for some, _ in made.calls for prompt in some] == prompts
    told = {"n": n, "batch_size": batch_size, "seed": 5, "steps": "3"}
    assert all(options == told for _, options in made.calls)
    assert [len(row) for row in rows] == [n] * 3 and all(p.size == (8, 8) for row in rows for p in row)
    seen = [row[0].getpixel((0, 0))[:2] for row in rows]
    assert seen == [(call + 1, k * n) for call, cut in enumerate(cuts) for k in range(cut)]


@pytest.mark.parametrize("n", [1, 3])
def test_a_row_of_a_class_is_of_that_class_alone(n):
    made = Noted()
    rows = gallery.draw_classes(made, [2, None], 8, n=n, class_=1, seed=5)
    assert made.calls == [(None, {"n": n, "class_": number, "seed": 5}) for number in (2, None)]
    assert [[picture.size for picture in row] for row in rows] == [[(8, 8)] * n] * 2


@pytest.mark.parametrize("side, sharp", [(8, True), (6, False)])
def test_whole_multiples_stay_sharp(side, sharp):
    check = Image.new("RGB", (4, 4))
    check.putpixel((1, 1), (255, 255, 255))
    colours = {colour for _, colour in gallery.resized(check, side).getcolors()}
    assert (len(colours) == 2) == sharp


@pytest.fixture
def wishes(monkeypatch) -> list[Wish]:
    """Every batch that is drawn; each picture is of another colour."""
    asked: list[Wish] = []

    def drawn(pipeline, batches):
        for wish in batches:
            asked.append(wish)
            yield from (Image.new("RGB", (4, 4), (len(asked), k, 0)) for k in range(len(wish)))

    monkeypatch.setattr(batch, "drawn", drawn)
    return asked


@pytest.mark.parametrize("n, batch_size", [(1, 2), (2, 2), (3, 2), (1, 9), (3, 4)])
def test_rows_of_equal_options_share_batches_and_each_picture_is_of_its_row(wishes, n, batch_size):
    given = {"steps": 3, "negative_prompt": "a bus"}
    rows = ["a cat", {"prompt": "a dog"}, {"prompt": "a bird", "steps": 5}, "a car"]
    drawn = list(batch.draw(tiny_pipeline(), rows, n=n, seed=5, batch_size=batch_size, **given))
    pairs = [(text, k) for text in ("a cat", "a dog", "a car") for k in range(n)]
    cut = [pairs[start : start + batch_size] for start in range(0, 3 * n, batch_size)]
    cut += [
        [("a bird", k) for k in range(n)][start : start + batch_size] for start in range(0, n, batch_size)
    ]
    assert [list(zip(wish.texts, wish.seeds, strict=True)) for wish in wishes] == [
        [(text, fold(5, k)) for text, k in some] for some in cut
    ]
    steps = [5 if some[0][0] == "a bird" else 3 for some in cut]
    assert [wish.options for wish in wishes] == [Options(**{**given, "steps": count}) for count in steps]
    order = [(call, at, text, k) for call, some in enumerate(cut, 1) for at, (text, k) in enumerate(some)]
    assert [(*row["picture"].getpixel((0, 0))[:2], row["prompt"], row["k"]) for row in drawn] == order
    number = {"a cat": 0, "a dog": 1, "a bird": 2, "a car": 3}
    assert all(row["row"] == number[row["prompt"]] and row["seed"] == 5 for row in drawn)


@pytest.mark.parametrize(
    "given, said", [({"n": 0}, "n must be at least 1"), ({"batch_size": 0}, "batch_size must be at least 1")]
)
def test_senseless_counts_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        next(batch.draw(tiny_pipeline(), ["a"], **given))


@pytest.mark.parametrize("model, text, cut", [
    (tiny_pipeline, " ".join(["cat"] * 14 + ["dog"]), "16 tokens; this was cut off: 'dog'"),
    (glide, "abc defgh", "6 tokens; this was cut off: 'fgh'"),
])  # fmt: skip
def test_what_is_cut_off_is_noted_with_its_place_once(model, text, cut, tmp_path, monkeypatch, capsys):
    """Of a model with CLIP's tokenizer, and of one with a tokenizer of its own."""
    (tmp_path / "lines.txt").write_text(text)
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: model())
    assert command.main([str(tmp_path / "lines.txt"), str(tmp_path / "out"), "-n", "3"]) == 0
    assert capsys.readouterr().err == f"note: line 1 is longer than {cut}\n"


def test_the_benchmark_works_at_every_stage_as_drawing_does(monkeypatch):
    made, told = tiny_pipeline(), {}

    def decode(self, conditions, noise):
        told[f"stage {self.size}"] = conditions, len(noise)
        return iter([SimpleNamespace(x=torch.zeros(len(noise), *self.shape))])

    monkeypatch.setattr("unclip.stages.Decoder.sample", decode)
    monkeypatch.setattr(
        "unclip.stages.Prior.sample",
        lambda self, conditions, noise: told.update(prior=(conditions, len(noise))),
    )
    works = benchmark.works(made, 3)
    assert list(works) == ["text", "prior", "decoder", "upsampler 64"]
    assert works["text"]().texts == [benchmark.PROMPT] * 3
    for work in works.values():
        work()
    text = made.encode_text([benchmark.PROMPT] * 3)
    assert [count for _, count in told.values()] == [6, 3, 3]  # two candidates a picture
    assert torch.equal(told["prior"][0]["text_embed"], text.repeat(2).clip.embed)
    assert torch.equal(told["stage 16"][0]["text"], text.clip.tokens)
    assert told["stage 16"][0]["has_image"].all()
    assert told["stage 64"][0]["base"].shape == (3, 3, 64, 64) and not told["stage 64"][0]["base"].any()


@pytest.mark.parametrize("bf16", [False, True])
def test_the_benchmark_counts_seconds_a_picture_at_the_precision_asked_for(monkeypatch, bf16):
    asked = []

    class Watch:
        def __init__(self, code, globals, num_threads):
            self.work = globals["work"]

        def blocked_autorange(self, min_run_time):
            asked.append((self.work, min_run_time, torch.is_autocast_enabled("cpu")))
            return SimpleNamespace(median=6.0)

    monkeypatch.setattr(benchmark, "Timer", Watch)
    monkeypatch.setattr(benchmark, "works", lambda pipeline, n: {"decoder": f"{n} pictures"})
    assert benchmark.measure(tiny_pipeline(), 3, bf16, 0.5) == {"decoder": 2.0}
    assert asked == [("3 pictures", 0.5, bf16)]
    said = benchmark.table([("fp32", 1, {"a": 0.3, "b": 0.1}), ("bf16", 4, {"a": 0.1, "b": 0.1})]).split("\n")
    assert said[2:] == [
        "| fp32 | 1 | 300.0 | 100.0 | 400.0 | 1.00x |",
        "| bf16 | 4 | 100.0 | 100.0 | 200.0 | 2.00x |",
    ]


def test_a_blind_sheet_hides_the_words_and_keeps_the_key():
    prompts = [f"a thing of {k}" for k in range(7)]
    rows = [[Image.new("RGB", (2, 2), (k, 0, 0)), Image.new("RGB", (2, 2), "white")] for k in range(7)]
    beside, shown, key = gallery.shuffled(prompts, rows, 3)
    assert beside == ["1 - 3", "4 - 6", "7 - 7"] and [len(row) for row in shown] == [3, 3, 1]
    seen = [picture.getpixel((0, 0))[0] for row in shown for picture in row]
    assert [key[number] for number in range(1, 8)] == [prompts[k] for k in seen]
    assert sorted(seen) == list(range(7)) != seen


def test_the_benchmark_reads_pictures_both_ways_in_turns(tmp_path, monkeypatch, capsys):
    """And says how near they come, in decibels; a whole multiple of boxes of one colour is read exactly."""
    picture = Image.new("RGB", (64, 32), (200, 20, 20))
    picture.save(tmp_path / "plain.jpg", quality=95)
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    turns = []
    ways = [
        lambda data, size, way=way: turns.append(way.__name__) or way(data, size) for way in resizing.BOTH
    ]
    monkeypatch.setattr(resizing, "BOTH", ways)
    assert benchmark.main(["--pictures", str(tmp_path / "plain.jpg"), "--sizes", "8"]) == 0
    assert turns == ["whole", "least"] * 11
    assert capsys.readouterr().out.split("\n")[2] == "| 8 | 1000.00 | 1000.00 | 1.00x | inf |"
    noisy = noise(40, 24).filter(ImageFilter.BoxBlur(1))
    noisy.save(tmp_path / "noise.png")
    assert 40 < resizing.compare([(tmp_path / "noise.png").read_bytes()], 8, turns=1)[3] < 90
    assert benchmark.main(["icons", "--pictures", "x"]) == benchmark.main([]) == 2


def test_parts_are_timed_in_turns_and_both_ways_do_the_same(monkeypatch):
    """The second way is no other work: layouts, norms and linear layers put out what the first does."""
    clock, told = iter([0, 9, 9, 9, *(x for k in range(3) for x in (0, 4 + k, 0, 2))]), []
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    found = parts.in_turns(lambda: told.append("a"), lambda: told.append("b"), turns=3)
    assert found == (5, 2, 2.5) and told == ["a", "b"] * 4
    names = []
    for name, *ways in parts.parts():
        names.append(name.partition(" ")[0])
        if names[-1] != "norm":  # whose gradients test_nets compares
            first, second = (way() for way in ways)
            assert (first - second).abs().max() <= 1e-5 * first.abs().max().clamp_min(1)
    assert names == ["a", *["norm"] * 5, *["linear"] * 5]

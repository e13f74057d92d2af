"""Every number of the table of ``inference.evaluate``, of embeddings made by hand; and how it draws."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from heldout import NAMES, OPTIONS, SAMPLES, Asked
from tiny import randn

from inference import evaluate
from inference.measure import drawn, metrics
from unclip.diffusion.noise import fold
from unclip.pipeline.request import Wish


def unit(n: int, seed: int) -> torch.Tensor:
    return F.normalize(randn(n, 4, seed=seed).double(), dim=1)


class Words:
    """A CLIP that knows captions alone, those of the held-out pictures."""

    identity = "a judge"

    def __init__(self, embed: torch.Tensor) -> None:
        self.embed = embed

    def encode_text(self, captions: list[str]) -> SimpleNamespace:
        return SimpleNamespace(embed=self.embed[[int(caption) for caption in captions]])


@pytest.mark.parametrize("heldout, train", [(9, 14), (14, 9)])
def test_every_number_of_the_table(heldout, train):
    real, made, known, text = unit(heldout, 0), unit(heldout, 1), unit(train, 2), unit(heldout, 3)
    names, learnt = ([NAMES[k % 7] for k in range(n)] for n in (heldout, train))
    shown = drawn.Seen(
        names,
        [str(k) for k in range(heldout)],
        parts={("judge", "real"): [real[:4], real[4:]], ("judge", "made"): [made]},
    )
    train_set = drawn.Seen(learnt, parts={("judge", "real"): [known]})
    found = evaluate.judge("judge", Words(text), shown, train_set, seed=5)
    rows, count = found["rows"], 9
    gallery = metrics.name_means(known, learnt)
    chosen = known[torch.randperm(train, generator=torch.Generator().manual_seed(fold(5)))[:count]]

    def distances(embed: torch.Tensor) -> dict[str, float]:
        return {
            "frechet": pytest.approx(metrics.frechet_distance(real[:count], embed)),
            "kernel": pytest.approx(metrics.kernel_distance(real[:count], embed)),
        }

    def seen(embed: torch.Tensor) -> dict[str, float]:
        ranks = metrics.ranks(embed, names, gallery)
        return {
            "similarity": pytest.approx(torch.linalg.vecdot(embed, text).mean().item()),
            "r1": metrics.recall(ranks, 1),
            "r5": metrics.recall(ranks, 5),
        }

    assert rows["generated"] == {**seen(made), **distances(made[:count])}
    assert rows["real held-out (ceiling)"] == seen(real)
    assert rows["real training (floor)"] == distances(chosen)
    # A picture and the caption of any other, and one name of all.
    assert rows["chance"] == {
        "similarity": pytest.approx((real @ text.T).mean().item()),
        "r1": 1 / 7,
        "r5": 5 / 7,
    }
    assert found["names"] == 7 and found["ranks"] == {
        "made": metrics.ranks(made, names, gallery),
        "real": metrics.ranks(real, names, gallery),
    }
    assert found["r1_of_ceiling"] == seen(made)["r1"] / seen(real)["r1"] and found["clip"] == "a judge"


def test_chance_is_no_more_than_certain():
    real = unit(4, 0)
    shown = drawn.Seen(["a"] * 4, list("0123"), parts={("j", "real"): [real], ("j", "made"): [real]})
    known = drawn.Seen(["a", "b"] * 2, parts={("j", "real"): [real]})
    chance = evaluate.judge("j", Words(real), shown, known)["rows"]["chance"]
    assert (chance["r1"], chance["r5"]) == (0.5, 1.0)


@pytest.mark.parametrize("pictures, embed", [(None, None), ("real", ("seen", "real"))])
def test_all_stages_are_asked_for_the_same_pictures(pictures, embed):
    pipeline = Asked()
    drawn.draw(pipeline, ["a cat"], [7], OPTIONS, pictures, classes="of its own")
    asked = Wish([7], ["a cat"], OPTIONS, "of its own", embed)
    whole = replace(asked, text=("text", ["a cat"]))
    assert pipeline.calls == {"understood": asked, "decoder": whole, "upsampler": whole}


def test_a_model_of_nothing_is_given_no_text():
    pipeline = Asked()
    pipeline.takes_prompt = False
    drawn.draw(pipeline, ["a cat"], [7], OPTIONS)
    assert pipeline.calls["understood"] == Wish([7], None, OPTIONS)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_each_heldout_picture_is_drawn_once_with_a_seed_of_its_own(monkeypatch, decoder_only):
    asked = []

    def draw(pipeline, captions, seeds, options, pictures):
        asked.append((captions, seeds, options, pictures))
        return torch.full((len(seeds), 3, 4, 4), 0.5, dtype=torch.bfloat16)

    monkeypatch.setattr(drawn, "draw", draw)
    monkeypatch.setattr(
        drawn,
        "_pictures",
        lambda samples, device: torch.stack(
            [torch.full((3, 4, 4), float(sample["number"])) for sample in samples]
        ),
    )
    judges = {"j": SimpleNamespace(encode_image=lambda pictures: pictures[:, :, 0, 0])}
    seen = drawn.look_at_heldout(Asked(), judges, SAMPLES, 5, 2, OPTIONS, decoder_only)
    assert [seeds for _, seeds, *_ in asked] == [
        [fold(5, 0), fold(5, 1)],
        [fold(5, 2), fold(5, 3)],
        [fold(5, 4)],
    ]
    assert (
        [caption for captions, *_ in asked for caption in captions]
        == seen.captions
        == [f"{'an' if name in 'ae' else 'a'} {name}, flat style" for name in NAMES[:5]]
    )
    assert all(options is OPTIONS for _, _, options, _ in asked)
    shown = [None if pictures is None else pictures[:, 0, 0, 0].tolist() for *_, pictures in asked]
    assert shown == ([[0, 1], [2, 3], [4]] if decoder_only else [None] * 3)
    assert seen.embed("j", "real")[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert seen.embed("j", "made")[:, 0].tolist() == [0.5] * 5
    assert seen.names == NAMES[:5] and seen.keys == list("01234")


def test_what_is_measured_is_chosen_by_the_seed_and_limit(monkeypatch):
    told, pipeline = {}, Asked()
    pipeline.decoder = SimpleNamespace(takes_image=True)

    def read(shards, shuffle=0, seed=0):
        told.setdefault("read", []).append((shards, shuffle > 0, seed))
        return iter(SAMPLES)

    seen = drawn.Seen(NAMES[:3], ["x"] * 3, list("012"))
    monkeypatch.setattr(evaluate, "read_shards", read)
    monkeypatch.setattr(evaluate, "look_at_heldout", lambda *args: told.update(drawn=args) or seen)
    monkeypatch.setattr(evaluate, "look_at", lambda *args: told.update(known=args) or seen)
    monkeypatch.setattr(
        evaluate,
        "judge",
        lambda *args: (
            told.setdefault("judged", []).append(args)
            or {
                "clip": "c",
                "caution": "few",
                "names": 3,
                "rows": {},
                "r1_of_ceiling": 0.5,
                "ranks": {"made": [1, 2, 3], "real": [0, None, 0]},
            }
        ),
    )
    report = evaluate.evaluate(
        pipeline,
        ["h"],
        ["t"],
        options=OPTIONS,
        judges={"j": "a judge"},
        limit=3,
        seed=5,
        batch_size=2,
        decoder_only=True,
    )
    judges = {"its own CLIP": pipeline.clip, "j": "a judge"}
    assert told["read"][0] == (["h"], True, fold(5)) and told["read"][1][0] == ["t"]
    assert told["drawn"] == (pipeline, judges, SAMPLES[:3], 5, 2, OPTIONS, True)
    assert told["known"][0] == judges and told["known"][2] == pipeline.device
    assert told["judged"] == [(name, clip, seen, seen, 5) for name, clip in judges.items()]
    assert report["pictures"][1] == {
        "key": "1",
        "caption": "x",
        **{f"{kind} rank, {name}": rank for name in judges for kind, rank in (("made", 2), ("real", None))},
    }
    assert (report["heldout"], report["known_names"], report["training"]) == (3, 3, 3)
    assert (
        report["decoder_only"]
        and report["seed"] == 5
        and report["options"] == {"steps": 3, "clip_guidance_scale": 0.0}
    )
    said = evaluate.table(report)
    assert "(decoder alone, from their real embeddings)" in said and "50% by j" in said
    assert said.count("few") == 1
    report["judges"]["j"]["r1_of_ceiling"] = None
    assert "none to speak of by j" in evaluate.table({**report, "decoder_only": False})
    assert "decoder alone" not in evaluate.table({**report, "decoder_only": False})


@pytest.mark.parametrize(
    "takes, decoder_only, said",
    [
        ({"takes_prompt": False}, False, "takes no prompts"),
        ({"takes_image": False}, True, "takes no image embeddings"),
    ],
)
def test_a_model_that_does_not_fit_the_question_is_refused(takes, decoder_only, said):
    pipeline = Asked()
    pipeline.takes_prompt = takes.get("takes_prompt", True)
    pipeline.decoder = SimpleNamespace(takes_image=takes.get("takes_image", True))
    with pytest.raises(ValueError, match=said):
        evaluate.evaluate(pipeline, ["h"], ["t"], options=OPTIONS, decoder_only=decoder_only)


@pytest.mark.parametrize("judges, asked", [({"j": "a judge"}, ["j"]), (None, None)])
def test_a_model_without_a_clip_is_judged_by_others(monkeypatch, judges, asked):
    pipeline, told = Asked(), []
    pipeline.clip = None
    monkeypatch.setattr(evaluate, "read_shards", lambda *_, **__: iter(SAMPLES))
    monkeypatch.setattr(
        evaluate, "look_at_heldout", lambda pipeline, judges, *_: told.append(list(judges)) or drawn.Seen()
    )
    monkeypatch.setattr(evaluate, "look_at", lambda *_: drawn.Seen())
    with pytest.raises(ValueError, match="nothing to compare" if asked else "no CLIP of its own"):
        evaluate.evaluate(pipeline, ["h"], ["t"], options=OPTIONS, judges=judges)
    assert told == ([asked] if asked else [])

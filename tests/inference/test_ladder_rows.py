"""What the ladder asks of every model, and of the pictures that all are held to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from heldout import OPTIONS, SAMPLES, Asked
from tiny import randn

from inference import ladder
from training.icons.captions import styled
from unclip.diffusion.noise import fold
from unclip.options import Options
from unclip.resources.devices import default_device

META = torch.device("meta")  # a device that is not the usual one


def test_the_ladder_draws_the_classes_and_captions_of_the_heldout_pictures_in_turn(monkeypatch):
    monkeypatch.setattr(ladder, "stack", lambda samples, size: samples)
    monkeypatch.setattr(
        ladder,
        "classes_of",
        lambda samples, classes: torch.tensor([sample["record"]["class"] for sample in samples]),
    )
    pipeline, told = Asked(), []
    monkeypatch.setattr(
        ladder,
        "draw",
        lambda pipeline, captions, seeds, options, classes: (
            told.append((captions, seeds, options, classes.tolist())),
            torch.zeros(len(seeds), 3, 4, 4),
        )[1],
    )
    row = ladder.Comparison(SAMPLES, 4, None, None, pipeline.device, n=7, batch_size=4, seed=5)
    assert row.draw(pipeline, OPTIONS).shape == (7, 3, 4, 4)
    captions = [styled(SAMPLES[k % 5]["record"]) for k in range(7)]
    classes, seeds = [k % 5 % 3 for k in range(7)], [fold(5, k) for k in range(7)]
    assert told == [(captions[some], seeds[some], OPTIONS, classes[some]) for some in (slice(4), slice(4, 7))]


def test_the_ladder_measures_likelihood_with_all_that_the_model_reads_captions_with(monkeypatch):
    pipeline, told = Asked(), {}
    pipeline.decoder = SimpleNamespace(
        schedule=SimpleNamespace(name="cosine"), config=SimpleNamespace(sampling=SimpleNamespace(steps=9))
    )
    pipeline.tokenizer = "a tokenizer"
    monkeypatch.setattr(ladder.Entry, "load", lambda self, device: pipeline)
    monkeypatch.setattr(ladder.Comparison, "draw", lambda self, pipeline, options: torch.zeros(7, 3, 4, 4))
    monkeypatch.setattr(ladder.metrics, "frechet_distance", lambda real, made: (real, made.shape))
    monkeypatch.setattr(
        ladder,
        "likelihood",
        lambda stage, samples, **more: told.update(more, stage=stage, samples=samples) or "bits",
    )
    table = ladder.Comparison(
        SAMPLES,
        4,
        "real",
        lambda pictures: pictures[:, :, 0, 0],
        pipeline.device,
        n=7,
        batch_size=4,
        seed=5,
        bits=2,
    )
    found = table.row(ladder.Entry.parse("some"))
    assert found["likelihood"] == "bits" and found["frechet"] == ("real", (7, 3)) and found["steps"] == 9
    assert told == {
        "stage": pipeline.decoder,
        "samples": [SAMPLES[0], SAMPLES[3]],
        "clip": pipeline.clip,
        "tokenizer": "a tokenizer",
        "size": 4,
        "batch_size": 4,
        "seed": 5,
    }
    assert table.row(ladder.Entry.parse("some:steps=3"))["steps"] == 3


class Features(tuple):
    """(judge, device, N) in the place of features [N,4]."""

    shape = property(lambda self: (self[2], 4))


@pytest.mark.parametrize("device", [None, "meta"])
def test_all_rows_are_held_to_the_same_pictures(monkeypatch, device):
    told, where = {}, torch.device(device or default_device())
    pictures = [{"image": SimpleNamespace(size=(6, 4)), "number": k} for k in range(9)]

    def read(shards, shuffle=0, seed=0):
        told[shards] = shuffle > 0, seed
        return iter(pictures[:3] if "heldout" in shards else pictures)

    monkeypatch.setattr(ladder, "expand", lambda paths: paths)
    monkeypatch.setattr(ladder, "read_shards", read)
    monkeypatch.setattr(
        ladder, "judge", lambda source, device: told.update(judge=(source, device)) or "features"
    )
    monkeypatch.setattr(
        ladder,
        "stack",
        lambda samples, size: SimpleNamespace(
            image=torch.tensor([[sample["number"], size] for sample in samples], device="cpu")
        ),
    )
    monkeypatch.setattr(
        ladder, "seen", lambda features, pictures: Features((features, pictures.device, len(pictures)))
    )
    monkeypatch.setattr(ladder.metrics, "frechet_distance", lambda real, known: (real, known))
    monkeypatch.setattr(ladder.Comparison, "row", lambda self, entry: (self, entry))
    report = ladder.measure(
        Path("data"), ["one", "two"], "j", n=5, batch_size=6, seed=7, device=device, bits=2
    )
    assert told == {
        "data/heldout-*.tar": (False, 0),
        "data/train-*.tar": (True, fold(7)),
        "judge": ("j", where),
    }
    real, known = ("features", where, 3), ("features", where, 5)
    common = ladder.Comparison(pictures[:3], 4, real, "features", where, 5, 6, 7, 2)
    assert report["rows"] == [(common, "one"), (common, "two")] and report["floor"] == (real, known)
    assert (report["n"], report["heldout"], report["judge"], report["seed"]) == (5, 3, "j", 7)
    assert report["caution"].startswith("A Fréchet distance of 3 pictures in 4 dimensions")
    assert report["where"] == f"{where}, {torch.get_num_threads()} threads, 6 at a time"


def test_a_model_and_its_classifier_are_loaded_where_all_are(monkeypatch):
    told = []
    pipeline = SimpleNamespace(device=META, guide_with=told.append)
    monkeypatch.setattr(ladder, "load", lambda model, device: told.append((model, device)) or pipeline)
    monkeypatch.setattr(ladder, "load_classifier", lambda path, device: ("led", path, device))
    assert ladder.Entry("one", Options(), "c").load("meta") is pipeline
    assert told == [("one", "meta"), ("led", "c", META)]
    assert ladder.Entry("one", Options()).load(None) is pipeline and told[2:] == [("one", None)]


def test_the_judge_is_a_classifier_where_there_is_one_and_else_a_clip(monkeypatch, tmp_path):
    small = SimpleNamespace(
        config=SimpleNamespace(net=SimpleNamespace(image_size=2)),
        features=lambda pictures: ("of", pictures.shape),
    )
    asked = []
    monkeypatch.setattr(ladder, "load_classifier", lambda path, device: asked.append((path, device)) or small)
    monkeypatch.setattr(ladder, "load_clip", lambda *given: SimpleNamespace(encode_image=given))
    assert ladder.judge(str(tmp_path), META) == (str(tmp_path), META)
    assert ladder.judge("c.safetensors", META)(torch.zeros(1, 3, 4, 4)) == ("of", (1, 3, 2, 2))
    (tmp_path / "classifier.safetensors").touch()
    assert ladder.judge(str(tmp_path), META)(torch.zeros(1, 3, 4, 4)) == ("of", (1, 3, 2, 2))
    assert asked == [(Path("c.safetensors"), META), (tmp_path, META)]


def test_features_are_seen_in_parts_and_kept_in_float64():
    parts, shown = [], randn(5, 3, 2, 2)
    found = ladder.seen(lambda part: parts.append(len(part)) or part.flatten(1), shown, 2)
    assert parts == [2, 2, 1] and found.dtype == torch.float64
    assert torch.equal(found, shown.flatten(1).double())

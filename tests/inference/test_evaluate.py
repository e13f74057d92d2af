"""The measurements, against known answers, and the program that takes them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from PIL import Image
from shards import encoded
from tiny_models import tiny_clip

import unclip
from inference import evaluate
from inference.measure import drawn, metrics
from unclip.clip import save_clip
from unclip.data.reading import read_shards
from unclip.data.writing import ShardWriter
from unclip.options import Options
from unclip.pipeline.pipeline import Pipeline

pytestmark = pytest.mark.usefixtures("float32")
NAMES = ["red-apple", "tropical-fish", "cat", "dog", "rocket", "pizza"]
CEILING, FLOOR = "real held-out (ceiling)", "real training (floor)"
FAMILIES = {"flat": "flat", "noto": "noto", "glass": "glass icons"}


def gaussian(n: int, mean: torch.Tensor, cov: torch.Tensor, seed: int) -> torch.Tensor:
    """[n,D] whose sample mean and covariance are exactly those."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False)
    return (torch.linalg.cholesky(cov) @ white).T + mean


def covariance(seed: int, d: int = 5) -> torch.Tensor:
    x = torch.randn(d, 2 * d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.T / d


def sphere(n: int, d: int, seed: int, pull: float = 0.0) -> torch.Tensor:
    """Random unit vectors; ``pull`` draws them towards the first axis."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:, 0] += pull
    return F.normalize(x, dim=1)


def test_frechet_distance_of_known_gaussians():
    mean, cov, other = torch.arange(5).double(), covariance(0), covariance(1)
    a, b = gaussian(200, mean, cov, 2), gaussian(150, mean + 0.5, other, 3)
    root = scipy.linalg.sqrtm((cov @ other).numpy()).real
    expected = 5 * 0.25 + float(cov.trace() + other.trace()) - 2 * np.trace(root)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_independent_coordinates():
    """(m - m')^2 + (s - s')^2, summed over coordinates."""
    a = gaussian(100, torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()), 0)
    b = gaussian(100, torch.ones(3).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()), 1)
    assert metrics.frechet_distance(a, b) == pytest.approx(3 + 1 + 0 + 4, rel=1e-6)


def test_kernel_distance_is_unbiased():
    """Around zero for two samples of one distribution, of either sign; clear for two."""
    same = [metrics.kernel_distance(sphere(100, 8, k), sphere(100, 8, 100 + k)) for k in range(30)]
    assert min(same) < 0 < max(same)
    assert abs(np.mean(same)) < 3 * np.std(same) / 30**0.5
    assert metrics.kernel_distance(sphere(100, 8, 0), sphere(100, 8, 1, pull=1.5)) > 5 * max(same)


def test_kernel_distance_by_hand():
    a, b = sphere(7, 4, 0), sphere(7, 4, 1)

    def kernel(x, y):
        return float((x @ y + 1) ** 3)

    within = sum(kernel(s[i], s[j]) for s in (a, b) for i in range(7) for j in range(7) if i != j) / 42
    across = sum(kernel(x, y) for x in a for y in b) / 49
    assert metrics.kernel_distance(a, b) == pytest.approx(within - 2 * across, rel=1e-9)
    with pytest.raises(ValueError, match="one size"):
        metrics.kernel_distance(a, b[:5])


def test_retrieval_on_known_embeddings():
    means = metrics.name_means(
        torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0.0]]), ["a", "b", "b", "c"]
    )
    assert list(means) == ["a", "b", "c"]
    assert means["b"].tolist() == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    queries = F.normalize(torch.tensor([[1.0, 0.1, 0], [0.9, 0.5, 0.1], [0, 1, 0.1], [0, 0, 1]]), dim=1)
    ranks = metrics.ranks(queries, ["a", "b", "b", "unknown"], means)
    assert ranks == [0, 2, 1, None]
    assert metrics.recall(ranks, 1) == pytest.approx(1 / 3)
    assert metrics.recall(ranks, 2) == pytest.approx(2 / 3)
    assert np.isnan(metrics.recall([None], 1))


def test_without_torchmetrics_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(ValueError, match=r"unclip\[evaluate\]"):
        metrics.check_installed()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Names in three families, of which the last is held out; and a name that is nowhere else."""
    folder, rng = tmp_path_factory.mktemp("shards"), np.random.default_rng(0)
    base = {name: rng.integers(0, 256, (4, 4, 4)) for name in [*NAMES, "unicorn"]}
    with ShardWriter(folder, "train") as train, ShardWriter(folder, "heldout") as heldout:
        for name, colours in base.items():
            for family, style in FAMILIES.items():
                if name == "unicorn" and family != "glass":
                    continue
                noisy = np.clip(colours + rng.normal(0, 20, colours.shape), 0, 255).astype(np.uint8)
                image = encoded(Image.fromarray(noisy, "RGBA").resize((24, 24), 0), "WEBP", lossless=True)
                record = {"name": name, "family": family, "style": style}
                (heldout if family == "glass" else train).write(
                    f"{family}--{name}",
                    {"webp": image, "txt": name.encode(), "json": json.dumps(record).encode()},
                )
        with ShardWriter(folder, "other") as other:
            other.write("flat--sun", {"webp": image, "txt": b"sun", "json": b'{"name": "sun"}'})
        other.paths[0].rename(folder / "other.tar")
    return folder


@pytest.fixture(scope="module")
def pipeline(tiny_model: Path) -> Pipeline:
    return unclip.load(tiny_model, "cpu")


def measured(pipeline: Pipeline, shards: Path, **options: object) -> dict:
    heldout, train = evaluate.shard_sets(str(shards), None)
    return evaluate.evaluate(pipeline, heldout, train, **{"options": Options(), **options})


def test_report_of_a_model(pipeline, shards):
    report = measured(pipeline, shards, judges={"another": tiny_clip(1)}, batch_size=4)
    assert (report["heldout"], report["known_names"], report["training"]) == (7, 6, 12)
    assert list(report["judges"]) == ["its own CLIP", "another"]
    for found in report["judges"].values():
        assert found["names"] == 6
        rows = found["rows"]
        assert list(rows) == ["generated", CEILING, FLOOR, "chance"]
        assert rows["generated"]["frechet"] > rows[FLOOR]["frechet"] > 0
        assert rows["chance"]["r1"] == pytest.approx(1 / 6)
        assert rows[CEILING]["r1"] > 0.5  # the families are alike
    caption = {one["key"]: one["caption"] for one in report["pictures"]}
    assert caption["glass--tropical-fish"] == "a tropical fish, glass style"
    unknown = next(one for one in report["pictures"] if one["key"] == "glass--unicorn")
    assert unknown["real rank, another"] is None
    json.dumps(report)


def test_a_perfect_model_reaches_the_ceiling(pipeline, shards, monkeypatch):
    monkeypatch.setattr(drawn, "draw", lambda pipeline, captions, seeds, options, pictures: pictures)
    report = measured(pipeline, shards, decoder_only=True)
    found = report["judges"]["its own CLIP"]
    rows = found["rows"]
    assert found["r1_of_ceiling"] == 1
    assert rows["generated"]["frechet"] == pytest.approx(0, abs=1e-5)
    assert {key: rows["generated"][key] for key in rows[CEILING]} == rows[CEILING]


def test_decoder_alone_goes_round_the_prior(pipeline, shards, monkeypatch):
    whole = measured(pipeline, shards)
    monkeypatch.setattr(pipeline, "sample_prior", None)
    alone = measured(pipeline, shards, decoder_only=True)
    assert alone["decoder_only"] and alone["judges"] != whole["judges"]


def test_repeatable_and_limited(pipeline, shards):
    report = measured(pipeline, shards, limit=3)
    assert report["heldout"] == 3
    again = measured(pipeline, shards, limit=3)
    assert report["judges"] == again["judges"] and report["pictures"] == again["pictures"]
    other = measured(pipeline, shards, limit=3, options=Options(guidance_scale=8.0))
    assert other["judges"] != report["judges"] and other["options"]["guidance_scale"] == 8.0


def test_batches_do_not_matter(pipeline):
    captions, seeds = ["a cat, flat style", "a tropical fish", "a dog"], [5, 6, 7]
    whole = drawn.draw(pipeline, captions, seeds, Options())
    one = drawn.draw(pipeline, captions[1:2], seeds[1:2], Options())
    assert whole.shape == (3, 3, 64, 64)
    assert (whole[1] - one[0]).abs().max() < 1e-3


def test_command(pipeline, tiny_model, shards, tmp_path, capsys):
    save_clip(tiny_clip(1), tmp_path / "judge")
    command = [
        str(tiny_model),
        str(shards / "heldout-*.tar"),
        "--device",
        "cpu",
        "--train-shards",
        str(shards / "train-*.tar"),
        "--judge",
        str(tmp_path / "judge"),
        "--json",
        str(tmp_path / "report.json"),
        "--limit",
        "4",
        "--steps",
        "1",
    ]
    assert evaluate.main(command) == 0
    shown = capsys.readouterr().out
    assert shown.count("|---|") == 1 and "judge | generated | " in shown and "chance" in shown
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["options"]["steps"] == 1 and evaluate.table(report) == shown.rstrip("\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["{shards}/heldout-000000.tar"], "--train-shards"),
        (["{shards}/nothing-*.tar", "--train-shards", "{shards}/train-000000.tar"], "nothing-"),
        (["{shards}", "--judge", "{shards}"], "holds no CLIP"),
        (["{shards}", "--json", "{shards}/no/where.json"], "cannot be written"),
        (["{shards}", "--train-shards", "{shards}/other.tar"], "no picture of any held-out name"),
        (["{shards}", "--batch-size", "0"], "--batch-size"),
        (["{shards}", "--limit", "1"], "at least 2"),
        (["{shards}", "--negative-prompt", "a cat"], "negative"),
        (["{shards}", "--prior-steps", "0"], "prior_steps"),
    ],
)
def test_bad_input_is_one_message(pipeline, tiny_model, shards, monkeypatch, capsys, options, said):
    monkeypatch.setattr("unclip.app.cli.load", lambda *_: pipeline)
    assert evaluate.main([str(tiny_model), *(text.format(shards=shards) for text in options)]) == 2
    assert said in capsys.readouterr().err


def test_transparency_is_white(shards):
    sample = next(iter(read_shards([str(shards / "heldout-000000.tar")])))
    sample["image"] = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (drawn._pictures([sample], torch.device("cpu")) == 1).all()


@pytest.mark.attack
def test_a_distance_of_too_few_pictures_says_that_it_means_nothing(pipeline, shards):
    report = measured(pipeline, shards, limit=2)
    said = "A Fréchet distance of 2 pictures in 16 dimensions means nothing by itself"
    assert all(found["caution"].startswith(said) for found in report["judges"].values())
    assert evaluate.table(report).count(said) == 1
    assert metrics.caution(16, 16) and not metrics.caution(17, 16)
    enough = {**report, "judges": {"one": {**report["judges"]["its own CLIP"], "caution": ""}}}
    assert "means nothing" not in evaluate.table(enough)

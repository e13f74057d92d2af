"""What the ladder's page is made with: sheets of classes, the denoiser's answers, and the table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import pixels
from PIL import Image
from shards import encoded
from tiny import NET, awake, decoder

import unclip
import unclip.app.command
from inference import denoising, gallery, ladder
from inference.measure import metrics
from unclip.config import ConfigError
from unclip.data.batches import stack
from unclip.data.reading import read_shards
from unclip.data.writing import ShardWriter
from unclip.diffusion import Noise, make_schedule
from unclip.guides.classifier import Classifier, ClassifierStageConfig
from unclip.options import Options
from unclip.pipeline.request import Wish
from unclip.stages import Process, Sampling

pytestmark = pytest.mark.usefixtures("float32")
FEW = Sampling(sampler="ddim", steps=3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs: a decoder of nothing, one of classes, a classifier; and shards of classes."""
    folder = tmp_path_factory.mktemp("runs")
    for name, net, schedule in (
        ("plain", {}, "cosine"),
        ("classes", {"classes": 3}, "cosine"),
        ("flow", {}, "flow"),
    ):
        process = Process(predicts="x0", timesteps=20, schedule=schedule)
        decoder(net=net, process=process, sampling=FEW).save(folder / name / "decoder.safetensors")
    for name, net in (("guide", NET), ("judge", {**NET, "channels": 8})):
        config = ClassifierStageConfig(net={**net, "classes": 3}, timesteps=20)
        classifier = Classifier(config)
        classifier.embed_mean = ()  # as for a stage without embeddings
        awake(classifier).save(folder / name / "classifier.safetensors")
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("heldout", 8)):
        with ShardWriter(folder / "shards", split) as writer:
            for number in range(count):
                image = encoded(Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)))
                record = json.dumps({"class": number % 3, "name": str(number % 3)}).encode()
                writer.write(f"{split}{number}", {"png": image, "txt": b"a", "json": record})
    return folder


def test_a_row_for_each_class_with_the_same_noise(runs, tmp_path):
    sheet = tmp_path / "sheet.png"
    command = [str(runs / "classes"), str(sheet), "-n", "4", "--side", "16", "--overwrite", "--classes"]
    assert gallery.main([*command, "all"]) == 0
    every = pixels(sheet)
    assert every.shape == (3 * 20, 24 + 4 * 20, 3)
    assert gallery.main([*command, "2", "0"]) == 0
    two = pixels(sheet)
    assert (two[2:18, 24:] == every[42:58, 24:]).all() and (two[22:38, 24:] == every[2:18, 24:]).all()
    assert (two[2:18, 24:] != two[22:38, 24:]).any()
    picture = every[2:18, 24:40]
    assert (picture[::2, ::2] == picture[1::2, 1::2]).all()  # pixels stay sharp


def test_a_model_of_nothing_fills_rows(runs, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    command = [str(runs / "plain"), str(sheet), "-n", "5", "--overwrite", "--columns", "3", "--side", "8"]
    assert gallery.main(command) == 0
    assert pixels(sheet).shape == (2 * 12, 3 * 12, 3)
    assert gallery.main([*command, "--classes", "1"]) == 2
    assert "takes no class" in capsys.readouterr().err
    plain = pixels(sheet)
    guided = [*command, "--class", "1", "--classifier", str(runs / "guide"), "--classifier-scale"]
    assert gallery.main([*guided, "0"]) == 0 and (pixels(sheet) == plain).all()
    assert gallery.main([*guided, "50"]) == 0 and (pixels(sheet) != plain).any()
    assert gallery.main([*command[:-4], "--columns", "0"]) == 2


def test_a_model_of_text_wants_prompts(tiny_model, tmp_path, capsys):
    assert gallery.main([str(tiny_model), str(tmp_path / "sheet.png")]) == 2
    assert "say them with --prompts" in capsys.readouterr().err


def test_the_denoiser_is_asked_at_even_levels():
    """An exact answer: of x0 itself, whatever the noise."""
    process = Process(predicts="x0", schedule="flow", timesteps=10)
    stage, x0 = decoder(net={}, process=process), torch.rand(2, 3, 8, 8)
    stage.denoiser = lambda x, t, **_: pytest.fail() if (t == 0).any() else Answer(x0)
    steps = denoising.look(stage, x0, stage.conditions(2), 6, Noise([0, 1]))
    assert [step.t for step in steps] == [0, 2, 4, 6, 8, 10]
    noise = Noise([0, 1])((3, 8, 8))
    for step in steps:
        level = make_schedule("flow", 10).at(step.t)
        torch.testing.assert_close(step.x, (level.alpha * x0 + level.sigma * noise).float())
        torch.testing.assert_close(step.x0, x0)


class Answer:
    """A prediction that is always right."""

    eps, frac = torch.zeros(2, 3, 8, 8), 0.0

    def __init__(self, x0: torch.Tensor) -> None:
        self.x0 = x0


def test_the_figure_of_a_denoiser(runs, tmp_path, capsys):
    out = tmp_path / "figure.png"
    command = [str(runs / "classes"), str(runs / "shards"), str(out)]
    assert denoising.main([*command, "-n", "2", "--columns", "5"]) == 0
    figure = pixels(out)
    assert figure.shape == (4 * 66 - 2, 5 * 66 - 2, 3)
    assert (figure[:64, :64] == figure[66:130, :64]).all()  # clean
    command.append("--overwrite")
    for options, said in (["-n", "0"], "-n must be"), (["--columns", "1"], "--columns at least 2"):
        assert denoising.main([*command, *options]) == 2 and said in capsys.readouterr().err


def test_entries_of_the_table():
    entry = ladder.Entry.parse("runs/a:guidance_scale=3:steps=10,10,3,2,2:classifier=runs/b")
    assert (entry.model, entry.classifier, entry.plain) == ("runs/a", "runs/b", False)
    assert entry.options == Options(guidance_scale=3, steps="10,10,3,2,2")
    assert ladder.Entry.parse("runs/a").plain
    with pytest.raises(ConfigError, match="guidance: unknown key"):
        ladder.Entry.parse("runs/a:guidance=3")


def test_the_table(runs, tmp_path, capsys):
    models = [
        f"{runs}/{text}"
        for text in (
            "plain",
            "classes",
            "classes:guidance_scale=3",
            f"plain:classifier={runs}/guide:classifier_scale=2",
            "flow",
        )
    ]
    command = [str(runs / "shards"), *models, "--judge", f"{runs}/judge", "--json", str(tmp_path / "a.json")]
    assert ladder.main([*command, "-n", "12", "--batch-size", "5", "--device", "cpu"]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    rows = report["rows"]
    assert [("likelihood" in row) for row in rows] == [True, True, False, False, False]
    assert rows[0]["likelihood"]["pictures"] == 8 and rows[1]["likelihood"]["given"] == ["class"]
    assert len({row["frechet"] for row in rows}) == 5
    shown = capsys.readouterr().out.splitlines()
    assert shown[3].startswith("| classes | 3 | ")
    assert shown[4].startswith("| classes, guidance_scale 3.0 | 3 |  |")
    assert shown[5].startswith("| plain, classifier_scale 2.0, classifier guide | 3 |  |")
    assert f"| real training pictures | | | {report['floor']:.3f} | |" in shown
    assert ladder.main([*command, "-n", "21"]) == 2
    assert "at least 2 and 21" in capsys.readouterr().err


def test_the_distance_is_of_the_judges_features(runs):
    """Of the held-out pictures to themselves it is nothing; the classes drawn are theirs, in turn."""
    samples = list(read_shards(str(runs / "shards" / "heldout-*.tar")))
    features = ladder.judge(str(runs / "judge"), torch.device("cpu"))
    pictures = stack(samples, 8).image
    found = ladder.seen(features, pictures, 3)
    assert found.shape == (8, 8) and found.dtype == torch.float64
    assert torch.allclose(found, features(pictures).double(), atol=1e-5)
    turned = ladder.seen(features, pictures.flip(0))
    assert metrics.frechet_distance(found, turned) == pytest.approx(0, abs=1e-5)
    entry = ladder.Entry.parse(f"{runs}/classes")
    pipeline = entry.load("cpu")
    same = ladder.Comparison(samples, 8, found, features, torch.device("cpu"), 10, 4, 0)
    assert same.some() == samples and len(replace(same, bits=3).some()) == 3
    assert "likelihood" not in replace(same, bits=0).row(entry)
    drawn = same.draw(pipeline, entry.options)
    seeds = [ladder.fold(0, k) for k in range(10)]
    alone = pipeline.decode(Wish(seeds[9:], classes=torch.tensor([samples[1]["record"]["class"]])))
    torch.testing.assert_close(drawn[9:], alone, atol=1e-4, rtol=1e-4)


def test_the_command_draws_a_class(runs, tmp_path, capsys):
    out = tmp_path / "a.png"
    command = ["--model", str(runs / "classes"), "-o", str(out), "--overwrite"]
    assert unclip.app.command.main([*command, "--class", "1"]) == 0
    drawn = unclip.load(runs / "classes", "cpu").generate(class_=1)
    assert (pixels(out) == np.asarray(drawn)).all()
    guided = ["--class", "1", "--classifier", str(runs / "guide"), "--classifier-scale", "40"]
    assert unclip.app.command.main([*command, *guided]) == 0
    assert (pixels(out) != np.asarray(drawn)).any()
    for wrong, said in (
        (["--class", "3"], "are 0 to 2, not 3"),
        (["--classifier-scale", "1"], "needs a classifier"),
        (["--classifier", str(runs / "plain")], "no checkpoint at"),
    ):
        assert unclip.app.command.main([*command, *wrong]) == 2
        assert said in capsys.readouterr().err

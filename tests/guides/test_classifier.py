"""The classifier of noised pictures: its loss, its gradient, and how it guides a decoder."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import forget, metrics
from shards import encoded
from tiny import CLASSIFIER, NET, classifier, decoder, randn

from training import classifier as program
from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError
from unclip.data.writing import ShardWriter
from unclip.diffusion.denoiser import Prediction
from unclip.diffusion.gaussian import diffuse
from unclip.diffusion.guidance import gradient
from unclip.diffusion.noise import Noise
from unclip.guides.classifier import Classifier, ClassifierStageConfig, load_classifier
from unclip.pipeline.pipeline import Pipeline
from unclip.pipeline.request import Wish


def test_cross_entropy_and_accuracy_of_noised_pictures():
    made, x0, noise = classifier(), randn(4, 3, 8, 8), randn(4, 3, 8, 8, seed=1)
    t, classes = torch.tensor([1, 300, 700, 1000]), torch.tensor([0, 1, 2, 0])
    terms = made(x0, t, noise, {"classes": classes})
    p = made.network(diffuse(x0, noise, made.schedule.at(t)), t - 1.0).softmax(1)
    torch.testing.assert_close(terms["cross_entropy"], -p[range(4), classes].log())
    assert torch.equal(terms["loss"], terms["cross_entropy"])
    assert terms["accuracy"].tolist() == (p.argmax(1) == classes).float().tolist()


def test_the_gradient_is_that_of_log_p():
    """Against finite differences along the gradient, where the slope is its length."""
    made, x, t = classifier(), randn(2, 3, 8, 8), torch.tensor([20, 500])
    classes = torch.tensor([2, 0])

    def log_p(x: torch.Tensor) -> torch.Tensor:
        return made.logits(x, t).log_softmax(1)[range(2), classes]

    got = made.climb(classes, scale=1.5)(x, t, x)
    length = got.flatten(1).norm(dim=1)
    way = got / length.view(-1, 1, 1, 1)
    slope = (log_p(x + 0.02 * way) - log_p(x - 0.02 * way)) / 0.04
    torch.testing.assert_close(length, 1.5 * slope, rtol=1e-2, atol=0)


def test_guidance_moves_pictures_towards_the_class():
    """One guided prediction of a denoiser that knows nothing, in place of many steps."""
    made, x, t = classifier(), randn(8, 3, 8, 8), torch.full((8,), 500)

    def blank(x: torch.Tensor, t: torch.Tensor) -> Prediction:
        return Prediction.from_x0(x, torch.zeros_like(x), made.schedule.at(t))

    for k in range(3):
        classes = torch.full((8,), k)
        guided = gradient(blank, made.schedule, made.climb(classes, 0.1))
        moved = guided(x, t).x0 - blank(x, t).x0
        p = [made.logits(x + share * moved, t).softmax(1)[:, k] for share in (0, 1)]
        assert (p[1] > p[0]).all()


@pytest.mark.bitwise
def test_it_is_saved_and_loaded_whole(tmp_path):
    made = classifier()
    made.save(tmp_path / "classifier.safetensors", pictures_seen=7)
    for path in (tmp_path, tmp_path / "classifier.safetensors"):
        again = load_classifier(path)
        x, t = randn(2, 3, 8, 8), torch.tensor([1, 900])
        assert torch.equal(again.logits(x, t), made.logits(x, t)) and again.facts["pictures_seen"] == 7
    decoder(net={}).save(tmp_path / "decoder.safetensors")
    with pytest.raises(CheckpointError, match="holds a decoder, not a classifier"):
        load_classifier(tmp_path / "decoder.safetensors")


@pytest.mark.bitwise
@pytest.mark.parametrize("net", [{}, {"classes": 3}])
def test_a_class_is_asked_for_in_a_pipeline(net):
    """The gradient leads an unconditional decoder; a conditional one it leads further."""
    made = Pipeline(decoder(net=net))
    without = [made.generate(class_=k, seed=1).tobytes() for k in range(3)] if net else None
    if not net:
        with pytest.raises(ValueError, match="takes no class"):
            made.generate(class_=1)
    with pytest.raises(ValueError, match="classifier_scale needs a classifier"):
        made.generate(classifier_scale=2)
    assert made.guide_with(classifier()) is made and made.classes == 3
    guided = [made.generate(class_=k, seed=1, classifier_scale=30).tobytes() for k in range(3)]
    assert len(set(guided)) == 3
    off = [made.generate(class_=k, seed=1, classifier_scale=0).tobytes() for k in range(3)]
    assert off == (without or [made.generate(seed=1).tobytes()] * 3) and not set(off) & set(guided)
    one = made.generate(class_=2, seed=1, n=3, classifier_scale=30)
    levels = [np.frombuffer(picture, np.uint8).astype(int) for picture in (one[0].tobytes(), guided[2])]
    assert abs(levels[0] - levels[1]).max() <= 1  # the same alone and in a batch, but for rounding
    mixed = made.decode(Wish([1, 2], classes=torch.tensor([0, 2])))
    alone = made.decode(Wish([2], classes=torch.tensor([2])))
    torch.testing.assert_close(mixed[1:], alone, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="classes of .* are 0 to 2, not 3"):
        made.generate(class_=3)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"net": {**NET, "classes": 3, "image_size": 16}}, "image_size is 16, the decoder's 8"),
        ({**CLASSIFIER, "schedule": "linear"}, "schedule is linear, the decoder's cosine"),
        ({**CLASSIFIER, "timesteps": 10}, "timesteps is 10, the decoder's 1000"),
        ({"net": {**NET, "classes": 4}}, "classes is 4, the decoder's 3"),
    ],
)
def test_a_classifier_of_other_pictures_is_refused(given, said):
    with pytest.raises(CheckpointError, match=said):
        Pipeline(decoder(net={"classes": 3})).guide_with(Classifier(ClassifierStageConfig(**given)))


def test_the_sampler_gets_the_scaled_gradient():
    """The step that a decoder takes is that of the wrapped score."""
    stage, made = decoder(net={}), classifier()
    conditions, classes = stage.conditions(2), torch.tensor([0, 1])
    x, t = randn(2, 3, 8, 8), torch.tensor([400, 400])
    plain = stage.denoise(conditions, conditions, 1.0, threshold="none")(x, t)
    climb = made.climb(classes, 2.0)
    guided = stage.denoise(conditions, conditions, 1.0, threshold="none", climb=climb)(x, t)
    push = climb(x, t, x)
    torch.testing.assert_close(guided.eps, plain.eps - made.schedule.at(400).sigma.float() * push)
    clamped = stage.denoise(conditions, conditions, 1.0, climb=made.climb(classes, 1e3))(x, t)
    assert clamped.x0.abs().max() <= 1
    steps = list(stage.sample(conditions, Noise([0, 1]), climb=made.climb(classes)))
    assert steps[-1].x.isfinite().all()


@pytest.fixture
def shards(tmp_path: Path) -> dict[str, str]:
    """Bright pictures are of class 1, dark ones of class 0."""
    with ShardWriter(tmp_path, "bright") as writer:
        for number in range(32):
            image = encoded(Image.new("L", (8, 8), 230 * (number % 2) + number % 5))
            record = json.dumps({"class": number % 2}).encode()
            writer.write(str(number), {"png": image, "txt": b"a", "json": record})
    return {"shards": [str(writer.paths[0])], "heldout": [str(writer.paths[0])]}


def recipe(tmp_path: Path, shards: dict, **data: object) -> str:
    train = {
        "out": str(tmp_path / "run"),
        "pictures": 960,
        "batch_size": 16,
        "precision": "fp32",
        "warmup": 0,
        "learning_rate": 3e-3,
        "log_every": 800,
        "ema_half_life": 100,
    }
    made = {
        "data": {**shards, "size": 8, "hold": True, **data},
        "train": train,
        "stage": {**CLASSIFIER, "net": {**NET, "classes": 2}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(made))
    return str(tmp_path / "recipe.yaml")


def test_the_program_trains_it_and_says_how_noise_hides_the_class(shards, tmp_path):
    forget()
    program.main([recipe(tmp_path, shards)])
    forget()
    last = metrics(tmp_path / "run")[-1]
    entropy = [last[f"validation/cross_entropy/quartile{q}"] for q in range(4)]
    assert last["validation/accuracy/quartile0"] > 0.95 and entropy[0] < entropy[3] / 2
    assert last["validation/cross_entropy"] == pytest.approx(sum(entropy) / 4)
    assert last["validation/cross_entropy"] < math.log(2)
    found = load_classifier(tmp_path / "run")
    pictures = torch.stack([torch.full((3, 8, 8), -0.9), torch.full((3, 8, 8), 0.9)])
    assert found.logits(pictures, torch.tensor([1, 1])).argmax(1).tolist() == [0, 1]
    assert not list((tmp_path / "run").glob("samples/*"))


@pytest.mark.parametrize(
    "data, said",
    [
        ({"size": 4}, "pictures of 4 pixels are smaller than the classifier's 8"),
        ({"kind": "icons"}, "takes classes, which composed icons have not"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, said, shards, tmp_path):
    forget()
    with pytest.raises(ConfigError, match=said):
        program.main([recipe(tmp_path, shards, **data)])
    forget()

"""The recipes in ``configs``: each loads, builds its network, and says how it is used."""

from __future__ import annotations

import itertools
import json
import re
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch
from PIL import Image
from places import ROOT
from runs import forget
from safetensors.torch import load_file
from shards import encoded

from training import classifier, decoder, prior, upsampler
from training.clip import __main__, trainer
from training.clip.recipe import ClipRecipe
from training.cost.blank import batch_of, loss_of, stage_of
from training.cost.clip import blank_of, contrast_of
from training.recipes import RECIPES, Chain, recipe_of
from training.run.ema import EMA
from training.run.settings import Training
from training.tasks import pictures
from training.tasks.pictures import PictureTask
from training.tasks.prior import PriorTask
from unclip.checkpoint import read_header
from unclip.clip import build_clip, load_clip, save_clip
from unclip.config import Config, load_config
from unclip.data.writing import ShardWriter
from unclip.nets.classifier import NoisedClassifier
from unclip.nets.prior import PriorTransformer
from unclip.resources.weightless import parameters, weightless
from unclip.stages import Decoder

CLASSES = {**RECIPES, "chain": Chain, "classifier": classifier.ClassifierRecipe}
COMMAND = re.compile(r"(?:python|accelerate launch) -m training\.(\w+) (configs/\S+\.yaml)")
FILES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))


def command_of(file: str) -> re.Match:
    """The command in the comment that a recipe opens with."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    found = COMMAND.search("\n".join(comment))
    assert found, f"{file} does not open with its command"
    return found


def read(file: str) -> Config:
    return load_config(CLASSES[command_of(file)[1]], ROOT / file)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_says_how_it_is_used_and_what_it_costs(file):
    assert command_of(file)[2] == file


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_builds_its_network(file):
    recipe = read(file)
    if isinstance(recipe, Chain):
        assert recipe.stages and all(recipe_of(link) for link in recipe.stages)
        return
    with weightless():
        if isinstance(recipe, ClipRecipe):
            trainer.model_of(recipe)
        elif isinstance(recipe, prior.PriorRecipe):
            PriorTransformer(recipe.stage.net)
        elif isinstance(recipe, classifier.ClassifierRecipe):
            assert recipe.data.size >= NoisedClassifier(recipe.stage.net).config.image_size
        else:
            Decoder(recipe.stage)
    if isinstance(recipe, pictures.PictureRecipe):
        net, process = recipe.stage.net, recipe.stage.process
        assert net.in_channels == (6 if recipe.stage.low_res else 3)
        assert net.out_channels == (6 if process.variance == "learned" else 3)
        assert bool(recipe.stage.low_res) == (command_of(file)[1] == "upsampler")
        text = net.text_dim is not None
        asks = net.image_embed_dim is not None or text and not recipe.stage.text
        assert (recipe.clip is not None) == asks
        assert (recipe.tokenizer is not None) == (recipe.stage.text is not None)
        assert recipe.data.size >= net.image_size


@pytest.mark.parametrize("file", [file for file in FILES if command_of(file)[1] == "chain"])
def test_the_stages_of_a_chain_fit_together(file):
    chain, size, width = read(file), None, None
    trained = chain.clip  # or made by a stage, below
    if chain.clip is not None:
        width = load_clip(chain.clip).embed_dim
    made = [(link.program, recipe_of(link)) for link in chain.stages]
    folders = [recipe.out if program == "clip" else recipe.train.out for program, recipe in made]
    assert len(set(folders)) == len(folders), "two stages share a folder"
    for program, recipe in made:
        if program == "clip":
            width, trained = recipe.model["embed_dim"], recipe.out
            continue
        net = recipe.stage.net
        assert recipe.clip in (None, trained), f"{program} learns from another CLIP"
        if program == "prior":
            assert net.embed_dim == width
            continue
        assert net.image_embed_dim in (None, width)
        if program == "upsampler":
            assert recipe.stage.low_res.size == size
        size = net.image_size


SHORT = {
    "clip": __main__.main,
    "prior": prior.main,
    "classifier": classifier.main,
    "decoder": decoder.main,
    "upsampler": upsampler.main,
}


@pytest.mark.parametrize("file", [file for file in FILES if command_of(file)[1] in SHORT])
def test_a_dry_run_prints_a_recipe_that_reads_back_the_same(file, tmp_path, capsys, monkeypatch):
    program = command_of(file)[1]
    key, value = ("images.batch_size", 96) if program == "clip" else ("train.batch_size", 96)
    monkeypatch.chdir(tmp_path)
    path, change = str(ROOT / file), f"{key}={value}"
    orders = [[path, change, "--dry-run"], ["--dry-run", path, change], [path, "--dry-run", change]]
    for argv in orders[: 3 if file == "configs/icons/prior.yaml" else 1]:
        SHORT[program](argv)
        (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
        again = load_config(CLASSES[program], tmp_path / "again.yaml")
        assert again == load_config(CLASSES[program], path, [change])
        assert again != load_config(CLASSES[program], path)
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"]  # nothing is made


# Two steps of every recipe: by its program if its network is small, on the meta device if it is large.
LARGE = 30e6  # parameters
TRAINED = [file for file in FILES if command_of(file)[1] in SHORT]


def size_of(file: str) -> int:
    """Parameters of what a recipe trains."""
    recipe = read(file)
    with weightless():
        return parameters(trainer.model_of(recipe) if command_of(file)[1] == "clip" else stage_of(recipe))


SMALL = [file for file in TRAINED if size_of(file) < LARGE]


DRAWINGS = {  # of every category and style that a recipe emphasises
    "fish": ("animals and nature", "animal marine", "flat"),
    "tropical fish": ("animals and nature", "animal marine", "gradient"),
    "blowfish": ("food and drink", "food marine", "old noto"),
    "shark": ("symbols", "other symbol", "firefox"),
    "cat": ("smileys and emotion", "cat face", "flat"),
    "dog": ("people and body", "person role", "flat"),
    "clock": ("travel and places", "time", "flat"),
    "house": ("objects", "household", "flat"),
    "white flag": ("flags", "flag", "flat"),
    "ball": ("activities", "sport", "flat"),
}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A shard of a few pictures, "few-000000.tar", and an untrained CLIP for the icons, "clip"."""
    folder = tmp_path_factory.mktemp("material")
    with ShardWriter(folder, "few") as writer:
        for number, (name, marks) in enumerate(DRAWINGS.items()):
            picture = Image.effect_noise((64, 64), 60 + number).convert("RGBA")
            picture.putalpha(Image.radial_gradient("L").resize((64, 64)))
            kind = dict(zip(("category", "subcategory", "style"), marks, strict=True))
            record = json.dumps({"name": name, "caption": name, "class": number, **kind})
            writer.write(
                f"{number:03d}", {"png": encoded(picture), "txt": name.encode(), "json": record.encode()}
            )
    torch.manual_seed(0)
    save_clip(build_clip(read("configs/icons/clip.yaml").model), folder / "clip")
    return folder


def table(parts, cache, device) -> torch.Tensor:
    """In the place of the teacher's vectors, which take a minute."""
    return torch.randn(sum(map(len, parts)), 384, generator=torch.Generator().manual_seed(0)).half()


@pytest.mark.parametrize("file", SMALL)
def test_two_steps(file, tmp_path, material, monkeypatch):
    """As shipped, but for the data, how long, and the pictures that it draws of its progress."""
    program, recipe = command_of(file)[1], read(file)
    monkeypatch.setattr(trainer, "teacher_table", table)
    monkeypatch.setattr(trainer, "vocabulary_of", lambda *_: ["puppy", "a puppy"])
    monkeypatch.setattr(
        PictureTask, "_measure_embeddings", partialmethod(PictureTask._measure_embeddings, batches=1, n=4)
    )
    monkeypatch.setattr(PictureTask, "draw", lambda *_: None)
    monkeypatch.setattr(PriorTask, "draw", lambda *_: None)
    change = [f"data.shards=[{material}/few-*.tar]", "data.heldout=[]"]
    change += ["data.only=[fish]"] if recipe.data.only else []
    change += [f"data.pool={{folder: {tmp_path}/pool, scenes: 8}}"] if recipe.data.pool else []
    if program == "clip":
        change += [f"out={tmp_path}", f"cache={tmp_path}", "images.samples=4", "images.batch_size=2"]
        change += ["distinct=8"] if recipe.distinct else []
        change += ["texts.samples=4", "texts.batch_size=2"] if recipe.texts else []
    else:
        change += [
            f"train.out={tmp_path}",
            "train.pictures=4",
            "train.batch_size=2",
            "train.accumulate=1",
            "train.compile=false",
        ]  # which takes a minute
        change += [f"clip={material / 'clip'}"] if getattr(recipe, "clip", None) else []
        change += ["embeddings=8"] if program == "prior" and not recipe.data.pool else []
    forget()
    SHORT[program]([file, *change])
    left = {"clip": "open_clip_model", "prior": "prior", "classifier": "classifier"}.get(program, "decoder")
    tensors = load_file(tmp_path / f"{left}.safetensors")
    assert all(value.isfinite().all() for value in tensors.values())
    if program != "clip":
        assert read_header(tmp_path / f"{left}.safetensors")["pictures_seen"] == 4


@pytest.mark.parametrize("file", [file for file in TRAINED if file not in SMALL])
def test_two_steps_at_full_size(file):
    """On the meta device: every weight has a gradient of its shape, and Adam and the average take it."""
    recipe = read(file)
    with weightless():
        if isinstance(recipe, ClipRecipe):
            module, loss = contrast_of(recipe, blank_of(recipe))
            settings, loss = recipe.images, partial(loss, 1, 1)
        else:
            module, settings = stage_of(recipe), recipe.train
            loss = partial(loss_of, module, batch_of(recipe, module, 1))
    if isinstance(settings, Training):
        average = EMA(module, settings.ema_half_life)
    adam = torch.optim.AdamW(module.parameters(), settings.learning_rate, eps=settings.eps, foreach=True)
    with torch.device("meta"):
        for step in range(2):
            loss().backward()
            left_out = {name for name, weight in module.named_parameters() if weight.grad is None}
            assert left_out <= {"network.null_text", "network.null_image"}  # this batch has everything
            adam.step()
            adam.zero_grad()
            if isinstance(settings, Training):
                average.update(module, settings.batch_size, step * settings.batch_size)
    assert len(adam.state) == len(list(module.parameters())) - len(left_out)


def test_help_shows_the_commands(capsys):
    with pytest.raises(SystemExit) as stopped:
        prior.main(["--help"])
    assert stopped.value.code == 0
    assert "python -m training.prior configs/icons/prior.yaml" in capsys.readouterr().out


PAGE = (ROOT / "docs" / "ladder.md").read_text(encoding="utf-8")
RUNGS = [file for file in FILES if file.startswith("configs/ladder/")]


def test_the_ladder_page_speaks_of_every_rung():
    """But for those that a chain names."""
    chains = [read(file) for file in RUNGS if command_of(file)[1] == "chain"]
    chained = {link.config for chain in chains for link in chain.stages}
    assert len(RUNGS) >= 10
    assert all(file in PAGE or file in chained or Path(file).name in PAGE for file in RUNGS)


def test_the_ladder_page_points_to_what_there_is():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGE)
    assert len(links) > 20 and all((ROOT / "docs" / link).exists() for link in links)
    modules = set(re.findall(r"python -m ([\w.]+)", PAGE))
    files = [ROOT / module.replace(".", "/") for module in modules]
    assert all(file.with_suffix(".py").exists() or (file / "__main__.py").exists() for file in files)
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("unclip", "training")
        for path in (ROOT / folder).rglob("*.py")
    )
    for name in re.findall(r"`([A-Za-z_]+\.)?(\w+)`", PAGE):
        assert re.search(rf"(def|class|\s)\s*{name[1]}\b", code), name

"""The recipes in ``configs``: each loads, builds its network, and says how it is used."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import torch

from training import classifier, clip, pictures, prior
from training.chain import RECIPES, Chain, recipe_of
from unclip.clip import build_clip
from unclip.config import Config, load_config
from unclip.nets.classifier import NoisedClassifier
from unclip.nets.prior import PriorTransformer
from unclip.nets.unet import UNet

ROOT = Path(__file__).parent.parent
CLASSES = {**RECIPES, "chain": Chain, "classifier": classifier.ClassifierRecipe}
COMMAND = re.compile(r"python -m training\.(\w+) (configs/\S+\.yaml)")
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
    with torch.device("meta"):
        if isinstance(recipe, clip.ClipRecipe):
            build_clip(recipe.model)
        elif isinstance(recipe, prior.PriorRecipe):
            PriorTransformer(recipe.stage.net)
        elif isinstance(recipe, classifier.ClassifierRecipe):
            assert recipe.data.size >= NoisedClassifier(recipe.stage.net).config.image_size
        else:
            UNet(recipe.stage.net)
    if isinstance(recipe, pictures.PictureRecipe):
        net, process = recipe.stage.net, recipe.stage.process
        assert net.in_channels == (6 if recipe.stage.low_res else 3)
        assert net.out_channels == (6 if process.variance == "learned" else 3)
        assert bool(recipe.stage.low_res) == (command_of(file)[1] == "upsampler")
        assert (recipe.clip is not None) == (net.image_embed_dim is not None or net.text_dim is not None)
        assert recipe.data.size >= net.image_size


@pytest.mark.parametrize("file", [file for file in FILES if command_of(file)[1] == "chain"])
def test_the_stages_of_a_chain_fit_together(file):
    chain, size, width = read(file), None, None
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


SHORT = {"clip": clip.main, "prior": prior.main, "classifier": classifier.main,
         "decoder": lambda argv: pictures.main("", False, argv),
         "upsampler": lambda argv: pictures.main("", True, argv)}


@pytest.mark.parametrize("file", [file for file in FILES if command_of(file)[1] in SHORT])
def test_a_dry_run_prints_a_recipe_that_reads_back_the_same(file, tmp_path, capsys, monkeypatch):
    program = command_of(file)[1]
    key, value = ("images.batch_size", 96) if program == "clip" else ("train.batch_size", 96)
    monkeypatch.chdir(tmp_path)
    path, change = str(ROOT / file), f"{key}={value}"
    for argv in ([path, change, "--dry-run"], ["--dry-run", path, change], [path, "--dry-run", change]):
        SHORT[program](argv)
        (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
        again = load_config(CLASSES[program], tmp_path / "again.yaml")
        assert again == load_config(CLASSES[program], path, [change])
        assert again != load_config(CLASSES[program], path)
    assert [path.name for path in tmp_path.iterdir()] == ["again.yaml"]  # nothing is made


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
    assert len(RUNGS) > 10
    assert all(file in PAGE or file in chained or Path(file).name in PAGE for file in RUNGS)


def test_the_ladder_page_points_to_what_there_is():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", PAGE)
    assert len(links) > 20 and all((ROOT / "docs" / link).exists() for link in links)
    modules = set(re.findall(r"python -m ([\w.]+)", PAGE))
    files = [ROOT / module.replace(".", "/") for module in modules]
    assert all(file.with_suffix(".py").exists() or (file / "__main__.py").exists() for file in files)
    code = "".join(path.read_text(encoding="utf-8") for folder in ("unclip", "training")
                   for path in (ROOT / folder).rglob("*.py"))
    for name in re.findall(r"`([A-Za-z_]+\.)?(\w+)`", PAGE):
        assert re.search(rf"(def|class|\s)\s*{name[1]}\b", code), name

"""The command that trains and assembles a whole model."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from places import HELDOUT, ROOT
from processes import Processes

from training import chain
from unclip import load
from unclip.config import ConfigError, load_config
from unclip.stages import ARPrior

CLIP = """
out: {run}/clip
model:
  embed_dim: 16
  vision_cfg: {{image_size: 16, patch_size: 8, width: 16, layers: 1, head_width: 8}}
  text_cfg: {{context_length: 16, width: 16, layers: 1, heads: 2}}
data: {{kind: icons, shards: [{shards}], size: 16}}
distinct: 16
images: {{samples: 16, batch_size: 8}}
"""
STAGE = """
clip: {run}/clip
data: {{kind: icons, shards: [{shards}], size: {size}}}
stage:
  process: {{predicts: v}}
  sampling: {{steps: 1}}
  {extra}
  net: {{image_size: {size}, in_channels: {channels}, channels: 8, channel_mult: [1], num_res_blocks: 1,
        middle_attention: false{net}}}
train: {{out: {run}/{name}, pictures: 8, batch_size: 4}}
"""
PRIOR = """
clip: {run}/clip
data: {{kind: icons, shards: [{shards}], size: 16}}
embeddings: 16
stage:
  sampling: {{steps: 1}}
  net: {{embed_dim: 16, text_dim: 16, text_length: 16, width: 16, layers: 1, heads: 2}}
train: {{out: {run}/prior, pictures: 8, batch_size: 4}}
"""


PRIOR_AR = PRIOR.replace("sampling: {{steps: 1}}", "kind: prior-ar").replace(
    "heads: 2", "heads: 2, components: 3"
)


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """A chain of four tiny recipes on the test shard."""
    facts = {"run": tmp_path / "runs", "shards": HELDOUT}
    texts = {
        "clip": CLIP.format(**facts),
        "prior": PRIOR.format(**facts),
        "decoder": STAGE.format(
            **facts, name="decoder", size=8, channels=3, extra="drop_image: 0.5", net=", image_embed_dim: 16"
        ),
        "upsampler": STAGE.format(
            **facts, name="upsampler", size=16, channels=6, extra="low_res: {size: 8}", net=""
        ),
    }
    stages = []
    for program, text in texts.items():
        path = tmp_path / f"{program}.yaml"
        path.write_text(text)
        stages.append({"program": program, "config": str(path)})
    whole = {"name": "tiny", "out": str(tmp_path / "model"), "stages": stages}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path


def test_a_chain_trains_every_stage_once_and_its_model_draws(recipes, monkeypatch):
    config = recipes / "chain.yaml"
    chain.main([str(config)])
    picture = load(recipes / "model").generate("a fish")
    assert picture.size == (16, 16)

    def nothing_to_do(command, **_):
        raise AssertionError(f"a finished stage was trained again: {command}")

    monkeypatch.setattr(chain.subprocess, "Popen", nothing_to_do)
    chain.main([str(config)])


def test_a_chain_takes_a_prior_of_either_kind(recipes):
    facts = {"run": recipes / "runs", "shards": HELDOUT}
    (recipes / "prior.yaml").write_text(PRIOR_AR.format(**facts))
    chain.main([str(recipes / "chain.yaml")])
    model = load(recipes / "model")
    assert isinstance(model.prior, ARPrior) and model.prior.facts["pictures_seen"] == 8
    assert model.generate("a fish").size == (16, 16)


def test_a_chain_changes_its_recipes_and_passes_that_on(recipes, monkeypatch):
    """What ``set`` says holds for the program that trains, and for what the chain reads of its recipe."""
    made, asked = yaml.safe_load((recipes / "chain.yaml").read_text()), []
    made["stages"] = [{**made["stages"][2], "set": ["train.pictures=16", f"train.out={recipes}/longer"]}]
    (recipes / "chain.yaml").write_text(yaml.safe_dump(made))
    monkeypatch.setattr(chain.subprocess, "Popen", lambda command: asked.append(command) or Done())
    with pytest.raises(ConfigError, match="decoder.yaml is not finished"):
        chain.main([str(recipes / "chain.yaml")])
    assert asked[0][2:] == [
        "training.decoder",
        str(recipes / "decoder.yaml"),
        "train.pictures=16",
        f"train.out={recipes}/longer",
    ]
    link = load_config(chain.Chain, recipes / "chain.yaml").stages[0]
    assert chain.checkpoint_of(link) == recipes / "longer" / "decoder.safetensors"
    assert chain.recipe_of(link).train.pictures == 16
    made["stages"][0]["set"] = ["train.colour=red"]
    (recipes / "chain.yaml").write_text(yaml.safe_dump(made))
    with pytest.raises(ConfigError, match="train.colour: unknown key"):
        chain.main([str(recipes / "chain.yaml")])
    assert len(asked) == 1


class Done:
    """A program that has ended."""

    def wait(self) -> int:
        return 0


def test_a_stage_that_is_not_trained_is_named(recipes):
    with pytest.raises(ValueError, match="clip|checkpoint"):
        chain.main([str(recipes / "chain.yaml"), "--assemble"])


def test_a_mistake_in_the_last_recipe_is_found_before_the_first_is_trained(recipes, monkeypatch):
    with open(recipes / "upsampler.yaml", "a") as file:
        file.write("colour: red\n")
    monkeypatch.setattr(chain.subprocess, "Popen", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ConfigError, match="colour: unknown key"):
        chain.main([str(recipes / "chain.yaml")])


def test_the_shipped_chain_names_recipes_that_load(monkeypatch):
    monkeypatch.chdir(ROOT)
    made = load_config(chain.Chain, "configs/icons/chain.yaml")
    assert [link.program for link in made.stages] == ["clip", "prior", "decoder", "upsampler"]
    for link in made.stages:
        chain.recipe_of(link)


def passed_on(folder: Path, answer: str) -> None:
    """A chain whose one program waits for a signal, and then ends as ``answer`` says."""
    program = folder / "program.py"
    program.write_text(
        "import signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({answer}))\n"
        f"open({str(folder / 'waits')!r}, 'w').close()\n"
        "time.sleep(300)\n"
    )
    chain.sys = SimpleNamespace(executable=sys.executable)
    real = chain._run
    chain._run = lambda command: real([command[0], str(program)])
    (folder / "code").write_text(str(chain.main([str(folder / "chain.yaml")])))


def test_a_chain_that_is_told_to_end_tells_its_program_and_ends_as_that_does(recipes):
    process = Processes(recipes / "log", 1, passed_on, recipes, "75")
    while not (recipes / "waits").exists():
        assert process.all[0].is_alive(), process.log()
        time.sleep(0.05)
    process.kill(signal.SIGTERM)
    process.succeed()
    assert (recipes / "code").read_text() == "75"


@pytest.mark.parametrize("code", [75, 130])
def test_a_program_that_is_to_go_on_ends_the_chain_with_its_code(code, recipes, monkeypatch):
    asked = []
    monkeypatch.setattr(chain, "_run", lambda command: asked.append(command) or code)
    assert chain.main([str(recipes / "chain.yaml")]) == code and len(asked) == 1


@pytest.mark.attack
@pytest.mark.parametrize("text, said", [
    ("out: file\nstages: [{program: decoder, config: r.yaml}]",
     "'file' cannot be made a folder: File exists"),
    ("out: b\nstages: []", "a model needs a decoder"),
    ("out: b\nstages: [{program: decoder, config: r.yaml}, {program: decoder, config: r.yaml}]",
     "a model has one decoder, not 2"),
    ("out: b\nclip: c\nstages: [{program: clip, config: c.yaml}, {program: decoder, config: r.yaml}]",
     "a model has one clip, not 2"),
])  # fmt: skip
def test_what_makes_no_model_is_said_before_anything_is_trained(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(chain, "_run", lambda _: pytest.fail("something was trained"))
    monkeypatch.setattr(chain, "recipe_of", lambda _: None)
    monkeypatch.setattr(chain, "check_downloads", lambda _: None)
    Path("file").write_text("")
    Path("chain.yaml").write_text(f"name: a\n{text}\n")
    with pytest.raises(ValueError, match=said):
        chain.main(["chain.yaml"])

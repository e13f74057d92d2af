"""A run that begins with another's weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import DIM, decoder, prior, upsampler

from training import decoder as decoder_program
from training import prior as prior_program
from training.tasks import start
from training.tasks.start import begin
from unclip.config import ConfigError
from unclip.stages import Decoder, Prior, load_stage


def test_a_stage_begins_with_the_weights_of_a_checkpoint(tmp_path):
    made = decoder()
    made.save(tmp_path / "one.safetensors")
    new = Decoder(made.config)
    before = {key: value.clone() for key, value in new.state_dict().items()}
    begin(new, None)
    assert all(torch.equal(value, before[key]) for key, value in new.state_dict().items())
    begin(new, str(tmp_path / "one.safetensors"))
    for key, value in new.state_dict().items():
        assert torch.equal(value, made.state_dict()[key])
    assert any(weight.requires_grad for weight in new.parameters()) and new.training
    other = Decoder(made.config.model_copy(update={"drop_image": 0.9, "embed_noise": 0.5}))
    begin(other, str(tmp_path / "one.safetensors"))  # how it is trained and sampled may change


def test_other_networks_and_kinds_are_refused(tmp_path):
    for name, stage in (("decoder", decoder()), ("prior", prior()), ("upsampler", upsampler())):
        stage.save(tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match="holds a decoder, not a prior"):
        begin(Prior(prior().config), str(tmp_path / "decoder.safetensors"))
    with pytest.raises(ConfigError, match="another network than the recipe's: .*net.image_size 64 -> 8"):
        begin(Decoder(decoder().config), str(tmp_path / "upsampler.safetensors"))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        begin(Decoder(decoder().config), str(tmp_path / "missing.safetensors"))


SEES = {"image_embed_dim": DIM, "image_tokens": 2, "context_channels": 8}
READS = {**SEES, "text_dim": 5, "text_embed_dim": DIM}


@torch.no_grad()
def test_a_decoder_that_was_told_no_text_may_learn_to_read(tmp_path):
    """What it knew is taken over, and what reads is new; nothing else may differ."""
    old = decoder(net={"image_embed_dim": DIM})
    old.save(tmp_path / "one.safetensors")
    new = Decoder(decoder(net={**READS, "image_tokens": 0}).config)
    fresh = {name: value.clone() for name, value in new.state_dict().items()}
    begin(new, str(tmp_path / "one.safetensors"))
    known = old.state_dict()
    for name, value in new.state_dict().items():
        assert torch.equal(value, known[name] if name in known else fresh[name]), name
    assert any("text" in name for name in set(fresh) - set(known))
    with pytest.raises(ConfigError, match="net.classes None -> 3"):  # text and nothing else
        begin(Decoder(decoder(net={**READS, "classes": 3}).config), str(tmp_path / "one.safetensors"))
    # One that has tokens already, or reads, is not turned into another.
    for net, tokens, words in ((SEES, 2, "net.text_dim None -> 5"), (READS, 3, "net.image_tokens 2 -> 3")):
        decoder(net=net).save(tmp_path / "two.safetensors")
        with pytest.raises(ConfigError, match=f"another network than the recipe's: .*{words}"):
            begin(
                Decoder(decoder(net={**READS, "image_tokens": tokens}).config),
                str(tmp_path / "two.safetensors"),
            )


@pytest.mark.parametrize(("program", "stage"), [(decoder_program, decoder), (prior_program, prior)])
def test_programs_begin_with_it(program, stage, tmp_path, monkeypatch):
    """What is handed to the loop has the weights of the recipe's ``start``."""
    made, handed = stage(), []
    made.save(tmp_path / "start.safetensors")
    monkeypatch.setattr(start, "train", lambda stage, *_: handed.append(stage))
    for task in ("PictureTask", "PriorTask"):
        if hasattr(program, task):
            monkeypatch.setattr(program, task, lambda *_: type("Task", (), {"tokenizer": None}))
    path = tmp_path / "recipe.json"
    path.write_text(_recipe(made, tmp_path))
    argv = [str(path), f"start={tmp_path}/start.safetensors"]
    program.main(argv)
    started = load_stage(tmp_path / "start.safetensors")
    assert torch.equal(next(handed[0].parameters()), next(started.parameters()))


def _recipe(stage: Decoder | Prior, folder: Path) -> str:
    return json.dumps(
        {
            "stage": stage.config.model_dump(mode="json"),
            "data": {"shards": ["none.tar"], "size": 8},
            "train": {"out": str(folder / "run"), "pictures": 8, "trackers": []},
        }
    )

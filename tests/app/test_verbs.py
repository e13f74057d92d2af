"""Verbs of the command: one entry each, for a method of the pipeline."""

from __future__ import annotations

import pytest
from PIL import Image

from unclip.app import command, verbs
from unclip.pipeline.pipeline import Pipeline


@pytest.fixture
def turn(monkeypatch):
    """A verb that turns a picture by so many degrees; what its method was called with."""
    calls = []

    def method(self: Pipeline, picture: Image.Image, *, angle: float, seed: int, progress: object, **options):
        calls.append((self.name, angle, seed, options))
        return [picture.rotate(angle)]

    monkeypatch.setattr(Pipeline, "turn", method, raising=False)
    angle = {"type": float, "default": 90.0, "help": "degrees"}
    monkeypatch.setitem(
        verbs.VERBS, "turn", verbs.Verb("Turns.", {"picture": verbs.PICTURE}, {"angle": angle})
    )
    return calls


def test_a_new_verb_is_one_entry(turn, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture = Image.new("RGB", (8, 8), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    picture.save("dot.png")
    model = ["--model", str(tiny_model), "--device", "cpu"]
    assert command.main(["turn", "dot.png", "--angle", "180", "--seed", "3", "--steps", "2", *model]) == 0
    assert capsys.readouterr().out.startswith("dot-turn.png  (model ")
    assert Image.open("dot-turn.png").getpixel((7, 7)) == (255, 0, 0)
    ((name, angle, seed, options),) = turn
    assert (name, angle, seed) == ("tiny", 180.0, 3) and options["steps"] == "2"
    assert command.main(["turn", "no.png", *model]) == 2 and len(turn) == 1  # said before the model is loaded
    assert "no.png" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        command.main(["turn", "--help"])
    assert ended.value.code == 0 and "--angle" in capsys.readouterr().out


@pytest.mark.parametrize("verb", verbs.VERBS)
def test_each_verb_is_a_method(verb):
    assert callable(getattr(Pipeline, verb))

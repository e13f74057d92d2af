"""How runs of `training.clip` start, stop, go on and share their work, and what their models are good for."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clip_runs import MODEL, NOISED, state, train
from processes import Processes
from runs import equal, forget, saved

from training.clip import phase as clip_phase
from training.clip import trainer as program
from training.clip.__main__ import main
from training.clip.batches import ContrastBatches
from training.clip.pool import build_pool
from training.clip.recipe import ClipRecipe
from training.data.source import Source
from training.run.guard import NotFinite
from unclip.config import ConfigError, load_config
from unclip.guides.noised_clip import load_noised_clip


class Interrupted:
    """Sends this process a signal after some steps."""

    def __init__(self, monkeypatch, steps, what=lambda: os.kill(os.getpid(), signal.SIGTERM)):
        before = clip_phase.PhaseRun._optimise

        def step(run, *args):
            if run.step == steps:
                what()
            return before(run, *args)

        monkeypatch.setattr(clip_phase.PhaseRun, "_optimise", step)


@pytest.mark.bitwise
@pytest.mark.parametrize("what", [f"model: {MODEL}", f"noised: {NOISED}"], ids=["clip", "noised"])
def test_a_run_that_was_stopped_equals_one_that_was_not(recipe, tmp_path, what, capsys):
    train(recipe("whole", what))
    with pytest.MonkeyPatch.context() as patch:
        Interrupted(patch, 3)
        train(recipe("parted", what))
    assert "stopped after 32 samples" in capsys.readouterr().out and state(tmp_path / "parted")["step"] == 4
    train(recipe("parted", what))
    assert "going on from 32 samples" in capsys.readouterr().out
    assert equal(state(tmp_path / "whole"), state(tmp_path / "parted"))
    assert (tmp_path / "whole/metrics.json").read_text() == (tmp_path / "parted/metrics.json").read_text()


@pytest.mark.bitwise
def test_a_crash_and_a_damaged_save_cost_no_more_than_the_samples_since(recipe, tmp_path, capsys):
    def crash():
        raise MemoryError

    train(recipe("whole"))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        Interrupted(patch, 7, crash)
        train(recipe("crashed"))
    assert state(tmp_path / "crashed")["step"] == 6
    last = tmp_path / "crashed/images/state/phase.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    train(recipe("crashed"))
    said = capsys.readouterr().out
    assert "is damaged (the content of phase.pt has changed)" in said and "going on from 32 samples" in said
    assert equal(state(tmp_path / "whole"), state(tmp_path / "crashed"))


def test_where_no_save_is_whole_all_processes_say_so(recipe, tmp_path):
    """None waits for ever for one that has ended."""
    path = recipe("run")
    train(path, "images.samples=16")
    for file in (tmp_path / "run" / "images").glob("state*/phase.pt"):
        file.write_bytes(b"damaged")
    run = Processes(tmp_path / "log", 2, train, path)
    assert run.wait() == [1, 1]
    for rank in (0, 1):
        assert "CheckpointError" in run.log(rank) and "no save is left to go on from" in run.log(rank)


@pytest.mark.bitwise
def test_checkpointing_changes_nothing_but_memory(recipe, tmp_path):
    for name, how in (("kept", "false"), ("again", "true")):
        train(recipe(name), "images.samples=16", f"checkpointing={how}")
    assert equal(state(tmp_path / "kept"), state(tmp_path / "again"))


def test_what_changed_is_said_or_refused(recipe, tmp_path, capsys):
    path = recipe("run")
    train(path, "images.samples=16")
    train(path, "images.samples=24", "images.learning_rate=0.001")
    assert "images.learning_rate: 0.003 -> 0.001" in capsys.readouterr().out
    assert state(tmp_path / "run")["step"] == 3
    for change, said in (("model.embed_dim=16", "embed_dim: 8 -> 16"), ("images.batch_size=4", "8 -> 4")):
        with pytest.raises(ConfigError, match=said):
            train(path, change)


@pytest.mark.bitwise
def test_a_loss_that_is_no_number_is_left_out_until_it_is_too_often(recipe, tmp_path, monkeypatch, capsys):
    """The weights stay those of the last sound step."""
    path, forward = recipe("run"), program.ClipContrast.forward
    train(path, "images.samples=16")
    sound = state(tmp_path / "run")
    monkeypatch.setattr(program.ClipContrast, "forward", lambda *args: forward(*args) * float("nan"))
    with pytest.raises(NotFinite, match="in 3 steps in a row the loss was not finite"):
        train(path, "images.max_skipped=3")
    after = state(tmp_path / "run")
    assert equal(sound["module"], after["module"]) and after["step"] == 2
    said = capsys.readouterr().err
    assert said.count("left out the step to ") == 3 and said.count("loss nan") == 3 * 8
    lines = (tmp_path / "run" / "images" / "skipped.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["samples"]) for line in lines] == [8] * 3


def losses(out: Path, phase: str) -> list[float]:
    """Of every tenth step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "curves"))
    events.Reload()
    return [event.value for event in events.Scalars(f"{phase}/loss")]


def taught(*argv: str) -> None:
    """Trains; a teacher, if the recipe has one, has a random direction for every word."""

    def table(parts: tuple, *_: object) -> torch.Tensor:
        g = torch.Generator()
        rows = [
            sum(torch.randn(24, generator=g.manual_seed(sum(map(ord, word)))) for word in text.split())
            for part in parts
            for text in part
        ]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1).half()

    program.teacher_table, program.vocabulary_of = table, lambda *_: ["puppy", "a puppy", "goldfish"]
    train(*argv)


TEACHER = """distinct: 24\nteacher: {vocabulary: 3, hidden: 4}
texts: {samples: 88, batch_size: 8, learning_rate: 0.003, warmup: 0, eps: 0.001}"""


@pytest.mark.parametrize("more", ["", TEACHER], ids=["captions", "teacher"])
def test_two_processes_learn_as_one_does(more, recipe, tmp_path):
    """A picture is told from the captions of both, and a text from the goals of both, so that losses and
    weights are those of one process.
    """
    # Adam divides by the gradient's size: with its usual eps, rounding moves weights whose gradient is zero.
    how = [
        recipe("run", f"model: {MODEL.replace('0.25', '0.0')}\n{more}"),
        "images.samples=88",
        "images.eps=0.001",
    ]
    for n, name in ((1, "one"), (2, "two")):
        Processes(tmp_path / f"log-{name}", n, taught, *how, f"out={tmp_path / name}").succeed()
    for phase in ("images", "texts") if more else ("images",):
        one, two = (losses(tmp_path / name, phase) for name in ("one", "two"))
        assert one == pytest.approx(two, abs=1e-5) and len(one) == 2 and one[1] < one[0]
        single, both = (saved(tmp_path / name / phase, "phase.pt")["module"] for name in ("one", "two"))
        assert all(torch.allclose(single[name], both[name], atol=1e-5) for name in single)


@pytest.mark.parametrize("what", ["", "distinct: 20"], ids=["streamed", "kept"])
def test_a_sample_is_the_same_whichever_process_has_it(recipe, what):
    """Its picture, its turns and shifts, its t and its noise; in one process, or in the parts of two."""
    made = load_config(ClipRecipe, recipe("run", f"noised: {NOISED}\n{what}"))
    clip, pool = program.model_of(made), None
    if made.distinct:
        pool = build_pool(made, Path(made.out))

    def batch(n: int, number: int, rank: int, world: int) -> tuple:
        process = SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))
        source = Source(made.data, made.seed, rank, world)
        inputs, keys = next(ContrastBatches(made, clip.tokenize, source, process, pool)(n, number))
        (image, t), texts, facts = inputs
        return image, t, *texts, facts, torch.tensor([hash(key) for key in keys])

    whole, *parts = batch(4, 3, 0, 1), batch(2, 3, 0, 2), batch(2, 3, 1, 2)
    for one, *two in zip(whole, *parts, strict=True):
        assert torch.equal(one, torch.stack(two, 1).flatten(0, 1))
    assert len(set(whole[1].tolist())) > 1 and not torch.equal(whole[0][0], whole[0][1])


def test_a_noised_clip_learns_and_guides(recipe, tmp_path, tiny_model):
    """Its file is one that a pipeline takes as guide, and it can be trained further."""
    path = recipe("run", f"noised: {NOISED}")
    train(path, "images.samples=400", "images.batch_size=40")
    guide = load_noised_clip(tmp_path / "run" / program.GUIDE)
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {f"heldout_quartile{q}_r{k}" for q in range(4) for k in (1, 5)} == metrics.keys()
    scale = state(tmp_path / "run")["module"]["scale"].exp().item()
    assert guide.config.net.logit_scale == pytest.approx(scale) and scale != 100
    climb = guide.climb(["goldfish", "cat"])
    x = torch.randn(2, 3, 16, 16)
    assert climb(x, torch.tensor([1, 50]), x).abs().amax((1, 2, 3)).min() > 0
    train(recipe("more", f"noised: {NOISED}\nstart: {tmp_path / 'run' / program.GUIDE}"), "images.samples=8")
    with pytest.raises(ConfigError, match="another noised CLIP"):
        train(
            recipe("other", f"noised: {NOISED}\nstart: {tmp_path / 'run' / program.GUIDE}"),
            "noised.schedule=linear",
        )


def test_shards_of_weights_are_refused(recipe, tmp_path, monkeypatch):
    """Before anything is made: a contrast needs whole batches, which FSDP as it is launched does not give."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match="a CLIP is not trained in shards"):
        train(recipe("run"))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_something_else_is_refused_and_stays_as_it_is(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("flour: 500 g")
    with pytest.raises(ConfigError, match="holds recipe.yaml, and no run"):
        train(recipe("run"))
    assert (tmp_path / "run" / "recipe.yaml").read_text() == "flour: 500 g"


def test_a_clip_that_was_stopped_says_so_by_its_exit_code(recipe, monkeypatch):
    forget()
    with pytest.MonkeyPatch.context() as patch:
        Interrupted(patch, 3)
        assert main([recipe("run")]) == 75
    forget()
    assert main([recipe("run")]) == 0

"""`training.plan`: counted against what is known: the papers' numbers, formulas, and steps that are taken."""

from __future__ import annotations

import json

import pytest
import torch
from places import ROOT
from tiny_models import tiny_clip
from torch import nn

from training import plan as program
from training.clip.recipe import ClipRecipe
from training.cost.blank import batch_of, loss_of, stage_of
from training.cost.cost import Cost, count_flops, step_bytes, step_flops
from training.plan import A100, costs_of, plan, read_recipe
from training.programs import run
from training.tasks.recipes import PictureRecipe, PriorRecipe
from unclip.clip import build_clip, save_clip
from unclip.config import ConfigError, load_config
from unclip.guides.noised_clip import NoisedClip
from unclip.nets.blocks import Unit
from unclip.resources.peak import peak_activations
from unclip.resources.weightless import parameters, weightless

PAPER = ROOT / "configs" / "paper"

# Parameters here, those that the papers state, and how far apart they may be: half of the last digit that is
# stated, or more where ours do not reproduce it (the recipes' heads say so).
STATED = {
    "prior": (1_225_560_064, 1e9, 0.5e9),
    "decoder": (3_565_435_398, 3.5e9, 0.07e9),  # 3.6 to its digits
    "upsampler-256": (729_702_083, 700e6, 50e6),
    "upsampler-1024": (282_059_139, 300e6, 50e6),
    "glide": (3_554_414_086, 3.5e9, 0.07e9),  # likewise
    "glide-upsampler": (1_540_932_998, 1.5e9, 0.05e9),
    "glide-385m": (385_030_726, 385_030_726, 0),  # the public code's, to the last one
    "glide-upsampler-398m": (398_361_286, 398_361_286, 0),
}


@pytest.mark.parametrize("name", STATED)
def test_parameters_are_the_papers(name):
    ours, stated, within = STATED[name]
    recipe = read_recipe(PAPER / f"{name}.yaml", [])
    with weightless():
        count = parameters(stage_of(recipe))
    assert count == ours and abs(count - stated) <= within
    head = (PAPER / f"{name}.yaml").read_text().partition("\ndata:")[0]
    assert f"{count:,}" in head  # the recipe says it


def test_parts_of_glide_are_the_papers():
    """ "Roughly 2.3 billion" of the pictures' part, "roughly 1.2" of the text's blocks."""
    with weightless():
        stage = stage_of(load_config(PictureRecipe, PAPER / "glide.yaml"))
    assert parameters(stage.network) == 2_242_360_838
    assert round(parameters(stage.text.blocks) / 1e9, 1) == 1.2


@pytest.mark.parametrize("name, net", [("clip", "model"), ("noised-clip", "noised")])
def test_parameters_of_clips(name, net):
    recipe = load_config(ClipRecipe, PAPER / f"{name}.yaml")
    with weightless():
        clip = NoisedClip(recipe.noised) if recipe.noised else build_clip(recipe.model)
    count = {"clip": 986_339_841, "noised-clip": 158_123_264}[name]
    assert parameters(clip) == count


@pytest.mark.parametrize("name", ["prior", "decoder", "upsampler-256", "upsampler-1024"])
def test_the_paper_counts_iterations_and_decay_a_step(name):
    """Table 3: batch, iterations, EMA decay; here in pictures."""
    settings = read_recipe(PAPER / f"{name}.yaml", []).train
    batch, steps = {
        "prior": (4096, 600_000),
        "decoder": (2048, 800_000),
        "upsampler-256": (1024, 1_000_000),
        "upsampler-1024": (512, 1_000_000),
    }[name]
    assert settings.batch_size == batch and settings.pictures == batch * steps
    assert 0.5 ** (batch / settings.ema_half_life) == pytest.approx(0.9999, abs=1e-9)


def prior(**net: object) -> PriorRecipe:
    net = {"embed_dim": 16, "text_dim": 16, "text_length": 12, "width": 32, "layers": 3, "heads": 2, **net}
    return PriorRecipe(
        clip="nowhere",
        data={"shards": ["*.tar"], "size": 8},
        stage={"net": net},
        train={"out": "runs/tiny", "pictures": 4096, "batch_size": 64, "precision": "fp32"},
    )


def picture(**stage: object) -> PictureRecipe:
    net = {
        "image_size": 8,
        "channels": 16,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "middle_attention": False,
    }
    return PictureRecipe(
        data={"shards": ["*.tar"], "size": 8},
        stage={"net": net, "process": {"variance": "small", "loss": "simple"}, **stage},
        train={"out": "runs/tiny", "pictures": 4096, "batch_size": 64, "precision": "fp32"},
    )


def on_meta(recipe: PriorRecipe | PictureRecipe) -> nn.Module:
    with weightless():
        return stage_of(recipe)


def test_flops_of_a_transformer_are_those_of_its_formula():
    """24 L W^2 a token and 4 L^2 W a block: of projections and attention; the backward pass is twice that."""
    recipe = prior(width=64, layers=4)
    (cost,) = costs_of(recipe, 1)
    length, width = 12 + 4, 64
    blocks = 4 * (24 * length * width**2 + 4 * length**2 * width)
    around = 2 * (12 + 1) * 16 * width + 2 * 16 * width + 2 * 2 * width**2 + 2 * width * 16  # in, time, out
    assert cost.forward == blocks + around
    assert cost.backward == pytest.approx(2 * cost.forward, rel=0.02)  # but for the inputs, which want none


def test_flops_on_meta_are_those_of_a_real_step():
    recipe = picture()
    torch.manual_seed(0)
    real = stage_of(recipe)
    batch = batch_of(recipe, real, 3)
    (cost,) = costs_of(recipe, 1)
    assert step_flops(lambda: loss_of(real, batch)) == (3 * cost.forward, 3 * cost.backward)
    assert count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5)) == 60


def test_bytes_on_meta_are_those_of_a_real_step():
    """Without attention, whose kernels are others on a CPU; with gradients that lie there already."""
    recipe = picture()
    real, meta = stage_of(recipe), on_meta(recipe)
    batch, blank = batch_of(recipe, real, 5), batch_of(recipe, meta, 5)
    for weight in real.parameters():
        weight.grad = torch.zeros_like(weight)
    peak = peak_activations(lambda: loss_of(real, batch).backward())
    counted = step_bytes(meta, lambda: loss_of(meta, blank), False, False)
    assert counted == pytest.approx(peak, rel=0.02) and counted > 5 * 8 * 8 * 16 * 4  # norms differ a little


def test_checkpointing_keeps_little_and_changes_nothing_else():
    recipe = prior(layers=12)
    stage = on_meta(recipe)
    batch = batch_of(recipe, stage, 64)
    kept, again = (step_bytes(stage, lambda: loss_of(stage, batch), False, how) for how in (False, True))
    boundary = 64 * 16 * 32 * 4
    assert 12 * boundary < again < kept / 3
    assert not any(unit.checkpointing for unit in stage.modules() if isinstance(unit, Unit))
    assert all(weight.grad is None for weight in stage.parameters())


def test_bfloat16_takes_less_for_activations_and_more_for_weights():
    whole = prior()
    settings = whole.train.model_copy(update={"precision": "bf16"})
    cost, half = (costs_of(recipe, 1)[0] for recipe in (whole, whole.model_copy(update={"train": settings})))
    matrices = sum(p.numel() for p in on_meta(prior()).parameters() if p.dim() > 1)
    assert (cost.copies, half.copies) == (0, 2 * matrices)
    assert 0.4 * cost.activations < half.activations < 0.9 * cost.activations


def cost(**changes: object) -> Cost:
    return Cost(
        **{
            "name": "x",
            "pictures": 1000,
            "batch_size": 80,
            "accumulate": 1,
            "micro_batch": 10,
            "parameters": 100,
            "weights": 400,
            "ema": 400,
            "copies": 200,
            "block": 30,
            "outside": 10,
            "activations": 5000,
            "activations_checkpointed": 1000,
            "can_shard": True,
            "forward": 10**12,
            "backward": 2 * 10**12,
            "frozen": 10**11,
            "frozen_weights": 77,
            **changes,
        }
    )


def test_memory_and_time_add_up():
    part = program._summary(cost(), gpus=8, mfu=0.5, peak_flops=1e12)
    ddp, fsdp = part["memory"]["ddp"], part["memory"]["fsdp"]
    # weights, gradients, two moments, average; CLIP; DDP's buckets; bfloat16 copies
    assert ddp["total"] == 5 * 400 + 77 + 400 + 200 + 5000
    # a share of the same, and of whole weights two blocks, one's gradients, and what is in no block
    assert fsdp["total_checkpointed"] == 5 * 50 + 77 + (10 + 3 * 30) + 1000
    assert part["needed"] == ddp["total"]
    assert (
        program._summary(cost(shard=True, checkpointing=True), 8, 0.5, 1e12)["needed"]
        == fsdp["total_checkpointed"]
    )
    assert part["seconds"] == pytest.approx(1000 * 3.1 / (8 * 0.5))
    assert part["seconds_checkpointed"] == pytest.approx(1000 * 4.1 / (8 * 0.5))
    assert part["gpu_hours"] == pytest.approx(part["seconds"] * 8 / 3600)
    alone = program._summary(cost(), gpus=1, mfu=0.5, peak_flops=1e12)["memory"]
    assert alone.keys() == {"ddp"} and alone["ddp"]["buckets"] == 0


def test_a_chain_is_planned_stage_by_stage(tmp_path):
    """The frozen CLIP is the one that the chain trains, though it is not there yet."""
    links = [f"{{program: {name}, config: {ROOT}/configs/icons/{name}.yaml}}" for name in ("clip", "prior")]
    (tmp_path / "chain.yaml").write_text(f"{{name: x, out: x, stages: [{', '.join(links)}]}}")
    parts = plan(read_recipe(tmp_path / "chain.yaml", []), 1, 0.4, A100)
    assert [part["name"] for part in parts] == [
        "runs/icons/clip (images)",
        "runs/icons/clip (texts)",
        "runs/icons/prior",
    ]
    assert parts[2]["frozen"] > 0 and parts[2]["frozen_weights"] > 30e6
    assert all(part["seconds"] > 0 and part["needed"] > 4 * part["weights"] for part in parts)


def test_a_noised_clip_is_planned_with_the_captions_of_all():
    """Every GPU compares its pictures with all captions, which are more with more GPUs."""
    small = ["noised.net.image.layers=1", "noised.net.text.layers=1", "images.batch_size=4096"]
    recipe = read_recipe(PAPER / "noised-clip.yaml", small)
    few, many = (
        costs_of(read_recipe(PAPER / "noised-clip.yaml", [*small, f"images.batch_size={64 * gpus}"]), gpus)[0]
        for gpus in (1, 256)
    )
    assert few.micro_batch == many.micro_batch == 64 and recipe.noised.net.image.layers == 1
    assert many.activations - few.activations > 64 * 64 * 255 * 4  # one matrix of logits, at the least


def test_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["configs/ladder/5-classifier.yaml", "train.batch_size=64", "--gpus", "2", "--peak-flops", "1e12"]
    program.main(argv)
    said = capsys.readouterr().out
    assert "64 = 2 GPUs x 1 x 32" in said and "FSDP" in said and "as the recipe says (DDP" in said
    program.main([*argv, "--json"])
    (part,) = json.loads(capsys.readouterr().out)
    assert f"{part['parameters']:,} parameters" in said
    assert part["batch_a_gpu"] == 32 and part["memory"]["ddp"]["total"] > 16 * part["parameters"]


@pytest.mark.parametrize(
    "argv, said",
    [
        (["nowhere.yaml"], "there is no recipe at nowhere.yaml"),
        (["configs/icons/prior.yaml", "--gpus", "7"], "batch_size 128 does not divide by 7 GPUs"),
        (
            ["configs/icons/prior.yaml", "stage.net.wide=3"],
            "not a valid PriorRecipe:\n  stage.net.wide: unknown",
        ),
        (["configs/icons/prior.yaml", "--mfu", "40"], "a share between 0 and 1"),
        (["configs/clip.yaml", "model=null", "start=transformers:no/thing"], "nothing here tells the shape"),
    ],
)
def test_mistakes_are_named(argv, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: program.main(argv))
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_what_clip_costs_and_what_it_does_not(tmp_path):
    """One in a folder is counted; one that is nowhere is told of."""
    save_clip(tiny_clip(), tmp_path)
    (known,) = costs_of(prior().model_copy(update={"clip": str(tmp_path)}), 1)
    assert known.frozen > 0 and known.frozen_weights >= 4 * parameters(tiny_clip())
    assert "embedding 50,000 pictures" in known.notes[0]
    (unknown,) = costs_of(prior(), 1)
    assert unknown.frozen == 0 and "nothing here tells the shape of nowhere" in unknown.notes[0]
    with pytest.raises(ConfigError):
        costs_of(prior(), 3)

"""Training: every program on real pictures, stopped and continued, refused, and by two processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from places import ROOT
from processes import Processes
from runs import files, forget, metrics, same, saved
from shards import encoded
from training_programs import MAIN, PICTURES, PRIORS, STAGES, kind_of, term_of, writer

from training import decoder, prior
from training.data.source import Source
from training.programs import run
from training.run import loop, saves
from training.run.settings import make_accelerator
from training.tasks import pictures
from unclip.checkpoint import load_checkpoint
from unclip.config import ConfigError, load_config
from unclip.data.reading import expand, read_shards
from unclip.data.writing import ShardWriter
from unclip.stages import Prior, load_stage


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    return writer(tmp_path, tiny_model)


@pytest.mark.parametrize("name", STAGES)
def test_every_program_trains_on_real_pictures(name, write, tmp_path):
    precision = "bf16" if name == "decoder" else "fp32"
    path, out = write(name, pictures=16, validate_every=8, precision=precision), tmp_path / "run"
    MAIN[name]([str(path)])
    kind = kind_of(name)
    assert files(out) == sorted(
        [f"{kind}.safetensors", "curves", "metrics.jsonl", "recipe.yaml", "samples", "state"]
    )
    stage = load_stage(out / f"{kind}.safetensors", kind)
    assert stage.facts["pictures_seen"] == 16
    assert stage.facts.get("clip", "").startswith("clip#") == (name in ("glide", "decoder", *PRIORS))
    if name in ("decoder", *PRIORS):
        assert stage.embed_std.std() > 0  # measured, not ones
    lines = metrics(out)
    assert [line["pictures"] for line in lines] == [8, 8, 16, 16]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    term = term_of(name)
    assert {"loss", term, "learning_rate"} <= lines[0].keys() and f"validation/{term}" in lines[1]
    assert ("vlb" in lines[0]) == (name in ("ddpm", "decoder"))
    recipe_class = prior.PriorRecipe if name in PRIORS else pictures.PictureRecipe
    assert load_config(recipe_class, out / "recipe.yaml") == load_config(recipe_class, path)
    assert files(out / "samples") == ["000000016.png"]
    assert any("tfevents" in file.name for file in (out / "curves").rglob("*"))
    drawn = Image.open(out / "samples" / "000000016.png")
    assert drawn.width > 64 and len(drawn.getcolors(1 << 20)) > 9


def test_samples_stand_below_the_pictures_that_they_are_of(write, tmp_path):
    """Of 19 held-out pictures: 16 real ones in a row, the small ones below, the samples below these."""
    MAIN["upsampler"]([str(write("upsampler", pictures=8))])
    recipe = load_config(pictures.PictureRecipe, tmp_path / "run.yaml")
    forget()
    stage = load_stage(tmp_path / "run" / "decoder.safetensors")
    task = pictures.PictureTask(recipe, stage, make_accelerator(recipe.train))
    (examples,) = task.validation()
    assert len(examples) == len(examples.keys) == 19
    drawn, scale = task.draw(stage), 64 // 8
    assert drawn.size == ((16 * 10 - 2) * scale, (3 * 10 - 2) * scale)
    real = stage.to_picture(examples.x0, examples.conditions)
    for k in range(16):
        pixel = drawn.getpixel((10 * k * scale, 0))
        assert torch.allclose(torch.tensor(pixel) / 127.5 - 1, real[k, :, 0, 0], atol=1 / 127)


def prior_task(path: Path, **net: object) -> prior.PriorTask:
    recipe = load_config(prior.PriorRecipe, path, [f"stage.net.{key}={value}" for key, value in net.items()])
    return prior.PriorTask(recipe, Prior(recipe.stage), make_accelerator(recipe.train))


def test_a_prior_remembers_the_pictures_of_each_caption(write):
    """From shards, where the caption is the name; a sharp memory then recalls their mean embedding."""
    path = write("prior")
    made = json.loads(path.read_text())
    path.write_text(json.dumps({**made, "data": {**PICTURES, "kind": "shards"}}))
    task = prior_task(path, memory=400, memory_scale=1e7)
    by_caption = defaultdict(list)
    for names, batch in task_source(task).once(64):
        for caption, embed in zip(names, task._embed(batch.image), strict=True):
            by_caption[caption].append(embed)
    assert sum(map(len, by_caption.values())) == sum(1 for _ in read_shards(expand(PICTURES["shards"])))
    wanted = torch.stack([torch.stack(found).mean(0) for found in by_caption.values()])
    texts = task.conditions(list(by_caption))["text_embed"]
    recalled = task.stage.network.memory(texts)
    known = torch.cdist(texts, texts).fill_diagonal_(1).amin(1) > 1e-3  # not all are told apart
    assert known.float().mean() > 0.9
    assert torch.allclose(recalled[known], task.stage.whiten(wanted)[known], atol=1e-3)


def test_a_prior_remembers_each_icon_by_its_name(write):
    task = prior_task(write("prior"), memory=60)
    names = {record["name"] for record in task_source(task).scenes.records}
    assert 30 < len(names) < 60
    assert len(task.stage.network.memory.keys.unique(dim=0)) == len(names)
    fewer = prior_task(write("prior"), memory=20)
    assert len(fewer.stage.network.memory.values.unique(dim=0)) == 20


def task_source(task: prior.PriorTask) -> Source:
    return Source(task.recipe.data, task.recipe.train.seed)


def stop_after(step: int, number: int = signal.SIGTERM, rank: int = 0) -> Callable[..., object]:
    """``Run._optimise``, but one process gets a signal while it is in the middle of a step."""
    real = loop.Run._optimise

    def optimise(self, batches):
        if self.step == step - 1 and self.accelerator.process_index == rank:
            os.kill(os.getpid(), number)
        real(self, batches)

    return optimise


BSR = ["data.size=32", "data.crop=32", "stage.net.image_size=32", "stage.low_res.size=16",
       "stage.low_res.noise=0", "stage.low_res.degradation=bsr"]  # fmt: skip


@pytest.mark.bitwise
@pytest.mark.parametrize("name, number, more", [
    ("decoder", signal.SIGTERM, []), ("ddpm", signal.SIGINT, ["data.workers=2"]),
    ("upsampler", signal.SIGTERM, ["train.accumulate=2", "train.log_every=24"]),
    ("upsampler", signal.SIGTERM, BSR), ("prior", signal.SIGTERM, []), ("prior-ar", signal.SIGTERM, []),
])  # fmt: skip
def test_the_same_command_again_goes_on(name, number, more, write, tmp_path, monkeypatch, capsys):
    """As if nothing had been: weights, averages, optimiser and curves, to the last bit."""
    kind = kind_of(name)
    before = signal.getsignal(number)
    MAIN[name]([str(write(name, "whole")), *more])
    path = write(name, "halves")
    with monkeypatch.context() as patched:
        patched.setattr(loop.Run, "_optimise", stop_after(2, number))
        MAIN[name]([str(path), *more])
    assert load_checkpoint(tmp_path / "halves" / f"{kind}.safetensors")[1]["pictures_seen"] == 16
    assert not same(tmp_path / "whole", tmp_path / "halves", kind)
    assert signal.getsignal(number) is before
    forget()
    MAIN[name]([str(path), *more])
    assert "going on from 16 pictures" in capsys.readouterr().out
    assert same(tmp_path / "whole", tmp_path / "halves", kind)
    curves = [metrics(tmp_path / out) for out in ("whole", "halves")]
    assert curves[0] == curves[1] and f"validation/{term_of(name)}" in curves[0][-1]


def command(argv: list[str], step: int | None = None) -> None:
    """Train a DDPM; with a step, until its second process gets a signal there."""
    if step is not None:
        loop.Run._optimise = stop_after(step, rank=1)
    decoder.main(argv)


@pytest.mark.bitwise
def test_two_processes_with_data_workers_go_on_too(write, tmp_path):
    """Each with two processes that read shards for it; a signal to one of the two ends both."""
    argv = {out: [str(write("ddpm", out, save_every=8)), "data.workers=2"] for out in ("whole", "halves")}
    Processes(tmp_path / "log1", 2, command, argv["whole"]).succeed()
    Processes(tmp_path / "log2", 2, command, argv["halves"], 2).succeed()
    assert saved(tmp_path / "halves")["step"] == 2
    last = Processes(tmp_path / "log3", 2, command, argv["halves"])
    last.succeed()
    assert "going on from 16 pictures" in last.log()
    assert same(tmp_path / "whole", tmp_path / "halves")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")


def resaved(out: Path, progress: dict) -> None:
    """Put another progress.pt into a save."""
    rest = {path.name: torch.load(path, weights_only=True) for path in (out / "state").glob("*.bin")}
    saves.write(out, {**rest, saves.PROGRESS: progress})


def test_a_run_goes_on_though_its_version_knew_fewer_settings(write, tmp_path, capsys):
    """Settings that came later have their defaults; those that were changed are told, and refused."""
    MAIN["upsampler"]([str(write("upsampler", pictures=8))])
    progress = saved(tmp_path / "run")
    del progress["recipe"]["stage"]["process"]["weighting"], progress["recipe"]["stage"]["drop_class"]
    resaved(tmp_path / "run", progress)
    forget()
    MAIN["upsampler"]([str(write("upsampler", pictures=16))])
    assert "going on from 8 pictures" in capsys.readouterr().out
    forget()
    again = [str(write("upsampler", pictures=24)), "stage.drop_class=0.7"]
    with pytest.raises(ConfigError, match="cannot continue .stage.drop_class: 0.1 -> 0.7"):
        MAIN["upsampler"](again)
    forget()
    progress["recipe"]["stage"] = {"kind": "prior"}
    resaved(tmp_path / "run", progress)
    with pytest.raises(ConfigError, match="stage.kind: prior -> decoder"):
        MAIN["upsampler"]([str(write("upsampler", pictures=24))])


def test_classes_come_from_the_records(write, tmp_path):
    """Of three classes those that are in the shards are learnt; icons that are composed have none."""
    with ShardWriter(tmp_path, "labelled") as writer:
        for number in range(8):
            image = encoded(Image.new("RGB", (16, 16), (30 * number, 0, 90)))
            record = json.dumps({"class": 2 * (number % 2)}).encode()
            writer.write(str(number), {"png": image, "txt": b"a", "json": record})
    more = ["stage.net.classes=3", "stage.drop_class=0", f"data.heldout=[{writer.paths[0]}]"]
    path = write("ddpm", weight_decay=0.0)
    MAIN["ddpm"]([str(path), f"data.shards=[{writer.paths[0]}]", *more])
    stage = load_stage(tmp_path / "run" / "decoder.safetensors")
    adam = torch.load(tmp_path / "run" / "state" / "optimizer.bin", weights_only=True)
    names = [name for name, _ in stage.named_parameters()]
    moved = adam["state"][names.index("network.classes.weight")]["exp_avg_sq"].sum(1) > 0
    assert moved.tolist() == [True, False, True]
    forget()
    with pytest.raises(ConfigError, match="classes, which composed icons have not; use data.kind: shards"):
        MAIN["ddpm"]([str(write("ddpm", "icons")), "data.kind=icons", "stage.net.classes=3"])


def test_another_stage_in_the_same_folder_is_refused(write, tmp_path):
    path = write("ddpm", pictures=8)
    MAIN["ddpm"]([str(path)])
    recipe = (tmp_path / "run" / "recipe.yaml").read_text()
    forget()
    with pytest.raises(ConfigError, match="net.channels: 16 -> 32, stage.process.schedule: cosine -> linear"):
        MAIN["ddpm"]([str(path), "stage.net.channels=32", "stage.process.schedule=linear"])
    assert (tmp_path / "run" / "recipe.yaml").read_text() == recipe
    forget()
    with pytest.raises(ConfigError, match="train.batch_size: 8 -> 4"):
        MAIN["ddpm"]([str(path), "train.batch_size=4"])
    forget()
    MAIN["ddpm"]([str(path), "train.pictures=16", "train.learning_rate=1e-5"])  # these may change
    assert load_stage(tmp_path / "run" / "decoder.safetensors").facts["pictures_seen"] == 16


@pytest.mark.parametrize("name, overrides, said", [
    ("decoder", ["stage.net.chanels=3"], "stage.net.chanels: unknown key"),
    ("decoder", ["train.batch_size=7", "train.accumulate=2"], "batch_size 7 does not divide by 1 processes"),
    ("decoder", ["data.shards=[nowhere/*.tar]"], "no shards at nowhere"),
    ("decoder", ["data.heldout=[nowhere/*.tar]"], "no shards at nowhere"),
    ("decoder", ["clip=nowhere"], "nowhere holds no CLIP"),
    ("decoder", ["clip=null"], "must name a clip"),
    ("decoder", ["stage.net.image_embed_dim=99"], "stage.net.image_embed_dim is 99, but"),
    ("decoder", ["stage.net.text_dim=99"], "stage.net.text_dim is 99, but"),
    ("decoder", ["stage.net.out_channels=3"], "out_channels 6, not 3 and 3"),
    ("decoder", ["data.size=8"], "pictures of 8 pixels are smaller than the stage's 16"),
    ("decoder", ["stage.low_res.size=8"], "belongs to upsamplers"),
    ("decoder", ["train.out=FILE/run"], "FILE"),
    ("upsampler", ["data.size=32"], "data.size is 32, but the upsampler makes 16 pixels"),
    ("upsampler", ["data.crop=7"], "data.crop 7 is no multiple of 2"),
    ("upsampler", [*BSR, "data.crop=16"], "data.crop 16 is too small for low_res.degradation bsr"),
    ("upsampler", ["stage.low_res=null"], "belongs to upsamplers"),
    ("upsampler", ["stage.low_res.size=6"], "no whole multiple of low_res.size 6"),
    ("prior", ["stage.net.embed_dim=99"], "stage.net.embed_dim is 99, but"),
    ("prior", ["train.out=FILE/run"], "FILE"),
])  # fmt: skip
def test_mistakes_are_one_message(name, overrides, said, write, tmp_path, capsys):
    (tmp_path / "FILE").touch()
    overrides = [item.replace("FILE", str(tmp_path / "FILE")) for item in overrides]
    with pytest.raises(SystemExit) as stopped:
        run(lambda: MAIN[name]([str(write(name)), *overrides]))
    err = capsys.readouterr().err
    assert stopped.value.code == 2 and said in err and "Traceback" not in err
    assert not [path for path in tmp_path.glob("run/*") if path.name != ".lock"]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1",
              "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]  # fmt: skip


@pytest.mark.parametrize(
    "launcher",
    [TORCHRUN, [*ACCELERATE, "--multi_gpu"], [*ACCELERATE, "--use_fsdp"]],
    ids=["torchrun", "accelerate", "accelerate-fsdp"],
)
def test_a_launcher_starts_two_processes(launcher, write, tmp_path):
    """They learn what one does: from the same pictures, read by one more process each."""
    settings = ["stage.net.dropout=0", "data.workers=1"]
    path = write("ddpm", "two", pictures=16, save_every=8)
    start = [sys.executable, "-m", *launcher, "-m", "training.decoder", str(path), *settings]
    done = subprocess.run(
        start,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    MAIN["ddpm"]([str(write("ddpm", "one", pictures=16, save_every=8)), *settings])
    two, one = (tmp_path / name for name in ("two", "one"))
    assert load_stage(two / "decoder.safetensors").facts["pictures_seen"] == 16
    assert files(two) == files(one)
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)

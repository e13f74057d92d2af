"""What each argument of the programs that draw and measure changes; ``test_options`` holds them to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image
from programs import Program
from tiny import decoder

import inference.convert
import inference.denoising
import inference.evaluate
import inference.gallery
import inference.ladder
import inference.likelihood
import unclip.app.batch
import unclip.app.command
from inference.ladder import Entry
from unclip.batch.asking import COLUMNS
from unclip.batch.work import Report
from unclip.diffusion.noise import fold
from unclip.options import Options
from unclip.pipeline.pipeline import Pipeline
from unclip.stages import Process

# Tables from here on, laid out by hand.
# fmt: off
MODEL = Pipeline(decoder(net={"classes": 3}, process=Process(predicts="v")), name="tiny")
MODEL.clip, MODEL.tokenizer = "a CLIP", "a tokenizer"
PICTURE = Image.new("RGB", (4, 4))
CPU = torch.device("cpu")
REPORT = {"a": "report"}


def shards(paths: object) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def samples(*_: object, **__: object) -> list[dict]:
    return [{"image": PICTURE, "key": str(key)} for key in range(9)]


def device(of: str) -> dict:
    return {"device": (["--device", "meta"], {f"{of}.device": "meta"})}


def memory(of: str) -> dict:
    return {"dtype": (["--dtype", "bfloat16"], {f"{of}.dtype": "bfloat16"}),
            "offload": (["--offload"], {f"{of}.offload": True})}


def model(words: list[str], of: str = "load", **more: object) -> dict:
    return {"model": (words, {f"{of}.name_or_path": words[-1], **more})}


def sampling(of: str, steps: type = str, **more: Mapping[str, object]) -> dict:
    """The options of ``cli.add_options``, whose pictures are drawn by the function ``of``.

    more: what an option changes besides.
    """
    values = {"seed": 7, "steps": steps(3), "prior_steps": steps(4), "upsampler_steps": steps(5),
              "guidance_scale": 1.5, "guidance_interval": "0.2,0.8", "apg": "0.5,9,-0.2",
              "autoguidance_scale": 1.7, "prior_guidance_scale": 2.5,
              "clip_guidance_scale": 3.5, "cutouts": 8, "sampler": "ddim",
              "negative_prompt": "a dog", "class_": 2, "classifier_scale": 0.5, "resamplings": 5}
    options = {name: ([f"--{name.rstrip('_').replace('_', '-')}", str(value)],
                   {f"{of}.{name}": value, **more.get(name, {})}) for name, value in values.items()}
    guided = {"load_classifier.path": Path("led"), "load_classifier.device": CPU,
              "guide_with.classifier": "a classifier"}
    weaker = {"load_decoder.path": Path("weak"), "load_decoder.device": CPU,
              "load_decoder.dtype": torch.float32,
              "autoguide_with.weaker": "a weaker decoder"}
    prior = {"load_prior.name_or_path": "eclipse", "load_prior.pipeline": MODEL,
             "load_prior.dtype": torch.float32, "with_prior.prior": "a prior"}
    return {**options, "prior": (["--prior", "eclipse"], prior),
            "size": (["--size", "768"], {"at_size.size": 768}),
            "classifier": (["--classifier", "led"], guided), **device("load"),
            "weaker": (["--weaker", "weak"], weaker), **memory("load")}


LOADED = {"unclip.app.cli.load": MODEL, "unclip.guides.classifier.load_classifier": "a classifier",
          "unclip.pipeline.model.Model.guide_with": MODEL, "unclip.stages.load_decoder": "a weaker decoder",
          "unclip.pipeline.model.Model.autoguide_with": MODEL, "unclip.convert.load_prior": "a prior",
          "unclip.pipeline.pipeline.Pipeline.at_size": MODEL,
          "unclip.pipeline.pipeline.Pipeline.with_prior": MODEL}


def counted(of: str, n: int = 5) -> dict:
    return {"n": (["-n", str(n)], {f"{of}.n": n})}


UNCLIP = Program(
    unclip.app.command.main,
    {"prompt": ["a cat"], "strip": ["--strip", "s.png"]},
    {**LOADED, "unclip.pipeline.pipeline.Pipeline.generate": PICTURE, "unclip.data.images.save_png": None,
     "unclip.app.strip.film_strip": PICTURE, "unclip.plan.plan": "", "unclip.app.command._models": ""},
    {"prompt": (["a dog"], {"generate.prompt": "a dog", "save_png.path": Path("a-dog.png")}),
     "output": (["-o", "x.png"], {"save_png.path": Path("x.png")}),
     "n": (["-n", "5"], {"generate.n": 5, "generate.batch_size": 5}),
     "strip": (["--strip", "t.png"], {"save_png'.path": Path("t.png")}),
     "strip: none": ([], {"generate.watch": None, "generate.batch_size": None, "film_strip.steps": None,
                          "film_strip.columns": None, "save_png'.image": None, "save_png'.path": None}),
     "columns": (["--columns", "3"], {"film_strip.columns": 3}),
     "overwrite": (["--overwrite"], {}),  # what is there: test_overwrite
     "metadata": (["--no-metadata"], {"save_png.metadata": False}),
     "image": (["--image", "i.png"], {"generate.image": (4, 4)}),
     "mask": (["--mask", "m.png"], {"generate.mask": (4, 4)}),
     "image_prompt": (["--image-prompt", "o.png", "0.7", "--image-prompt", "a v1.2 dog"],
                      {"generate.image_prompt": [((8, 8), 0.7), ("a v1.2 dog", 1.0)]}),
     "plan": (["--plan"], {"plan.name_or_path": "icons", "plan.dtype": "float32", "plan.pictures": 1,
                           "load.name_or_path": None}),
     "models": (["--models"], {"_models": "called", "load.name_or_path": None}),
     **model(["--model", "other"]), **sampling("generate")},
    {"save_png.image": (4, 4), "save_png'.image": (4, 4), "film_strip.steps": []})

PLAN = Program(
    unclip.app.command.main, {"plan": ["--plan"]}, {"unclip.plan.plan": ""},
    {"n": (["-n", "5"], {"plan.pictures": 5}), "dtype": memory("plan")["dtype"],
     **model(["--model", "other"], "plan")},
    {})

REPORTED = Report(made=1)
BATCH = Program(
    unclip.app.batch.main, {"prompts": ["lines.txt"], "output": ["out"]},
    {**LOADED, "unclip.batch.reading.Source": "a source", "unclip.batch.work.run": REPORTED,
     "unclip.plan.fitting": 7},
    {"prompts": (["others.txt"], {"Source.path": Path("others.txt")}),
     "output": (["y"], {"run.folder": Path("y")}),
     "format": (["--format", "csv"], {"Source.format": "csv"}),
     "ignore": (["--ignore", "a", "--ignore", "b"], {"Source.ignored": ["a", "b"]}),
     "batch_size": (["--batch-size", "6"], {"run.batch_size": 6, "run.usual": 6, "fitting.pipeline": None}),
     "block": (["--block", "3"], {"run.block": 3}),
     "shards": (["--shards"], {"run.form": "shards"}),
     "parquet": (["--parquet"], {"run.form": "parquet"}),
     "sheet": (["--sheet"], {"run.sheet": True}),
     "verify": (["--verify"], {"run.verify": True}),
     "wait": (["--no-wait"], {"run.wait": False}),
     "lease": (["--lease", "9"], {"run.expires": 9.0}),
     "overwrite": (["--overwrite"], {"run.overwrite": True}),
     "metadata": (["--no-metadata"], {"run.metadata": False}),
     **counted("run"), **model(["--model", "other"]), **sampling("run")},
    {"run.pipeline": MODEL, "run.source": "a source", "run.told": "a function", "Source.columns": COLUMNS})

SHEET = {**LOADED, "inference.gallery.draw": [[PICTURE]], "inference.gallery.draw_classes": [[PICTURE] * 6],
         "inference.gallery.save_png": None, "inference.gallery.sheet": PICTURE,
         "inference.gallery.write_json": None}
GALLERY = Program(
    inference.gallery.main, {"model": ["some"], "output": ["sheet.png"]}, SHEET,
    {"output": (["x.png"], {"save_png.path": Path("x.png")}),
     "overwrite": (["--overwrite"], {}),
     "columns": (["--columns", "4"], {"sheet.captions": ["", ""],
                                      "sheet.rows": [[PICTURE.size] * 4, [PICTURE.size] * 2]}),
     "side": (["--side", "32"], {"draw_classes.side": 32}),
     "batch_size": (["--batch-size", "6"], {"draw_classes.batch_size": 6}),
     "classes": (["--classes", "2", "0"], {"draw_classes.classes": [2, 0], "sheet.captions": ["2", "0"],
                                           "sheet.margin": 24}),
     "classes: all": (["--classes", "all"], {"draw_classes.classes": range(3),
                                             "sheet.captions": ["0", "1", "2"], "sheet.margin": 24}),
     **counted("draw_classes"), **model(["other"]),
     **sampling("draw_classes", class_={"draw_classes.classes": [2]})},
    {"draw_classes.pipeline": MODEL, "sheet.margin": 0, "save_png.image": (4, 4)})
GALLERY_OF_PROMPTS = Program(
    inference.gallery.main,
    {"model": ["some"], "output": ["sheet.png"], "prompts": ["--prompts", "a cat"]}, SHEET,
    {"prompts": (["--prompts", "a dog", "a car"],
                 {"draw.prompts": ["a dog", "a car"], "sheet.captions": ["a dog", "a car"]}),
     "prompts: a file": (["--prompts", "others.txt"],
                         {"draw.prompts": ["a dog", "a car"], "sheet.captions": ["a dog", "a car"]}),
     "side": (["--side", "32"], {"draw.side": 32}),
     "batch_size": (["--batch-size", "6"], {"draw.batch_size": 6}),
     "blind": (["--blind", "key.json"], {
         "draw.n": 1, "write_json.path": Path("key.json"), "write_json.values": {1: "a cat"},
         "sheet.captions": ["1 - 1"], "sheet.margin": 70}),
     **counted("draw"), **sampling("draw")},
    {"load.name_or_path": "some", "draw.pipeline": MODEL, "sheet.rows": [[PICTURE.size]],
     "save_png.image": (4, 4),
     "save_png.path": Path("sheet.png")})

EVALUATE = Program(
    inference.evaluate.main,
    {"model": ["some"], "shards": ["held.tar"], "train_shards": ["--train-shards", "train.tar"]},
    {**LOADED, "inference.evaluate.load_clip": "a judge", "inference.evaluate.expand": shards,
     "inference.evaluate.evaluate": REPORT, "inference.evaluate.table": "",
     "inference.evaluate.write_json": None, "inference.measure.metrics.check_installed": None},
    {"shards": (["x.tar"], {"expand.paths": ["x.tar"], "evaluate.heldout": ["x.tar"]}),
     "train_shards": (["--train-shards", "x.tar", "y.tar"],
                      {"expand'.paths": ["x.tar", "y.tar"], "evaluate.train": ["x.tar", "y.tar"]}),
     "judge": (["--judge", "a", "--judge", "b"],
               {"load_clip.source": "a", "load_clip.device": CPU, "load_clip'.source": "b",
                "load_clip'.device": CPU,
                "evaluate.judges": {"a": "a judge", "b": "a judge"}}),
     "limit": (["--limit", "5"], {"evaluate.limit": 5}),
     "batch_size": (["--batch-size", "6"], {"evaluate.batch_size": 6}),
     "decoder_only": (["--decoder-only"], {"evaluate.decoder_only": True}),
     "overwrite": (["--overwrite"], {}),
     "json": (["--json", "r.json"], {"write_json.path": Path("r.json"), "write_json.values": REPORT}),
     **model(["other"]), **sampling("evaluate.options", int),
     "seed": (["--seed", "7"], {"evaluate.seed": 7}),
     "guidance_interval": (["--guidance-interval", "0.2,0.8"],
                           {"evaluate.options.guidance_interval": (0.2, 0.8)}),
     "apg": (["--apg", "0.5,9,-0.2"], {"evaluate.options.apg": (0.5, 9.0, -0.2)}),
     "negative_prompt": (["--negative-prompt", "a dog"],
                         {"said": "inference.evaluate: --negative-prompt has no use here"})},
    {"evaluate.pipeline": MODEL, "evaluate.judges": {}, "check_installed": "called",
     "table.report": REPORT})

LIKELIHOOD = Program(
    inference.likelihood.main,
    {"model": ["some"], "shards": ["held.tar"]},
    {"inference.likelihood.load": MODEL, "inference.measure.likelihood.expand": shards,
     "inference.likelihood.read_shards": samples, "inference.likelihood.stage_of": "a stage",
     "inference.likelihood.likelihood": REPORT, "inference.likelihood.table": "",
     "inference.likelihood.write_json": None},
    {"shards": (["x.tar", "y.tar"], {"expand.paths": ["x.tar", "y.tar"],
                                     "read_shards.shards": ["x.tar", "y.tar"]}),
     "stage": (["--stage", "upsampler-64"],
               {"stage_of.name": "upsampler-64",
                "table.report": {"model": "some", "stage": "upsampler-64", **REPORT}}),
     "limit": (["--limit", "2"], {"likelihood.samples": samples()[:2]}),
     "steps": (["--steps", "3"], {"likelihood.steps": "3"}),
     "size": (["--size", "16"], {"likelihood.size": 16}),
     "batch_size": (["--batch-size", "6"], {"likelihood.batch_size": 6}),
     "seed": (["--seed", "7"], {"read_shards.seed": fold(7), "likelihood.seed": 7}),
     "overwrite": (["--overwrite"], {}),
     "json": (["--json", "r.json"], {
         "write_json.path": Path("r.json"),
         "write_json.values": {"model": "some", "stage": "decoder", **REPORT}}),
     **device("load"),
     **model(["other"], **{"table.report": {"model": "other", "stage": "decoder", **REPORT}})},
    {"read_shards.shuffle": 10_000, "stage_of.pipeline": MODEL, "likelihood.stage": "a stage",
     "likelihood.clip": "a CLIP", "likelihood.tokenizer": "a tokenizer"})

LADDER = Program(
    inference.ladder.main,
    {"shards": ["data"], "models": ["one"], "judge": ["--judge", "j"]},
    {"inference.ladder.measure": REPORT, "inference.ladder.table": "",
     "inference.ladder.write_json": None, "inference.measure.metrics.check_installed": None},
    {"shards": (["x"], {"measure.folder": Path("x")}),
     "models": (["one", "two:steps=3:classifier=led"],
                {"measure.entries": [Entry("one", Options()), Entry("two", Options(steps=3), "led")]}),
     "judge": (["--judge", "k"], {"measure.source": "k"}),
     "batch_size": (["--batch-size", "6"], {"measure.batch_size": 6}),
     "bits": (["--bits", "4"], {"measure.bits": 4}),
     "seed": (["--seed", "7"], {"measure.seed": 7}),
     "overwrite": (["--overwrite"], {}),
     "json": (["--json", "r.json"], {"write_json.path": Path("r.json"), "write_json.values": REPORT}),
     **counted("measure"), **device("measure")},
    {"check_installed": "called", "table.report": REPORT})

DENOISING = Program(
    inference.denoising.main,
    {"model": ["some"], "shards": ["held.tar"], "output": ["out.png"]},
    {"inference.denoising.load": MODEL, "inference.measure.likelihood.expand": shards,
     "inference.denoising.read_shards": samples, "inference.denoising.Noise": "noise",
     "inference.denoising.examples": lambda stage, clip, some, *_: (
         torch.zeros(len(some), 3, 8, 8), {"of": 2}),
     "inference.denoising.look": ["a step"], "inference.denoising.film_strip": PICTURE,
     "inference.denoising.save_png": None},
    {"shards": (["x.tar"], {"expand.paths": ["x.tar"], "read_shards.shards": ["x.tar"]}),
     "output": (["x.png"], {"save_png.path": Path("x.png")}),
     "overwrite": (["--overwrite"], {}),
     "n": (["-n", "3"], {"examples.samples": samples()[:3], "look.x0": (3, 3, 8, 8),
                         "Noise.seeds": [fold(0, k) for k in range(3)]}),
     "columns": (["--columns", "4"], {"look.columns": 4, "film_strip.columns": 4}),
     "size": (["--size", "16"], {"examples.size": 16}),
     "seed": (["--seed", "7"], {"read_shards.seed": fold(7), "Noise.seeds": [fold(7, 0), fold(7, 1)]}),
     **device("load"), **model(["other"])},
    {"read_shards.shuffle": 10_000, "examples.stage": MODEL.decoder, "examples.clip": "a CLIP",
     "examples.tokenizer": "a tokenizer", "Noise.device": CPU, "look.stage": MODEL.decoder,
     "look.conditions": {"of": 2}, "look.noise": "noise", "film_strip.steps": ["a step"],
     "save_png.image": (4, 4)})

CONVERT = Program(
    inference.convert.main, {"model": ["some"], "output": ["out"]},
    {"inference.convert.load": MODEL, "unclip.pipeline.pipeline.Pipeline.save": None,
     "inference.convert.os.replace": None},
    {"output": (["x"], {"save.folder": Path(".x.partial"), "replace.src": Path(".x.partial"),
                        "replace.dst": Path("x")}),
     "dtype": (["--dtype", "bfloat16"], {"save.dtype": torch.bfloat16}),
     **model(["other"])},
    {"load.device": "cpu"})

PROGRAMS = {
    "unclip/app/command.py": [UNCLIP, PLAN],
    "unclip/app/batch.py": [BATCH],
    "inference/gallery.py": [GALLERY, GALLERY_OF_PROMPTS],
    "inference/evaluate.py": [EVALUATE],
    "inference/likelihood.py": [LIKELIHOOD],
    "inference/ladder.py": [LADDER],
    "inference/denoising.py": [DENOISING],
    "inference/convert.py": [CONVERT],
}

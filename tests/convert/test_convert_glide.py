"""GLIDE: its networks compute what the public code's do, and its files make a model that draws.

UNCLIP_FIXTURES may name another folder with files of the same form; every file in it is tried.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from places import FIXTURES, fixtures
from public_numbers import far, fixture
from safetensors.torch import load_file
from tiny_glide import tiny_files
from torch import Tensor

import unclip
from unclip.checkpoint import CheckpointError
from unclip.convert.catalogue import MODELS, PublicModel
from unclip.convert.openai import glide
from unclip.guides.noised_clip import NoisedClip, NoisedClipStageConfig
from unclip.options import Options
from unclip.pipeline.canvas import canvas_of
from unclip.pipeline.request import Wish
from unclip.stages import Decoder

FILES = [path for path in fixtures("glide/*.safetensors") if "clip" not in path.stem]
CLIPS = [path for path in fixtures("glide/*.safetensors") if "clip" in path.stem]
MANIFESTS = [path for path in fixtures("manifests/glide-*.json") if "clip" not in path.stem]
CLIP_MANIFESTS = fixtures("manifests/glide-clip-*.json")
PROCESS = {"noise_schedule": "squaredcos_cap_v2"}


def build(args: dict, weights: dict[str, Tensor], starts_from: int | None, eight_bits: bool) -> Decoder:
    """eight_bits: whether the smaller picture is of 8 bits, as published; the fixtures' are not."""
    config = glide.decoder_config({**PROCESS, **args}, {}, starts_from, weights)
    if config.low_res and not eight_bits:
        low_res = config.low_res.model_copy(update={"round_to_8bit": False})
        config = config.model_copy(update={"low_res": low_res})
    return glide.decoder(weights, config)


def inputs_of(stage: Decoder, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The fixture's inputs as the stage takes them."""
    names = {
        "tokens": "tokens",
        "mask": "token_mask",
        "low_res": "low_res",
        "inpaint_image": "image",
        "inpaint_mask": "mask",
    }
    values = {ours: tensors[f"inputs.{name}"] for name, ours in names.items() if f"inputs.{name}" in tensors}
    return stage.conditions(len(tensors["inputs.x"]), **values)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_computes_what_the_public_code_does(path):
    args, weights, tensors = fixture(path)
    small = tensors["inputs.low_res"].shape[-1] if "inputs.low_res" in tensors else None
    stage = build({**args, "inpaint": "inputs.inpaint_mask" in tensors}, weights, small, False)
    inputs = inputs_of(stage, tensors)
    with torch.no_grad():
        out = stage.call_network(tensors["inputs.x"], tensors["inputs.timesteps"], **inputs)
    assert far(out, tensors["outputs.out"]) < 1e-4


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_released_model_has_a_place_for_every_tensor(path):
    manifest = json.loads(path.read_text())
    theirs = {key: torch.empty(shape, device="meta") for key, shape in manifest["tensors"].items()}
    args, small = manifest["config"], 64 if manifest["config"]["super_res"] else None
    stage = build(args, theirs, small, True)
    assert sum(parameter.numel() for parameter in stage.parameters()) == manifest["parameters"]
    assert stage.config == glide.decoder_config(args, {}, small)  # a plan needs no file


def clip_config(args: dict) -> NoisedClipStageConfig:
    """From a fixture's one table of arguments."""

    def of(which: str) -> dict:
        return {
            **args,
            "n_head": args[f"n_head_{which}"],
            "n_head_state": args[f"n_head_state_{which}"],
            "n_layers": args[f"n_xf_blocks_{which}"],
        }

    return NoisedClipStageConfig(net=glide.noised_clip_config(of("image"), of("text"), args["logit_scale"]))


def noised_clip(path: Path) -> tuple[NoisedClip, dict[str, Tensor]]:
    args, weights, tensors = fixture(path)
    image, text = (
        {
            name.removeprefix(f"{half}."): value
            for name, value in weights.items()
            if name.startswith(f"{half}.")
        }
        for half in ("image", "text")
    )
    return glide.noised_clip(image, text, clip_config(args), path.stem), tensors


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_the_noised_clip_sees_and_guides_as_the_public_code_does(path, monkeypatch):
    clip, tensors = noised_clip(path)
    image, t = tensors["inputs.image"], tensors["inputs.timesteps"] + 1
    assert far(clip.encode_image(image, t), tensors["outputs.image_embedding"]) < 1e-4
    monkeypatch.setattr(clip, "tokenize", lambda texts: (tensors["inputs.tokens"], tensors["inputs.lengths"]))
    assert far(clip.encode_text(["", "", ""]), tensors["outputs.text_embedding"]) < 1e-4
    gradient = clip.climb(["", "", ""], scale=1.0)(image, t, image)
    assert far(gradient, tensors["outputs.guidance_gradient"]) < 1e-4
    assert far(clip.climb(["", "", ""], scale=3.0)(image, t, image), 3 * gradient) < 1e-5


def test_the_released_noised_clip_has_a_place_for_every_tensor():
    halves = {path.stem.removeprefix("glide-clip-"): json.loads(path.read_text()) for path in CLIP_MANIFESTS}
    image, text = halves["image"], halves["text"]
    config = NoisedClipStageConfig(net=glide.noised_clip_config(image["config"], text["config"]))
    theirs = [
        {key: torch.empty(shape, device="meta") for key, shape in half["tensors"].items()}
        for half in (image, text)
    ]
    clip = glide.noised_clip(*theirs, config)
    for half, tower in ((image, clip.network.image), (text, clip.network.text)):
        assert sum(parameter.numel() for parameter in tower.parameters()) == half["parameters"]
    assert config == glide.configs(MODELS["glide"])["guide"]


@pytest.mark.parametrize("name", ["glide", "glide-inpaint"])
def test_the_published_settings_travel_with_the_model(name):
    planned = glide.configs(MODELS[name])
    base, (upsampler,) = planned["decoder"], planned["upsamplers"]
    mends = name == "glide-inpaint"
    assert (base.sampling.sampler, base.sampling.steps, base.sampling.gradient) == ("ddpm", 100, "mean")
    assert base.sampling.guidance_scale == (5.0 if mends else 3.0)
    assert (upsampler.sampling.sampler, upsampler.sampling.steps) == ("ddpm" if mends else "ddim", "fast27")
    assert (upsampler.sampling.guidance_scale, upsampler.sampling.noise_scale) == (1.0, 0.997)
    assert (base.process.schedule, upsampler.process.schedule) == ("cosine", "linear")
    assert (upsampler.low_res.size, upsampler.low_res.round_to_8bit) == (64, True)
    assert (base.inpaint, upsampler.inpaint) == (mends, mends)
    assert (base.net.in_channels, upsampler.net.in_channels) == (3 + 4 * mends, 6 + 4 * mends)


def tiny_glide(folder: Path, inpaint: bool = False, steps: int = 2) -> PublicModel:
    """GLIDE's six files, tiny, and the table that says how they were built; in so many steps."""
    args, base, _ = fixture(FIXTURES / "glide" / "base.safetensors")
    upsample = fixture(FIXTURES / "glide" / "upsample_inpaint.safetensors")[1]
    clip_args, halves, _ = fixture(FIXTURES / "glide" / "noised_clip.safetensors")
    first, known = "input_blocks.0.0.weight", torch.full((32, 4, 3, 3), 0.1, dtype=torch.bfloat16)
    if inpaint:
        base = {**base, first: torch.cat([base[first], known], dim=1)}
    else:
        upsample = {**upsample, first: upsample[first][:, [0, 1, 2, 7, 8, 9]].contiguous()}
    for weights in (base, upsample):  # else every picture is black and white
        weights["out.2.weight"] = weights["out.2.weight"] / 50
    halves["text.blocks.input.w_voc"] = torch.arange(49408 * 32).sin().view(49408, 32)
    folder.mkdir(exist_ok=True)
    tiny_files(folder)
    suffix = "_inpaint" if inpaint else ""
    torch.save(base, folder / f"base{suffix}.pt")
    torch.save(upsample, folder / f"upsample{suffix}.pt")
    for half in ("image", "text"):
        torch.save(
            {
                name.removeprefix(f"{half}."): value
                for name, value in halves.items()
                if name.startswith(f"{half}.")
            },
            folder / f"clip_{half}_enc.pt",
        )

    def of(which: str, **more: int) -> dict:
        heads = clip_args[f"n_head_{which}"]
        return {**clip_args, "n_head": heads, "n_head_state": 16, "n_layers": 2, **more}

    args = {**PROCESS, **args, "inpaint": inpaint}
    published = MODELS["glide-inpaint" if inpaint else "glide"]
    sampling = {role: {**fields, "steps": steps} for role, fields in published.sampling.items()}
    return replace(published, sampling=sampling, args={
        "base": args, "upsample": {**args, "image_size": 32, "noise_schedule": "linear"},
        "clip_image": of("image"), "clip_text": of("text", n_vocab=49408)})  # fmt: skip


def files_of(model: PublicModel, folder: Path) -> dict[str, Path]:
    return {role: folder / file.name for role, file in model.files.items()}


@pytest.mark.bitwise
def test_its_files_make_a_model_that_draws(tmp_path):
    model = tiny_glide(tmp_path / "files")
    pipeline = glide.pipeline(files_of(model, tmp_path / "files"), model=model)
    picture = pipeline.generate("a fish", seed=1)
    assert picture.size == (32, 32)

    def decoded(prompt: str = "a fish", **options: float) -> Tensor:
        return pipeline.decode(Wish([1], text=pipeline.encode_text([prompt]), options=Options(**options)))

    plain = decoded()
    assert torch.equal(decoded(), plain)
    for other in (decoded("a dog"), decoded(guidance_scale=1.0), decoded(clip_guidance_scale=3.0)):
        assert not torch.equal(other, plain)


class Replayed:
    """Noise that was drawn elsewhere, in the place of `Noise(seeds, device)`."""

    def __init__(self, drawn: Tensor) -> None:
        self.drawn = iter(drawn)

    def __call__(self, *seeds_or_shape: object) -> object:
        return self if len(seeds_or_shape) == 2 else next(self.drawn)[None]


@pytest.mark.parametrize("case, options", [
    ("plain", {}),
    ("inpaint", {}),
    ("clip", {"clip_guidance_scale": 3.0, "guidance_scale": 1.0}),
])  # fmt: skip
def test_whole_runs_are_the_public_notebooks(case, options, tmp_path, monkeypatch):
    run = {
        name.partition("/")[2]: value
        for name, value in load_file(FIXTURES / "runs" / "glide.safetensors").items()
        if name.startswith(f"{case}/")
    }
    model = tiny_glide(tmp_path, inpaint=case == "inpaint", steps=5)
    pipeline = glide.pipeline(files_of(model, tmp_path), model=model)
    canvas = None
    if "picture" in run:
        mask = Image.new("L", (32, 32), 0)
        mask.paste(255, (16, 0, 32, 32))
        canvas = canvas_of(Image.fromarray(run["picture"].permute(1, 2, 0).numpy()), mask)
    text = pipeline.encode_text(["a fish"])
    monkeypatch.setattr("unclip.pipeline.drawing.Noise", Replayed(run["base_noise"]))
    wish = Wish([0], text=text, options=Options(**options), canvas=canvas)
    picture = pipeline.decode(wish)
    torch.testing.assert_close(picture[0], run["base"], rtol=0, atol=1e-4)
    if "upsampler" in run:
        monkeypatch.setattr("unclip.pipeline.drawing.Noise", Replayed(run["upsampler_noise"]))
        large = pipeline.upsample(picture, wish)
        torch.testing.assert_close(large[0], run["upsampler"], rtol=0, atol=1e-4)


@pytest.mark.bitwise
def test_it_is_saved_as_ours_and_loads_without_the_converter(tmp_path):
    model = tiny_glide(tmp_path / "files")
    pipeline = glide.pipeline(files_of(model, tmp_path / "files"), model=model)
    pipeline.save(tmp_path / "ours")
    again = unclip.load(tmp_path / "ours", "cpu")
    for old, new in zip(pipeline.state_dict().items(), again.state_dict().items(), strict=True):
        assert old[0] == new[0] and torch.equal(old[1], new[1])
    assert [stage.config for stage in again.picture_stages] == [s.config for s in pipeline.picture_stages]
    again.save(tmp_path / "twice")
    written = [path for path in (tmp_path / "ours").rglob("*") if path.is_file()]
    assert len(written) == 7
    for path in written:
        assert path.read_bytes() == (tmp_path / "twice" / path.relative_to(tmp_path / "ours")).read_bytes()


@pytest.mark.bitwise
def test_the_inpainting_model_keeps_what_is_known(tmp_path):
    model = tiny_glide(tmp_path / "files", inpaint=True)
    pipeline = glide.pipeline(files_of(model, tmp_path / "files"), inpaint=True, model=model)
    picture = Image.effect_noise((32, 32), 60).convert("RGB")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (16, 0, 32, 32))  # the right half is painted anew
    made = pipeline.generate("a fish", image=picture, mask=mask)
    left, right = (0, 0, 16, 32), (16, 0, 32, 32)
    assert made.crop(left).tobytes() == picture.crop(left).tobytes()
    assert made.crop(right).tobytes() != picture.crop(right).tobytes()


def test_a_model_may_come_without_its_noised_clip_but_not_misfit(tmp_path):
    model = tiny_glide(tmp_path / "files")
    files = files_of(model, tmp_path / "files")
    pipeline = glide.pipeline({role: path for role, path in files.items() if "clip" not in role}, model=model)
    assert pipeline.guide is None
    with pytest.raises(ValueError, match="clip_guidance_scale"):
        pipeline.generate("a fish", clip_guidance_scale=3.0)
    weights = torch.load(files["base"])
    weights["unemb.weight"] = weights.pop("final_ln.bias")
    torch.save(weights, files["base"])
    with pytest.raises(CheckpointError) as told:
        glide.pipeline(files, model=model)
    for part in ("base.pt does not fit", "unexpected: ['unemb.weight']", "missing: ['text.norm.bias']"):
        assert part in str(told.value)
    files["base"].write_bytes(files["base"].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="base.pt cannot be read: it is damaged or cut short"):
        glide.pipeline(files, model=model)

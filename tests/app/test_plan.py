"""unclip --plan: parameters as in the released files, memory as it is really taken, and nothing fetched."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import public
import pytest
import torch
from places import FIXTURES
from tiny import classifier, decoder
from tiny_glide import guide

from unclip.app.command import main as command
from unclip.checkpoint import CheckpointError
from unclip.pipeline.pipeline import Pipeline
from unclip.plan import GIB, MIB, Plan, Row, _call, on_meta, plan
from unclip.resources.peak import LiveBytes, peak_activations
from unclip.resources.weightless import held_bytes, parameters
from unclip.stages import DecoderStageConfig, Sampling

pytestmark = pytest.mark.filterwarnings("ignore:.*is published under")
MANIFESTS = FIXTURES / "manifests"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))


def released(name: str) -> int:
    return json.loads((MANIFESTS / f"{name}.json").read_text())["parameters"]


@pytest.mark.parametrize(
    "name, stages",
    [
        (
            "glide",
            {
                "decoder": ["glide-base"],
                "guide": ["glide-clip-image", "glide-clip-text"],
                "upsampler 256": ["glide-upsample"],
            },
        ),
        ("adm-64-classifier", {"decoder": ["adm-64-class"], "classifier": ["adm-64-classifier"]}),
        ("adm-64-256-upsampler", {"decoder": ["adm-64-class"], "upsampler 256": ["adm-64-256-upsampler"]}),
        ("iddpm-imagenet64-uncond", {"decoder": ["iddpm-imagenet64-uncond"]}),
    ],
)
def test_parameters_are_those_of_the_released_files(name, stages):
    rows = {row.stage: row for row in plan(name, "bfloat16").rows}
    assert {stage: row.parameters for stage, row in rows.items()} == {
        stage: sum(map(released, files)) for stage, files in stages.items()
    }
    for row in rows.values():
        assert 2 * row.parameters <= row.weights < 2.02 * row.parameters and row.activations > 0


def test_what_is_shipped_is_planned_from_its_headers_as_it_loads(tiny_model):
    pipeline = Pipeline.load(tiny_model, "cpu")
    made = plan(tiny_model)
    assert [row.stage for row in made.rows] == ["clip", "prior", "decoder", "upsampler 64"]
    parts = (pipeline.clip.towers, pipeline.prior, pipeline.decoder, *pipeline.upsamplers)
    assert [row.parameters for row in made.rows] == [
        sum(p.numel() for p in part.parameters()) for part in parts
    ]
    assert [row.weights for row in made.rows[1:]] == [held_bytes(part) for part in parts[1:]]
    assert made.peak >= sum(row.weights for row in made.rows) > made.peak_offloaded / 2


def test_a_peak_is_all_weights_and_the_busiest_stage():
    """Offloaded, that of one stage alone, or of the decoder with both of its guides beside it."""
    rows = [
        Row("clip", 3, 12, None),
        Row("prior", 5, 20, 7),
        Row("decoder", 10, 40, 30),
        Row("classifier", 2, 8, 50),
        Row("guide", 4, 16, 5),
        Row("upsampler 64", 6, 24, 60),
    ]
    made = Plan("a model", tuple(rows))
    assert (made.parameters, made.peak) == (30, 120 + 60)
    assert made.peak_offloaded == 40 + 8 + 16 + 50
    assert Plan("no guides", (*rows[:3], rows[-1])).peak_offloaded == 24 + 60
    assert Plan("a CLIP", (Row("clip", 30, 120, None), *rows[1:3])).peak_offloaded == 120
    said = str(Plan("big", (Row("clip", 3, 2 * MIB, None), Row("decoder", 10, 3 * GIB, 5 * MIB)))).split("\n")
    assert said[0] == "big" and said[2].split() == ["clip", "3", "2", "MiB"]
    assert said[3].split() == ["decoder", "10", "3.00", "GiB", "5", "MiB"]
    assert said[4].split() == ["together", "13", "3.00", "GiB"]
    assert said[5] == "peak: 3.01 GiB; with --offload 3.00 GiB on the device"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_clip_is_planned_in_float32_whatever_the_rest(tiny_model, dtype):
    clip = plan(tiny_model, dtype).rows[0]
    numbers = parameters(Pipeline.load(tiny_model, "cpu").clip)
    assert clip == Row("clip", numbers, 4 * numbers, None)


def test_what_guides_is_planned_from_its_file_and_a_run_as_its_decoder(tmp_path):
    made = Pipeline(decoder(net={}), guide=guide(), classifier=classifier())
    made.save(tmp_path / "led")
    rows = {row.stage: row for row in plan(tmp_path / "led").rows}
    parts = {"decoder": made.decoder, "classifier": made.classifier, "guide": made.guide}
    assert {name: (row.parameters, row.weights) for name, row in rows.items()} == {
        name: (parameters(part), held_bytes(part)) for name, part in parts.items()
    }
    for name in ("classifier", "guide"):  # with a gradient of x, which takes more than looking at it
        part, x = on_meta(parts[name].config), torch.empty(1, 3, 8, 8, device="meta")
        part.requires_grad_(False)
        look = part.logits if name == "classifier" else part.encode_image
        t = torch.ones(1, dtype=torch.int64, device="meta")
        seen = peak_activations(lambda look=look, x=x, t=t: look(x, t))
        assert rows[name].activations > 1.2 * seen
    made.decoder.save(tmp_path / "run" / "decoder.safetensors")
    for path in (tmp_path / "run", tmp_path / "run" / "decoder.safetensors"):
        assert plan(path).rows == (rows["decoder"],) and plan(path).title.startswith(f"{path}: ")


def test_a_prior_is_planned_with_all_its_candidates(tiny_model):
    def activations(candidates: int) -> int:
        stage = on_meta(Pipeline.load(tiny_model, "cpu").prior.config)
        stage.config = stage.config.model_copy(update={"sampling": Sampling(candidates=candidates)})
        return peak_activations(lambda: _call(stage, 2))

    assert activations(4) == pytest.approx(4 * activations(1), rel=0.1)


@pytest.mark.parametrize("pictures, said", [(1, "1 picture at a time"), (2, "2 pictures at a time")])
def test_the_title_says_what_was_planned(tiny_model, pictures, said):
    one, made = plan(tiny_model), plan(tiny_model, "bfloat16", pictures)
    assert made.title == f"{tiny_model}: bfloat16 weights, {said}"
    if pictures == 1:  # under autocast most is half as large
        assert made.rows[2].activations < 0.8 * one.rows[2].activations


def test_activations_are_what_a_real_call_takes(tiny_model):
    """Meta tensors and a CPU's, of the same step of sampling; attention's own matrices aside."""
    stage = Pipeline.load(tiny_model, "cpu").decoder
    net = stage.config.net.model_copy(update={"attention_resolutions": (), "middle_attention": False})
    config = stage.config.model_copy(update={"net": net, "sampling": Sampling(guidance_scale=3.0)})
    real = type(stage)(config).eval().requires_grad_(False)

    def call() -> object:
        width = net.image_embed_dim
        told = real.conditions(
            2, torch.zeros(2, width), torch.zeros(2, 77, net.text_dim), torch.ones(2, 77, dtype=torch.bool)
        )
        with torch.no_grad():
            denoise = real.denoise(told, told, 3.0)
            return denoise(torch.zeros(2, 3, 16, 16), torch.zeros(2, dtype=torch.int64) + 1)

    empty = on_meta(config)
    planned = peak_activations(lambda: _call(empty, 2))
    assert planned == pytest.approx(peak_activations(call), rel=0.1)


def test_guidance_and_more_pictures_take_more(tiny_model):
    def activations(**changes: object) -> int:
        config = Pipeline.load(tiny_model, "cpu").decoder.config
        pictures = changes.pop("pictures", 1)
        sampling = config.sampling.model_copy(update=changes)
        stage = on_meta(DecoderStageConfig.model_validate({**dict(config), "sampling": sampling}))
        return peak_activations(lambda: _call(stage, pictures))

    alone = activations(guidance_scale=1.0)
    assert 1.5 * alone < activations(guidance_scale=2.0) < 2.5 * alone
    assert 3 * alone < activations(guidance_scale=2.0, pictures=2) < 5 * alone


def test_the_command_prints_a_table(capsys):
    assert command(["--model", "iddpm-cifar10-uncond", "--plan", "--dtype", "bfloat16", "-n", "2"]) == 0
    said = capsys.readouterr().out
    assert "32 px" in said and "2 pictures" in said and f"{52_546_438:,}" in said and "offload" in said


def test_files_in_an_original_layout_are_planned(monkeypatch, tmp_path):
    public.publish(monkeypatch, tmp_path / "cache")
    made = plan(tmp_path / "cache" / "adm" / "tiny.pt")
    assert [row.stage for row in made.rows] == ["decoder"] and made.peak < GIB / 100


def test_a_folder_that_is_no_model_is_one_message(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="is not a model"):
        plan(tmp_path)
    assert command(["--model", "nothing", "--plan"]) == 2 and "no model 'nothing'" in capsys.readouterr().err


def test_the_list_of_models(capsys):
    assert command(["--models"]) == 0
    said = capsys.readouterr().out
    assert "glide-inpaint" in said and "CreativeML OpenRAIL-M" in said and "icons" in said


def test_bytes_count_until_they_are_freed():
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1  # a view is no memory of its own
        assert live.now == 8000
        a.add_(1)  # nor is what is done in place
        del b
        assert live.now == 4000
        c = torch.ones(10, device="meta")
    assert live.now == 4040 and live.peak == 8000 and len(c) == 10


def test_a_backward_pass_counts():
    weight = torch.zeros(100, 100, requires_grad=True)

    def forward(grad: bool) -> None:
        with torch.set_grad_enabled(grad):
            x = torch.zeros(50, 100)
            for _ in range(8):
                x = (x @ weight).relu()
            if grad:
                x.sum().backward()

    kept = 50 * 100 * 4
    assert peak_activations(lambda: forward(False)) < 4 * kept
    assert peak_activations(lambda: forward(True)) > 8 * kept + 100 * 100 * 4

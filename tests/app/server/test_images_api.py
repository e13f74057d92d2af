"""The official client, unmodified, gets from the server what the pipeline draws."""

from __future__ import annotations

import io
import subprocess

import httpx
import openai
import pytest
from PIL import Image, ImageChops
from serving import Running, file_of, picture

from unclip.data.images import to_pil
from unclip.pipeline.pipeline import Pipeline
from unclip.provenance import record_of

RED = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB")


ASKED = {"seed": 7, "guidance_scale": 1.5}


def apart(a: Image.Image, b: Image.Image) -> int:
    """The most that two pictures differ by, of 255."""
    assert a.mode == b.mode == "RGB" and a.size == b.size
    return max(high for _, high in ImageChops.difference(a, b).getextrema())


def drawn(answer) -> list[Image.Image]:
    return [picture(item.b64_json) for item in answer.data]


def test_generations_are_those_of_the_pipeline(server: Running, pipeline: Pipeline):
    answer = server.client.images.generate(
        prompt="a fish", n=2, extra_body={"seed": 7, "guidance_scale": 1.5}
    )
    expected = pipeline.generate("a fish", n=2, seed=7, guidance_scale=1.5)
    assert max(apart(*both) for both in zip(drawn(answer), expected, strict=True)) <= 1
    assert [(item.seed, item.k, item.url) for item in answer.data] == [(7, 0, None), (7, 1, None)]
    assert answer.size == "64x64" and answer.output_format == "png" and answer.model == "tiny"
    assert answer.usage.total_tokens == 0 and answer.background == "opaque"
    assert apart(*drawn(answer)) > 1
    made = [record_of(one) for one in drawn(answer)]
    assert [(one.prompt, one.seed, one.k, one.n, one.verb) for one in made] == [
        ("a fish", 7, k, 2, "generate") for k in range(2)
    ]


def test_without_a_seed_each_picture_is_another_and_its_seed_draws_it_again(server, pipeline):
    once, twice = (server.client.images.generate(prompt="a fish") for _ in range(2))
    assert once.data[0].seed != twice.data[0].seed
    assert apart(drawn(once)[0], pipeline.generate("a fish", seed=once.data[0].seed)) <= 1


@pytest.mark.parametrize("format, kind", [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(server, format, kind):
    sizes = [
        len(server.client.images.generate(prompt="a", output_format=format, output_compression=q,
                                          extra_body={"seed": 1}).data[0].b64_json)
        for q in (10, 95)
    ]  # fmt: skip
    answer = server.client.images.generate(prompt="a", output_format=format)
    assert drawn(answer)[0].format == kind and answer.output_format == format
    assert (sizes[0] < sizes[1]) == (format != "png")


@pytest.mark.parametrize("asked", [{"response_format": "url"}, {"model": "dall-e-2"}])
def test_addresses(server, pipeline, asked):
    answer = server.client.images.generate(prompt="a fish", n=2, extra_body={"seed": 3}, **asked)
    names = [item.url.rpartition("/")[2] for item in answer.data]
    assert len(set(names)) == 2 and all(len(name) >= 36 for name in names)
    got = [httpx.get(item.url) for item in answer.data]  # without the key
    assert all(one.headers["content-type"] == "image/png" for one in got)
    opened = [Image.open(io.BytesIO(one.content)) for one in got]
    assert apart(opened[1], pipeline.generate("a fish", n=2, seed=3)[1]) <= 1
    other = "y" if names[0][-5] == "x" else "x"
    assert httpx.get(f"{server.address}/v1/images/files/{names[0][:-5]}{other}.png").status_code == 404


def test_a_stream_of_partial_pictures(server, pipeline):
    events = list(
        server.client.images.generate(
            prompt="a fish", stream=True, partial_images=2, n=2, extra_body={"seed": 7, "steps": 9}
        )
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 4 + ["image_generation.completed"] * 2
    assert [(e.index, e.partial_image_index) for e in events[:4]] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [event.index for event in events[4:]] == [0, 1] and events[4].usage.total_tokens == 0
    expected = pipeline.generate("a fish", n=2, seed=7, steps=9)
    shown = [picture(event.b64_json) for event in events]
    assert max(apart(*both) for both in zip(shown[4:], expected, strict=True)) <= 1
    assert {one.size for one in shown} == {(64, 64)}
    assert apart(shown[0], shown[2]) > 1 and apart(shown[0], shown[1]) > 1


def test_partial_pictures_are_what_the_decoder_predicts(server, pipeline):
    steps = []
    pipeline.generate("a fish", seed=7, steps=4, watch=steps.append)
    (event, _) = server.client.images.generate(
        prompt="a fish", stream=True, partial_images=1, extra_body={"seed": 7, "steps": 4}
    )
    predicted = to_pil(steps[1].x0[0]).resize((64, 64), Image.Resampling.BICUBIC)
    assert apart(picture(event.b64_json), predicted) <= 1


def test_variations(server, pipeline):
    image = file_of(RED)
    with pytest.warns(DeprecationWarning):
        answer = server.client.images.create_variation(
            image=image, n=2, response_format="b64_json", extra_body={"seed": 5, "spread": 0.5, "steps": 4}
        )
    expected = pipeline.vary(RED, 2, spread=0.5, seed=5, steps=4)
    assert max(apart(*both) for both in zip(drawn(answer), expected, strict=True)) <= 1
    assert record_of(drawn(answer)[1]) == record_of(expected[1]).model_copy(update={"batch_size": None})


def test_edits_of_what_is_transparent_in_a_mask_or_in_the_picture(server, pipeline):
    mask = Image.new("RGBA", RED.size, "black")
    mask.paste((0, 0, 0, 0), (32, 0, 64, 64))
    white = Image.new("L", RED.size)
    white.paste(255, (32, 0, 64, 64))
    ours = {"seed": 5, "steps": 3, "resamplings": 2}
    expected = pipeline.inpaint(RED, white, "a dog", **ours)
    by_mask = server.client.images.edit(
        image=file_of(RED), mask=file_of(mask), prompt="a dog", extra_body=ours
    )
    assert apart(drawn(by_mask)[0], expected) <= 1
    left = (0, 0, 32, 64)
    assert apart(drawn(by_mask)[0].crop(left), RED.crop(left)) == 0
    erased = RED.convert("RGBA")
    erased.putalpha(mask.getchannel("A"))
    by_alpha = server.client.images.edit(image=[file_of(erased)], prompt="a dog", extra_body=ours)
    assert apart(drawn(by_alpha)[0].crop(left), RED.crop(left)) == 0
    assert apart(drawn(by_alpha)[0], RED) > 1


def test_edits_of_the_whole_are_redrawn(server, pipeline):
    answer = server.client.images.edit(
        image=file_of(RED, "WEBP"), prompt="a dog", n=2, extra_body={"seed": 5, "strength": 0.5, "steps": 4}
    )
    assert len(drawn(answer)) == 2
    answer = server.client.images.edit(
        image=file_of(RED), prompt="a dog", extra_body={"seed": 5, "strength": 0.5, "steps": 4}
    )
    assert apart(drawn(answer)[0], pipeline.redraw(RED, "a dog", 0.5, seed=5, steps=4)) <= 1
    whole = server.client.images.edit(image=file_of(RED), prompt="a dog", extra_body={"strength": 0})
    assert apart(drawn(whole)[0], RED) == 0


def test_edits_stream(server):
    events = server.client.images.edit(
        image=file_of(RED), prompt="a dog", stream=True, partial_images=1, extra_body={"steps": 4}
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


@pytest.mark.parametrize("ends, fields", [
    ((RED, RED.rotate(90)), {}),
    ((RED,), {"prompt": "a dog"}),
    ((), {"prompt": ["a cat", "a photo of a dog.png"]}),  # which is no file, whatever it is called
])  # fmt: skip
def test_interpolations(server, pipeline, ends, fields):
    files = [("image[]", (f"{k}.png", file_of(end), "image/png")) for k, end in enumerate(ends)]
    files += [("seed", (None, "5")), ("n", (None, "3")), ("steps", (None, "4"))]
    texts = [fields["prompt"]] if isinstance(fields.get("prompt"), str) else fields.get("prompt", [])
    files += [("prompt", (None, text)) for text in texts]
    with server.http() as http:
        answer = http.post("/v1/images/interpolations", files=files)
    assert answer.status_code == 200, answer.text
    pictures = [picture(item["b64_json"]) for item in answer.json()["data"]]
    a, b = [*ends, *(f"{text} " for text in texts)]
    expected = pipeline.interpolate(a, b, 3, seed=5, steps=4)
    assert max(apart(*both) for both in zip(pictures, expected, strict=True)) <= 1


def test_sizes_are_refused_by_name_or_scaled_where_that_is_said(server):
    with pytest.raises(openai.BadRequestError, match="tiny draws 64x64, not 1024x1024") as raised:
        server.client.images.generate(prompt="a", size="1024x1024")
    assert raised.value.param == "size" and raised.value.type == "invalid_request_error"
    answer = server.client.images.generate(prompt="a", size="96x96", extra_body={"resize": True})
    assert drawn(answer)[0].size == (96, 96) and answer.size == "96x96"
    assert drawn(server.client.images.generate(prompt="a", size="64x64"))[0].size == (64, 64)


@pytest.mark.parametrize("asked, error, param, code", [
    ({"prompt": " "}, openai.BadRequestError, None, None),
    ({"prompt": "a", "model": "none"}, openai.NotFoundError, "model", "model_not_found"),
    ({"prompt": "a", "n": 11}, openai.BadRequestError, "n", "invalid_value"),
    ({"prompt": "a", "extra_body": {"seeds": 1}}, openai.BadRequestError, "seeds", "unknown_parameter"),
    ({"prompt": "a", "extra_body": {"sampler": "magic"}}, openai.BadRequestError, "sampler", "invalid_value"),
    ({"prompt": "a", "extra_body": {"steps": 2000}}, openai.BadRequestError, None, None),
    ({"prompt": "a", "background": "transparent"}, openai.BadRequestError, "background", "invalid_value"),
])  # fmt: skip
def test_mistakes_are_the_clients_own_errors(server, asked, error, param, code):
    with pytest.raises(error) as raised:
        server.client.images.generate(**asked)
    assert (raised.value.param, raised.value.code) == (param, code) and raised.value.request_id


def test_models(server):
    (model,) = server.client.models.list()
    assert model.id == "tiny" and server.client.models.retrieve("tiny").unclip["size"] == 64
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("none")


def test_curl(server):
    line = ["curl", "-s", f"{server.address}/v1/images/variations", "-F", "image=@red.png", "-F", "n=2"]
    RED.save("red.png")
    answer = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert answer.count('"b64_json"') == 2


def test_litellm(server, pipeline):
    litellm = pytest.importorskip("litellm")
    answer = litellm.image_generation(
        "a fish", "openai/tiny", api_base=f"{server.address}/v1", api_key="x", extra_body={"seed": 7}
    )
    assert apart(picture(answer.data[0].b64_json), pipeline.generate("a fish", seed=7)) <= 1

"""CLIP: three implementations of one network agree; saved folders; training on small pictures."""

import json
from pathlib import Path

import karlo_models
import pytest
import torch
import torch.nn.functional as F
from clips import RESNET, TEXT, VIT, byte_pair_tokenizer, of_transformers, tiny
from tiny_models import tiny_clip

from unclip.checkpoint import CheckpointError
from unclip.clip import MEAN, STD, Clip, load_clip, load_openai, load_transformers, save_clip
from unclip.clip.towers import OpenClipTowers, TransformersTowers

TEXTS = ["a goldfish", "two cats, and a slice of pizza!", ""]


def assert_same(a: Clip, b: Clip) -> None:
    torch.manual_seed(1)
    pictures = torch.rand(3, 3, 40, 56) * 2 - 1
    ours, theirs = a.encode_text(TEXTS), b.encode_text(TEXTS)
    assert torch.equal(ours.mask, theirs.mask)
    assert (ours.embed - theirs.embed).abs().max() < 1e-5
    assert (ours.tokens - theirs.tokens).abs().max() < 1e-5
    assert (a.encode_image(pictures) - b.encode_image(pictures)).abs().max() < 1e-5


@pytest.mark.parametrize("vision", [VIT, RESNET])
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_our_towers_are_open_clips(vision, quick_gelu):
    clip = tiny(vision, quick_gelu=quick_gelu)
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer

    config = json.loads(json.dumps(clip.towers.config))
    model = CLIP(**{**config, "quick_gelu": quick_gelu})
    model.load_state_dict(clip.towers.model.state_dict(), strict=True)
    theirs = OpenClipTowers(model, SimpleTokenizer(context_length=16), config)
    assert_same(clip, Clip(theirs, MEAN, STD, "open_clip"))


def renamed(state: dict) -> dict:
    """OpenCLIP's names -> those of transformers."""
    out = {}
    for name, value in state.items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        name = name.removeprefix("visual.")
        if name == "logit_scale":
            out[name] = value
        elif name in ("proj", "text_projection"):
            out["visual_projection.weight" if name == "proj" else "text_projection.weight"] = value.T
        elif ".in_proj_" in name:
            layer, kind = name.split(".")[2], name.rpartition("_")[2]
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                out[f"{tower}.encoder.layers.{layer}.self_attn.{part}_proj.{kind}"] = piece
        else:
            for old, new in (
                ("transformer.resblocks", "encoder.layers"), ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"), ("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"),
                ("ln_final", "final_layer_norm"), ("conv1", "embeddings.patch_embedding"),
                ("class_embedding", "embeddings.class_embedding"),
                ("token_embedding", "embeddings.token_embedding"),
            ):  # fmt: skip
                name = name.replace(old, new)
            if name == "positional_embedding":
                name = "embeddings.position_embedding.weight"
            out[f"{tower}.{name}"] = value
    return out


def test_transformers_agree(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    clip = tiny(quick_gelu=True)
    text = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 16, "vocab_size": 49408, "eos_token_id": 49407,
            "bos_token_id": 49406, "pad_token_id": 49407}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 8}  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    counted = {name: value for name, value in model.state_dict().items() if "position_ids" in name}
    model.load_state_dict({**counted, **renamed(clip.towers.model.state_dict())}, strict=True)
    byte_pair_tokenizer(tmp_path).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    other = load_clip(f"transformers:{tmp_path}")
    assert isinstance(other.towers, TransformersTowers)
    assert_same(clip, other)
    assert other.truncated("a dog " * 20) == clip.truncated("a dog " * 20)
    assert other.embed_dim == 24 and other.text_dim == 32 and other.context_length == 16


@pytest.mark.bitwise
def test_text_is_masked_after_its_end():
    text = tiny().encode_text(TEXTS)
    assert text.mask.sum(1).tolist() == [4, 11, 2]
    assert text.mask[1, :11].all() and not text.mask[1, 11:].any()
    assert (text.tokens[~text.mask] == 0).all()
    assert torch.allclose(text.embed.norm(dim=-1), torch.ones(3))
    assert text.trimmed().tokens.shape == (3, 11, 32)
    assert text.repeat(2).embed.shape == (6, 24) and len(text[:2]) == 2
    assert torch.equal(text.repeat(2).embed[0], text.repeat(2).embed[1])


def test_what_does_not_fit_is_told():
    clip = tiny()
    assert clip.truncated("a dog") is None
    assert clip.truncated(" ".join(["dog"] * 14)) is None
    assert clip.truncated(" ".join(["dog"] * 14) + " and a cat") == "and a cat"
    assert clip.encode_text([" ".join(["dog"] * 40)]).mask.all()


def test_texts_that_come_again_may_be_tokenised_once(monkeypatch):
    clip, texts, read = tiny_clip(), ["a cat", "two dogs", "a cat"], []
    tokenize, (ids, mask) = clip.towers.tokenize, clip.tokenize(["a cat", "two dogs", "a cat"])
    monkeypatch.setattr(clip.towers, "tokenize", lambda some: read.extend(some) or tokenize(some))
    clip.remember(2)
    for _ in range(3):
        again = clip.tokenize(texts)
        assert torch.equal(again[0], ids) and torch.equal(again[1], mask)
    assert read == ["a cat", "two dogs"]
    clip.tokenize(["a fish"])  # more than are kept: the one that was asked for least lately is forgotten
    clip.tokenize(["a cat"])
    assert read == ["a cat", "two dogs", "a fish"]


def test_image_embedding_has_a_gradient_and_nothing_else_has():
    clip = tiny().train()
    assert not clip.training and not any(p.requires_grad for p in clip.parameters())
    picture = torch.rand(1, 3, 48, 48, requires_grad=True)
    clip.encode_image(picture)[0, 0].backward()
    assert picture.grad.abs().sum() > 0


def test_pictures_are_normalised():
    seen = tiny().preprocess(torch.ones(1, 3, 100, 100))
    assert seen.shape == (1, 3, 32, 32)
    expected = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(seen.mean((0, 2, 3)), expected, atol=1e-5)


@pytest.mark.bitwise
@pytest.mark.parametrize("vision", [VIT, RESNET])
def test_saved_folder(tmp_path, vision):
    import open_clip

    clip = tiny(vision)
    clip.towers.model.half().float()  # what half precision keeps
    save_clip(clip, tmp_path)
    again = load_clip(tmp_path)
    assert torch.equal(clip.encode_text(TEXTS).embed, again.encode_text(TEXTS).embed)
    assert clip.identity.partition("#")[2] == again.identity.partition("#")[2]
    theirs = open_clip.create_model(f"local-dir:{tmp_path}")
    ids, _ = clip.tokenize(TEXTS)
    embed = F.normalize(theirs.encode_text(ids), dim=-1)
    assert (embed - again.encode_text(TEXTS).embed).abs().max() < 1e-5


def test_open_clip_by_name(tmp_path):
    import open_clip

    config = {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": {**TEXT, "no_causal_mask": False}}
    (tmp_path / "Tiny-Test.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    made = open_clip.create_model("Tiny-Test").eval()
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    clip = load_clip(f"open_clip:Tiny-Test@{tmp_path / 'weights.pt'}")
    assert isinstance(clip.towers, OpenClipTowers)
    ids, _ = clip.tokenize(["a dog"])
    embed = F.normalize(made.encode_text(ids), dim=-1)
    assert torch.allclose(embed, clip.encode_text(["a dog"]).embed, atol=1e-5)
    assert (clip.embed_dim, clip.text_dim, clip.image_size, clip.context_length) == (24, 32, 32, 16)
    assert clip.identity.startswith("open_clip:Tiny-Test@")


def test_clear_errors(tmp_path):
    with pytest.raises(CheckpointError, match="holds no CLIP"):
        load_clip(tmp_path)
    with pytest.raises(ValueError, match="knows no model 'ViT-Z'"):
        load_clip("open_clip:ViT-Z")
    save_clip(tiny(), tmp_path)
    described = json.loads((tmp_path / "open_clip_config.json").read_text())
    described["model_cfg"]["text_cfg"]["layers"] = 3
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match="missing"):
        load_clip(tmp_path)


def test_a_clip_of_transformers_is_saved_and_loaded(tmp_path):
    first = of_transformers(tmp_path / "theirs")
    for clip, folder in ((first, "a"), (load_clip(save_to(first, tmp_path / "once")), "b")):
        save_clip(clip, tmp_path / folder)
    again = load_clip(tmp_path / "b")
    assert isinstance(again.towers, TransformersTowers)
    assert_same(first, again)
    assert first.identity.partition("#")[2] == again.identity.partition("#")[2]
    assert torch.equal(first.std, again.std) and not torch.equal(first.std, tiny().std)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} < set(files)
    for name in files:  # nothing but these, and the same bytes
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def save_to(clip: Clip, folder: Path) -> Path:
    save_clip(clip, folder)
    return folder


def test_a_saved_clip_of_transformers_takes_half_the_room_if_that_rounds_nothing(tmp_path):
    clip = of_transformers(tmp_path / "theirs")
    whole = (save_to(clip, tmp_path / "whole") / "model.safetensors").stat().st_size
    clip.towers.model.half().float()
    half = (save_to(clip, tmp_path / "half") / "model.safetensors").stat().st_size
    assert 0.4 < half / whole < 0.6
    assert_same(clip, load_clip(tmp_path / "half"))


def test_a_folder_takes_a_clip_of_another_kind(tmp_path):
    plain = tiny()
    plain.towers.model.half().float()
    for clip in (plain, of_transformers(tmp_path / "theirs"), plain):
        assert_same(clip, load_clip(save_to(clip, tmp_path / "same")))


@pytest.mark.bitwise
def test_texts_alone(tmp_path):
    tokens = karlo_models.tokenizer(tmp_path / "words")
    karlo_models.text_encoder(tokens).save_pretrained(tmp_path / "encoder")
    tokens.save_pretrained(tmp_path / "tokenizer")
    clip = load_transformers(tmp_path / "encoder", tmp_path / "tokenizer")
    assert clip.image_size is None and (clip.embed_dim, clip.text_dim) == (16, 16)
    text = clip.encode_text(["a red cat", "fish"])
    assert (text.raw.norm(dim=-1) - 1).abs().min() > 0.01
    assert torch.allclose(F.normalize(text.raw, dim=-1), text.embed)
    again = load_clip(save_to(clip, tmp_path / "again"))
    assert torch.equal(again.encode_text(["a red cat", "fish"]).raw, text.raw)
    for ask in (lambda: again.encode_image(torch.zeros(1, 3, 8, 8)), lambda: again.logit_scale):
        with pytest.raises(ValueError, match="again knows texts alone"):
            ask()


def test_transformers_that_hold_no_clip(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read as a CLIP"):
        load_clip(f"transformers:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="'gpt2', not a CLIP"):
        load_clip(tmp_path)


def test_openais_tensors():
    clip = tiny({**VIT, "head_width": 16}, quick_gelu=True)
    tensors = {**clip.towers.model.state_dict(), "context_length": torch.tensor(16)}
    made = load_openai({name: value.half() for name, value in tensors.items()}, "it", head_width=16)
    clip.towers.model.half().float()
    assert_same(clip, made)
    with pytest.raises(CheckpointError, match=r"it is no .* lacks \['visual.conv1.weight', 'visual.pos"):
        load_openai({name: value for name, value in tensors.items() if "visual" not in name}, "it")
    with pytest.raises(CheckpointError, match="unexpected: \\['more'\\]"):
        load_openai({**tensors, "more": torch.zeros(1)}, "it", head_width=16)

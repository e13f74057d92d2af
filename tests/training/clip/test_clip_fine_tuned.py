"""CLIPs of other libraries are fine-tuned, and load again."""

import json

import pytest
import torch
from clip_runs import MODEL, NOISED, state, train
from clips import byte_pair_tokenizer

from training.clip import trainer as program
from training.clip.recipe import ClipRecipe
from training.programs import run
from unclip.clip import build_clip, load_clip, save_clip
from unclip.config import load_config
from unclip.nets.blocks import Unit


@pytest.fixture
def library_model(tmp_path) -> str:
    """A tiny architecture in OpenCLIP's list, with weights in a file."""
    import open_clip

    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "layers": 1, "heads": 2},
    }
    (tmp_path / "tiny-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-tests.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-for-tests").state_dict(), tmp_path / "tiny.pt")
    return f"open_clip:tiny-for-tests@{tmp_path / 'tiny.pt'}"


@pytest.fixture
def hub_model(tmp_path) -> str:
    """A tiny model of transformers in a folder."""
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 12, "vocab_size": 49408, "eos_token_id": 49407, "bos_token_id": 49406,
            "pad_token_id": 49407}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    folder = tmp_path / "hub"
    folder.mkdir()
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    byte_pair_tokenizer(folder).save_pretrained(folder)
    return f"transformers:{folder}"


@pytest.fixture
def own_model(tmp_path) -> str:
    import yaml

    torch.manual_seed(0)
    save_clip(build_clip(yaml.safe_load(MODEL)), tmp_path / "own")
    return str(tmp_path / "own")


@pytest.mark.parametrize("kind", ["library_model", "hub_model", "own_model"])
def test_what_is_fine_tuned_loads_again(kind, request, recipe, tmp_path):
    """It starts as the model it is given, moves away from it, and what is saved is what was trained."""
    source = request.getfixturevalue(kind)
    torch.manual_seed(0)
    train(recipe("run", f"start: {source}"), "seed=0")
    tuned = load_clip(tmp_path / "run")
    last = state(tmp_path / "run")["module"]
    ours = {f"towers.{name}": value for name, value in tuned.towers.state_dict().items()}
    assert ours.keys() == last.keys()
    assert all(torch.allclose(ours[name].float(), last[name].float(), rtol=2e-3, atol=1e-6) for name in ours)
    first = load_clip(source)
    before, after = (clip.encode_text(["a goldfish"]).embed for clip in (first, tuned))
    assert (after - before).abs().max() > 1e-4
    weights = tuned.towers.model.state_dict()
    for name, start in first.towers.model.state_dict().items():
        if start.dim() > 1:
            assert torch.cosine_similarity(start.flatten(), weights[name].flatten().float(), dim=0) > 0.7, (
                name
            )
    assert tuned.encode_image(torch.zeros(1, 3, 16, 16)).shape == (1, 8)


def test_what_could_not_be_loaded_again_is_refused_at_the_start(recipe, tmp_path, monkeypatch, capsys):
    import open_clip

    config = {
        "embed_dim": 8,
        "custom_text": True,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "layers": 1, "heads": 2},
    }
    (tmp_path / "custom-for-tests.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "custom-for-tests.json")
    torch.save(open_clip.create_model("custom-for-tests").state_dict(), tmp_path / "custom.pt")
    path = recipe("run", f"start: open_clip:custom-for-tests@{tmp_path / 'custom.pt'}")
    with pytest.raises(SystemExit):
        run(lambda: train(path))
    assert "cannot be saved as a folder here" in capsys.readouterr().err
    assert not (tmp_path / "run/images").exists()


@pytest.mark.parametrize("kind", ["noised", "own_model", "library_model", "hub_model"])
def test_checkpointing_reaches_every_kind_of_tower(kind, request, recipe):
    """Our own blocks, or as the library has it that the model comes from."""
    what = f"noised: {NOISED}" if kind == "noised" else f"start: {request.getfixturevalue(kind)}"
    clip = program.model_of(load_config(ClipRecipe, recipe("run", what)))
    program._checkpoint(clip)
    if kind == "hub_model":
        assert clip.towers.model.is_gradient_checkpointing
    elif kind == "library_model":
        assert clip.towers.model.visual.transformer.grad_checkpointing
    else:
        units = [module.checkpointing for module in clip.modules() if isinstance(module, Unit)]
        assert units and all(units)

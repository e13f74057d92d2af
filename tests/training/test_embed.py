"""``training.embed``: embeddings beside the samples, and training that needs no CLIP and no picture."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from embedded_runs import CAPTIONS, PRIOR, clip_of, recipe, task_of
from runs import forget
from shards import encoded, noise, uneven
from tiny_models import tiny_clip

from training import decoder, embed, prior
from training.data import embeddings
from training.data.embeddings import Embeddings, identity_of
from training.programs import run
from training.tasks import frozen, pictures, prior_rows
from training.tasks import prior as tasks_prior
from unclip.clip import save_clip
from unclip.config import ConfigError
from unclip.data.batches import padded
from unclip.data.images import to_tensor
from unclip.data.writing import ShardWriter
from unclip.stages import load_stage


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Two CLIPs of one name: one/clip and two/clip."""
    top = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("one", "two")):
        save_clip(tiny_clip(seed), top / name / "clip")
    return top


@pytest.fixture(scope="module")
def embedded(clips, tmp_path_factory) -> Path:
    """Shards of 16-pixel pictures, the held-out ones too, with embeddings beside them."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 10), ("heldout", 3)):
        with ShardWriter(folder, split, 4) as writer:
            for number in range(count):
                record = {"captions": CAPTIONS[: 1 + number % 3]}
                writer.write(
                    f"{split}-{number}",
                    {"png": encoded(noise(16, 16, number)), "json": json.dumps(record).encode()},
                )
            if split == "train":
                writer.write("broken", {"png": b"no picture", "txt": b"broken"})
    clip = str(clips / "one" / "clip")
    embed.main([str(folder), "--clip", clip, "--tokens", "--batch", "3", "--workers", "2"])
    return folder


@pytest.fixture
def no_clip(monkeypatch):
    """Nothing may load a CLIP."""

    def refused(*_: object):
        raise AssertionError("a CLIP was loaded")

    for module in (tasks_prior, prior_rows, frozen):
        monkeypatch.setattr(module, "load_clip", refused)


# What is written


def test_embeddings_lie_beside_the_samples_by_key(embedded, clips, capsys):
    clip, found = clip_of(clips), Embeddings(embedded / "embeddings")
    assert found.clip == clip.identity == identity_of(str(clips / "one" / "clip")) and found.tokens
    assert {name: entry["pictures"] for name, entry in found.files.items()} == {
        "train-000000": 4,
        "train-000001": 4,
        "train-000002": 2,
        "heldout-000000": 3,
    }
    every = torch.cat([found[name].image for name in found.files])
    assert torch.allclose(found.mean, every.mean(0), atol=1e-6)
    assert torch.allclose(found.std, every.std(0), atol=1e-6)
    rows = found["train-000001"]
    assert rows.keys == [f"train-{n}" for n in range(4, 8)] and rows.row["train-6"] == 2
    shown = torch.stack([to_tensor(noise(16, 16, number)) for number in range(4, 8)])
    assert torch.allclose(rows.image, clip.encode_image(shown), atol=1e-6)
    assert [rows.captions[row] for row in rows.captions_of(1)] == CAPTIONS
    text = clip.encode_text(rows.captions)
    assert torch.allclose(rows.text, text.embed, atol=1e-6)
    tokens, mask = padded([rows.states(row) for row in range(len(rows.captions))])
    wanted = text.trimmed()
    assert torch.equal(mask, wanted.mask) and torch.allclose(tokens, wanted.tokens, atol=3e-3)


def test_what_cannot_be_read_is_left_out_and_what_is_there_is_kept(embedded, clips, tmp_path, capsys):
    manifest = json.loads((embedded / "embeddings" / "embeddings.json").read_text())
    assert manifest["skipped"] == 1 and manifest["pictures"] == 13 and manifest["captions"] == 25
    one, two = (str(clips / name / "clip") for name in ("one", "two"))
    command = [f"{embedded}/train-*.tar", "--clip", one, "--tokens", "--out", str(tmp_path)]
    embed.main(command)
    assert "skipped broken: this is no picture" in capsys.readouterr().err
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    (tmp_path / "train-000001.safetensors").write_bytes(b"cut short")
    embed.main(command)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert [name for name in before if before[name] != after[name]] == ["train-000001.safetensors"]
    embed.main([*command[:2], two, *command[3:]])  # another CLIP: all of them
    assert Embeddings(tmp_path).clip == identity_of(two)
    assert all(path.stat().st_mtime_ns != after[path.name] for path in tmp_path.glob("*.safetensors"))


def test_mistakes_of_embedding(embedded, clips, tmp_path, capsys):
    for folder in ("a", "b"):
        uneven(tmp_path / folder, [1])
    one = str(clips / "one" / "clip")
    for argv, said in (
        ([f"{tmp_path}/a", f"{tmp_path}/b", "--clip", one], "those of several shards"),
        ([str(embedded), "--clip", "nowhere"], "nowhere holds no CLIP"),
        ([str(embedded), "--clip", one, "--batch", "0"], "--batch must be at least 1"),
        (["http://x/a.tar", "--clip", one], "say where the embeddings go with --out"),
    ):
        with pytest.raises(SystemExit):
            run(lambda argv=argv: embed.main(argv))
        assert said in capsys.readouterr().err


# Training from it


@pytest.mark.bitwise
def test_a_prior_trains_without_clip_and_without_pictures(embedded, tmp_path, no_clip):
    """Though only the embeddings are left of the data."""
    bare = tmp_path / "bare"
    shutil.copytree(embedded / "embeddings", bare)
    data = {
        "shards": ["gone/train-*.tar"],
        "heldout": ["gone/heldout-{000000..000000}.tar"],
        "embeddings": str(bare),
    }
    prior.main([str(recipe("prior", embedded, tmp_path / "run", data=data))])
    stage = load_stage(tmp_path / "run" / "prior.safetensors", "prior")
    found = Embeddings(bare)
    assert stage.facts["clip"] == found.clip and torch.equal(stage.embed_mean, found.mean)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("validation/mse" in line for line in lines)


@pytest.mark.parametrize("named", [False, True])
def test_a_prior_is_told_what_clip_would_say(embedded, clips, tmp_path, named, no_clip):
    path = recipe(
        "prior", embedded, tmp_path / "run", **({"clip": str(clips / "one" / "clip")} if named else {})
    )
    task, clip = task_of("prior", path), clip_of(clips)
    batches = list(itertools.islice(task.batches(0), 4))
    pairs = [(key, number) for number in range(10) for key in [f"train-{number}"] * (1 + number % 3)]
    keys = [key for batch in batches for key in batch.keys]
    assert len(pairs) == 19 and set(keys) <= {key for key, _ in pairs}
    again = next(task.batches(3))
    assert torch.equal(again.x0, batches[3].x0) and again.keys == batches[3].keys
    batch = batches[0]
    for row, key in enumerate(batch.keys):
        image = to_tensor(noise(16, 16, int(key.split("-")[1])))[None]
        assert torch.allclose(task.stage.unwhiten(batch.x0)[row], clip.encode_image(image)[0], atol=1e-5)
        embed = batch.conditions["text_embed"][row]
        text = clip.encode_text(CAPTIONS)
        (which,) = (text.embed @ embed > 1 - 1e-5).nonzero().flatten().tolist()
        mask = batch.conditions["text_mask"][row]
        assert mask.sum() == text.mask[which].sum()
        states = batch.conditions["text"][row][mask]
        assert torch.allclose(states, text.tokens[which][text.mask[which]], atol=3e-3)


def test_every_caption_is_seen_once_an_epoch_by_all_processes(embedded, tmp_path):
    task = task_of("prior", recipe("prior", embedded, tmp_path / "run"))
    seen = []
    for rank in (0, 1):
        task.accelerator = type("", (), {"process_index": rank, "num_processes": 2})
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(prior_rows, "micro_batch", lambda *_: 1)
            seen += [key for batch in itertools.islice(task.batches(0), 19) for key in batch.keys]
    assert sorted(seen) == sorted(2 * [f"train-{n}" for n in range(10) for _ in range(1 + n % 3)])


def test_without_states_clip_is_loaded_for_the_captions(embedded, clips, tmp_path):
    shards, one = f"{embedded}/train-*.tar", str(clips / "one" / "clip")
    embed.main([shards, "--clip", one, "--out", str(tmp_path / "small")])
    data = {"embeddings": str(tmp_path / "small"), "heldout": []}
    with pytest.raises(ConfigError, match="no states of the text encoder: make it with training.embed"):
        prior.main([str(recipe("prior", embedded, tmp_path / "a", data=data))])
    forget()
    prior.main([str(recipe("prior", embedded, tmp_path / "b", data=data, clip=one))])
    assert load_stage(tmp_path / "b" / "prior.safetensors", "prior").facts["clip"] == identity_of(one)


def test_a_prior_remembers_embedded_captions(embedded, clips, tmp_path):
    path = recipe("prior", embedded, tmp_path / "run")
    config = json.loads(path.read_text())
    config["stage"] = {**PRIOR, "net": {**PRIOR["net"], "memory": 3, "memory_scale": 1e7}}
    path.write_text(json.dumps(config))
    task, clip = task_of("prior", path), clip_of(clips)
    rows = [Embeddings(embedded / "embeddings")[f"train-{n:06d}"] for n in range(3)]
    cats = torch.cat([r.image for r in rows])
    recalled = task.stage.network.memory(clip.encode_text(["a cat"]).embed)
    wanted = torch.nn.functional.normalize(cats.mean(0), dim=0)
    assert torch.allclose(task.stage.unwhiten(recalled)[0], wanted, atol=1e-3)


def test_a_decoder_trains_without_clip(embedded, tmp_path, no_clip):
    decoder.main([str(recipe("decoder", embedded, tmp_path / "run", data={"workers": 1}))])
    stage = load_stage(tmp_path / "run" / "decoder.safetensors")
    assert stage.facts["clip"] == Embeddings(embedded / "embeddings").clip


@pytest.mark.bitwise
@pytest.mark.parametrize("hold", [False, True])
def test_a_decoder_is_told_what_clip_would_say(embedded, clips, tmp_path, hold, monkeypatch):
    one = str(clips / "one" / "clip")
    task = task_of("decoder", recipe("decoder", embedded, tmp_path / "a", clip=one, data={"hold": hold}))
    assert task.clip is None
    forget()
    monkeypatch.setattr(pictures.PictureTask, "_measure_embeddings", lambda self: None)
    plain = task_of(
        "decoder",
        recipe("decoder", embedded, tmp_path / "b", clip=one, data={"embeddings": None, "hold": hold}),
    )
    plain.stage.set_statistics(task.stage.embed_mean, task.stage.embed_std)
    pairs = [(next(task.batches(2)), next(plain.batches(2))), (task.validation()[0], plain.validation()[0])]
    for ours, theirs in pairs:
        assert ours.keys == theirs.keys and torch.equal(ours.x0, theirs.x0)
        assert ours.conditions.keys() == theirs.conditions.keys()
        for name, value in theirs.conditions.items():
            assert torch.allclose(ours.conditions[name].float(), value.float(), atol=3e-3), name


# What does not fit


@pytest.mark.parametrize("kind", ["prior", "decoder"])
def test_embeddings_of_another_clip_are_refused(kind, embedded, clips, tmp_path):
    path = recipe(kind, embedded, tmp_path / "run", clip=str(clips / "two" / "clip"))
    with pytest.raises(ConfigError, match="of the CLIP clip#.*, but the recipe's .*two/clip is clip#"):
        prior.main([str(path)]) if kind == "prior" else decoder.main([str(path)])
    forget()
    named = recipe(kind, embedded, tmp_path / "run", clip="open_clip:ViT-B-32@openai")
    with pytest.raises(ConfigError, match="open_clip:ViT-B-32@openai is open_clip:ViT-B-32@openai"):
        task_of(kind, named)


def test_a_published_clip_is_known_by_its_name(embedded, tmp_path):
    copy = tmp_path / "embeddings"
    shutil.copytree(embedded / "embeddings", copy)
    manifest = json.loads((copy / "embeddings.json").read_text())
    (copy / "embeddings.json").write_text(json.dumps({**manifest, "clip": "open_clip:ViT-B-32@openai#0123"}))
    Embeddings(copy).check_clip("open_clip:ViT-B-32@openai")
    with pytest.raises(ConfigError):
        Embeddings(copy).check_clip("open_clip:ViT-B-32@laion400m_e32")


@pytest.mark.parametrize(
    "kind, data, said",
    [
        ("prior", {"embeddings": "nowhere"}, "nowhere holds no embeddings: it has no embeddings.json"),
        ("decoder", {"embeddings": "nowhere"}, "nowhere holds no embeddings: it has no embeddings.json"),
        ("prior", {"shards": ["other-*.tar"]}, "holds no embeddings of other-"),
        ("decoder", {"kind": "icons"}, "icons are composed anew, and have no embeddings"),
    ],
)
def test_mistakes_of_training(kind, data, said, embedded, tmp_path):
    path = recipe(kind, embedded, tmp_path / "run", data=data)
    with pytest.raises(ConfigError, match=said):
        task_of(kind, path)


def test_shards_without_embeddings_are_an_error_at_once(embedded, tmp_path):
    (other,) = uneven(tmp_path, [2])
    path = recipe("decoder", embedded, tmp_path / "run", data={"shards": [str(other)]})
    with pytest.raises(ConfigError, match="holds no embeddings of shard-0-000000; run training.embed again"):
        task_of("decoder", path)


def test_samples_that_have_changed_are_not_given_old_embeddings(embedded, tmp_path, capsys):
    with ShardWriter(tmp_path, "train", 100) as writer:
        for number, caption in enumerate(["a cat", "another caption", "a cat"]):
            writer.write(
                f"train-{number if number < 2 else 99}",
                {"png": encoded(noise(16, 16, number)), "txt": caption.encode()},
            )
    data = {"shards": [str(writer.paths[0])], "heldout": [], "max_corrupt": 1.0}
    task = task_of("decoder", recipe("decoder", embedded, tmp_path / "run", data=data))
    assert set(next(task.batches(0)).keys) == {"train-0"}
    told = capsys.readouterr().err
    assert "skipped train-1: its caption is another than that in" in told
    assert "skipped train-99: no embedding in" in told


def test_damaged_embeddings_are_told(embedded, tmp_path):
    copy = tmp_path / "embeddings"
    shutil.copytree(embedded / "embeddings", copy)
    (copy / "train-000000.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match="train-000000.safetensors is not a readable"):
        Embeddings(copy)["train-000000"]
    (copy / "embeddings.json").write_text("{}")
    with pytest.raises(ConfigError, match="embeddings.json, the list of embeddings, is damaged"):
        Embeddings(copy)
    assert embeddings.name_of("a/b-000.tar.gz") == "b-000"

"""The autoregressive prior: codes of an embedding, predicted in turn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import DIM, prior_ar, randn, seeded, text, unit

from unclip.checkpoint import CheckpointError
from unclip.config import ConfigError, parse_config
from unclip.diffusion.noise import Noise
from unclip.stages import ARPrior, ARPriorStageConfig, ARSampling, load_prior, load_stage
from unclip.stages.prior_ar import pick

NET = {"embed_dim": DIM, "text_dim": 5, "text_length": 7, "width": 16, "layers": 1, "heads": 2}


def told(stage: ARPrior, n: int) -> dict[str, torch.Tensor]:
    return stage.conditions(unit(n), **text(n))


# Codes


def test_all_components_in_fine_buckets_are_the_embedding():
    """... within half a bucket of each component, whose directions stand square on each other."""
    stage = prior_ar(net={"components": DIM, "buckets": 4096})
    embed = unit(200, seed=7)  # what its ranges were measured on
    components = (stage.decode(stage.encode(embed)) - embed) @ stage.basis.T
    assert (components.abs() <= stage.width / 2 * 1.001 + 1e-6).all() and stage.width.max() < 2 / 4096
    torch.testing.assert_close(stage.basis @ stage.basis.T, torch.eye(DIM))


def test_codes_are_their_own_middles():
    stage = prior_ar(unit_norm=False)
    codes = torch.randint(11, (50, 4), generator=seeded(1))
    assert torch.equal(stage.encode(stage.decode(codes)), codes)
    far = stage.decode(codes) + 100 * stage.basis.sum(0)
    assert (stage.encode(far) == 10).all()


def test_components_come_by_decreasing_variance():
    """Against numpy's covariance; and what is left out is the least there is."""
    stage, images = prior_ar(net={"components": 3}), unit(200, seed=7)
    variances = torch.linalg.eigvalsh(torch.cov(images.double().T)).flip(0)
    along = ((images - images.mean(0)) @ stage.basis.T).double().var(0)
    torch.testing.assert_close(along, variances[:3], rtol=1e-5, atol=1e-7)


def test_similarities_are_equally_many():
    """The upper half of the buckets are the pairs above the median."""
    stage, texts, images = prior_ar(), unit(200, seed=8), unit(200, seed=7)
    product = (texts * images).sum(1)
    buckets = torch.bucketize(product, stage.similarity)
    assert buckets.bincount(minlength=6).sub(200 / 6).abs().max() <= 1
    assert torch.equal(buckets >= 3, product > product.median())


@pytest.mark.attack
@pytest.mark.parametrize("texts, images", [(unit(1), unit(1)), (unit(3), unit(2))])
def test_codes_need_pairs(texts, images):
    with pytest.raises(ValueError, match="measured on two pairs at least"):
        prior_ar().set_codes(texts, images)


# The network


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("changed", range(4))
def test_a_code_changes_nothing_before_it(changed, memory):
    stage, codes = prior_ar(memory), torch.randint(11, (2, 4), generator=seeded(2))
    other = codes.clone()
    other[:, changed] = (other[:, changed] + 1) % 11
    similarity = torch.tensor([1, 5])
    one, two = (stage.network(values, similarity, **told(stage, 2)) for values in (codes, other))
    assert torch.equal(one[:, : changed + 1], two[:, : changed + 1])
    assert (one[:, changed + 1 :] != two[:, changed + 1 :]).any(-1).all()


def test_all_that_is_told_is_heard():
    stage, codes = prior_ar(memory=3), torch.zeros(2, 4, dtype=torch.long)
    stage.set_memory(unit(3, seed=9), unit(3, seed=10))
    known = {**told(stage, 2), "similarity": torch.tensor([1, 5])}

    def logits(**changes: torch.Tensor) -> torch.Tensor:
        return stage.network(codes, **{**known, **changes})

    plain, nothing = logits(), logits(has_text=torch.zeros(2, dtype=torch.bool))
    for key in ("text_embed", "text"):
        assert (logits(**{key: known[key] + 1}) != plain).any(), key
    assert (logits(similarity=torch.tensor([2, 4])) != plain).any()
    assert torch.equal(nothing, logits(
        has_text=torch.zeros(2, dtype=torch.bool), similarity=torch.tensor([2, 4]),
        text=known["text"] + 1, text_embed=known["text_embed"] + 1,
    ))  # fmt: skip
    hidden = known["text"] + (~known["text_mask"])[..., None]
    torch.testing.assert_close(logits(text=hidden), plain)


def test_padding_that_is_left_out_changes_nothing():
    stage, codes = prior_ar(), torch.zeros(2, 4, dtype=torch.long)
    known = {**told(stage, 2), "similarity": torch.tensor([1, 5])}
    wide = {
        **known,
        "text": F.pad(known["text"], (0, 0, 0, 3)),
        "text_mask": F.pad(known["text_mask"], (0, 3)),
    }
    torch.testing.assert_close(stage.network(codes, **wide), stage.network(codes, **known))
    with pytest.raises(ValueError, match="8 text tokens; this prior takes 7"):
        stage.network(codes, **{**wide, "text": randn(2, 8, 5), "text_mask": torch.ones(2, 8).bool()})


# Sampling


@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_what_is_remembered_equals_what_is_computed_anew(scale, memory):
    stage, n = prior_ar(memory), 3
    sampling = ARSampling(guidance_scale=scale, temperature=0.8, top_p=0.9)
    codes = stage.sample_codes(told(stage, n), Noise(range(n)), sampling)
    noise, both = Noise(range(n)), [told(stage, n), stage.null(told(stage, n))]
    similarity = 3 + (noise.uniform() * 3).long()
    assert (similarity >= 3).all()
    anew = torch.zeros_like(codes)
    for k in range(4):
        logits, null = (stage.network(anew, similarity, **known)[:, k] for known in both)
        anew[:, k] = pick(null + scale * (logits - null), noise.uniform(), 0.8, 0.9)
    assert torch.equal(codes, anew)


def test_cached_logits_equal_those_of_the_whole_sequence():
    stage, codes, similarity = (
        prior_ar(3),
        torch.randint(11, (2, 4), generator=seeded(3)),
        torch.tensor([0, 4]),
    )
    whole = stage.network(codes, similarity, **told(stage, 2))
    logits, sequence = stage.network.begin(similarity, **told(stage, 2))
    parts = [logits, *(stage.network.follow(codes[:, k], sequence) for k in range(3))]
    torch.testing.assert_close(torch.stack(parts, dim=1), whole)


def test_a_sample_does_not_depend_on_its_batch():
    stage, known = prior_ar(), told(prior_ar(), 4)
    together = stage.sample(known, Noise(range(4)))
    alone = [
        stage.sample({key: value[k : k + 1] for key, value in known.items()}, Noise([k])) for k in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(4))
    assert torch.equal(stage.sample(known, Noise(range(4))), together)
    assert (stage.sample(known, Noise(range(4, 8))) != together).any(1).all()
    longer = prior_ar(unit_norm=False)
    embed = longer.decode(longer.sample_codes(known, Noise(range(4))))
    assert torch.equal(longer.sample(known, Noise(range(4))), embed)
    torch.testing.assert_close(F.normalize(embed), together)
    assert not torch.allclose(embed, together, atol=1e-2)


def test_guidance_is_away_from_what_null_says():
    stage = prior_ar()
    known, away = told(stage, 4), told(stage, 4)
    away["text_embed"] = -away["text_embed"]
    strong = ARSampling(guidance_scale=8.0)
    assert (
        stage.sample(known, Noise(range(4)), strong, away) != stage.sample(known, Noise(range(4)), strong)
    ).any()
    same = stage.sample(known, Noise(range(4)), strong, known)
    assert torch.equal(same, stage.sample(known, Noise(range(4)), ARSampling(guidance_scale=1.0)))


def test_codes_are_picked_by_the_inverse_of_their_distribution():
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    uniform = torch.tensor([0.0, 0.09, 0.11, 0.69, 0.71, 0.9999])
    picked = pick(p.log().expand(6, -1), uniform)
    assert picked.tolist() == [0, 0, 2, 2, 3, 3]
    assert pick(p.log().expand(6, -1), uniform, top_p=0.6).tolist() == [2] * 6
    assert pick(p.log().expand(6, -1), uniform, top_p=0.61).tolist() == [2, 2, 2, 3, 3, 3]
    cold = torch.linspace(0, 0.999, 1000)
    counts = pick(p.log().expand(1000, -1), cold, temperature=0.5).bincount(minlength=4) / 1000
    torch.testing.assert_close(counts, p[0] ** 2 / (p**2).sum(), atol=2e-3, rtol=0)


def test_training_recovers_the_frequencies_of_a_toy():
    """Three embeddings, of which two texts say (1/2, 1/4, 1/4) and (0, 3/4, 1/4); all are equally similar to
    both, so that no half of the similarities is another mixture.
    """
    images = F.normalize(torch.tensor([[1.0, 0, 0.2, 0], [0, 1.0, 0, 0.3], [0, 0, 1.0, 1.0]]), dim=1)
    images, texts = F.pad(images, (0, 2)), torch.eye(DIM)[4:]
    rows, words = torch.tensor([0] * 4 + [1] * 2 + [2] * 2 + [1] * 6 + [2] * 2), torch.arange(16) // 8
    torch.manual_seed(0)
    net = {**NET, "components": 3, "buckets": 16, "similarities": 2}
    stage = ARPrior(ARPriorStageConfig(net=net, drop_text=0.0))
    embed = images[rows]
    stage.set_statistics(embed.mean(0), embed.std(0))
    stage.set_codes(texts[words], embed)

    def told_of(texts: torch.Tensor) -> dict[str, torch.Tensor]:
        return stage.conditions(texts, torch.zeros(len(texts), 1, 5), torch.zeros(len(texts), 1).bool())

    optimizer = torch.optim.AdamW(stage.parameters())
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 150)
        loss = stage(stage.whiten(embed), None, None, told_of(texts[words]))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plain = ARSampling(guidance_scale=1.0)
    for text_embed, shares in zip(texts, ([0.5, 0.25, 0.25], [0.0, 0.75, 0.25]), strict=True):
        drawn = stage.eval().sample(told_of(text_embed.expand(2000, -1)), Noise(range(2000)), plain)
        near = (drawn @ images.T).max(1)
        assert (near.values > 0.97).float().mean() > 0.98
        frequencies = near.indices.bincount(minlength=3) / 2000
        torch.testing.assert_close(frequencies, torch.tensor(shares), atol=0.04, rtol=0)


def test_the_loss_is_the_cross_entropy_of_the_codes():
    """Of a network that says nothing, the logarithm of the number of buckets; t and noise change nothing."""
    torch.manual_seed(0)
    fresh = ARPrior(ARPriorStageConfig(net={**NET, "components": 4, "buckets": 11, "similarities": 6})).eval()
    x0 = randn(2, DIM)
    terms = fresh(x0, torch.tensor([1, 1]), randn(2, DIM), told(fresh, 2))
    torch.testing.assert_close(terms["loss"], torch.full((2,), math.log(11)))
    stage = prior_ar()
    embed = unit(2)
    similarity = torch.bucketize((unit(2) * embed).sum(1), stage.similarity)
    codes = stage.encode(embed)
    log_p = stage.network(codes, similarity, **told(stage, 2)).log_softmax(-1)
    wanted = -log_p.gather(2, codes[..., None])[..., 0].mean(1)
    torch.testing.assert_close(stage(stage.whiten(embed), None, None, told(stage, 2))["loss"], wanted)


def test_a_blurred_text_is_as_similar_as_it_was():
    """text_noise blurs what the network hears, not which similarity it is told."""
    stage = prior_ar(text_noise=5.0, drop_text=0.0)
    known, heard = told(stage, 2), []
    left = stage.drop(known, seeded(1))
    assert (left["text_embed"] != known["text_embed"]).any()
    forward = stage.network.forward
    stage.network.forward = lambda codes, similarity, **rest: (
        heard.append(similarity) or forward(codes, similarity, **rest)
    )
    stage(stage.whiten(unit(2)), None, None, left)
    assert torch.equal(heard[0], torch.bucketize((known["text_embed"] * unit(2)).sum(1), stage.similarity))


# Checkpoints and configurations


def test_a_checkpoint_is_the_stage_to_the_bit(tmp_path):
    stage = prior_ar(memory=3)
    stage.save(tmp_path / "prior.safetensors")
    for load in (load_prior, load_stage, ARPrior.load):
        again = load(tmp_path / "prior.safetensors")
        assert isinstance(again, ARPrior) and again.config == stage.config
        for key, value in stage.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key
    known = told(stage, 2)
    assert torch.equal(again.sample(known, Noise([1, 2])), stage.sample(known, Noise([1, 2])))


@pytest.mark.attack
def test_a_width_that_is_none_is_refused(tmp_path):
    stage = prior_ar()
    stage.width[1] = 0
    stage.save(tmp_path / "prior.safetensors")
    with pytest.raises(CheckpointError, match="width of buckets that is not above 0"):
        load_prior(tmp_path / "prior.safetensors")


@pytest.mark.attack
@pytest.mark.parametrize("net, more, said", [
    ({"components": 7}, {}, "components 7 are more than the 6"),
    ({"components": 0}, {}, "net.components: "),
    ({"buckets": 1}, {}, "net.buckets: "),
    ({"similarities": 5}, {}, "net.similarities: .*multiple of 2"),
    ({"null_text": False}, {}, "null_text false is for the diffusion prior"),
    ({}, {"sampling": {"steps": 4}}, "sampling.steps: unknown key"),
    ({}, {"sampling": {"temperature": 0}}, "sampling.temperature: "),
    ({}, {"sampling": {"top_p": 1.1}}, "sampling.top_p: "),
    ({}, {"process": {}}, "process: unknown key"),
])  # fmt: skip
def test_configurations_that_cannot_be_are_refused(net, more, said):
    with pytest.raises(ConfigError, match=said):
        parse_config(ARPriorStageConfig, {"net": {**NET, "components": 4, **net}, **more})

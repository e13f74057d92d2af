"""Attention, blocks, text transformer and prior: masks, nulls, and a second implementation."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from networks import awake, close
from torch import Tensor

from unclip.nets import PriorConfig, PriorTransformer, TextConfig, TextTransformer
from unclip.nets.attention import attend
from unclip.nets.blocks import ResBlock, SpatialAttention, TransformerBlock, group_norm, timestep_embedding


def naive_attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    weight = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask
        weight = weight.exp() * mask
    else:
        weight = weight.exp()
    weight = weight / weight.sum(-1, keepdim=True)
    return torch.einsum("nhqk,nkhd->nqhd", weight, v).flatten(2)


def masks(kind: str, n: int, queries: int, keys: int) -> Tensor | None:
    if kind == "none":
        return None
    shape = (n, keys) if kind == "keys" else (n, 1, queries, keys)
    mask = torch.rand(shape) > 0.4
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("kind", ["none", "keys", "pairs"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("training", [False, True])
def test_attend_is_the_naive_one(kind, dtype, tolerance, training):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 4).to(dtype) for length in (5, 7, 7))
    mask = masks(kind, 2, 5, 7)
    want = naive_attend(q.float(), k.float(), v.float(), mask)
    got = attend(q.requires_grad_(training), k, v, mask)
    assert got.shape == (2, 5, 12) and got.dtype == dtype
    assert close(got.float(), want, tolerance)


def test_bfloat16_attention_has_the_same_gradient():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 4).bfloat16() for length in (5, 7, 7))
    mask = masks("keys", 2, 5, 7)
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        attend(*leaves, mask).square().sum().backward()
        gradients.append([leaf.grad.float() for leaf in leaves])
    for low, high in zip(*gradients, strict=True):
        assert (low - high).abs().max() < 0.03 * high.abs().max()


@pytest.mark.parametrize("channels", [64, 256])
def test_bfloat16_norms_put_out_what_pytorchs_do_and_their_gradient(channels):
    """Narrow groups, which are done in float32 in training, and wide ones."""
    torch.manual_seed(0)
    norm, plain = group_norm(channels, 4), torch.nn.GroupNorm(4, channels)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    plain.load_state_dict(norm.state_dict())
    x = torch.randn(2, channels, 6, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    ours, theirs, exact = (x.detach().clone().requires_grad_() for _ in range(3))
    made = norm(ours)
    assert made.dtype == torch.bfloat16 and torch.equal(made, plain(theirs)) and torch.equal(made, norm(x))
    weight = torch.randn(2, channels, 6, 6)
    (made * weight).sum().backward()
    (plain(exact.float()) * weight).sum().backward()
    assert ours.grad.dtype == torch.bfloat16
    assert (ours.grad - exact.grad).abs().max() < 0.03 * exact.grad.abs().max()
    for mine, other in zip(norm.parameters(), plain.parameters(), strict=True):
        assert (mine.grad - other.grad).abs().max() < 0.02 * other.grad.abs().max()


def test_xformers_is_imported_only_when_chosen(monkeypatch):
    q = torch.randn(2, 4, 1, 8)
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    attend(q, q, q)
    with pytest.raises(ImportError, match="pip install xformers"):
        attend(q, q, q, backend="xformers")
    with pytest.raises(ValueError, match="unknown attention backend"):
        attend(q, q, q, backend="flash")


@pytest.mark.parametrize("kind", ["none", "keys", "pairs"])
def test_xformers_is_called_with_its_layout(monkeypatch, kind):
    def kernel(q, k, v, attn_bias=None):
        weight = torch.einsum("nqhd,nkhd->nhqk", q, k) / math.sqrt(q.shape[-1])
        if attn_bias is not None:
            assert attn_bias.shape == weight.shape and attn_bias.stride(2) % 8 == 0
            weight = weight + attn_bias
        return torch.einsum("nhqk,nkhd->nqhd", weight.softmax(-1), v)

    ops = SimpleNamespace(memory_efficient_attention=kernel)
    monkeypatch.setitem(sys.modules, "xformers", SimpleNamespace(ops=ops))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 4) for length in (5, 7, 7))
    mask = masks(kind, 2, 5, 7)
    assert close(attend(q, k, v, mask, "xformers"), naive_attend(q, k, v, mask))


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 999.0])
    embedding = timestep_embedding(t, 6)
    for i, frequency in enumerate(1e4 ** (-k / 3) for k in range(3)):
        assert close(embedding[:, i], (t * frequency).cos(), 1e-4)
        assert close(embedding[:, 3 + i], (t * frequency).sin(), 1e-4)
    assert timestep_embedding(t, 7).shape == (3, 7)


def test_context_keys_stand_first_and_channels_are_head_first():
    """Against attention written out with a loop over heads."""
    torch.manual_seed(0)
    layer = awake(SpatialAttention(8, heads=2, context_channels=5))
    x, context = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    pixels = layer.norm(x).flatten(2).transpose(1, 2)
    qkv, kv = layer.qkv(pixels), layer.context_kv(context)
    heads = []
    for head in range(2):
        q, k, v = qkv[..., 12 * head : 12 * head + 12].split(4, dim=-1)
        context_k, context_v = kv[..., 8 * head : 8 * head + 8].split(4, dim=-1)
        k, v = torch.cat([context_k, k], 1), torch.cat([context_v, v], 1)
        weight = q @ k.transpose(1, 2) / 2.0
        weight[..., :4].masked_fill_(~mask[:, None, :], -math.inf)
        heads.append(weight.softmax(-1) @ v)
    want = x + layer.out(torch.cat(heads, -1)).transpose(1, 2).reshape(x.shape)
    assert close(layer(x, context, mask), want)


@pytest.mark.parametrize("resample, side", [(None, 4), ("up", 8), ("down", 2)])
@pytest.mark.parametrize("scale_shift", [True, False])
def test_res_block_begins_as_its_skip(resample, side, scale_shift):
    block = ResBlock(8, 8, 6, scale_shift=scale_shift, resample=resample)
    x = torch.randn(2, 8, 4, 4)
    out = block(x, torch.randn(2, 6))
    assert out.shape == (2, 8, side, side)
    assert close(out, block.resample(x))


@pytest.mark.parametrize("checkpointing, times", [(False, 1), (True, 2)])
def test_checkpointing_computes_a_block_twice(checkpointing, times):
    """Forward, and again on the way back; once where there is no way back."""
    block, calls = awake(TransformerBlock(8, 2)), []
    block.checkpointing, compute = checkpointing, block.compute
    block.compute = lambda *inputs: calls.append(inputs) or compute(*inputs)
    block(torch.ones(1, 3, 8)).sum().backward()
    assert len(calls) == times and block.qkv.weight.grad.any()
    with torch.no_grad():
        block(torch.ones(1, 3, 8))
    assert len(calls) == times + 1


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="do not divide"):
        SpatialAttention(8, heads=3)
    with pytest.raises(ValueError, match="do not divide"):
        TransformerBlock(8, heads=3)


@pytest.mark.bitwise
def test_text_transformer_ignores_what_padding_was():
    net = awake(TextTransformer(TextConfig(vocab_size=11, length=5, width=8, layers=2, heads=2)))
    tokens = torch.tensor([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]).bool()
    pooled, all_tokens = net(tokens, mask)
    assert pooled.shape == (2, 8) and all_tokens.shape == (2, 5, 8)
    assert torch.equal(pooled, all_tokens[:, -1])
    other = net(torch.where(mask, tokens, 7), mask)[1]
    assert close(other, all_tokens)
    assert not close(net(tokens, torch.ones_like(mask))[1], all_tokens)
    with pytest.raises(ValueError, match="not 5"):
        net(tokens[:, :3], mask[:, :3])


def prior(**options) -> PriorTransformer:
    tiny = {"embed_dim": 6, "text_dim": 5, "text_length": 4, "width": 8, "layers": 2, "heads": 2}
    return awake(PriorTransformer(PriorConfig(**tiny | options)))


def prior_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "x": torch.randn(3, 6, generator=generator),
        "t": torch.arange(3) * 300.0,
        "text_embed": torch.randn(3, 6, generator=generator),
        "text": torch.randn(3, 4, 5, generator=generator),
        "text_mask": torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool(),
    }


def test_prior_respects_the_text_mask():
    net, given = prior(), prior_inputs()
    out = net(**given)
    assert out.shape == (3, 6) and out.isfinite().all()
    padding = ~given["text_mask"][..., None]
    assert close(net(**given | {"text": torch.where(padding, 9.0, given["text"])}), out)
    changed = (net(**given | {"text": -given["text"]}) - out).abs().amax(1)
    assert changed[0] > 1e-3 and changed[1] < 1e-5 and changed[2] > 1e-3
    for name in ("x", "t", "text_embed"):
        assert not close(net(**given | {name: given[name] + 1}), out)


def test_prior_without_text_knows_no_text():
    net, given = prior(), prior_inputs()
    has_text = torch.tensor([True, False, False])
    out = net(**given, has_text=has_text)
    other = given | {"text": -given["text"], "text_embed": -given["text_embed"]}
    other["text_mask"] = ~given["text_mask"]
    assert close(net(**other, has_text=has_text)[1:], out[1:])
    assert close(out[0], net(**given)[0])
    with pytest.raises(ValueError, match="null_text"):
        prior(null_text=False)(**given, has_text=has_text)
    with pytest.raises(ValueError, match="5 text tokens; this prior takes 4"):
        net(**given | {"text": torch.zeros(3, 5, 5), "text_mask": torch.zeros(3, 5).bool()})


def remembering() -> tuple[PriorTransformer, Tensor, Tensor]:
    """A prior that knows three texts, with those and what they recall."""
    net = prior(memory=5, memory_scale=40.0)
    generator = torch.Generator().manual_seed(3)
    keys, values = torch.randn(2, 3, 6, generator=generator)
    net.memory.fill(keys, values)
    return net, keys, values


def test_memory_recalls_by_likeness():
    net, keys, values = remembering()
    assert close(net.memory(2.5 * keys), values), "the length of a text's embedding does not count"
    between = F.normalize(F.normalize(keys[0], dim=0) + F.normalize(keys[1], dim=0), dim=0)
    # The spare slots repeat the first two texts, and so these still count alike.
    cosines = F.normalize(keys, dim=-1) @ between
    weights = (40 * cosines).exp() * torch.tensor([2.0, 2.0, 1.0])
    assert close(net.memory(between[None])[0], weights / weights.sum() @ values)


def test_a_memory_holds_no_more_than_its_slots():
    net, keys, values = remembering()
    for more in (keys.repeat(2, 1), keys[:0]):
        with pytest.raises(ValueError, match="5 slots"):
            net.memory.fill(more, more)
    with pytest.raises(ValueError, match="5 slots"):
        net.memory.fill(keys, values[:2])


def test_prior_corrects_what_it_recalls():
    config = PriorConfig(embed_dim=6, text_dim=5, text_length=4, width=8, layers=1, heads=2, memory=3)
    net, (_, keys, values) = PriorTransformer(config), remembering()
    net.memory.fill(keys, values)
    given = prior_inputs()
    assert close(net(**given), net.memory(given["text_embed"])), "an untrained one answers from memory"
    assert not net(**given, has_text=torch.zeros(3, dtype=torch.bool)).any(), "and without a text, nothing"


def test_prior_with_a_memory_respects_masks_and_order():
    net, given = remembering()[0], prior_inputs()
    short = {
        name: value[:2, :2]
        if name.startswith("text") and value.dim() > 1 and name != "text_embed"
        else value[:2]
        for name, value in given.items()
    }
    assert close(net(**short), net(**given)[:2])
    has_text = torch.tensor([True, False, False])
    other = given | {"text_embed": -given["text_embed"]}
    assert close(net(**other, has_text=has_text)[1:], net(**given, has_text=has_text)[1:])
    assert not close(net(**other)[:1], net(**given)[:1])


def test_prior_may_be_given_fewer_columns_of_padding():
    net, given = prior(), {name: value[:2] for name, value in prior_inputs().items()}
    short = {name: given[name][:, :2] for name in ("text", "text_mask")}
    assert close(net(**given | short), net(**given))


def test_prior_is_causal():
    """What stands later in the sequence reaches no earlier position."""
    net, given = prior(), prior_inputs()
    seen = []
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out))
    net(**given)
    first, seen[:] = list(seen), []
    net(**given | {"x": given["x"] + 1})
    for a, b in zip(first, seen, strict=True):
        assert close(a[:, :6], b[:, :6]), "text tokens, text embedding and time precede x"
        assert not close(a[:, 6:], b[:, 6:])


def test_prior_begins_at_zero():
    config = PriorConfig(embed_dim=6, text_dim=5, text_length=4, width=8, layers=1, heads=2)
    assert not PriorTransformer(config)(**prior_inputs()).any()

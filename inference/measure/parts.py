"""Parts of a step on a CPU, each in the two ways between which was chosen, timed in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip.nets import UNet, UNetConfig
from unclip.nets.blocks import group_norm

Work = Callable[[], object]
NORMS = ((4, 192, 64, 32), (4, 384, 32, 32), (4, 768, 8, 32), (8, 128, 64, 32), (4, 192, 64, 6))
LINEARS = ((2, 512, 2048), (77, 1280, 3840), (154, 512, 2048), (256, 768, 2304), (1024, 512, 512))


def in_turns(first: Work, second: Work, turns: int = 9) -> tuple[float, float, float]:
    """Median seconds of each, and the median of their ratio in each turn, after one that does not count."""
    seconds = [(_seconds(first), _seconds(second)) for _ in range(turns + 1)][1:]
    a, b = (statistics.median(column) for column in zip(*seconds, strict=True))
    return a, b, statistics.median(x / y for x, y in seconds)


def _seconds(work: Work) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def parts() -> Iterator[tuple[str, Work, Work]]:
    """What it is, the way that it had, and the other one."""
    torch.manual_seed(0)
    yield "a U-Net of 64 px, contiguous -> channels_last", *_layouts()
    for shape in NORMS:
        n, channels, side, groups = shape
        said = f"norm of {n} x {channels} x {side} x {side}, {groups} groups, bfloat16, trained"
        yield f"{said}, PyTorch's -> ours", *_norms(*shape)
    for rows, width, out in LINEARS:
        said = f"linear of {rows} rows, {width} to {out}"
        yield f"{said}, as it comes -> packed by oneDNN", *_linears(rows, width, out)


def _layouts() -> tuple[Work, Work]:
    config = UNetConfig(image_size=64, channels=64, channel_mult=(1, 2, 3), num_res_blocks=1)
    last, plain = (UNet(config).eval().requires_grad_(False) for _ in range(2))
    for weight in last.parameters():
        nn.init.normal_(weight, std=0.05)
    plain.load_state_dict(last.state_dict())
    plain.to(memory_format=torch.contiguous_format)
    x, t = torch.randn(2, 3, 64, 64), torch.zeros(2)
    return lambda: plain(x, t), lambda: last(x, t)


def _norms(n: int, channels: int, side: int, groups: int) -> tuple[Work, Work]:
    x = torch.randn(n, channels, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
    weight = torch.randn_like(x)

    def trained(norm: nn.Module) -> Work:
        leaf = x.detach().clone().requires_grad_()
        return lambda: norm(leaf).backward(weight)

    return trained(nn.GroupNorm(groups, channels)), trained(group_norm(channels, groups))


def _linears(rows: int, width: int, out: int) -> tuple[Work, Work]:
    x, weight, bias = torch.randn(rows, width), torch.randn(out, width), torch.randn(out)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def other() -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    return lambda: F.linear(x, weight, bias), other


def table() -> str:
    """All of them as Markdown."""
    lines = ["| part | first (ms) | second (ms) | speed |", "|---|--:|--:|--:|"]
    for name, first, second in parts():
        a, b, ratio = in_turns(first, second)
        lines.append(f"| {name} | {1000 * a:.2f} | {1000 * b:.2f} | {ratio:.2f}x |")
    return "\n".join(lines)

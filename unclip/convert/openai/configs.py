"""The arguments of the public constructors -> our configurations.

They come as the public scripts take them (`attention_resolutions: "32,16,8"`, sizes of the grid, and
`channel_mult: ""` for the usual one), or as the networks do (`[2, 4, 8]`, by how much the picture is
reduced, and `[1, 2, 3, 4]`); guided-diffusion, improved-diffusion and glide-text2im agree in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...nets import ClassifierConfig, TextConfig, UNetConfig
from ...nets.noised_clip import NoisedClipConfig, TowerConfig

Arguments = Mapping[str, Any]  # of whatever types; our configurations check them
USUAL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}  # by the picture's size; what the scripts take unless they are told
USUAL_MULT_UPSAMPLER = {**USUAL_MULT, 512: (1, 1, 2, 2, 4, 4)}
CLASSES = 1000  # the scripts know ImageNet alone


def unet_config(args: Arguments, tensors: Mapping[str, Tensor] | None = None) -> UNetConfig:
    """The U-Net that the public constructor would build.

    args:    its arguments. A super-resolution or inpainting model takes more input channels.
    tensors: of its file, whose shapes count more than the arguments.

    Raises ValueError for a size whose usual `channel_mult` is not known.
    """
    args = {**args, **(args_from(tensors) if tensors is not None else {})}
    width = args.get("xf_width") or None
    return UNetConfig(
        **_encoder(args),
        in_channels=args.get("input_channels") or _input_channels(args),
        out_channels=args.get("out_channels") or (6 if args.get("learn_sigma", True) else 3),
        num_heads_up=None if _count(args, "num_head_channels") else _count(args, "num_heads_upsample"),
        classes=args["num_classes"] if "num_classes" in args else CLASSES if args.get("class_cond") else None,
        context_channels=width, text_dim=width, text_embed_dim=width, text_project=False,
    )  # fmt: skip


def classifier_config(args: Arguments, tensors: Mapping[str, Tensor] | None = None) -> ClassifierConfig:
    """The classifier of noised pictures that the public constructor would build.

    tensors: of its file, which tell the number of classes.
    """
    args = {key.removeprefix("classifier_"): value for key, value in args.items()}
    args = {"model_channels": args.get("width"), "num_res_blocks": args.get("depth"),
            "num_head_channels": 64, **args}  # fmt: skip
    classes = args.get("out_channels", CLASSES)
    for name in ("out.2.bias", "out.3.bias", "out.2.c_proj.bias"):  # the last layer of each pool
        classes = len(tensors[name]) if tensors is not None and name in tensors else classes
    return ClassifierConfig(
        **_encoder(args),
        in_channels=args.get("in_channels", 3),
        classes=classes,
        pool=args.get("pool", "adaptive"),
    )


def text_config(args: Arguments, tensors: Mapping[str, Tensor] | None = None) -> TextConfig | None:
    """GLIDE's text transformer; None for a model without one."""
    args = {**args, **(args_from(tensors) if tensors is not None else {})}
    if not args.get("xf_width"):
        return None
    return TextConfig(
        vocab_size=args.get("n_vocab", 50257),
        length=args["text_ctx"],
        width=args["xf_width"],
        layers=args["xf_layers"],
        heads=args["xf_heads"],
        padding=args["xf_padding"],
        final_norm=args["xf_final_ln"],
    )


def noised_clip_config(image: Arguments, text: Arguments, logit_scale: float = 100.0) -> NoisedClipConfig:
    """GLIDE's noised CLIP, from the arguments of its two encoders; the scale is in neither's file."""

    def tower(args: Arguments) -> TowerConfig:
        heads = args["n_head"]
        return TowerConfig(width=heads * args.get("n_head_state", 64), layers=args["n_layers"], heads=heads)

    return NoisedClipConfig(
        embed_dim=image["n_embd"],
        image=tower(image),
        image_size=image["image_size"],
        patch_size=image["patch_size"],
        timesteps=image["n_timesteps"],
        text=tower(text),
        vocab_size=text["n_vocab"],
        length=text["max_text_len"],
        logit_scale=logit_scale,
    )


def args_from(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """What the shapes of a U-Net's tensors tell, as arguments of its constructor; {} if they are of none.

    Not told: the picture's size, the heads, their order, and the dropout. `input_channels` are all of them.
    """
    if "input_blocks.0.0.weight" not in tensors or "time_embed.0.weight" not in tensors:
        return {}
    channels = tensors["time_embed.0.weight"].shape[1]
    res_blocks, resampling = _levels(tensors)
    starts = range(1, _blocks(tensors, "output"), res_blocks + 1)  # the first block of each level
    widths = [tensors[f"input_blocks.{start}.0.in_layers.2.weight"].shape[0] for start in starts]
    return {
        "model_channels": channels,
        "input_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "num_res_blocks": res_blocks,
        "channel_mult": [width / channels for width in widths],
        "attention_resolutions": [2**level for level, start in enumerate(starts)
                                  if f"input_blocks.{start}.1.qkv.weight" in tensors],
        "use_scale_shift_norm": tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * widths[0],
        "num_classes": len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else None,
        **resampling,
        **_text_args(tensors),
    }  # fmt: skip


def _blocks(tensors: Mapping[str, Tensor], place: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(f"{place}_blocks."))


def _levels(tensors: Mapping[str, Tensor]) -> tuple[int, dict[str, bool]]:
    """Residual blocks a level, from the place where it ends; and how the next one is reached."""
    for block in range(_blocks(tensors, "output")):
        if f"input_blocks.{block}.0.op.weight" in tensors:
            return block - 1, {"resblock_updown": False, "conv_resample": True}
        if f"input_blocks.{block}.0.weight" not in tensors and (
            f"input_blocks.{block}.0.in_layers.0.weight" not in tensors
        ):  # a mean has no weights
            return block - 1, {"resblock_updown": False, "conv_resample": False}
        if any(f"output_blocks.{block}.{layer}.in_layers.0.weight" in tensors for layer in (1, 2)):
            return block, {"resblock_updown": True}
    return _blocks(tensors, "output") - 1, {}  # one level


def _text_args(tensors: Mapping[str, Tensor]) -> dict[str, object]:
    if "token_embedding.weight" not in tensors:
        return {"xf_width": None}
    vocabulary, width = tensors["token_embedding.weight"].shape
    layers = {name.split(".")[2] for name in tensors if name.startswith("transformer.resblocks.")}
    return {"n_vocab": vocabulary, "xf_width": width, "xf_layers": len(layers),
            "text_ctx": len(tensors["positional_embedding"]), "xf_final_ln": "final_ln.weight" in tensors,
            "xf_padding": "padding_embedding" in tensors}  # fmt: skip


def _encoder(args: Arguments) -> dict[str, object]:
    """What a U-Net and a classifier have in common."""
    size, head_channels = _size(args), _count(args, "num_head_channels")
    return dict(
        attention_resolutions=_grids(args, size, len(_mult(args, size))),
        image_size=size, channels=args.get("model_channels") or args["num_channels"],
        channel_mult=_mult(args, size), num_res_blocks=args["num_res_blocks"],
        dropout=args.get("dropout", 0.0), scale_shift=args.get("use_scale_shift_norm", False),
        updown_in_blocks=args.get("resblock_updown", False), conv_resample=args.get("conv_resample", True),
        **({"head_channels": head_channels} if head_channels else {"num_heads": args.get("num_heads", 1)}),
    )  # fmt: skip


def _size(args: Arguments) -> int:
    return args.get("large_size") or args["image_size"]


def _count(args: Arguments, name: str) -> int | None:
    """A count for which -1 means that there is none."""
    value = args.get(name)
    return value if value and value > 0 else None


def _input_channels(args: Arguments) -> int:
    """Those of the picture; of a smaller picture; of a picture to be mended, and its mask."""
    upsamples = bool(args.get("super_res") or "large_size" in args or args.get("kind") == "sr")
    inpaints = bool(args.get("inpaint"))
    return args.get("in_channels", 3) * (1 + upsamples + inpaints) + inpaints


def _mult(args: Arguments, size: int) -> tuple[float, ...]:
    mult = args.get("channel_mult") or ""
    if not isinstance(mult, str):
        return tuple(mult)
    if mult:
        return tuple(float(factor) for factor in mult.split(","))
    usual = USUAL_MULT_UPSAMPLER if "large_size" in args else USUAL_MULT
    if size not in usual:
        raise ValueError(
            f"channel_mult must be given for pictures of {size} pixels; "
            f"it is known for {', '.join(map(str, sorted(usual)))}"
        )
    return usual[size]


def _grids(args: Arguments, size: int, levels: int) -> tuple[int, ...]:
    """Sides of the grids with attention; what does not occur is left out, as the public code does."""
    rates = args.get("attention_resolutions") or ()
    if isinstance(rates, str):
        rates = [size // int(side) for side in rates.split(",")]
    rates = [rate for rate in rates if rate in {2**level for level in range(levels)}]
    return tuple(sorted({size // rate for rate in rates}, reverse=True))

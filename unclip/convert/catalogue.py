"""The public models that load by name: what they are, where their files lie, how they were built.

Addresses, constructor arguments and sampling settings are those of the public repositories' code and
READMEs: openai/glide-text2im, openai/guided-diffusion, openai/improved-diffusion, kakaobrain/karlo,
ai-forever/Kandinsky-2.
A hash stands here only where a public source gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion"
_GLIDE_CODE = (
    "https://raw.githubusercontent.com/openai/glide-text2im/"
    "69b530740eb6cef69442d6180579ef5ba9ef063e/glide_text2im/tokenizer"
)


@dataclass(frozen=True)
class Licence:
    """Under what terms a model is published, and where it says what it is for."""

    name: str
    address: str
    card: str
    note: str  # what a user should know of it, in one sentence


@dataclass(frozen=True)
class PublicFile:
    """One file of a model."""

    address: str
    sha256: str | None = None  # None = no public source gives it
    size: int | None = None  # in bytes; None = what the server says

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


@dataclass(frozen=True)
class PublicModel:
    """A model that ``load`` knows by name.

    files:    by role; adm: decoder, upsampler, classifier; glide: base, upsample, clip_image, clip_text,
              and its tokenizer's encoder and vocab.
    args:     by role, the arguments of the public constructor.
    sampling: by role, the fields of ``Sampling`` that were published.
    serves:   the model that this one is loaded with: an upsampler's base, a classifier's decoder.
    hub:      its repository on the Hugging Face hub, or several by role, at ``revision``; ``patterns`` are
              the files needed.
    """

    name: str
    family: str  # one of ``convert.FAMILIES``
    about: str
    licence: Licence
    files: Mapping[str, PublicFile] = field(default_factory=dict)
    args: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sampling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    classifier_scale: float = 1.0
    serves: str | None = None
    hub: str | Mapping[str, str] | None = None
    revision: str | None = None  # None = the newest: no public source gives one
    patterns: tuple[str, ...] = ()


# Tables from here on, laid out by hand.
# fmt: off
GLIDE = Licence(
    "MIT", "https://github.com/openai/glide-text2im/blob/main/LICENSE",
    "https://github.com/openai/glide-text2im/blob/main/model-card.md",
    "Trained on filtered pictures: no people, violent objects or hate symbols; not meant for commercial use.")
ADM = Licence(
    "MIT", "https://github.com/openai/guided-diffusion/blob/main/LICENSE",
    "https://github.com/openai/guided-diffusion/blob/main/model-card.md",
    "Meant for research alone, not for commercial use.")
IDDPM = Licence(
    "MIT", "https://github.com/openai/improved-diffusion/blob/main/LICENSE",
    "https://github.com/openai/improved-diffusion/blob/main/README.md",
    "Published with the paper's code; it has no model card of its own.")
KARLO = Licence(
    "CreativeML OpenRAIL-M", "https://github.com/kakaobrain/karlo/blob/main/LICENSE",
    "https://huggingface.co/kakaobrain/karlo-v1-alpha",
    "Its licence forbids harmful uses; the authors advise a safety checker after it.")
KANDINSKY = Licence(
    "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0",
    "https://huggingface.co/kandinsky-community/kandinsky-2-2-decoder",
    "Its pipelines come without a safety checker.")


def _unet(channels: int, blocks: int, **changes: object) -> dict[str, object]:
    """Arguments of guided-diffusion's U-Nets and processes: those of ADM, and what a model changes."""
    return {
        "num_channels": channels, "num_res_blocks": blocks, "num_heads": 4, "num_heads_upsample": -1,
        "num_head_channels": -1, "attention_resolutions": "32,16,8", "dropout": 0.0, "class_cond": True,
        "use_checkpoint": False, "use_scale_shift_norm": True, "resblock_updown": True, "use_fp16": False,
        "learn_sigma": True, "diffusion_steps": 1000, "noise_schedule": "linear", "timestep_respacing": "",
        "use_kl": False, "predict_xstart": False, "rescale_timesteps": False,
        "rescale_learned_sigmas": False, **changes,
    }  # fmt: skip


def _picture(image_size: int, channels: int, blocks: int, **changes: object) -> dict[str, object]:
    """... of a model that begins from noise alone."""
    own = {"image_size": image_size, "channel_mult": "", "use_new_attention_order": False}
    return _unet(channels, blocks, **{**own, **changes})


def _improved(image_size: int, channels: int, blocks: int, **changes: object) -> dict[str, object]:
    """... of improved-diffusion, in guided-diffusion's words."""
    own = {"resblock_updown": False, "attention_resolutions": "16,8", "class_cond": False,
           "diffusion_steps": 4000, "noise_schedule": "cosine", "rescale_timesteps": True}
    return _picture(image_size, channels, blocks, **{**own, **changes})


def _classifier(image_size: int, depth: int = 2) -> dict[str, object]:
    return {
        "image_size": image_size, "classifier_use_fp16": False, "classifier_width": 128,
        "classifier_depth": depth, "classifier_attention_resolutions": "32,16,8",
        "classifier_use_scale_shift_norm": True, "classifier_resblock_updown": True,
        "classifier_pool": "attention",
    }  # fmt: skip


def _text_to_image(image_size: int, blocks: int, schedule: str, inpaint: bool) -> dict[str, object]:
    """Arguments of glide-text2im's models; the one of 256 pixels enlarges 64."""
    return {
        "image_size": image_size, "num_channels": 192, "num_res_blocks": blocks, "channel_mult": "",
        "num_heads": 1, "num_head_channels": 64, "num_heads_upsample": -1,
        "attention_resolutions": "32,16,8", "dropout": 0.1, "text_ctx": 128, "xf_width": 512,
        "xf_layers": 16, "xf_heads": 8, "xf_final_ln": True, "xf_padding": True, "diffusion_steps": 1000,
        "noise_schedule": schedule, "timestep_respacing": "", "use_scale_shift_norm": True,
        "resblock_updown": True, "use_fp16": False, "cache_text_emb": False, "inpaint": inpaint,
        "super_res": image_size == 256,
    }  # fmt: skip


_GLIDE_EXTRAS = {
    "clip_image": PublicFile(f"{_OPENAI}/dec-2021/clip_image_enc.pt"),
    "clip_text": PublicFile(f"{_OPENAI}/dec-2021/clip_text_enc.pt"),
    "encoder": PublicFile(f"{_GLIDE_CODE}/encoder.json.gz", size=348346,
                          sha256="4debc1cf25180021b07744bc9f4488d53c7bf112c8ce5de8097c6a7518f4ec7c"),
    "vocab": PublicFile(f"{_GLIDE_CODE}/vocab.bpe.gz", size=213544,
                        sha256="ce239dd5a898827423fee00e3f7ab37de7900f247f2ba360753d860e8a46524d"),
}
_GLIDE_CLIP = {
    "clip_image": {"image_size": 64, "patch_size": 4, "n_embd": 512, "n_head": 12, "n_layers": 12,
                   "n_head_state": 64, "n_timesteps": 1000},
    "clip_text": {"n_vocab": 65536, "max_text_len": 77, "n_embd": 512, "n_head": 8, "n_layers": 12,
                  "n_head_state": 64},
}


def _glide(name: str, about: str, inpaint: bool) -> PublicModel:
    suffix = "_inpaint" if inpaint else ""
    base = {"sampler": "ddpm", "steps": 100, "guidance_scale": 5.0 if inpaint else 3.0, "gradient": "mean"}
    enlarging = {"sampler": "ddpm" if inpaint else "ddim", "steps": "fast27", "noise_scale": 0.997}
    return PublicModel(
        name, "glide", about, GLIDE,
        files={"base": PublicFile(f"{_OPENAI}/dec-2021/base{suffix}.pt"),
               "upsample": PublicFile(f"{_OPENAI}/dec-2021/upsample{suffix}.pt"), **_GLIDE_EXTRAS},
        args={"base": _text_to_image(64, 3, "squaredcos_cap_v2", inpaint),
              "upsample": _text_to_image(256, 2, "linear", inpaint), **_GLIDE_CLIP},
        sampling={"base": base, "upsample": enlarging})


# The READMEs draw ADM's pictures with 250 ancestral steps, and say that LSUN's are best with all 1000.
_ANCESTRAL = {"sampler": "ddpm", "steps": 250, "gradient": "mean"}


def _adm(name: str, about: str, file: str, args: dict, licence: Licence = ADM, steps: int = 250,
         sha256: str | None = None, size: int | None = None) -> PublicModel:
    return PublicModel(name, "adm", about, licence, args={"decoder": args},
                       files={"decoder": PublicFile(f"{_OPENAI}/{file}", sha256, size)},
                       sampling={"decoder": {**_ANCESTRAL, "steps": steps}})


def _with(base: PublicModel, name: str, about: str, role: str, file: str, args: dict,
          scale: float = 1.0) -> PublicModel:
    """``base`` and one more network, that serves it."""
    sampling = {**base.sampling, role: _ANCESTRAL} if role == "upsampler" else base.sampling
    return replace(base, name=name, about=about, serves=base.name, classifier_scale=scale, sampling=sampling,
                   files={**base.files, role: PublicFile(f"{_OPENAI}/{file}")},
                   args={**base.args, role: args})


def _guided_diffusion() -> list[PublicModel]:
    """Dhariwal & Nichol 2021, as openai/guided-diffusion publishes it."""
    lsun = _picture(256, 256, 2, num_head_channels=64, class_cond=False, dropout=0.1)
    of_64 = _adm("adm-64-class", "ImageNet by class, 64 px", "jul-2021/64x64_diffusion.pt", _picture(
        64, 192, 3, num_head_channels=64, dropout=0.1, noise_schedule="cosine", use_new_attention_order=True))
    of_128 = _adm("adm-128-class", "ImageNet by class, 128 px", "jul-2021/128x128_diffusion.pt",
                  _picture(128, 256, 2))
    of_256 = _adm("adm-256-class", "ImageNet by class, 256 px", "jul-2021/256x256_diffusion.pt",
                  _picture(256, 256, 2, num_head_channels=64))
    uncond = _adm("adm-256-uncond", "ImageNet, any class, 256 px", "jul-2021/256x256_diffusion_uncond.pt",
                  _picture(256, 256, 2, num_head_channels=64, class_cond=False), size=2211383297,
                  sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1")
    of_512 = _adm("adm-512-class", "ImageNet by class, 512 px", "jul-2021/512x512_diffusion.pt",
                  _picture(512, 256, 2, num_head_channels=64))
    guided = [
        _with(of_64, "adm-64-classifier", "adm-64-class, guided", "classifier",
              "jul-2021/64x64_classifier.pt", _classifier(64, depth=4), 1.0),
        _with(of_128, "adm-128-classifier", "adm-128-class, guided", "classifier",
              "jul-2021/128x128_classifier.pt", _classifier(128), 0.5),
        _with(of_256, "adm-256-classifier", "adm-256-class, guided", "classifier",
              "jul-2021/256x256_classifier.pt", _classifier(256), 1.0),
        _with(uncond, "adm-256-uncond-classifier", "adm-256-uncond, guided to a class", "classifier",
              "jul-2021/256x256_classifier.pt", _classifier(256), 10.0),
        _with(of_512, "adm-512-classifier", "adm-512-class, guided", "classifier",
              "jul-2021/512x512_classifier.pt", _classifier(512), 4.0),
    ]
    enlarged = [
        _with(of_64, "adm-64-256-upsampler", "adm-64-class, enlarged to 256 px", "upsampler",
              "jul-2021/64_256_upsampler.pt", _unet(192, 2, large_size=256, small_size=64)),
        _with(of_128, "adm-128-512-upsampler", "adm-128-class, enlarged to 512 px", "upsampler",
              "jul-2021/128_512_upsampler.pt",
              _unet(192, 2, num_head_channels=64, attention_resolutions="32,16", large_size=512,
                    small_size=128)),
    ]
    scenes = [_adm(f"adm-lsun-{what}", f"LSUN {what}s, 256 px", f"jul-2021/lsun_{what}.pt", lsun, steps=1000)
              for what in ("bedroom", "cat", "horse")]
    return [of_64, of_128, of_256, uncond, of_512, *guided, *enlarged, *scenes]


def _improved_diffusion() -> list[PublicModel]:
    """Nichol & Dhariwal 2021, as openai/improved-diffusion publishes it."""
    tiny = partial(_improved, 32, 128, 3, channel_mult="1,2,2,2", dropout=0.3)
    by_class = _adm(
        "iddpm-imagenet64-class", "ImageNet by class, 64 px", "march-2021/imagenet64_cond_270M_250K.pt",
        _improved(64, 192, 3, class_cond=True, rescale_timesteps=False), IDDPM)
    enlarging = _unet(192, 2, resblock_updown=False, attention_resolutions="16,8", diffusion_steps=4000,
                      large_size=256, small_size=64)
    lsun = _improved(256, 128, 2, num_heads=1, attention_resolutions="16", use_scale_shift_norm=False,
                     diffusion_steps=1000, noise_schedule="linear", rescale_timesteps=False)
    return [
        _adm("iddpm-cifar10-uncond", "CIFAR-10, any class, 32 px", "march-2021/cifar10_uncond_50M_500K.pt",
             tiny(), IDDPM),
        _adm("iddpm-cifar10-uncond-vlb", "CIFAR-10, trained for likelihood, 32 px",
             "march-2021/cifar10_uncond_vlb_50M_500K.pt", tiny(use_kl=True), IDDPM),
        _adm("iddpm-imagenet64-uncond", "ImageNet, any class, 64 px",
             "march-2021/imagenet64_uncond_100M_1500K.pt", _improved(64, 128, 3), IDDPM),
        _adm("iddpm-imagenet64-uncond-vlb", "ImageNet, trained for likelihood, 64 px",
             "march-2021/imagenet64_uncond_vlb_100M_1500K.pt", _improved(64, 128, 3, use_kl=True), IDDPM),
        by_class,
        _with(by_class, "iddpm-64-256-upsampler", "iddpm-imagenet64-class, enlarged to 256 px", "upsampler",
              "march-2021/upsample_cond_500K.pt", enlarging),
        _adm("iddpm-lsun-bedroom", "LSUN bedrooms, 256 px", "march-2021/lsun_uncond_100M_1200K_bs128.pt",
             lsun, IDDPM),
    ]


_KARLO = PublicModel(
    "karlo", "karlo", "text to image by unCLIP, 256 px", KARLO, hub="kakaobrain/karlo-v1-alpha",
    revision="5ee45298e0956749e621bcb30c799a0b599afa83",
    patterns=("model_index.json", "*/config.json", "*/scheduler_config.json", "tokenizer/*",
              "*/*.safetensors"))
_KANDINSKY = PublicModel(
    "kandinsky-2.2", "kandinsky", "text to image by unCLIP in latents, 512 px", KANDINSKY,
    hub={"prior": "kandinsky-community/kandinsky-2-2-prior",
         "decoder": "kandinsky-community/kandinsky-2-2-decoder"},
    patterns=(*_KARLO.patterns, "image_processor/*"))
_KANDINSKY_INPAINT = replace(
    _KANDINSKY, name="kandinsky-2.2-inpaint", about="text into a picture's masked place, 512 px",
    args={"unet": {"in_channels": 9}},
    hub={"prior": "kandinsky-community/kandinsky-2-2-prior",
         "decoder": "kandinsky-community/kandinsky-2-2-decoder-inpaint"})
ECLIPSE = Licence(
    "OpenRAIL++", "https://huggingface.co/ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior",
    "https://huggingface.co/ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior",
    "Its licence forbids harmful uses; the code is MIT.")
# Parts of models, of which each says with whose embeddings it works.
PRIORS: dict[str, PublicModel] = {"eclipse": PublicModel(
    "eclipse", "kandinsky", "a prior of one step, for Kandinsky 2.2 and Karlo", ECLIPSE,
    hub={"kandinsky": "ECLIPSE-Community/ECLIPSE_KandinskyV22_Prior",
         "karlo": "ECLIPSE-Community/ECLIPSE_Karlo_Prior"},
    patterns=("config.json", "*.safetensors"))}
MODELS: dict[str, PublicModel] = {model.name: model for model in (
    _glide("glide", "text to image, 256 px", inpaint=False),
    _glide("glide-inpaint", "text into a picture's masked place, 256 px", inpaint=True),
    _KARLO, _KANDINSKY, _KANDINSKY_INPAINT, *_guided_diffusion(), *_improved_diffusion())}

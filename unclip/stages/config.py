"""What stages are made of: the part of a recipe, and of a checkpoint's header, that is theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..checkpoint import SavedConfig
from ..config import Chance, Config, Factor, Side, Timesteps
from ..degradation.bsr import LEAST
from ..diffusion.denoiser import check_prediction
from ..diffusion.guidance import parse_interval, parse_projection
from ..diffusion.losses import check_loss
from ..diffusion.samplers import SAMPLERS
from ..diffusion.schedule import SCHEDULES, make_schedule, parse_steps
from ..nets.autoencoder import AutoencoderConfig
from ..nets.prior import PriorConfig
from ..nets.prior_ar import ARPriorConfig
from ..nets.text import TextConfig
from ..nets.unet import UNetConfig


def _entry_of(table: Mapping[str, object], what: str) -> AfterValidator:
    """That a name is an entry of a table, as the table then is."""

    def check(name: str) -> str:
        if name not in table:
            raise ValueError(f"unknown {what} '{name}'; known: {', '.join(table)}")
        return name

    return AfterValidator(check)


SamplerName = Annotated[str, _entry_of(SAMPLERS, "sampler")]
ScheduleName = Annotated[str, _entry_of(SCHEDULES, "schedule")]
# 24, "10,10,3,2,2", "ddim25" or "fast27"
Steps = Annotated[Timesteps | Annotated[str, Field(max_length=1000)], BeforeValidator(parse_steps)]
# Shares of noise, low and high: 0.2,0.8
Interval = Annotated[tuple[Chance, Chance], BeforeValidator(parse_interval)]


# Eta, norm and momentum: 0,15,-0.5
Norm = Annotated[float, Field(gt=0, le=1e9)]
APG = Annotated[tuple[Chance, Norm, Annotated[float, Field(gt=-1, lt=1)]], BeforeValidator(parse_projection)]


class Process(Config):
    """A diffusion process, what the network says about it, and the loss that trains it."""

    schedule: ScheduleName = "cosine"
    timesteps: Timesteps = 1000
    shift: float = Field(1.0, gt=0, le=1e4)  # of alpha / sigma: base size / size (see schedule)
    time_scale: float = Field(1.0, gt=0, le=1e6)  # the network is fed (t - 1) times it; IDDPM: 1000 / T
    predicts: Literal["eps", "x0", "v"] = "eps"
    variance: Literal["small", "large", "learned"] = "small"
    loss: Literal["simple", "hybrid", "vlb", "rescaled", "auxiliary"] = "simple"
    weighting: Literal["none", "min_snr", "min_snr_plus_one", "p2"] = "none"  # of the squared error in simple
    # and hybrid
    auxiliary_weight: Factor = 0.001  # of the x0 term in auxiliary

    @model_validator(mode="after")
    def _parts_go_together(self) -> Process:
        check_loss(self.loss, self.weighting, self.variance)
        check_prediction(
            self.predicts, self.variance, make_schedule(self.schedule, self.timesteps, self.shift)
        )
        return self


class Sampling(Config):
    """Defaults that travel with a stage."""

    sampler: SamplerName = "dpm++2m"
    steps: Steps = 24
    guidance_scale: Factor = 1.0
    guidance_rescale: Chance = 0.0  # against overexposure (Lin et al. 2023); 0 = off
    guidance_interval: Interval | None = (
        None  # shares of noise that are guided (Level.noise_share); None = all
    )
    apg: APG | None = None  # eta, norm and momentum of projected guidance (Sadat et al. 2024); None = plain
    autoguidance_scale: Factor = 2.0  # where a weaker decoder is given (Karras et al. 2024); 1 = off
    threshold: Literal["static", "dynamic", "none"] = "static"  # how x0 is kept in the data's range
    eta: Chance = 0.0  # ddim: share of fresh noise
    noise_scale: float = Field(1.0, gt=0, le=100)  # of the noise it starts from; GLIDE's upsampler: 0.997
    # What a guide's gradient changes: the score, in any sampler, or the mean of ddpm's step, times its
    # variance (Dhariwal & Nichol 2021, algorithm 1), as GLIDE and ADM do publicly.
    gradient: Literal["score", "mean"] = "score"
    x0_variance: dict[int, Factor] | None = None  # ddpm: Analytic-DPM's, by t; None = the network's
    candidates: int = Field(1, ge=1, le=4096)  # prior: embeddings drawn a picture; the best by text is kept

    @model_validator(mode="after")
    def _of_the_sampler(self) -> Sampling:
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta is for ddim alone, not for {self.sampler}")
        if self.x0_variance is not None and self.sampler != "ddpm":
            raise ValueError(f"x0_variance is for ddpm alone, not for {self.sampler}")
        if self.gradient == "mean" and self.sampler != "ddpm":
            raise ValueError(f"gradient mean is for ddpm alone, not for {self.sampler}")
        return self

    @property
    def of_guidance(self) -> dict[str, Any]:
        """What a stage's ``denoise`` takes of this besides the scale, by the names of its arguments."""
        names = ("guidance_rescale", "guidance_interval", "apg", "threshold")
        return {name: getattr(self, name) for name in names}


class PriorStageConfig(SavedConfig):
    """Text to image embedding (unCLIP, Ramesh et al. 2022, section 2.2)."""

    kind: Literal["prior"] = "prior"
    net: PriorConfig
    process: Process = Process(predicts="x0")
    sampling: Sampling = Sampling(steps=16, guidance_scale=2.0, candidates=2)
    drop_text: Chance = 0.1  # chance of training without the text
    drop_tokens: Chance = 0.0  # ... with the text's embedding alone
    text_noise: Factor = 0.0  # length of the noise added to the text's embedding
    clamp: float = Field(5.0, gt=0, le=1e6)  # largest whitened coordinate, in standard deviations
    unit_norm: bool = True  # embeddings are brought to length 1; False: left as they come (Karlo)
    # eclipse: one step from noise, by squared error and contrast with the text (Patel et al. 2024).
    objective: Literal["diffusion", "eclipse"] = "diffusion"
    contrast: Factor = 0.2  # weight of that contrast
    temperature: float = Field(0.07, gt=0, le=100)  # ... and what its cosines are divided by

    @model_validator(mode="after")
    def _of_the_objective(self) -> PriorStageConfig:
        if self.objective == "diffusion" and not self.net.timed:
            raise ValueError("net.timed false is for objective eclipse")
        one_step = (self.sampling.steps, self.sampling.guidance_scale) == (1, 1) and not self.drop_text
        if self.objective == "eclipse" and (self.net.timed or self.process.predicts != "x0" or not one_step):
            raise ValueError(
                "objective eclipse is of one step without guidance: it needs net.timed false, "
                "process.predicts x0, drop_text 0, sampling.steps 1 and sampling.guidance_scale 1"
            )
        return self


class ARSampling(Config):
    """Defaults of a prior that predicts an embedding's components in turn."""

    guidance_scale: Factor = 1.0  # of the logits
    temperature: float = Field(1.0, gt=0, le=100)  # below 1: the likely ones are drawn more often
    top_p: float = Field(1.0, gt=0, le=1)  # what is drawn from: the likeliest that have this probability
    candidates: int = Field(1, ge=1, le=4096)  # embeddings drawn a picture; the best by text is kept


class ARPriorStageConfig(SavedConfig):
    """Text to image embedding, component by component (unCLIP, Ramesh et al. 2022, section 2.2)."""

    kind: Literal["prior-ar"] = "prior-ar"
    net: ARPriorConfig
    sampling: ARSampling = ARSampling(guidance_scale=2.0, candidates=2)
    drop_text: Chance = 0.1  # chance of training without the text
    drop_tokens: Chance = 0.0  # ... with the text's embedding alone
    text_noise: Factor = 0.0  # length of the noise added to the text's embedding
    unit_norm: bool = True  # embeddings are brought to length 1; False: left as they come


def _prior_of_its_kind(values: object) -> object:
    """The configuration of the prior that ``kind`` names; of the diffusion prior where it names none."""
    if isinstance(values, SavedConfig):
        return values
    kinds: dict[str, type[SavedConfig]] = {"prior": PriorStageConfig, "prior-ar": ARPriorStageConfig}
    kind = values.get("kind", "prior") if isinstance(values, Mapping) else "prior"
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f"kind is {' or '.join(kinds)}, not {kind}")
    return kinds[kind].model_validate(values)


AnyPriorConfig = Annotated[PriorStageConfig | ARPriorStageConfig, BeforeValidator(_prior_of_its_kind)]


class LowRes(Config):
    """The smaller picture that an upsampler starts from, and how it is corrupted in training."""

    size: Side  # its height and width in pixels
    # blur: of two numbers, below; bsr: all that BSRGAN does to the whole picture, in any order (Zhang et al.
    # 2021), as for unCLIP's second upsampler (Ramesh et al. 2022, section 2.3).
    degradation: Literal["blur", "bsr"] = "blur"
    blur: Factor = 0.6  # largest sigma of the 3x3 blur, in its pixels
    noise: Factor = 0.0  # largest standard deviation of added noise
    # The process diffuses (picture - enlarged) / this; None = the picture.
    residual_scale: float | None = Field(None, gt=0, le=1e4)
    round_to_8bit: bool = False  # to the 256 values that files hold, before enlarging
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # bicubic is antialiased, as Karlo's

    @model_validator(mode="after")
    def _of_the_degradation(self) -> LowRes:
        if self.degradation != "bsr":
            return self
        if self.size < LEAST:
            raise ValueError(f"degradation bsr is of pictures of at least {LEAST} pixels, not {self.size}")
        default = type(self).model_fields
        if any(getattr(self, name) not in (0, default[name].default) for name in ("blur", "noise")):
            raise ValueError("degradation bsr has a blur and a noise of its own: leave out blur and noise")
        return self


LARGEST = 4096  # pixels a side that a decoder is asked for


class DecoderStageConfig(SavedConfig):
    """Pictures from whatever the network takes; with ``low_res``, an upsampler."""

    kind: Literal["decoder"] = "decoder"
    net: UNetConfig
    process: Process = Process(predicts="eps", variance="learned", loss="hybrid")
    sampling: Sampling = Sampling()
    drop_image: Chance = 0.1  # chance of training without the image embedding
    drop_text: Chance = 0.5  # ... without the text tokens
    drop_class: Chance = 0.1  # ... without the class
    embed_noise: Factor = 0.0  # noise added to the whitened embedding in training
    low_res: LowRes | None = None
    text: TextConfig | None = None  # a text transformer of its own (GLIDE), fed with tokens
    null_text: Literal["masked", "empty"] = "masked"  # guidance starts from no token, or from "" (Karlo)
    inpaint: bool = False  # four more channels say what of the picture is known
    last_network: bool = False  # a second U-Net takes the step to data (Karlo)
    # The process is one of latents, and net's picture their grid; None: of pixels.
    autoencoder: AutoencoderConfig | None = None

    @property
    def channels(self) -> int:
        """Of what the process diffuses: 3 of pixels, or those of the latents."""
        return 3 if self.autoencoder is None else self.autoencoder.latent_channels

    @property
    def size(self) -> int:
        """Height and width of the pictures, in pixels."""
        return self.net.image_size * self._pixels

    @property
    def _pixels(self) -> int:
        """That a number of the net's grid stands for, a side."""
        return 1 if self.autoencoder is None else self.autoencoder.factor

    def at_size(self, size: int) -> DecoderStageConfig:
        """The same network for pictures of another size; ``ValueError`` for one that its grid has not."""
        if self.low_res is not None:
            raise ValueError("an upsampler makes pictures of its own size alone")
        multiple = self._pixels * self.net.multiple
        fits = isinstance(size, int) and not isinstance(size, bool) and not size % multiple
        if not fits or not multiple <= size <= LARGEST:
            raise ValueError(
                f"size must be a multiple of {multiple}, as this network needs, up to {LARGEST}, not {size!r}"
            )
        side, old = size // self._pixels, self.net.image_size
        values = self.model_dump()
        values["net"]["image_size"] = side
        grids = self.net.attention_resolutions
        values["net"]["attention_resolutions"] = [grid * side // old for grid in grids]
        return type(self).model_validate(values)


StageConfig = PriorStageConfig | DecoderStageConfig

"""A classifier of noised pictures: trained by itself, its gradient then guides a decoder.

Dhariwal & Nichol 2021, section 4: the gradient of log p(class | x_t) is added to the score.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoint import Saved, SavedConfig
from ..config import Factor, Timesteps
from ..diffusion.gaussian import diffuse
from ..diffusion.guidance import GradFn
from ..diffusion.schedule import make_schedule
from ..nets.classifier import ClassifierConfig, NoisedClassifier
from ..stages import Conditions, ScheduleName


class ClassifierStageConfig(SavedConfig):
    """The class of a picture at any noise level of a process."""

    kind: Literal["classifier"] = "classifier"
    net: ClassifierConfig
    schedule: ScheduleName = "cosine"  # that of the decoder to be guided
    timesteps: Timesteps = 1000
    scale: Factor = 1.0  # how strongly it leads where nothing else is asked for


class Classifier(Saved):
    """p(class | x_t), for the training loop a stage like the others."""

    config_class = ClassifierStageConfig
    config: ClassifierStageConfig

    def __init__(self, config: ClassifierStageConfig) -> None:
        super().__init__(config)
        self.network = NoisedClassifier(config.net)
        self.schedule = make_schedule(config.schedule, config.timesteps)

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.config.net.classes

    def forward(self, x0: Tensor, t: Tensor, noise: Tensor, conditions: Conditions) -> dict[str, Tensor]:
        """Cross entropy in nats and accuracy (0 or 1) of noised pictures, each [N]."""
        classes = conditions["classes"]
        logits = self.logits(diffuse(x0, noise, self.schedule.at(t)), t)
        entropy = F.cross_entropy(logits, classes, reduction="none")
        return {"loss": entropy, "cross_entropy": entropy, "accuracy": (logits.argmax(1) == classes).float()}

    def logits(self, x: Tensor, t: Tensor) -> Tensor:
        """Pictures x [N,3,S,S] at levels t int64 [N] in 1..T -> [N,classes], float32."""
        return self.network(x, (t - 1).float()).float()  # OpenAI's networks count from 0

    def features(self, x: Tensor) -> Tensor:
        """What it sees in clean pictures [N,3,S,S], for distances between sets of them: [N,C], float32."""
        return self.network.features(x, torch.zeros(len(x), device=x.device)).float()

    def drop(self, conditions: Conditions, generator: torch.Generator | None = None) -> Conditions:
        """Nothing is left out: the class is what there is to learn."""
        return conditions

    def climb(self, classes: Tensor, scale: float = 1.0) -> GradFn:
        """For ``guidance.gradient``: scale * grad_x log p(classes | x_t = x), as in
        Dhariwal & Nichol 2021, section 4.2.

        classes: int64 [N]. scale: above 1 follows p^scale, sharper than p (section 4.3).
        """

        def gradient(x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            log_p = self.logits(x, t).log_softmax(1).gather(1, classes[:, None])
            return scale * torch.autograd.grad(log_p.sum(), x)[0]

        return gradient


load_classifier = Classifier.load

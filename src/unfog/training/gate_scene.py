"""What the gate's checks look at, and what one of them says."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from torch import nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.model import Model
from unfog.training.corpus import Corpus
from unfog.training.denoising import Denoising
from unfog.training.recipe import Recipe


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: an error refuses to train, a warning is said; the text names the mend."""

    degree: Literal["error", "warning"]
    about: str
    text: str


def error(about: str, text: str) -> Finding:
    return Finding("error", about, text)


def warning(about: str, text: str) -> Finding:
    return Finding("warning", about, text)


@dataclass
class Scene:
    """A run before its first step. `count`: items of the whole set where `corpus` holds only some of them."""

    recipe: Recipe
    corpus: Corpus
    held: Corpus
    denoiser: Preconditioned
    network: nn.Module
    device: str = "cpu"
    model: Model | None = None
    count: int | None = None

    @property
    def items(self) -> int:
        return self.corpus.plain if self.count is None else self.count

    def copied(self) -> tuple[nn.Module, Preconditioned, Denoising]:
        """A copy of the network with the denoiser and the task around it: whatever a check does, the run's own stays."""
        network = copy.deepcopy(self.network)
        own = self.denoiser
        denoiser = Preconditioned(network, own.process, own.prediction, own.noise_input, own.sigma_min, own.project)
        return network, denoiser, Denoising(self.recipe, self.corpus, denoiser, network, self.device)

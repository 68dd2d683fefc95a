"""What a diffusion model learns, as a task of the loop: batches of (x0, cond, t, noise), and the denoising loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.losses import LogNormal, Space, denoising_loss, stratified
from unfog.networks.layers import seed_dropout
from unfog.training.corpus import Corpus
from unfog.training.loop import Batch
from unfog.training.recipe import Recipe
from unfog.training.weighting import LearnedWeight

_WORD = (1 << 64) - 1


def mixed(*numbers: int) -> int:
    """One 63-bit seed of several whole numbers: near ones give far ones. Source: Steele et al. 2014, splitmix64."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return state >> 1


@dataclass
class Denoising:
    """A corpus of x0 and cond, noised by the denoiser's process, as a `Task`."""

    recipe: Recipe
    corpus: Corpus
    denoiser: Preconditioned
    network: nn.Module  # the denoiser's, before anything was compiled
    device: str = "cpu"

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.weight = Space(recipe.weight, limit=recipe.weight_limit) if recipe.weight else None
        self.extra = LearnedWeight().to(self.device) if recipe.learned_weight else None

    def batch(self, index: int, rows: slice = slice(None)) -> Batch:
        """x0 (B, *D), cond, t (B,) and noise (B, *D) of these rows of batch `index`."""
        x0, cond = self.corpus.batch(self.recipe, index, rows)
        t, noise = self.draw(x0.shape, index, rows)
        seeds = torch.tensor([mixed(self.recipe.seed, index, row, 1) for row in range(self.recipe.batch)[rows]])
        return {"x0": x0, "cond": cond, "t": t, "noise": noise, "seeds": seeds}

    def draw(self, shape: torch.Size, index: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Times and noise: times are stratified over the whole batch, noise is each item's own, of (seed, index, row)."""
        seed, size = self.recipe.seed, self.recipe.batch
        generator = torch.Generator(self.device)
        drawn = torch.rand(size, generator=generator.manual_seed(mixed(seed, index)), dtype=torch.float64, device=self.device)
        levels = LogNormal(self.recipe.noise_mean, self.recipe.noise_std)
        t = levels.quantile(stratified(drawn)[rows], self.denoiser.process.schedule)
        noise = torch.empty(shape, device=self.device)  # drawn where it is used: a copy could cost more than the step
        for item, row in zip(noise, range(size)[rows], strict=True):
            item.normal_(generator=generator.manual_seed(mixed(seed, index, row)))
        return t.float(), noise

    def loss(self, batch: Batch) -> Tensor:
        """The denoising loss of each item, (B,)."""
        if self.device == "cpu":  # elsewhere so many generators would cost too much: there a batch's zeros are of its own
            seed_dropout(self.network, batch["seeds"].tolist())
        loss = denoising_loss(self.denoiser, batch["x0"], batch["cond"], batch["t"], batch["noise"], self.weight)
        return loss if self.extra is None else self.extra(loss, self.denoiser.process.schedule.logsnr(batch["t"]))

    def names(self, index: int) -> list[str]:
        """The files that batch `index` is made of."""
        return [self.corpus.names[i] for i in self.corpus.chosen(self.recipe, index)]

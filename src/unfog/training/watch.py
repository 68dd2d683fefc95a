"""How a run is watched: losses at fixed noise in each noise bin, samples and whether they are copies, how far the average is.

Everything here is drawn once from fixed seeds, so that the figures of two reports differ by the weights alone:

    held_out, held_out_se   mean loss of the average over held-out pictures, and its standard error over the pictures
    train                   the same over as many training pictures: the gap to held_out is what does not generalise
    raw                     held-out loss of the weights themselves; raw − held_out is what averaging gains
    ema_distance            |w̄ − w| / |w|
    copies, copies_real     share of samples that score more as copies than all but 5 % of real unseen pictures do
    nearest, nearest_real   median distance to the likeliest original (RMS, aligned and recoloured, at 32×32)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unfog.diffusion import Noise, make_grid, make_plan, sample
from unfog.diffusion.denoisers import Preconditioned, Process
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.losses import Weight, denoising_loss
from unfog.evaluation.copies import Known, look
from unfog.evaluation.memorisation import threshold_of
from unfog.training.corpus import Corpus
from unfog.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

NOISE_BINS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # ln(sigma/alpha) at which held-out loss is measured
COUNT = 64  # pictures whose loss is measured
SAMPLES = 32  # on a sheet: with the losses, some 9 steps' worth of work for a batch of 64
KNOWN = 10_000  # training pictures, drawn by a fixed seed where there are more, among which copies are looked for
UNSEEN = 128  # real pictures that say how near an unseen one comes
QUANTILE = 0.05  # of them; with as few samples as a sheet holds, 1 % could not be told from 0
BLOCK = 2_048  # training pictures at once: 32 MB at 64 pixels


def held_out_loss(
    denoiser: Preconditioned, corpus: Corpus, dtype: torch.dtype, device: str, count: int = COUNT
) -> dict[str, float]:
    """Mean loss at fixed noise of the first `count` held-out pictures, in each noise bin."""
    return {level: float(losses.mean()) for level, losses in bin_losses(denoiser, corpus, dtype, device, count).items()}


@torch.inference_mode()
def bin_losses(denoiser: Preconditioned, corpus: Corpus, dtype: torch.dtype, device: str, count: int = COUNT,
               levels: Sequence[float] = NOISE_BINS, weight: Weight | None = None) -> dict[str, NDArray[np.float64]]:  # fmt: skip
    """The loss of each of `count` plain pictures, drawn by a fixed seed as their noise is, at each level ln(sigma/alpha)."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(corpus.plain)[:count]
    losses = {f"{level:g}": np.empty(len(chosen)) for level in levels}
    for places in (part for all_ in corpus.alike(chosen) for part in np.split(all_, range(COUNT, len(all_), COUNT))):
        some = chosen[places]
        x0 = corpus.x0(some)
        cond = corpus.cond(corpus.texts[some, 0], corpus.classes[some])
        eps = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(device)
        for level in levels:
            t = torch.full((len(x0),), float(denoiser.process.schedule.time(-2 * level)), device=device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                losses[f"{level:g}"][places] = denoising_loss(denoiser, x0, cond, t, eps, weight).double().cpu().numpy()
    return losses


def rows_shown(styles: int, pictures: int, rows: int = 8) -> int:
    """Captions on a sheet, each in every style."""
    return min(max(2, min(rows, SAMPLES // max(styles, 1))), pictures)


@torch.inference_mode()
def draw_samples(denoiser: Preconditioned, corpus: Corpus, recipe: Recipe, dtype: torch.dtype, device: str,
                 rows: int = 8) -> tuple[list[NDArray[np.uint8]], list[str]]:  # fmt: skip
    """Pictures (H, W, 4) of at most `rows` captions in every style, about SAMPLES in all, and the caption of each."""
    columns = max(len(corpus.styles), 1)
    rows = rows_shown(len(corpus.styles), corpus.plain, rows)
    texts = np.repeat(np.random.default_rng(1).permutation(corpus.plain)[:rows], columns)
    label = np.tile(np.arange(columns), len(texts) // columns)  # a folder may have fewer pictures than rows
    numbers = corpus.texts[texts, 0]
    uncond = corpus.cond(np.zeros(1, int), np.array([len(corpus.styles)]))
    schedule = denoiser.process.schedule
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, 12))
    guided = ClassifierFree(denoiser, 2.5, uncond)
    made: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(texts)
    for places in corpus.alike(texts):  # with buckets each caption in the shape of its picture
        cond, noise = corpus.cond(numbers[places], label[places]), Noise(places.tolist())
        shape = (4, *corpus.shape(texts[places], recipe.size))
        x = denoiser.process.prior(noise.normal(shape, 0), plan.start).to(device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            x0 = sample(plan, partial(guided, cond=cond), x, noise)
        for place, pixels in zip(places.tolist(), corpus.codec.decode(x0), strict=True):
            made[place] = pixels
    return made, [f"{corpus.captions[n]}" for n in numbers]


def sheet(pictures: Sequence[NDArray[np.uint8]], labels: list[str], styles: int) -> Image:
    """Samples as `draw_samples` gives them on one contact sheet."""
    from PIL import Image

    from unfog.modalities.image.show import contact_sheet

    return contact_sheet([Image.fromarray(p) for p in pictures], labels, columns=max(styles, 1) * 2)


class CopyCheck:
    """Are samples copies of training pictures more often than real unseen pictures pass for ones?

    The unseen ones are held-out pictures; where a data set has none, training pictures held against all others.
    """

    def __init__(self, corpus: Corpus, held: Corpus) -> None:
        chosen = np.random.default_rng(3).permutation(corpus.plain)[:KNOWN]
        self.known = Known.of(corpus.pixels(chosen[i : i + BLOCK]) for i in range(0, len(chosen), BLOCK))
        if held is corpus:
            own = np.arange(min(UNSEEN, len(chosen)))
            real = look(self.known.planes[torch.from_numpy(own)], self.known, own)
        else:
            real = look(held.pixels(np.random.default_rng(3).permutation(held.plain)[:UNSEEN]), self.known)
        self.threshold = threshold_of(real.score, QUANTILE)
        self.baseline = {"copies_real": float((real.score > self.threshold).mean()), "nearest_real": float(np.median(real.apart))}

    def __call__(self, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
        """copies, nearest, their baselines, and the number of samples (H, W, 4) they are taken over."""
        made = look(pictures, self.known)
        return {"samples": len(pictures), "copies": float((made.score > self.threshold).mean()),
                "nearest": float(np.median(made.apart)), **self.baseline}  # fmt: skip


@torch.no_grad()
def distance(average: nn.Module, raw: nn.Module) -> float:
    """|w̄ − w| / |w| over all parameters."""
    pairs = list(zip(average.parameters(), raw.parameters(), strict=True))
    apart = sum(float((a.double() - w.double()).square().sum()) for a, w in pairs)
    return (apart / max(sum(float(w.double().square().sum()) for _, w in pairs), 1e-300)) ** 0.5


@dataclass
class Watch:
    """All that a report measures of a run on `corpus`; `held` is the same object where nothing is held out."""

    recipe: Recipe
    corpus: Corpus
    held: Corpus
    process: Process
    dtype: torch.dtype
    device: str
    copies: CopyCheck | None = None

    def __call__(self, average: nn.Module, raw: nn.Module | None) -> tuple[dict[str, Any], Image]:
        """The figures of this module's head, and a sheet of samples. Leaves both networks in evaluation mode.

        raw: None where the weights themselves are not at hand (sharded ones, learned words); then without what needs them.
        """
        averaged = self._denoiser(average)
        held = bin_losses(averaged, self.held, self.dtype, self.device)
        values: dict[str, Any] = {"held_out": {level: float(losses.mean()) for level, losses in held.items()}}
        values["held_out_se"] = {level: float(losses.std() / max(len(losses) - 1, 1) ** 0.5) for level, losses in held.items()}
        if self.held is not self.corpus:
            values["train"] = held_out_loss(averaged, self.corpus, self.dtype, self.device)
        if raw is not None:
            values["raw"] = held_out_loss(self._denoiser(raw), self.held, self.dtype, self.device)
            values["ema_distance"] = distance(average, raw)
        pictures, labels = draw_samples(averaged, self.held, self.recipe, self.dtype, self.device)
        if self.copies is None and self.corpus.plain > 1:
            self.copies = CopyCheck(self.corpus, self.held)
        values |= self.copies(pictures) if self.copies else {}
        return values, sheet(pictures, labels, len(self.held.styles))

    def _denoiser(self, network: nn.Module) -> Preconditioned:
        return Preconditioned(network.eval(), self.process, self.recipe.prediction, sigma_min=self.recipe.sigma_min)

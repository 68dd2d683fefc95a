"""How a run is watched: losses at fixed noise in each noise bin, samples and whether they are copies, how far the average is.

Everything here is drawn once from fixed seeds, so that the figures of two reports differ by the weights alone:

    held_out, held_out_se   mean loss of the average over held-out pictures, and its standard error over the pictures
    train                   the same over as many training pictures: the gap to held_out is what does not generalise
    raw                     held-out loss of the weights themselves; raw − held_out is what averaging gains
    kept                    1 where the average is what the run keeps and draws with, 0 where the weights themselves are nearer
    ema_distance            |w̄ − w| / |w|
    copies, copies_real     share of samples that score more as copies than all but 5 % of real unseen pictures do
    nearest, nearest_real   median distance to the likeliest original (RMS, aligned and recoloured, at 32×32)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unfog.diffusion import Noise, make_grid, make_plan, sample
from unfog.diffusion.denoisers import Preconditioned, Process
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.losses import Weight, denoising_loss
from unfog.evaluation.copies import Known, look
from unfog.evaluation.memorisation import threshold_of
from unfog.evaluation.near import Near
from unfog.modalities import modality
from unfog.training.corpus import Corpus
from unfog.training.picture_corpus import PictureCorpus
from unfog.training.recipe import Recipe

if TYPE_CHECKING:
    from PIL.Image import Image

NOISE_BINS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # ln(sigma/alpha) at which held-out loss is measured
COUNT = 64  # items whose loss is measured
SCALE = 2.5  # guidance of the samples
KNOWN = 10_000  # training pictures, drawn by a fixed seed where there are more, among which copies are looked for
NEAR = 2_000  # items of other kinds, for whom each is encoded anew
UNSEEN = 128  # real pictures that say how near an unseen one comes
QUANTILE = 0.05  # of them; with as few samples as a sheet holds, 1 % could not be told from 0
MARGIN = 0.005  # by which the weights must be nearer than their average to be kept
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
        x0, cond = corpus.known(some)
        eps = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(device)
        for level in levels:
            t = torch.full((len(x0),), float(denoiser.process.schedule.time(-2 * level)), device=device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                losses[f"{level:g}"][places] = denoising_loss(denoiser, x0, cond, t, eps, weight).double().cpu().numpy()
    return losses


@torch.inference_mode()
def draw_samples(denoiser: Preconditioned, corpus: Corpus, recipe: Recipe, dtype: torch.dtype, device: str,
                 rows: int = 8) -> tuple[list[Any], list[str], list[Tensor]]:  # fmt: skip
    """Samples as the corpus wants them for a sheet, the label of each, and each in model space."""
    asked, labels = corpus.asked(recipe, rows)
    schedule = denoiser.process.schedule
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, 12))
    made: list[Any] = [None] * len(labels)
    spots: list[Any] = [None] * len(labels)
    for part in asked:
        guided, noise = ClassifierFree(denoiser, SCALE, part.nothing), Noise(part.places.tolist())
        x = denoiser.process.prior(noise.normal(part.shape, 0), plan.start).to(device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            x0 = sample(plan, partial(guided, cond=part.cond), x, noise)
        for place, item, spot in zip(part.places.tolist(), corpus.decode(x0, part.cond), x0.float().cpu(), strict=True):
            made[place], spots[place] = item, spot
    return made, labels, spots


class CopyCheck:
    """Are samples copies of training pictures more often than real unseen pictures pass for ones?

    The unseen ones are held-out pictures; where a data set has none, training pictures held against all others.
    """

    def __init__(self, corpus: PictureCorpus, held: PictureCorpus) -> None:
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


class NearCheck:
    """The same of items of any kind, by their distance in model space."""

    def __init__(self, corpus: Corpus, held: Corpus) -> None:
        known, unseen = (np.random.default_rng(3).permutation(c.plain)[:n] for c, n in ((corpus, NEAR), (held, UNSEEN)))
        spots = torch.cat([corpus.known(known[i : i + BLOCK])[0].cpu() for i in range(0, len(known), BLOCK)])
        self.near = Near.of(spots, None if held is corpus else held.known(unseen)[0].cpu(), QUANTILE)

    def __call__(self, spots: Sequence[Tensor]) -> dict[str, float]:
        """copies, nearest, their baselines, and the number of samples, each in model space."""
        return self.near(torch.stack(list(spots)))


def copy_check(corpus: Corpus, held: Corpus) -> CopyCheck | NearCheck:
    """The detector that the kind has: pictures are aligned and recoloured, others compared as they are."""
    if isinstance(corpus, PictureCorpus) and isinstance(held, PictureCorpus):
        return CopyCheck(corpus, held)
    return NearCheck(corpus, held)


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
    copies: CopyCheck | NearCheck | None = None

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
            values["kept"] = int(not self.raw_is_nearer(values))
        drawing = averaged if raw is None or values["kept"] else self._denoiser(raw)
        made, labels, spots = draw_samples(drawing, self.held, self.recipe, self.dtype, self.device)
        if self.corpus.plain > 1:
            self.copies = self.copies or copy_check(self.corpus, self.held)
            values |= self.copies(made) if isinstance(self.copies, CopyCheck) else self.copies(spots)
        return values, self.held.sheet(made, labels)

    @staticmethod
    def raw_is_nearer(values: Mapping[str, Any]) -> bool:
        """Whether the weights' held-out losses are below those of their average, by MARGIN in the geometric mean."""
        raw, held = (np.maximum(list(values[key].values()), 1e-12) for key in ("raw", "held_out"))
        return float(np.log(raw / held).mean()) < -MARGIN

    def _denoiser(self, network: nn.Module) -> Preconditioned:
        return Preconditioned(network.eval(), self.process, self.recipe.prediction, sigma_min=self.recipe.sigma_min,
                              project=modality(self.recipe.kind).project)  # fmt: skip

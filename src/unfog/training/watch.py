"""How a run is watched: held-out loss at fixed noise in each noise bin, and grids of samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from unfog.diffusion import Noise, make_grid, make_plan, sample
from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.losses import denoising_loss
from unfog.training.corpus import Corpus
from unfog.training.recipe import Recipe

NOISE_BINS = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)  # ln(sigma/alpha) at which held-out loss is measured


@torch.inference_mode()
def held_out_loss(denoiser: Preconditioned, corpus: Corpus, dtype: torch.dtype, device: str, count: int = 64) -> dict[str, float]:
    """Mean loss at fixed noise of the first `count` held-out pictures, in each noise bin."""
    rng = np.random.default_rng(0)
    chosen = rng.permutation(corpus.plain)[:count]
    losses: dict[str, list[torch.Tensor]] = {f"{level:g}": [] for level in NOISE_BINS}
    for part in (chosen[places] for places in corpus.alike(chosen)):
        x0 = corpus.x0(part)
        cond = corpus.cond(corpus.texts[part, 0], corpus.classes[part])
        eps = torch.from_numpy(rng.standard_normal(x0.shape, dtype=np.float32)).to(device)
        for level in NOISE_BINS:
            t = torch.full((len(x0),), float(denoiser.process.schedule.time(-2 * level)), device=device)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                losses[f"{level:g}"].append(denoising_loss(denoiser, x0, cond, t, eps))
    return {level: float(torch.cat(found).mean()) for level, found in losses.items()}


@torch.inference_mode()
def sample_grid(denoiser: Preconditioned, corpus: Corpus, recipe: Recipe, dtype: torch.dtype, device: str, rows: int = 8) -> Any:
    """A contact sheet of `rows` captions in every style."""
    from PIL import Image

    from unfog.modalities.image.show import contact_sheet

    columns = max(len(corpus.styles), 1)
    texts = np.repeat(np.random.default_rng(1).permutation(corpus.plain)[:rows], columns)
    label = np.tile(np.arange(columns), rows)
    numbers = corpus.texts[texts, 0]
    uncond = corpus.cond(np.zeros(1, int), np.array([len(corpus.styles)]))
    schedule = denoiser.process.schedule
    plan = make_plan("dpmpp_2m", schedule, make_grid("logsnr", schedule, 12))
    guided = ClassifierFree(denoiser, 2.5, uncond)
    pictures: dict[int, Image.Image] = {}
    for places in corpus.alike(texts):  # with buckets each caption in the shape of its picture
        cond, noise = corpus.cond(numbers[places], label[places]), Noise(places.tolist())
        shape = (4, *corpus.shape(texts[places], recipe.size))
        x = denoiser.process.prior(noise.normal(shape, 0), plan.start).to(device)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            x0 = sample(plan, partial(guided, cond=cond), x, noise)
        made = corpus.codec.decode(x0)
        pictures |= {int(place): Image.fromarray(pixels) for place, pixels in zip(places, made, strict=True)}
    labels = [f"{corpus.captions[n]}" for n in numbers]
    return contact_sheet([pictures[i] for i in range(len(texts))], labels, columns=columns * 2)

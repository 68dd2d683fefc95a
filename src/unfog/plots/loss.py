"""Loss by noise level of one or more models, on pictures that they were trained on and on others, with 95 % intervals.

The noise is that of training's own watch (`training/watch.py`): fixed, the same for all models and levels. So that models of
different predictions and schedules can be held against each other, the error of x0 is counted in units of what would be left
open if all pixels were Gaussian and independent, σ²/(α² + σ²):

    loss = |D(x_t) − x0|² · (α² + σ²)/σ²      (the own loss of v-prediction where α² + σ² = 1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.losses import Space
from unfog.diffusion.predictions import Prediction
from unfog.errors import UserError
from unfog.evaluation.statistics import bootstrap_interval
from unfog.model import Model
from unfog.networks.text import TextEncoder
from unfog.networks.words import encode
from unfog.page import Lines, Series
from unfog.plots.data import held_out, pictures_of, some_of
from unfog.plots.drawn import Curve
from unfog.plots.requests import LossRequest
from unfog.requests import Progress
from unfog.training.corpus import Corpus, build_corpus
from unfog.training.recipe import Recipe
from unfog.training.watch import bin_losses

if TYPE_CHECKING:
    from unfog.modalities.image.data import PictureSet

SPREAD = (1, 5, 2, 4, 0, 3)  # colours of models, far from each other first


def comparable(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weight that makes any prediction's loss |D − x0|²·(α² + σ²)/σ²."""
    return Space("v")(prediction, alpha, sigma) / (alpha * alpha + sigma * sigma)


def stream(request: LossRequest, opened: Callable[[str], Model]) -> Iterator[Progress | Curve]:
    """Progress, then the curve: for each model a line of training pictures and one of held-out ones, where there are any."""
    series, found = [], []
    names = _distinct(request.models)
    for k, (name, said) in enumerate(zip(request.models, names, strict=True)):
        model = opened(name)
        pictures = pictures_of(request.data, model)
        own = request.data is None or request.data == model.card.get("training", {}).get("data")
        split = held_out(pictures)
        parts = [("held out" if own else f"{pictures.path.stem}, held out", split)] if split else []
        parts = [("trained on" if own else pictures.path.stem, "train"), *parts]
        for j, (words, which) in enumerate(parts):
            losses = _losses(model, some_of(pictures, which, request.n), which, request)
            means = {level: float(values.mean()) for level, values in losses.items()}
            ends = {level: bootstrap_interval(values) for level, values in losses.items()}
            found.append({"model": model.name, "model_hash": model.hash, "data": pictures.path.stem, "split": which,
                          "n": len(next(iter(losses.values()))),
                          "levels": [{"level": float(level), "loss": means[level], "low": ends[level][0], "high": ends[level][1]}
                                     for level in losses]})  # fmt: skip
            levels = [float(level) for level in losses]
            series.append(Series(
                f"{said}: {words}" if len(names) > 1 else words, levels, [means[f"{x:g}"] for x in levels],
                (1, 5)[j] if len(names) == 1 else SPREAD[k % len(SPREAD)], dashed=which == "train",
                low=[ends[f"{x:g}"][0] for x in levels], high=[ends[f"{x:g}"][1] for x in levels],
            ))  # fmt: skip
            yield Progress(k * 2 + j + 1 + (len(parts) < 2), 2 * len(names))
    title = f"Loss by noise level{f' of {names[0]}' if len(names) == 1 else ''} ({request.n} pictures a line, 95 % intervals)"
    y_name = "own loss" if request.own else "error of x0, in units of σ²/(α²+σ²)"
    lines = Lines(title, series, "ln(sigma/alpha)", y_name, log=True)
    yield Curve(lines, {"plot": "loss", "own": request.own, "curves": found})


def _losses(model: Model, pictures: PictureSet, split: str, request: LossRequest) -> dict[str, np.ndarray]:
    try:
        recipe = Recipe.model_validate(model.card["training"]["recipe"])
    except (KeyError, TypeError, ValueError):
        recipe = Recipe(name=model.name, size=model.size)
    recipe = recipe.model_copy(update={"recolour": 0.0, "seed": 0, "size": model.size})
    frames = model.buckets if recipe.buckets else None
    corpus: Corpus = build_corpus(pictures, recipe, split, model.styles, model.codec, frames=frames)
    numbers, places = np.unique(corpus.texts[:, :1], return_inverse=True)  # a picture's first caption is all that is asked for
    corpus.captions, corpus.texts = [corpus.captions[i] for i in numbers], places.reshape(-1, 1)
    states, corpus.masks = encode(TextEncoder.load(), corpus.captions, model.words)
    corpus.states = states.half()
    corpus.to(model.device)
    if corpus.plain < 2:
        raise UserError(f"data: {pictures.path} has {corpus.plain} pictures of split {split}; give data with more")
    return bin_losses(model.denoiser, corpus, torch.float32, model.device, request.n, request.levels,
                      None if request.own else comparable)  # fmt: skip


def _distinct(names: list[str]) -> list[str]:
    """What the models are called in the legend: the last part of a path where that tells them apart."""
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    return short if len(set(short)) == len(short) else list(names)

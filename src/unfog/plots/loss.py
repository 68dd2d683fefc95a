"""Loss by noise level of one or more models, on pictures that they were trained on and on others, with 95 % intervals.

The noise is that of training's own watch (`training/watch.py`): fixed, the same for all models and levels. So that models of
different predictions and schedules can be held against each other, the error of x0 is counted in units of what would be left
open if all pixels were Gaussian and independent, σ²/(α² + σ²):

    loss = |D(x_t) − x0|² · (α² + σ²)/σ²      (the own loss of v-prediction where α² + σ² = 1)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.diffusion.losses import Space
from unfog.diffusion.predictions import Prediction
from unfog.errors import UserError
from unfog.evaluation.statistics import bootstrap_interval, share_interval
from unfog.model import Model
from unfog.networks.text import TextEncoder
from unfog.networks.words import encode
from unfog.page import Lines, Series
from unfog.plots.data import held_out, pictures_of, some_of
from unfog.plots.drawn import Curve
from unfog.plots.requests import LossRequest
from unfog.requests import Progress
from unfog.training.picture_corpus import PictureCorpus, build_corpus
from unfog.training.recipe import Recipe
from unfog.training.watch import bin_losses

if TYPE_CHECKING:
    from unfog.modalities.image.data import PictureSet

SPREAD = (1, 5, 2, 4, 0, 3)  # colours of models, far from each other first


def comparable(prediction: Prediction, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The weight that makes any prediction's loss |D − x0|²·(α² + σ²)/σ²."""
    return Space("v")(prediction, alpha, sigma) / (alpha * alpha + sigma * sigma)


@dataclass(frozen=True)
class Measured:
    """The loss of each picture (n,) of one split at each level, of one model, the number `k` of those asked for."""

    k: int
    said: str
    words: str
    model: Model
    split: str
    data: Path
    losses: dict[str, NDArray[np.float64]]


def stream(request: LossRequest, opened: Callable[[str], Model]) -> Iterator[Progress | Curve]:
    """Progress, then the curve: for each model a line of training pictures and one of held-out ones, where there are any."""
    names = _distinct(request.models)
    found: list[Measured] = []
    for k, (name, said) in enumerate(zip(request.models, names, strict=True)):
        model = opened(name)
        pictures = pictures_of(request.data, model)
        own = request.data is None or request.data == model.card.get("training", {}).get("data")
        split = held_out(pictures)
        parts = [("held out" if own else f"{pictures.path.stem}, held out", split)] if split else []
        parts = [("trained on" if own else pictures.path.stem, "train"), *parts]
        if request.relative and found and pictures.path != found[0].data:
            raise UserError(f"relative: {names[0]} and {said} were trained on different data; give --data for both")
        if request.relative and len(names) == 1 and not split:
            raise UserError(f"relative: {pictures.path} holds nothing out; give a second model, or data with a held-out split")
        for j, (words, which) in enumerate(parts):
            losses = _losses(model, some_of(pictures, which, request.n), which, request)
            found.append(Measured(k, said, words, model, which, pictures.path, losses))
            yield Progress(k * 2 + j + 1 + (len(parts) < 2), 2 * len(names))
    facts = {"plot": "loss", "own": request.own, "curves": [_figures(one) for one in found]}
    if request.relative:
        lines, ratios = _relative(found, len(names))
        yield Curve(lines, facts | {"ratios": ratios})
        return
    title = f"Loss by noise level{f' of {names[0]}' if len(names) == 1 else ''} ({request.n} pictures a line, 95 % intervals)"
    y_name = "own loss" if request.own else "error of x0, in units of σ²/(α²+σ²)"
    yield Curve(Lines(title, [_line(one, len(names)) for one in found], "ln(sigma/alpha)", y_name, log=True), facts)


def _figures(one: Measured) -> dict[str, Any]:
    levels = []
    for level, values in one.losses.items():
        low, high = bootstrap_interval(values)
        levels.append({"level": float(level), "loss": float(values.mean()), "low": low, "high": high})
    return {"model": one.model.name, "model_hash": one.model.hash, "data": one.data.stem, "split": one.split,
            "n": len(next(iter(one.losses.values()))), "levels": levels}  # fmt: skip


def _line(one: Measured, models: int) -> Series:
    points = _figures(one)["levels"]
    x, y, low, high = ([point[key] for point in points] for key in ("level", "loss", "low", "high"))
    colour = SPREAD[one.k % len(SPREAD)] if models > 1 else 1 if one.split == "train" else 5
    return Series(f"{one.said}: {one.words}" if models > 1 else one.words, x, y, colour, dashed=one.split == "train", low=low,
                  high=high)  # fmt: skip


def _relative(found: list[Measured], models: int) -> tuple[Lines, list[dict[str, Any]]]:
    """Each model's losses over the first one's, on the same pictures with the same noise; or held-out over training ones."""
    pairs = [(a, b) for b in found if b.k for a in found if a.k == 0 and a.split == b.split] or [(found[0], found[1])]
    series, ratios = [], []
    for a, b in pairs:
        points = []
        for level, above in b.losses.items():
            below = a.losses[level]
            theirs = [f"{a.split} {i}" for i in range(len(below))]
            low, high = share_interval(above, below, [f"{b.split} {i}" for i in range(len(above))], theirs)
            points.append({"level": float(level), "ratio": float(above.mean() / below.mean()), "low": low, "high": high})
        x, y, low_, high_ = ([point[key] for point in points] for key in ("level", "ratio", "low", "high"))
        name = f"{b.said}: {b.words}" if models > 1 else f"{b.words} over {a.words}"
        series.append(
            Series(name, x, y, SPREAD[b.k % len(SPREAD)], dashed=models > 1 and b.split == "train", low=low_, high=high_)
        )
        ratios.append({"of": b.model.name, "over": a.model.name, "split": b.split, "over_split": a.split, "levels": points})
    title = f"Loss over that of {found[0].said} (95 % intervals)" if models > 1 else f"Loss of {found[0].said} (95 % intervals)"
    return Lines(title, series, "ln(sigma/alpha)", "ratio", levels=[(1.0, "alike")]), ratios


def _losses(model: Model, pictures: PictureSet, split: str, request: LossRequest) -> dict[str, NDArray[np.float64]]:
    try:
        recipe = Recipe.model_validate(model.card["training"]["recipe"])
    except (KeyError, TypeError, ValueError):
        recipe = Recipe(name=model.name, size=model.size)
    recipe = recipe.model_copy(update={"recolour": 0.0, "seed": 0, "size": model.size})
    frames = model.buckets if recipe.buckets else None
    corpus: PictureCorpus = build_corpus(pictures, recipe, split, model.styles, model.codec, frames=frames)
    numbers, places = np.unique(corpus.texts[:, :1], return_inverse=True)  # a picture's first caption is all that is asked for
    corpus.captions, corpus.texts = [corpus.captions[i] for i in numbers], places.reshape(-1, 1)
    states, corpus.masks = encode(TextEncoder.load(), corpus.captions, model.pictures.words)
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

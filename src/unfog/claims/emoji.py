"""The shipped model and its pictures, as claims use them: captions, x0 of real pictures, pictures made, what is read off them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.claims.claim import Figure
from unfog.data import path
from unfog.diffusion.denoisers import Denoiser
from unfog.diffusion.grids import make_grid
from unfog.diffusion.likelihood import student
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import Plan, run
from unfog.diffusion.samplers import make_plan
from unfog.evaluation.distances import kernel, kernel_distance
from unfog.evaluation.readers import reader
from unfog.evaluation.retrieval import draw_distractors, retrieval
from unfog.evaluation.samples import caption
from unfog.evaluation.scorer import Scorer, describe
from unfog.evaluation.statistics import bootstrap_interval
from unfog.modalities.image.data import PictureSet
from unfog.model import Model, load
from unfog.networks.text import TextEncoder

MODEL = "emoji-64"
BATCH = 16
NUMBERS = 4 * 64 * 64
ON = "the shipped emoji-64 (6.7 M parameters, 64×64 pixels)"
Guided = Callable[[Denoiser, dict[str, Tensor]], Denoiser]  # (denoiser, the empty condition) -> what is sampled with


@lru_cache(maxsize=1)
def model() -> Model:
    """The shipped model, on the processor in float32: the same figures on every machine, but for last bits."""
    return Model(load(MODEL, device="cpu").folder, "cpu", torch.float32)


@lru_cache(maxsize=1)
def data() -> PictureSet:
    """The shipped pictures."""
    return PictureSet.open(path(MODEL))


def rows(split: str, n: int, seed: int) -> list[int]:
    """n records of a split, drawn by the seed, each at most once."""
    split_rows = data().split(split)
    return [split_rows[i] for i in np.random.default_rng([seed, 41]).permutation(len(split_rows))[:n]]


def real(chosen: Sequence[int], side: int = 64) -> NDArray[np.uint8]:
    """Their pictures (N, side, side, 4): straight RGBA."""
    return np.stack([data().load(row, side) for row in chosen])


def encoded(chosen: Sequence[int]) -> Tensor:
    """Their pictures in model space (N, 4, 64, 64)."""
    return model().codec.encode(real(chosen))


def conditions(chosen: Sequence[int]) -> dict[str, Tensor]:
    """What the model is told of each: its caption and style."""
    records = [data().records[row] for row in chosen]
    styles = [record.style if record.style in model().styles else None for record in records]
    return model().condition([caption(record) for record in records], styles)


def empty(n: int) -> dict[str, Tensor]:
    """The empty condition for n pictures."""
    return {key: value.expand(n, *value.shape[1:]) for key, value in model().condition([""], [None]).items()}


def plan(sampler: str, steps: int) -> Plan:
    """The shipped model's plan of a sampler."""
    return model().plan(sampler, steps)


def ddpm_plan(steps: int) -> Plan:
    """Ancestral sampling as DDPM does it: times evenly spaced, the posterior's noise at each."""
    schedule = model().denoiser.process.schedule
    return make_plan("ddpm", schedule, make_grid("uniform", schedule, steps))


@torch.inference_mode()
def made(chosen: Sequence[int], how: Plan, guided: Guided | None = None, seed: int = 0,
         say: Callable[[str], None] = lambda line: None) -> Tensor:  # fmt: skip
    """x0 (N, 4, 64, 64) for the captions of records: picture i from noise of seed + i, whatever the plan."""
    denoiser, none = model().denoiser, model().condition([""], [None])
    out = []
    for first in range(0, len(chosen), BATCH):
        part = chosen[first : first + BATCH]
        cond = conditions(part)
        asked = denoiser if guided is None else guided(denoiser, none)
        noise = Noise([seed + first + i for i in range(len(part))])
        x = denoiser.process.prior(noise.normal((4, 64, 64), 0), how.start)
        for state in run(how, lambda x_t, t, asked=asked, cond=cond: asked(x_t, t, cond), x, noise):  # type: ignore[misc]
            if how.nfe > 200 and state.nfe % 200 == 0:
                say(f"{first + len(part)} pictures, evaluation {state.nfe} of {how.nfe}")
        out.append(state.x)
    return torch.cat(out)


def decoded(x0: Tensor) -> NDArray[np.uint8]:
    """x0 to straight RGBA pictures."""
    return model().codec.decode(x0)


@lru_cache(maxsize=1)
def scorer() -> Scorer:
    """The independent judge: it never saw a generated picture."""
    return Scorer.load()


@lru_cache(maxsize=1)
def _captions() -> tuple[dict[str, int], Any]:
    """Each caption's number, and all captions' vectors."""
    records = data().records
    tags = {caption(record): record.tags for record in records}
    encoder = TextEncoder.load()
    vectors = scorer().text_vectors(describe(encoder, list(tags), list(tags.values()))).numpy()
    return {name: i for i, name in enumerate(tags)}, vectors


def agrees(pictures: NDArray[np.uint8], chosen: Sequence[int]) -> NDArray[np.bool_]:
    """Which pictures fit their own caption better than 64 others (N,)."""
    number, texts = _captions()
    own = [number[caption(data().records[row])] for row in chosen]
    vectors = scorer().picture_vectors(scorer().features(pictures)).numpy()
    return retrieval(vectors, texts, own, draw_distractors(own, len(texts)))


def chroma(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Colourfulness of each picture (N,) in [0, 1]: max − min of red, green and blue, over what is visible."""
    x = pictures.astype(np.float64) / 255
    alpha = x[..., 3]
    spread = x[..., :3].max(-1) - x[..., :3].min(-1)
    return (spread * alpha).sum((1, 2)) / np.maximum(alpha.sum((1, 2)), 1e-9)


def overshoot(x0: Tensor) -> NDArray[np.float64]:
    """Share of each picture's numbers (N,) that lie more than 0.05 outside [0, 1] before they are clipped to colours."""
    codec = model().codec
    mean, std = (torch.tensor(v)[:, None, None] for v in (codec.mean, codec.std))
    planes = x0.float() * std + mean
    return ((planes < -0.05) | (planes > 1.05)).double().flatten(1).mean(1).numpy()


def mean_of(what: str, values: Any, of: str = "pictures", clusters: Sequence[object] | None = None) -> Figure:
    """The mean of a value a picture, with its bootstrap interval."""
    x = np.asarray(values, np.float64)
    low, high = bootstrap_interval(x, clusters)
    return Figure(what=what, value=float(x.mean()), low=low, high=high, n=len(x), of=of)


def features(pictures: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The 1280 numbers of lite0 for each picture (N, 1280)."""
    return reader("lite0")(pictures).astype(np.float64)


@dataclass(frozen=True)
class Kernel:
    """A kernel distance (KID, unbiased) of made pictures to real ones, and what each made picture adds to it (N,).

    The part of picture i is 2·(mean k(x_i, x) − mean k(x_i, y)), the first-order term of a U-statistic: its spread over √N is
    the standard error. The real set is the same for all that is compared, and is taken as given.
    Source: van der Vaart 1998, Asymptotic Statistics, theorem 12.3.
    """

    value: float
    parts: NDArray[np.float64]

    @classmethod
    def of(cls, made: NDArray[np.float64], known: NDArray[np.float64]) -> Kernel:
        """Made (N, D) and real (M, D) features, two rows or more of each."""
        own, across = kernel(made, made), kernel(made, known).mean(1)
        others = (own.sum(1) - np.diagonal(own)) / (len(made) - 1)
        return cls(kernel_distance(made, known), 2.0 * (others - across))

    def figure(self, what: str) -> Figure:
        """The distance with its 95 % interval."""
        return self._figure(what, self.value, self.parts)

    def less(self, other: Kernel, what: str) -> Figure:
        """This distance less another one, of as many pictures made of the same captions and seeds."""
        return self._figure(what, self.value - other.value, self.parts - other.parts)

    @staticmethod
    def _figure(what: str, value: float, parts: NDArray[np.float64]) -> Figure:
        half = student(0.95, len(parts) - 1) * float(parts.std(ddof=1)) / math.sqrt(len(parts))
        return Figure(what=what, value=value, low=value - half, high=value + half, n=len(parts), of="pictures")

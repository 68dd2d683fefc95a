"""Which samples are copies of known pictures, also moved, recoloured, softened or saved anew.

    candidates   the 12 known pictures whose edges run most alike (aligned.describe)
    fit          each is aligned with the sample at 16×16, the 3 nearest of them again at 32×32 (aligned.align)
    score        a small network that falls with every difference that is left: the log-odds of a copy
    threshold    the score that 1 % of held-out pictures, of which none is known, exceed (memorisation.calibrate)

That a picture is near proves nothing where all are near each other, so the network also reads how far the next neighbours
are and how much there is to see: the ratio of Yoon et al. 2023 and Carlini et al. 2023, arXiv:2301.13188, with weights. They
were fitted on pictures of emoji-64's training split, each held against all others, and on copies of them made on purpose
(tools/tune_copies.py); the threshold is taken on the data at hand, always.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from unfog.evaluation.aligned import OPAQUE, align, blur, describe, inside, planes, readings, shown

CANDIDATES, CLOSE, CONTEXT = 12, 3, 20  # pictures aligned roughly, finely; neighbours behind them
CHUNK = 32  # samples at once; bounds the memory
NETWORK = Path(__file__).with_name("copies.json")
Pictures = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


@dataclass(frozen=True)
class Known:
    """What is kept of pictures among which copies are looked for: 4.6 kB each."""

    planes: Tensor  # (N, 4, 32, 32) uint8, premultiplied
    vectors: Tensor  # (N, 512) float16 (aligned.describe)

    @classmethod
    def of(cls, blocks: Iterable[Pictures]) -> Known:
        """From blocks of straight-alpha RGBA pictures (H, W, 4) uint8 of any shapes."""
        made = [planes(block) for block in blocks]
        whole = torch.cat(made) if made else torch.zeros(0, 4, 32, 32, dtype=torch.uint8)
        parts = [describe(shown(whole[i : i + 256].float() / 255)).half() for i in range(0, len(whole), 256)]
        return cls(whole, torch.cat(parts) if parts else torch.zeros(0, 512, dtype=torch.float16))

    def __len__(self) -> int:
        return len(self.planes)

    def part(self, rows: Sequence[int] | NDArray[np.int64]) -> Known:
        """Those rows alone."""
        index = torch.as_tensor(np.asarray(rows, np.int64))
        return Known(self.planes[index], self.vectors[index])


@dataclass(frozen=True)
class Found:
    """The likeliest original of each sample (N,): the score, which known picture, and how far apart after aligning."""

    score: NDArray[np.float32]  # log-odds; more is nearer to a copy
    index: NDArray[np.int64]
    apart: NDArray[np.float32]  # RMS of the three colours in [0, 1], aligned and recoloured, 32×32


@torch.inference_mode()
def look(samples: Pictures | Tensor, known: Known, own: ArrayLike | None = None, mirrored: bool = False) -> Found:
    """The likeliest original of each sample among the known pictures.

    Args: samples, straight-alpha RGBA (H, W, 4) uint8, or their `planes`; own (N,), the row of each sample itself among the
        known, which is passed over; mirrored, look for originals of the mirrored samples instead.
    Raises: ValueError where nothing is known, but for the sample itself.
    """
    if len(known) < 1 + (own is not None):
        raise ValueError("look needs known pictures")
    given = samples if isinstance(samples, Tensor) else planes(samples)
    skip = None if own is None else torch.as_tensor(np.asarray(own, np.int64))
    vectors = known.vectors.float()
    parts = [
        _look(given[i : i + CHUNK], known.planes, vectors, None if skip is None else skip[i : i + CHUNK], mirrored)
        for i in range(0, len(given), CHUNK)
    ]
    score, index, apart = (torch.cat([part[k] for part in parts]).numpy() if parts else np.zeros(0) for k in range(3))
    return Found(score.astype(np.float32), index.astype(np.int64), apart.astype(np.float32))


def _look(given: Tensor, pictures: Tensor, vectors: Tensor, own: Tensor | None, mirrored: bool) -> tuple[Tensor, Tensor, Tensor]:
    values, rows, apart = compared(given, pictures, vectors, own, mirrored)
    scores = Network.load().score(values)
    best = scores.argmax(1, keepdim=True)
    return scores.gather(1, best)[:, 0], rows.gather(1, best)[:, 0], apart.gather(1, best)[:, 0]


def compared(
    given: Tensor, pictures: Tensor, vectors: Tensor, own: Tensor | None = None, mirrored: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """What the network reads of samples and their nearest pictures: readings (Q, C, R) in logarithms, rows and RMS (Q, C)."""
    x = given.float() / 255
    if mirrored:
        x = x.flip(-1)
    opaque = x[:, 3].flatten(1).amin(1) > OPAQUE
    y, count = shown(x), len(x)
    near = describe(y) @ vectors.T
    if own is not None:
        near[torch.arange(count), own] = -1
    there = near.shape[1] - (own is not None)
    rough_count = min(CANDIDATES, there)
    close = min(CLOSE, rough_count)
    top = near.topk(min(CANDIDATES + CONTEXT, there), dim=1)
    gaps = (2 - 2 * top.values).clamp(min=0)
    # of too few pictures the farthest must do
    context = gaps[:, min(rough_count, gaps.shape[1] - 1) :].mean(1)
    rows = top.indices[:, :rough_count]
    ys = y.repeat_interleave(rough_count, 0)
    ks = pictures[rows.flatten()].float() / 255
    alone = opaque.repeat_interleave(rough_count)
    small = [blur(F.avg_pool2d(part, 2), 0.8) for part in (ys, ks)]
    rough = align(small[0], small[1], alone, torch.zeros(len(ys), 6), 3, 2)
    energy = rough.energy.reshape(count, rough_count)
    order = energy.argsort(1)
    rest = energy.gather(1, order)[:, min(close, rough_count - 1) :].mean(1)
    chosen = order[:, :close]
    flat = (torch.arange(count)[:, None] * rough_count + chosen).flatten()
    fit = align(blur(ys[flat], 0.6), blur(ks[flat], 0.6), alone[flat], rough.warp[flat], 2, 6)
    read = readings(fit)
    read["apart"] = gaps.gather(1, chosen).flatten() + 1e-3
    read["context"] = context.repeat_interleave(close) + 1e-4
    read["rest"] = rest.repeat_interleave(close) + 1e-6
    read["rough"] = energy.gather(1, chosen).flatten()
    values = torch.stack([torch.log(value + 1e-7) for value in read.values()], 1).reshape(count, close, -1)
    weight = inside(fit.residual.shape[-1])
    apart = ((fit.residual.square().mean(1) * weight).sum((1, 2)) / weight.sum()).sqrt()
    return values, rows.gather(1, chosen), apart.reshape(count, close)


@dataclass(frozen=True)
class Network:
    """tanh units over readings, summed: Σ_h v_h·tanh(W_h·z + b_h), v > 0, and W ≤ 0 for whatever is a difference.

    So a score cannot rise with a difference, also where it was not fitted. Several fits are one network of more units.
    """

    floor: Tensor
    mean: Tensor
    spread: Tensor
    weight: Tensor  # (H, R)
    bias: Tensor  # (H,)
    out: Tensor  # (H,)
    constant: float

    @staticmethod
    @cache
    def load() -> Network:
        """The shipped weights."""
        kept = json.loads(NETWORK.read_bytes())
        kept.pop("readings")
        fields: dict[str, Any] = {name: x if name == "constant" else torch.tensor(x) for name, x in kept.items()}
        return Network(**fields)

    def score(self, values: Tensor) -> Tensor:
        """Readings (..., R) to log-odds (...)."""
        z = (torch.maximum(values, self.floor) - self.mean) / self.spread
        return torch.tanh(z @ self.weight.T + self.bias) @ self.out + self.constant

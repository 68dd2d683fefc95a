"""Likelihood of pictures under a model: bits a dimension by the discrete bound, for pictures seen in training and unseen.

Pictures are taken as what the model's space holds of them: premultiplied RGBA of 8 bits a channel. The path stops where the
bound is lowest on other training pictures, at the least noise that the network was trained on or before; a decoder fitted to
these says what is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unfog.diffusion import Noise
from unfog.diffusion.discrete_bound import Decoder, Lattice, discrete_bound, fit_decoder
from unfog.evaluation.report import Beside, Measure, mean
from unfog.evaluation.samples import caption
from unfog.modalities.image.codec import RGBACodec

if TYPE_CHECKING:
    from unfog.modalities.image.data import PictureSet
    from unfog.model import Model

POINTS, DRAWS, BATCH = 16, 2, 8
DECODER = 16  # pictures that the decoder is fitted to
ENDS = (1, 2, 4, 8, 16)  # times the least noise at which the path may stop
CLEAN = 12.0  # log-SNR at which the path stops where a model states no least noise


def likelihood(model: Model, data: PictureSet, count: int, seed: int = 0) -> tuple[list[Measure], NDArray[np.float64]]:
    """The row of a report, and bits a dimension of each of `count` pictures that were not trained on.

    Where the data set holds nothing out, of its training pictures. Pictures are asked about with their own captions.
    """
    rng = np.random.default_rng(seed)
    train = rng.permutation(data.split("train") or range(len(data))).tolist()
    unseen = rng.permutation([i for i, r in enumerate(data.records) if r.split != "train"])[:count].tolist()
    decoder, seen = train[:DECODER], train[DECODER:][:count] or train[:count]
    levels = _lattice(model)
    end, left = _clean_end(model, *_items(model, data, decoder), Noise(decoder), levels)

    def bits(rows: Sequence[int]) -> NDArray[np.float64]:
        found = []
        for i in range(0, len(rows), BATCH):
            part = rows[i : i + BATCH]
            x0, cond = _items(model, data, part)
            found.append(discrete_bound(model.denoiser, x0, cond, noise=Noise([seed + row for row in part]), lattice=levels,
                                        decoder=left, end=end, points=POINTS, draws=DRAWS).items)  # fmt: skip
        return torch.cat(found).cpu().numpy()

    known = bits(seen)
    if not unseen:
        return [_row("train", known, [], "no picture is held out")], known
    new = bits(unseen)
    beside = [Beside(name="seen in training", figure=mean(known))]
    return [_row("held out", new, beside, "discrete variational bound")], new


def _clean_end(model: Model, x0: Tensor, cond: dict[str, Any], noise: Noise, lattice: Lattice) -> tuple[float, Decoder]:
    """The time, and its decoder, at which the bound is lowest for these items."""
    least = model.denoiser.sigma_min or math.exp(-CLEAN / 2)
    found = []
    for times in ENDS:
        end = float(model.denoiser.process.schedule.time(-2 * math.log(times * least)))
        decoder = fit_decoder(model.denoiser, x0, cond, noise=noise, lattice=lattice, end=end)
        some = {key: value[:BATCH] for key, value in cond.items()}
        bound = discrete_bound(model.denoiser, x0[:BATCH], some, noise=Noise(noise.seeds[:BATCH]), lattice=lattice,
                               decoder=decoder, end=end, points=POINTS, draws=DRAWS)  # fmt: skip
        found.append((float(bound.items.mean()), end, decoder))
    _, end, decoder = min(found, key=lambda one: one[0])
    return end, decoder


def _row(of: str, bits: NDArray[np.float64], beside: list[Beside], note: str) -> Measure:
    return Measure(group="likelihood", name="bits/dim, at most", of=of, figure=mean(bits), unit="bits/dim", better="lower",
                   beside=beside, note=note)  # fmt: skip


def _lattice(model: Model) -> Lattice:
    assert isinstance(model.codec, RGBACodec)
    mean_, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (model.codec.mean, model.codec.std))
    return Lattice(-mean_ / std, 1.0 / (255.0 * std), 256)


def _items(model: Model, data: PictureSet, rows: Sequence[int]) -> tuple[Tensor, dict[str, Any]]:
    """x0 (B, 4, H, W) float64 on the lattice, and the conditions of these pictures."""
    width, height = model.frame()
    pictures = np.stack([data.load(row, width if width == height else (width, height)) for row in rows]).astype(np.float64)
    alpha = pictures[..., 3:]
    planes = np.concatenate([np.rint(pictures[..., :3] * alpha / 255), alpha], -1)
    lattice = _lattice(model)
    x0 = lattice.low + lattice.width * torch.from_numpy(planes).permute(0, 3, 1, 2)
    records = [data.records[row] for row in rows]
    with torch.inference_mode():
        cond = model.condition([caption(r) for r in records], [r.style if r.style in model.styles else None for r in records])
    return x0, cond

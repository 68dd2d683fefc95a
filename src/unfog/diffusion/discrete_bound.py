"""Bits a dimension of data on a lattice (8-bit pictures, say) by the discrete variational bound: never below the exact value.

    −log P(x) ≤ KL(q(x_1|x) | prior) + ½·∫ e^λ·E|x − D(x_t)|² dλ + E[−log P(x | x_end)]        λ from the noisy end to `end`

    P(x_i = v | x_end) = Σ_j π_j·(F((v + w/2 − D_i)/s_j) − F((v − w/2 − D_i)/s_j)),  F the logistic function; the outermost
    values take the tails

The path stops where the network was trained no further, and there a decoder says what is left: a mixture of logistic
distributions about the network's own guess, its weights found on pictures that are not measured. With any decoder it is a bound.
Sources: Kingma et al. 2021, arXiv:2107.00630, eq. 11 (the bound); Salimans et al. 2017, arXiv:1701.05517, §2.1 (the decoder).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unfog.checks import check_whole
from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.likelihood import _checked, _span, path_cost
from unfog.diffusion.noise import Noise
from unfog.errors import UserError

_ENDS = 1 << 35  # noise of the clean end: a stream that no other place draws from


@dataclass(frozen=True)
class Lattice:
    """`levels` values low, low + width, ...; low and width may differ by channel, shaped to broadcast against (*D)."""

    low: Tensor
    width: Tensor
    levels: int = 256

    @staticmethod
    def of(low: float, high: float, levels: int = 256) -> Lattice:
        """Equally spaced from low to high, both among them. Raises UserError where that is impossible."""
        check_whole("lattice", "levels", levels, 2)
        if not -math.inf < low < high < math.inf:
            raise UserError(f"lattice: need low < high, got {low}, {high}")
        one = torch.tensor(1.0, dtype=torch.float64)
        return Lattice(low * one, (high - low) / (levels - 1) * one, levels)

    def checked(self, what: str, x0: Tensor) -> Tensor:
        """The number of each value of x0 (B, *D), from 0. Raises UserError where x0 is not on the lattice."""
        place = (x0 - self.low) / self.width
        number = place.round()
        if bool(((place - number).abs() > 0.02).any()) or bool((number < 0).any() or (number > self.levels - 1).any()):
            raise UserError(f"{what}: x0 is not on the lattice of {self.levels} values; state its low, width and levels")
        return number


@dataclass(frozen=True)
class Decoder:
    """P(x | guess): a mixture of logistic distributions; their scales (J,), in steps of the lattice, and weights (J,)."""

    scales: Tensor
    weights: Tensor

    def parts(self, number: Tensor, guess: Tensor, levels: int) -> Tensor:
        """P of each part of the mixture, (J, *number.shape): number and guess in steps of the lattice."""
        above, below = (number + 0.5 - guess), (number - 0.5 - guess)
        scales = self.scales.reshape(-1, *(1,) * number.ndim)
        top, bottom = torch.sigmoid(above / scales), torch.sigmoid(below / scales)
        # far above the guess both are near 1: the same difference from the other side keeps its digits
        mirrored = torch.sigmoid(-below / scales) - torch.sigmoid(-above / scales)
        inside = torch.where(below > 0, mirrored, top - bottom)
        inside = torch.where(number == 0, top, inside)
        return torch.where(number == levels - 1, torch.sigmoid(-below / scales), inside)

    def nats(self, number: Tensor, guess: Tensor, levels: int) -> Tensor:
        """−log P of each item (B, *D): (B,)."""
        weights = self.weights.reshape(-1, *(1,) * number.ndim)
        total = (weights * self.parts(number, guess, levels)).sum(0)
        # a mixture of heavy tails is never 0 but by rounding
        return -total.clamp(min=1e-300).log().flatten(1).sum(1)

    @staticmethod
    def fit(number: Tensor, guess: Tensor, levels: int, rounds: int = 40) -> Decoder:
        """The weights most likely for these values, by expectation-maximisation over fixed scales."""
        scales = torch.logspace(math.log10(0.02), math.log10(levels / 2.0), 9, dtype=torch.float64)
        decoder = Decoder(scales, torch.full((9,), 1 / 9, dtype=torch.float64))
        parts = decoder.parts(number.reshape(-1), guess.reshape(-1), levels)
        weights = decoder.weights
        for _ in range(rounds):
            share = weights[:, None] * parts
            weights = (share / share.sum(0).clamp(min=1e-300)).mean(1)
        # a little of each part stays, as what is measured later may lie elsewhere
        weights = 0.999 * weights + 0.001 / len(weights)
        return Decoder(scales, weights / weights.sum())


@dataclass(frozen=True)
class DiscreteBound:
    """Bits a dimension of each item, (B,) float64, their stderr (B,) from `draws` repeats; parts: path and decoder, (B,) each."""

    items: Tensor
    stderr: Tensor
    path: Tensor
    decoder: Tensor
    draws: int


def _end(what: str, denoiser: Denoiser, x0: Tensor, cond: Cond | None, noise: Noise, end: float, draw: int) -> Tensor:
    """The network's guess (B, *D) at the clean end."""
    process = denoiser.process
    eps = noise.normal(x0.shape[1:], _ENDS + draw, x0.device, x0.dtype)
    t = torch.full((len(x0),), end, dtype=x0.dtype, device=x0.device)
    with torch.no_grad():
        guess = denoiser(process.mix(x0, eps, t), t, cond).to(x0.dtype)
    if not bool(torch.isfinite(guess).all()):
        raise UserError(f"{what}: the denoiser returned a value that is not finite")
    return guess


def fit_decoder(
    denoiser: Denoiser, x0: Tensor, cond: Cond | None = None, *, noise: Noise, lattice: Lattice, end: float
) -> Decoder:
    """A decoder for `discrete_bound`, from items (B, *D) on the lattice that are not measured afterwards.

    end: the time in (0, 1) at which the path stops: that of the least noise that the network was trained on.
    """
    wide = _checked("fit_decoder", x0, noise)
    number = lattice.checked("fit_decoder", wide)
    guess = _end("fit_decoder", denoiser, wide, cond, noise, end, 0)
    return Decoder.fit(number, (guess - lattice.low) / lattice.width, lattice.levels)


def discrete_bound(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    noise: Noise,
    lattice: Lattice,
    decoder: Decoder,
    end: float,
    points: int = 32,
    draws: int = 2,
) -> DiscreteBound:
    """An upper bound on −log₂ P(x0)/n of each item x0 (B, *D) on the lattice, estimated without bias.

    points ≥ 1: strata of the log-SNR; draws ≥ 2: repeats that give the error. end and decoder: as for `fit_decoder`.
    Raises UserError where x0 is off the lattice, or the denoiser is not finite.
    """
    what = "discrete_bound"
    wide = _checked(what, x0, noise)
    number = lattice.checked(what, wide)
    low, high = _span(what, denoiser.process, end)
    path = path_cost(what, denoiser, wide, cond, noise, points, draws, low, high, control=False)
    left = torch.stack([
        decoder.nats(number, (_end(what, denoiser, wide, cond, noise, end, draw) - lattice.low) / lattice.width, lattice.levels)
        for draw in range(draws)
    ])  # fmt: skip
    unit = 1.0 / (wide[0].numel() * math.log(2.0))
    total = unit * (path + left)
    return DiscreteBound(total.mean(0), total.std(0) / math.sqrt(draws), unit * path.mean(0), unit * left.mean(0), draws)

"""What a network predicts, measured on it by how much of its input's two parts it hands on: of noise ε, and of a smooth field f.

    x_T = ±ε                           an eps or flow network says ε back, of v no more than α_T of it, of x0 nothing
    x_t = α·f ± σ·ε at log-SNR 0       eps: ε     v: α·ε − σ·f     x0: f     flow: ε − f, said of (f ± ε)/2 at half of the way

Half the difference of ±ε holds what ε changes, half the sum what f does; a gain is either one's regression on ε or f. Of ε the
high frequencies count, where data has little. Gains average over channels and places, so those of random weights are near 0:
of 40 small folders at most 0.05 (ε) and 0.18 (f). Trained ones had, after 70 to 150 steps, 0.2 and more of ε where they predict
v, 0.26 of f and hardly any ε if they predict x0, and 0.76 on noise alone if they predict eps. (Errors of x0 tell less: there
they were near those of one who says nothing.) A network that is in neither range fits nothing, and then nothing is said.

Zero terminal SNR: on noise alone, a v network hands on ε·α/σ at every level, so that its gains at LEVELS tell which of two
schedules it was trained on. Both are fitted with a factor of their own, as data has some high frequencies. One that is not yet
trained well hands on too much at the end, never too little: with zero terminal SNR it looks like one without. So "with" is
believed where it leaves a quarter of what "without" does, and "without" only where it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unfog.diffusion.denoisers import Preconditioned
from unfog.diffusion.noise import Noise
from unfog.diffusion.schedules import Table
from unfog.modalities.contract import Cond

MIDDLE = 0.0  # log-SNR of the second call
ITEMS = 2
SLOPE, REST = 0.5, 0.5  # of eps and flow on noise alone: at least so much of ε, and at most so much else
NOISE = 0.15  # gain of ε from which on a network is v: three times what random weights have
TOP = 0.5  # gain of ε on noise alone up to which it is v; a badly trained flow network has more
FIELD = 0.22  # gain of f, either way: a fifth above that
LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # times at which two schedules are told apart
FITS, EXACT = 0.05, 0.0025  # of gains that a schedule may leave unexplained; of the one without zero terminal SNR
APART = 0.03  # of α at the end; less is no difference that a picture shows


@dataclass(frozen=True)
class Found:
    """prediction: eps, v, x0, flow, or None where the network fits none. zero: whether a v network was trained with zero
    terminal SNR, None where that cannot be told."""

    prediction: str | None
    zero: bool | None
    figures: dict[str, float]


def gain(out: Tensor, part: Tensor, high: bool = False) -> float:
    """How much of `part` is in `out`, both (B, C, h, w): regression; high: of the high frequencies alone."""
    if high:
        out, part = (torch.fft.fft2(value) * _high(value.shape[-2:], value.device) for value in (out, part))
    return float((out * part.conj()).real.sum() / part.abs().square().sum())


def _high(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """1 where a frequency is above 0.3 of a cycle a cell, else 0."""
    rows, columns = (torch.fft.fftfreq(n, device=device) for n in shape)
    return ((rows[:, None] ** 2 + columns[None] ** 2).sqrt() > 0.3).float()


@torch.no_grad()
def probe(denoiser: Preconditioned, shape: tuple[int, ...], ask: Callable[[int], Cond], device: str,
          plain: Table | None = None) -> Found:  # fmt: skip
    """shape (C, h, w) of x0. ask(n): the condition of n empty prompts. plain: the table without zero terminal SNR."""
    schedule, noise = denoiser.process.schedule, Noise(range(ITEMS))
    eps = noise.normal(shape, 0, device=device)
    coarse = noise.normal((shape[0], 4, 4), 1, device=device)
    field = F.interpolate(coarse, shape[1:], mode="bicubic", align_corners=False)
    field = field / field.std()
    twice = {key: torch.cat([value, value]) for key, value in ask(ITEMS).items()}

    def asked(alpha: float, sigma: float, t: float) -> tuple[Tensor, Tensor]:
        """What the noise changes, and what it does not."""
        out = denoiser.raw(torch.cat([alpha * field + sigma * eps, alpha * field - sigma * eps]), t, twice).float()
        return 0.5 * (out[:ITEMS] - out[ITEMS:]), 0.5 * (out[:ITEMS] + out[ITEMS:])

    t = float(schedule.time(MIDDLE))
    top, _ = asked(0.0, 1.0, 1.0)
    odd, even = asked(float(schedule.alpha(t)), float(schedule.sigma(t)), t)
    figures = {"slope": gain(top, eps), "rest": float((top - eps).square().mean().sqrt()),
               "top": gain(top, eps, high=True), "noise": gain(odd, eps, high=True), "field": gain(even, field)}  # fmt: skip
    slope, rest, above, high, smooth = figures.values()
    if not all(abs(value) < 1e6 for value in figures.values()):  # NaN too
        return Found(None, None, figures)
    if slope > SLOPE and rest < REST:
        odd, even = asked(0.5, 0.5, 0.5)
        figures["flow"] = -gain(even, field)
        flowing = smooth < -FIELD and figures["flow"] > FIELD
        return Found("flow" if flowing else "eps" if smooth > -0.5 * FIELD else None, None, figures)
    if abs(slope) > SLOPE:
        return Found(None, None, figures)
    if smooth > FIELD and high < 0.5 * smooth:
        return Found("x0", None, figures)
    if high < NOISE or smooth > 0.5 * high or above > TOP:
        return Found(None, None, figures)
    if plain is None or float(plain.alpha(1.0)) < APART:
        return Found("v", None, figures)
    gains = [gain(asked(0.0, 1.0, t)[0], eps, high=True) for t in LEVELS]
    figures |= {"plain": _left(plain, gains), "zero": _left(plain.zero_terminal_snr(), gains)}
    without, with_zero = figures["plain"], figures["zero"]
    if with_zero < FITS and without > 4.0 * with_zero:
        return Found("v", True, figures)
    return Found("v", False if without < EXACT and with_zero > 8.0 * without else None, figures)


def _left(schedule: Table, gains: list[float]) -> float:
    """The share of `gains` at LEVELS that a multiple of α/σ leaves unexplained."""
    seen = torch.tensor(gains)
    meant = torch.tensor([float(schedule.alpha(t)) / float(schedule.sigma(t)) for t in LEVELS])
    factor = float(seen @ meant / (meant @ meant))
    return float((seen - factor * meant).square().sum() / seen.square().sum())

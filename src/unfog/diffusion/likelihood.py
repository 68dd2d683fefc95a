"""Likelihood: log p(x0) of a denoiser by its probability-flow ODE, bits a dimension, and the variational bound.

With λ = logsnr, m = √(α² + σ²), a = α/m and z = x_t/m the ODE, and the log-density along it, are

    dz/dλ = ½·a·(D(m·z, t) − a·z),      d log p(z)/dλ = −½·a·(tr ∂D/∂z − a·n)

No rate exceeds ½ for Gaussian data of any widths, so nothing is stiff and classical Runge–Kutta in λ serves; no schedule
has a singular place. Two runs, with n and n/2 steps, give Richardson's value; its error is stated as ¼ of their difference.
The ends: below the smallest noise τ = σ²/α² one Euler step in τ, where the flow is smooth, leads to the density of x0 itself
(its error is of order τ²). At the largest noise, with c = α·D(c) the mode of p(x_t) and J = ∂D/∂x there,

    log p(x_t) = log N(x_t; c, σ²) + ½·log det(1 − α·J) + (α/σ²)·∫₀¹ (D(c + u·r) − D(c))·r du,   r = x_t − c

Sources: Song et al. 2021, arXiv:2011.13456, eq. 39; Grathwohl et al. 2019, arXiv:1810.01367 (Hutchinson's trace).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.checks import check_choice, check_whole
from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.noise import Noise
from unfog.diffusion.processes import Process
from unfog.errors import UserError

TRACES = ("exact", "hutchinson")
PRIORS = ("denoiser", "process")
_LOW, _HIGH = -14.0, 16.0  # log-SNR of data of unit width, where nothing is left to learn
_PROBES, _DRAWS, _TIMES = 1 << 32, 1 << 33, 1 << 34  # streams far from those of samplers


def student(level: float, freedom: int) -> float:
    """q with P(|T| ≤ q) = level for Student's T of `freedom` ≥ 1 degrees, 0 < level < 1."""
    angle = np.linspace(0.0, 0.5 * math.pi, 100_001)
    # T = √ν·tan(angle), whose density is cos^{ν−1}.
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(level, mass / mass[-1], angle)))


@dataclass(frozen=True)
class Likelihood:
    """log p(x0) in nats, (B,) float64, and what is uncertain about it.

    stderr (B,): from the random probes, 0 with the exact trace. discretisation (B,): of the finite steps; few errors are
    larger, most far smaller. nfe: evaluations of the denoiser, without its derivatives.
    """

    log_prob: Tensor
    stderr: Tensor
    discretisation: Tensor
    probes: int
    nfe: int

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end, (B,) each: Student's interval of the probes, widened by the discretisation."""
        half = self.discretisation
        if self.probes:
            half = half + student(level, self.probes - 1) * self.stderr
        return self.log_prob - half, self.log_prob + half


@dataclass(frozen=True)
class BitsPerDim:
    """value: mean over the items. stderr: of the mean, for other items like these (NaN for one item); draws_stderr: for these
    items, from dequantisation and probes alone (NaN for one draw). items, discretisation (B,): of each item."""

    value: float
    stderr: float
    draws_stderr: float
    items: Tensor
    discretisation: Tensor


@dataclass(frozen=True)
class Bound:
    """An upper bound on −log p(x0) in nats, (B,) float64, estimated by `draws` independent runs with this stderr (B,)."""

    value: Tensor
    stderr: Tensor
    draws: int

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the expected bound, (B,) each."""
        half = student(level, self.draws - 1) * self.stderr
        return self.value - half, self.value + half


def _checked(what: str, x0: Tensor, noise: Noise | None) -> Tensor:
    """x0 (B, *D) in float64 (float32 where the device has no other)."""
    if x0.ndim < 2 or x0.numel() == 0:
        raise UserError(f"{what}: x0 must have a batch dimension and at least one value, got shape {tuple(x0.shape)}")
    if not x0.is_floating_point() or not bool(torch.isfinite(x0).all()):
        raise UserError(f"{what}: x0 must hold finite floating-point numbers")
    if noise is not None and len(noise.seeds) != len(x0):
        raise UserError(f"{what}: need one seed an item, got {len(noise.seeds)} for {len(x0)} items")
    return x0.detach().to(torch.float32 if x0.device.type == "mps" else torch.float64)


def _span(what: str, process: Process, end: float | None) -> tuple[float, float]:
    """The log-SNR at the noisiest and at the cleanest place."""
    shift = -2.0 * math.log(process.prior_std(0.0))
    low = max(float(process.schedule.logsnr(1.0)), _LOW + shift)
    if end is not None and not 0.0 < end < 1.0:
        raise UserError(f"{what}: end must be a time between 0 and 1, got {end!r}")
    high = _HIGH + shift if end is None else float(process.schedule.logsnr(end))
    if not low < high < math.inf:
        raise UserError(f"{what}: nothing between log-SNR {low:.3g} and {high:.3g}; choose a smaller end")
    return low, high


class _Flow:
    """The slope of the ODE and its divergence, (P, B): one row a probe, or one exact row."""

    def __init__(self, denoiser: Denoiser, cond: Cond | None, probes: Tensor | None) -> None:
        self.denoiser, self.cond, self.probes, self.nfe = denoiser, cond, probes, 0

    def _directions(self, z: Tensor) -> Iterator[Tensor]:
        """Each (B, *D)."""
        if self.probes is not None:
            yield from self.probes
            return
        rows = torch.zeros_like(z).flatten(1)
        for k in range(rows.shape[1]):
            rows[:, k] = 1.0
            yield rows.reshape(z.shape)
            rows[:, k] = 0.0

    def x0(self, z: Tensor, logsnr: float) -> Tensor:
        """D (B, *D) at z."""
        self.nfe += 1
        schedule = self.denoiser.process.schedule
        t = float(schedule.time(logsnr))
        return self.denoiser(math.hypot(schedule.alpha(t), schedule.sigma(t)) * z, t, self.cond).to(z.dtype)

    def denoised(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """D (B, *D) at z, and tr ∂D/∂z (P, B)."""
        with torch.inference_mode(False), torch.enable_grad():
            z = z.detach().clone().requires_grad_()
            x0 = self.x0(z, logsnr) + 0.0 * z  # a denoiser may be constant
            # One product a direction: batching them would ask more of a network than that it has a derivative.
            parts = [
                (torch.autograd.grad(x0, z, rows, retain_graph=True)[0] * rows).flatten(1).sum(1) for rows in self._directions(z)
            ]
        traces = torch.stack(parts)
        return x0.detach(), traces.sum(0, keepdim=True) if self.probes is None else traces

    def slope(self, z: Tensor, logsnr: float) -> tuple[Tensor, Tensor]:
        """dz/dλ (B, *D) and its divergence (P, B)."""
        a = math.sqrt(1.0 / (1.0 + math.exp(-logsnr)))
        x0, trace = self.denoised(z, logsnr)
        return 0.5 * a * (x0 - a * z), 0.5 * a * (trace - a * z[0].numel())

    def run(self, z: Tensor, high: float, low: float, steps: int) -> tuple[Tensor, Tensor]:
        """z at log-SNR low, and log p(z_high) − log p(z_low) (P, B), by classical Runge–Kutta."""
        h = (low - high) / steps
        total: Any = 0.0
        for i in range(steps):
            here = high + i * h
            k1, d1 = self.slope(z, here)
            k2, d2 = self.slope(z + 0.5 * h * k1, here + 0.5 * h)
            k3, d3 = self.slope(z + 0.5 * h * k2, here + 0.5 * h)
            k4, d4 = self.slope(z + h * k3, here + h)
            z = z + h / 6.0 * (k1 + 2.0 * (k2 + k3) + k4)
            total = total + h / 6.0 * (d1 + 2.0 * (d2 + d3) + d4)
        return z, total


class _Noisy:
    """log p(z) at the noisiest place, (P, B)."""

    def __init__(self, flow: _Flow, like: Tensor, logsnr: float, prior: str) -> None:
        self.flow, self.logsnr, self.prior, self.size = flow, logsnr, prior, like[0].numel()
        self.a, b = (math.sqrt(1.0 / (1.0 + math.exp(-sign * logsnr))) for sign in (1.0, -1.0))
        self.centre, self.width, self.bend = torch.zeros_like(like), b, like.new_zeros(1, len(like))
        process = flow.denoiser.process
        if prior == "process":
            t = float(process.schedule.time(logsnr))
            self.width = process.prior_std(t) / math.hypot(process.schedule.alpha(t), process.schedule.sigma(t))
            return
        for _ in range(2):
            self.centre = self.a * flow.x0(self.centre, logsnr)
        self.there, trace = flow.denoised(self.centre, logsnr)
        # Exact where the data is as wide in all directions; what it misses is of order (α/σ)⁴.
        self.bend = 0.5 * self.size * torch.log1p(-self.a * trace / self.size)

    def __call__(self, z: Tensor) -> Tensor:
        r = z - self.centre
        out = self.bend - 0.5 * (r / self.width).flatten(1).square().sum(1)
        out = out - self.size * math.log(self.width * math.sqrt(2.0 * math.pi))
        if self.prior == "denoiser":
            for u, weight in ((0.5 - math.sqrt(0.15), 5 / 18), (0.5, 8 / 18), (0.5 + math.sqrt(0.15), 5 / 18)):
                pull = ((self.flow.x0(self.centre + u * r, self.logsnr) - self.there) * r).flatten(1).sum(1)
                out = out + weight * self.a / self.width**2 * pull
        return out


def _solve(
    denoiser: Denoiser, x0: Tensor, cond: Cond | None, steps: int, span: tuple[float, float], probes: Tensor | None, prior: str
) -> Likelihood:
    low, high = span
    size, flow = x0[0].numel(), _Flow(denoiser, cond, probes)
    with torch.no_grad():
        a = math.sqrt(1.0 / (1.0 + math.exp(-high)))
        near, trace = flow.denoised(a * x0, high)
        z, first = a * (x0 + 0.5 * (x0 - near)), 0.5 * (size - a * trace) + size * math.log(a)
        noisy = _Noisy(flow, x0, low, prior)
        values = []
        for count in (steps, steps // 2):
            last, change = flow.run(z, high, low, count)
            values.append(first + change + noisy(last))
    fine, coarse = values
    each = fine + (fine - coarse) / 15.0
    out, count = each.mean(0), len(each)
    if not bool(torch.isfinite(out).all()):
        raise UserError("log_likelihood: the result is not finite; the denoiser, or its derivative, is not on this path")
    stderr = torch.zeros_like(out) if probes is None else each.std(0) / math.sqrt(count)
    return Likelihood(out, stderr, (fine - coarse).mean(0).abs() / 4.0, 0 if probes is None else count, flow.nfe)


def _signs(noise: Noise, x0: Tensor, probes: int, first: int) -> Tensor:
    """±1 (P, B, *D)."""
    draws = [noise.uniform(x0.shape[1:], _PROBES + first + k, x0.device, x0.dtype) for k in range(probes)]
    return torch.where(torch.stack(draws) < 0.5, -1.0, 1.0).to(x0.dtype)


def log_likelihood(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    steps: int = 96,
    trace: str = "exact",
    probes: int = 16,
    noise: Noise | None = None,
    end: float | None = None,
    prior: str = "denoiser",
    first_probe: int = 0,
) -> Likelihood:
    """log p(x0) of each item x0 (B, *D), in nats: the density of clean data.

    steps: even, at least 2; the denoiser is asked about 6·steps times. trace: "exact", as many derivatives as an item has
    numbers, or "hutchinson", `probes` ≥ 2 of them, random signs from `noise` (one seed an item; probe k from stream k past
    first_probe), the same along the path; few probes say little about their own error. end: the time at which the flow
    ends, by default at log-SNR 16 of data of unit width; raise it to what the network was trained on. prior, at the noisy
    end: "denoiser", the density that it implies there, for log p of the data; "process", the normal distribution that
    sampling starts from, for log p of the samples. Items must not see each other in the denoiser.
    """
    what = "log_likelihood"
    check_choice("trace", trace, TRACES)
    check_choice("prior", prior, PRIORS)
    check_whole(what, "steps", steps, 2)
    if steps % 2:
        raise UserError(f"{what}: steps must be even, as a second run takes half of them; got {steps}")
    signs = None
    wide = _checked(what, x0, noise if trace == "hutchinson" else None)
    if trace == "hutchinson":
        check_whole(what, "probes", probes, 2)
        if noise is None:
            raise UserError(f"{what}: trace 'hutchinson' draws probes; give noise=Noise(seeds), one seed an item")
        signs = _signs(noise, wide, probes, first_probe)
    return _solve(denoiser, wide, cond, steps, _span(what, denoiser.process, end), signs, prior)


def bits_per_dim(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    noise: Noise,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    draws: int = 4,
    **options: Any,
) -> BitsPerDim:
    """Bits a dimension of data that takes `levels` ≥ 2 values, equally spaced from low to high, both among them.

        −(E_u log p(x0 + (u − ½)·w) + n·ln w)/(n·ln 2),  w = (high − low)/(levels − 1),  u uniform: ≥ −log₂ P(x0)/n

    x0 (B, *D) must lie on those values. draws ≥ 1 of u; options: those of `log_likelihood`.
    Source: Theis et al. 2016, arXiv:1511.01844, §3.1.
    """
    what = "bits_per_dim"
    check_whole(what, "levels", levels, 2)
    check_whole(what, "draws", draws, 1)
    if not -math.inf < low < high < math.inf:
        raise UserError(f"{what}: need low < high, got {low}, {high}")
    wide = _checked(what, x0, noise)
    width = (high - low) / (levels - 1)
    place = (wide - low) / width
    if bool(((place - place.round()).abs() > 0.01).any()) or bool((place < -0.5).any() or (place > levels - 0.5).any()):
        raise UserError(f"{what}: x0 is not on the {levels} values from {low:g} to {high:g}; state its levels, low and high")
    results = []
    for k in range(draws):
        u = noise.uniform(wide.shape[1:], _DRAWS + k, wide.device, wide.dtype)
        first = k * int(options.get("probes", 16))
        results.append(log_likelihood(denoiser, wide + (u - 0.5) * width, cond, noise=noise, first_probe=first, **options))
    size = wide[0].numel()
    unit = 1.0 / (size * math.log(2.0))
    bits = -unit * (torch.stack([result.log_prob for result in results]) + size * math.log(width))
    items, count = bits.mean(0), len(wide)
    spread = float((bits.var(0) / draws).sum().sqrt()) / count if draws > 1 else math.nan
    stderr = float(items.std()) / math.sqrt(count) if count > 1 else math.nan
    error = unit * torch.stack([result.discretisation for result in results]).mean(0)
    return BitsPerDim(float(items.mean()), stderr, spread, items, error)


def variational_bound(
    denoiser: Denoiser,
    x0: Tensor,
    cond: Cond | None = None,
    *,
    noise: Noise,
    points: int = 64,
    draws: int = 8,
    end: float | None = None,
) -> Bound:
    """The variational bound of the continuous-time model, an upper bound on −log p(x0) of x0 (B, *D), in nats.

        KL(q(x_t | x0) | prior) at the noisy end + ½·∫ e^λ·E|x0 − D(x_t)|² dλ + ½·n·ln(2πe·σ²/α²) at the clean end

    For the exact denoiser it meets −log p(x0) as the ends go outwards. points: strata of λ, one place in each; draws ≥ 2:
    independent repeats, which give the error. What the denoiser of N(0, data_std²) would lose on the same noise is taken
    off and its exact integral put back: the same expectation, a far smaller variance. end: as in `log_likelihood`.
    Sources: Kingma et al. 2021, arXiv:2107.00630, eq. 11 and 15; Kong et al. 2023, arXiv:2302.03792, eq. 9 (both exact).
    """
    what = "variational_bound"
    wide = _checked(what, x0, noise)
    low, high = _span(what, denoiser.process, end)
    values = path_cost(what, denoiser, wide, cond, noise, points, draws, low, high)
    values = values + 0.5 * wide[0].numel() * (math.log(2.0 * math.pi * math.e) - high)
    return Bound(values.mean(0), values.std(0) / math.sqrt(draws), draws)


def path_cost(
    what: str, denoiser: Denoiser, wide: Tensor, cond: Cond | None, noise: Noise, points: int, draws: int, low: float,
    high: float, control: bool = True,
) -> Tensor:  # fmt: skip
    """KL at the noisy end + ½·∫ e^λ·E|x0 − D(x_t)|² dλ between two log-SNRs, in nats, of float64 items (B, *D): (draws, B).

    control: take off what the denoiser of N(0, data_std²) loses on the same noise: far less variance for data with a density,
    more for data on a lattice, where the exact denoiser loses nothing near the clean end and that one all the noise.
    """
    check_whole(what, "points", points, 1)
    check_whole(what, "draws", draws, 2)
    process, size, batch = denoiser.process, wide[0].numel(), len(wide)
    variance = process.prior_std(0.0) ** 2
    snr = math.exp(high if control else low) * variance
    # KL of the Gaussian model at the noisy end, plus its diffusion loss, is its KL at the clean end.
    square = wide.flatten(1).square().sum(1) / variance
    closed = 0.5 * (size * math.log1p(snr) + snr / (1.0 + snr) * (square - size))
    totals = torch.zeros(draws, batch, dtype=wide.dtype, device=wide.device)
    one = (-1, *(1,) * (wide.ndim - 1))
    with torch.no_grad():
        for draw in range(draws):
            places = noise.uniform((points,), _TIMES + draw, wide.device, wide.dtype)
            for k in range(points):
                logsnr = low + (high - low) * (k + places[:, k]) / points
                t = process.schedule.time(logsnr)
                eps = noise.normal(wide.shape[1:], _TIMES + draw * points + k, wide.device, wide.dtype)
                share = (variance / (variance + torch.exp(-logsnr))).reshape(one)
                guess = denoiser(process.mix(wide, eps, t), t, cond).to(wide.dtype)
                gain = (wide - guess) ** 2
                if control:
                    gain = gain - (wide - share * (wide + torch.exp(-0.5 * logsnr).reshape(one) * eps)) ** 2
                gain = gain.flatten(1).sum(1)
                totals[draw] += 0.5 * (high - low) / points * torch.exp(logsnr) * gain
    values = closed + totals
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{what}: the denoiser returned a value that is not finite")
    return values

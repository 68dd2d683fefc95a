"""Samplers against independent statements of the published algorithms, in their own variables."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unfog.diffusion.denoisers import MixtureDenoiser
from unfog.diffusion.grids import make_grid
from unfog.diffusion.noise import Noise
from unfog.diffusion.plan import sample
from unfog.diffusion.processes import Gaussian
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import EDM, VP, Linear, Table


def mixture(schedule):
    means = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    weights, stds = torch.tensor([0.3, 0.5, 0.2]), torch.tensor([0.3, 0.5, 0.25])
    return MixtureDenoiser(Gaussian(schedule), weights, means, stds=stds)


def test_ddpm_step_is_the_published_posterior():
    """Ho et al., eq. 7, on neighbouring indices of the table."""
    table = Table.linear(20, 1e-3, 0.4)
    beta = np.linspace(1e-3, 0.4, 20)
    bar = np.cumprod(1 - beta)
    plan = make_plan("ddpm", table, make_grid("trailing", table, 20))
    for row, n in enumerate(range(19, 0, -1)):
        assert plan.b[row, 0] == pytest.approx(math.sqrt(bar[n - 1]) * beta[n] / (1 - bar[n]), rel=1e-9)
        assert plan.a[row] == pytest.approx(
            math.sqrt(1 - beta[n]) * (1 - bar[n - 1]) / (1 - bar[n]), rel=1e-9
        )
        assert plan.c[row] ** 2 == pytest.approx((1 - bar[n - 1]) / (1 - bar[n]) * beta[n], rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_published_update(eta):
    """Song et al., eq. 12 and 16, in ᾱ and ε, with steps that do not divide N."""
    table = Table.scaled_linear()
    exact = mixture(table)
    grid = make_grid("trailing", table, 7)
    noise = Noise([3])
    x = noise.normal((4,), 0, dtype=torch.float64)
    got = sample(make_plan("ddim", table, grid, eta=eta), exact, x, noise)
    bar = np.append(
        np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), 1.0
    )  # bar[-1]: clean data
    visited = [table.index(t) for t in grid[:-1].tolist()] + [-1]
    for i, (n, m) in enumerate(zip(visited[:-1], visited[1:], strict=True)):
        x0 = exact(x, table.time_of(n))
        eps = (x - math.sqrt(bar[n]) * x0) / math.sqrt(1 - bar[n])
        s = eta * math.sqrt((1 - bar[m]) / (1 - bar[n])) * math.sqrt(1 - bar[n] / bar[m])
        z = noise.normal((4,), 1 + i, dtype=torch.float64)
        x = math.sqrt(bar[m]) * x0 + math.sqrt(1 - bar[m] - s * s) * eps + s * z
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-10)


def test_euler_on_flow_is_the_plain_euler_method():
    schedule = Linear()
    exact = mixture(schedule)
    x = Noise([3]).normal((4,), 0, dtype=torch.float64)
    grid = make_grid("uniform", schedule, 10)
    got = sample(make_plan("euler", schedule, grid), exact, x)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        x = x + (s - t) * (x - exact(x, t)) / t
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_heun_is_the_published_algorithm():
    """Karras et al., Alg. 1, with σ(t) = t."""
    schedule = EDM()
    exact = mixture(schedule)
    x = 80.0 * Noise([3]).normal((4,), 0, dtype=torch.float64)
    grid = make_grid("karras", schedule, 18)
    got = sample(make_plan("heun", schedule, grid), exact, x)
    sigma = np.append((80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, 0.0)
    for now, after in zip(sigma[:-1], sigma[1:], strict=True):
        slope = (x - exact(x, schedule.time(-2 * math.log(now)))) / now
        guess = x + (after - now) * slope
        if after > 0:
            second = (guess - exact(guess, schedule.time(-2 * math.log(after)))) / after
            guess = x + (after - now) * (slope + second) / 2
        x = guess
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["midpoint", "exact"])
def test_dpm_solver_is_the_published_update(kind):
    """Lu et al., Alg. 2, with D₁ as a divided difference; the exact kind by numerical integration."""
    schedule = VP()
    exact = mixture(schedule)
    x = Noise([3]).normal((4,), 0, dtype=torch.float64)
    grid = np.append(schedule.time(np.linspace(-10.0, 7.0, 9) + 0.2 * np.sin(np.arange(9))), 0.0)
    got = sample(make_plan("dpmpp_2m", schedule, grid, kind=kind), exact, x)
    before = None
    nodes, weights = np.polynomial.legendre.leggauss(20)
    for i, (t, s) in enumerate(zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True)):
        now = exact(x, t)
        if s == 0.0:
            x = now
            break
        lam, after = 0.5 * schedule.logsnr(t), 0.5 * schedule.logsnr(s)
        h = after - lam
        out = schedule.sigma(s) / schedule.sigma(t) * x - schedule.alpha(s) * math.expm1(-h) * now
        if before is not None:
            slope = (now - before) / (lam - 0.5 * schedule.logsnr(float(grid[i - 1])))
            if kind == "midpoint":
                out = out - 0.5 * schedule.alpha(s) * math.expm1(-h) * h * slope
            else:
                u = 0.5 * h * (nodes + 1)
                out = out + schedule.alpha(s) * float((0.5 * h * weights * np.exp(u - h) * u).sum()) * slope
        x, before = out, now
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-10)

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
        assert plan.a[row] == pytest.approx(math.sqrt(1 - beta[n]) * (1 - bar[n - 1]) / (1 - bar[n]), rel=1e-9)
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
    bar = np.append(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2), 1.0)  # bar[-1]: clean data
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


# ---- the rest in two settings: α = 1 with uneven σ down to 0, and the VP schedule with uneven λ = ln(α/σ), both in float64

SIGMAS = [40.0, 22.0, 9.5, 5.0, 2.2, 1.3, 0.5, 0.21, 0.06, 0.0]
PAIRS = list(zip(SIGMAS[:-1], SIGMAS[1:], strict=True))
LAMBDAS = (np.linspace(-4.5, 3.5, 9) + 0.25 * np.sin(1.3 * np.arange(9))).tolist()
NOISE = Noise([3])


def draw(stream):
    return NOISE.normal((4,), stream, dtype=torch.float64)


def agree(got, want):
    assert float((got - want).abs().max()) <= 1e-10 * float(want.abs().max())


def edm_setting(name, **options):
    """Our result, the start, and D(x, σ)."""
    schedule = EDM(sigma_max=100.0)
    exact = mixture(schedule)
    grid = make_grid("custom", schedule, len(PAIRS), levels=SIGMAS)
    x = SIGMAS[0] * draw(0)
    got = sample(make_plan(name, schedule, grid, **options), exact, x, NOISE)
    return got, x, lambda x, sigma: exact(x, schedule.time(-2.0 * math.log(sigma)))


def vp_setting(name, **options):
    """Our result, the start, D(x, λ), and α(λ), σ(λ)."""
    schedule = VP()
    exact = mixture(schedule)
    got = sample(make_plan(name, schedule, schedule.time(2.0 * np.array(LAMBDAS)), **options), exact, draw(0), NOISE)
    alpha, sigma = (
        (lambda lam: 1.0 / math.sqrt(1.0 + math.exp(-2.0 * lam))),
        (lambda lam: 1.0 / math.sqrt(1.0 + math.exp(2.0 * lam))),
    )
    return got, draw(0), lambda x, lam: exact(x, schedule.time(2.0 * lam)), alpha, sigma


def ancestral(now, after):
    up = min(after, math.sqrt(after**2 * (now**2 - after**2) / now**2))
    return math.sqrt(after**2 - up**2), up


def test_euler_ancestral():
    """k-diffusion's sample_euler_ancestral."""
    got, x, denoised = edm_setting("ddpm")
    for i, (now, after) in enumerate(PAIRS):
        down, up = ancestral(now, after)
        x = x + (down - now) * (x - denoised(x, now)) / now + up * draw(1 + i)
    agree(got, x)


def test_heun_with_churn():
    """Karras et al., Alg. 2. What it draws before a step, ours draws at the end of the step before."""
    churn, low, high, extra = 1.8, 0.1, 30.0, 1.003
    got, x, denoised = edm_setting("heun", churn=churn, s_min=low, s_max=high, s_noise=extra)
    churned = 0
    for i, (now, after) in enumerate(PAIRS):
        if low <= now <= high:
            raised = now * (1.0 + min(churn / len(PAIRS), math.sqrt(2.0) - 1.0))
            x = x + math.sqrt(raised**2 - now**2) * extra * draw(2 * i)
            now, churned = raised, churned + 1
        slope = (x - denoised(x, now)) / now
        guess = x + (after - now) * slope
        if after:
            guess = x + (after - now) * 0.5 * (slope + (guess - denoised(guess, after)) / after)
        x = guess
    assert churned == 7
    agree(got, x)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpm_2(eta):
    """k-diffusion's sample_dpm_2 and sample_dpm_2_ancestral: the slope at √(σ·σ_down)."""
    got, x, denoised = edm_setting("dpm_2_a" if eta else "dpm_2")
    for i, (now, after) in enumerate(PAIRS):
        down, up = ancestral(now, after) if eta else (after, 0.0)
        slope = (x - denoised(x, now)) / now
        if down:
            middle = math.sqrt(now * down)
            half = x + (middle - now) * slope
            slope = (half - denoised(half, middle)) / middle
        x = x + (down - now) * slope + (up * draw(2 * i + 2) if up else 0.0)
    agree(got, x)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_2s(eta):
    """Lu et al. 2022b, Alg. 1 with r = ½; ancestral as in k-diffusion's sample_dpmpp_2s_ancestral."""
    got, x, denoised = edm_setting("dpmpp_2s_a" if eta else "dpmpp_2s")
    for i, (now, after) in enumerate(PAIRS):
        down, up = ancestral(now, after) if eta else (after, 0.0)
        x0 = denoised(x, now)
        if down:
            h = math.log(now / down)
            middle = now * math.exp(-0.5 * h)
            half = middle / now * x - math.expm1(-0.5 * h) * x0
            x0 = denoised(half, middle)
        x = down / now * x + (1.0 - down / now) * x0 + (up * draw(2 * i + 2) if up else 0.0)
    agree(got, x)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_dpmpp_sde(eta):
    """k-diffusion's sample_dpmpp_sde, r = ½; the step's noise is the middle's, carried on by σ″·e^{−h/2}/σ′, and a new part."""
    got, x, denoised = edm_setting("dpmpp_sde", eta=eta)
    for i, (now, after) in enumerate(PAIRS):
        if not after:
            x = denoised(x, now)
            continue
        middle, both = math.sqrt(now * after), 0.0
        x0, half = denoised(x, now), x
        for target in (middle, after):
            down, up = ancestral(now, target) if eta else (target, 0.0)
            half = down / now * x + (1.0 - down / now) * x0
            if up:
                first = ancestral(now, middle)[1] * (after / middle) ** 2
                both = (
                    up * draw(2 * i + 1)
                    if target == middle
                    else first * draw(2 * i + 1) + (up**2 - first**2) ** 0.5 * draw(2 * i + 2)
                )
            half = half + both
            x0 = denoised(half, target) if target == middle else x0
        x = half
    agree(got, x)


def test_dpm_solver_3():
    """Lu et al. 2022a, Alg. 2 (DPM-Solver-3), r₁ = ⅓, r₂ = ⅔."""
    got, x, denoised, alpha, sigma = vp_setting("dpm_3")

    def eps(x, lam):
        return (x - alpha(lam) * denoised(x, lam)) / sigma(lam)

    for lam, end in zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True):
        h = end - lam
        one, two = lam + h / 3.0, lam + h * 2.0 / 3.0
        first = eps(x, lam)
        u = alpha(one) / alpha(lam) * x - sigma(one) * math.expm1(h / 3.0) * first
        rise = eps(u, one) - first
        far = 2.0 * h / 3.0
        u = alpha(two) / alpha(lam) * x - sigma(two) * math.expm1(far) * first
        u = u - sigma(two) * 2.0 * (math.expm1(far) / far - 1.0) * rise
        rise = eps(u, two) - first
        x = alpha(end) / alpha(lam) * x - sigma(end) * math.expm1(h) * first - sigma(end) * 1.5 * (math.expm1(h) / h - 1.0) * rise
    agree(got, x)


def test_dpmpp_3s():
    """The same in x0 (Lu et al. 2022b, DPM-Solver++ 3S)."""
    got, x, denoised, alpha, sigma = vp_setting("dpmpp_3s")
    for lam, end in zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True):
        h = end - lam
        one, two, far = lam + h / 3.0, lam + h * 2.0 / 3.0, 2.0 * h / 3.0
        first = denoised(x, lam)
        u = sigma(one) / sigma(lam) * x - alpha(one) * math.expm1(-h / 3.0) * first
        rise = denoised(u, one) - first
        u = sigma(two) / sigma(lam) * x - alpha(two) * math.expm1(-far) * first
        u = u + alpha(two) * 2.0 * (math.expm1(-far) / far + 1.0) * rise
        rise = denoised(u, two) - first
        x = (
            sigma(end) / sigma(lam) * x
            - alpha(end) * math.expm1(-h) * first
            + alpha(end) * 1.5 * (math.expm1(-h) / h + 1.0) * rise
        )
    agree(got, x)


@pytest.mark.parametrize("kind", ["midpoint", "exact"])
def test_dpm_solver_2m_in_eps(kind):
    """The published noise form of 2M; what others call "heun" is "exact"."""
    got, x, denoised, alpha, sigma = vp_setting("dpm_2m", kind=kind)
    before = None
    for i, (lam, end) in enumerate(zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True)):
        h = end - lam
        now = (x - alpha(lam) * denoised(x, lam)) / sigma(lam)
        x = alpha(end) / alpha(lam) * x - sigma(end) * math.expm1(h) * now
        if before is not None:
            weight = 0.5 * math.expm1(h) if kind == "midpoint" else math.expm1(h) / h - 1.0
            x = x - sigma(end) * weight * (now - before) * h / (lam - LAMBDAS[i - 1])
        before = now
    agree(got, x)


@pytest.mark.parametrize(("name", "eta"), [("dpmpp_3m", 0.0), ("dpmpp_3m_sde", 1.0), ("dpmpp_3m_sde", 0.4)])
def test_dpmpp_3m_as_published(name, eta):
    """k-diffusion's sample_dpmpp_3m_sde, on VP; without noise the third-order update of DPM-Solver++."""
    got, x, denoised, alpha, sigma = vp_setting(name, kind="published", **({"eta": eta} if eta else {}))
    known = []
    for i, (lam, end) in enumerate(zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True)):
        h = end - lam
        wide = (1.0 + eta) * h
        known = [denoised(x, lam), *known][:3]
        phi_2 = math.expm1(-wide) / wide + 1.0
        x = sigma(end) / sigma(lam) * math.exp(-eta * h) * x - alpha(end) * math.expm1(-wide) * known[0]
        if i:
            first = (known[0] - known[1]) * h / (lam - LAMBDAS[i - 1])
        if i == 1:
            x = x + alpha(end) * phi_2 * first
        if i > 1:
            r0, r1 = (lam - LAMBDAS[i - 1]) / h, (LAMBDAS[i - 1] - LAMBDAS[i - 2]) / h
            bend = (first - (known[1] - known[2]) / r1) / (r0 + r1)
            x = x + alpha(end) * (phi_2 * (first + r0 * bend) - (phi_2 / wide - 0.5) * bend)
        x = x + sigma(end) * math.sqrt(-math.expm1(-2.0 * eta * h)) * draw(1 + i)
    agree(got, x)


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("kind", ["midpoint", "exact"])
def test_sde_dpmpp_2m(kind, eta):
    """k-diffusion's sample_dpmpp_2m_sde; its "heun" is "exact". The step to σ = 0 returns D."""
    got, x, denoised = edm_setting("dpmpp_2m_sde", kind=kind, eta=eta)
    before, last = None, None
    for i, (now, after) in enumerate(PAIRS):
        x0 = denoised(x, now)
        if not after:
            x = x0
            break
        h = math.log(now / after)
        wide = (1.0 + eta) * h
        x = after / now * math.exp(-eta * h) * x - math.expm1(-wide) * x0
        if before is not None:
            weight = -0.5 * math.expm1(-wide) if kind == "midpoint" else math.expm1(-wide) / wide + 1.0
            x = x + weight * h / last * (x0 - before)
        x = x + after * math.sqrt(-math.expm1(-2.0 * eta * h)) * draw(1 + i)
        before, last = x0, h
    agree(got, x)


@pytest.mark.parametrize("kind", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, kind):
    """Zhao et al. 2023, Alg. 1 and 2 in x0: the weights solve R·ρ = b, or are ½ where the paper fixes them."""
    got, guess, denoised, alpha, sigma = vp_setting("unipc", order=order, kind=kind)

    def update(x, lam, end, known, new):
        h = end - lam
        size = -h if kind == "bh1" else math.expm1(-h)
        m0 = known[0][1]
        ratios = [(place - lam) / h for place, _ in known[1:]] + ([1.0] if new is not None else [])
        rises = [m - m0 for _, m in known[1:]] + ([new - m0] if new is not None else [])
        phi, factorial, b = math.expm1(-h) / -h - 1.0, 1.0, []
        for k in range(1, len(ratios) + 1):
            b.append(phi * factorial / size)
            factorial *= k + 1
            phi = phi / -h - 1.0 / factorial
        rows = np.array(ratios)[None, :] ** np.arange(len(ratios))[:, None]
        rho = [0.5] if len(ratios) == 1 else np.linalg.solve(rows, np.array(b)).tolist() if ratios else []
        x = sigma(end) / sigma(lam) * x - alpha(end) * math.expm1(-h) * m0
        for weight, ratio, rise in zip(rho, ratios, rises, strict=True):
            x = x - alpha(end) * size * weight * rise / ratio
        return x

    x, known = guess, []
    for i, (lam, end) in enumerate(zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True)):
        x0 = denoised(guess, lam)
        if i:
            x = update(x, LAMBDAS[i - 1], lam, known, x0)
        known = [(lam, x0), *known][:order]
        guess = update(x, lam, end, known, None)
    agree(got, guess)


@pytest.mark.parametrize("order", [2, 3])
def test_deis(order):
    """Zhang & Chen 2022, tAB-DEIS with a polynomial in ln ρ, ρ = σ/α: closed integrals of powers of ln ρ."""
    got, x, denoised, alpha, sigma = vp_setting("deis", order=order)
    known = []

    def integral(rho, others):  # ∫ Π (ln ρ − o) dρ for none, one or two others
        log = math.log(rho)
        if len(others) < 2:
            return rho * (log - 1.0 - others[0]) if others else rho
        return rho * (log * log - 2.0 * log + 2.0 - sum(others) * (log - 1.0) + others[0] * others[1])

    for lam, end in zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True):
        known = [(-lam, (x - alpha(lam) * denoised(x, lam)) / sigma(lam)), *known][:order]
        y = x / alpha(lam)
        for k, (place, eps) in enumerate(known):
            others = [other for other, _ in known[:k] + known[k + 1 :]]
            span = integral(math.exp(-end), others) - integral(math.exp(-lam), others)
            y = y + span / math.prod(place - other for other in others) * eps
        x = alpha(end) * y
    agree(got, x)


def test_lms_of_order_4():
    """k-diffusion's sample_lms: Lagrange polynomials in σ, integrated down to σ = 0."""
    got, x, denoised = edm_setting("lms", order=4)
    known = []
    for now, after in PAIRS:
        known = [(now, (x - denoised(x, now)) / now), *known][:4]
        step = torch.zeros_like(x)
        for k, (place, slope) in enumerate(known):
            others = [other for other, _ in known[:k] + known[k + 1 :]]
            whole = np.poly1d(others, r=True) if others else np.poly1d([1.0])
            whole = whole.integ()
            step = step + float(whole(after) - whole(now)) / math.prod(place - other for other in others) * slope
        x = x + step
    agree(got, x)


def test_ipndm_of_order_4():
    """Liu et al. 2022, eq. 12, with the lower orders first: the coefficients of even steps, on uneven ones."""
    got, x, denoised, alpha, sigma = vp_setting("ipndm")
    table = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    known = []
    for lam, end in zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True):
        known = [(x - alpha(lam) * denoised(x, lam)) / sigma(lam), *known][:4]
        eps = sum(weight * one for weight, one in zip(table[len(known) - 1], known, strict=True))
        x = alpha(end) * (x - sigma(lam) * eps) / alpha(lam) + sigma(end) * eps
    agree(got, x)


def test_lcm():
    """Song et al. 2023, Alg. 1: denoise, noise anew."""
    got, x, denoised, alpha, sigma = vp_setting("lcm")
    for i, (lam, end) in enumerate(zip(LAMBDAS[:-1], LAMBDAS[1:], strict=True)):
        x = alpha(end) * denoised(x, lam) + sigma(end) * draw(1 + i)
    agree(got, x)

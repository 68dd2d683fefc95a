"""What multistep samplers share: the ODE in three forms, and integrals of a polynomial through past slopes.

With z = x/g the probability-flow ODE is dz/dτ = H, H = p·x + q·D:

    form   g       τ           H
    x0     σ       α/σ         D
    eps    α       σ/α         ε = (x − α·D)/σ
    flow   α + σ   σ/(α + σ)   v = ε − D

so  x_j = (g_j/g_i)·x_i + Σ_k W_k·H_k,  W_k = g_j·∫ L_k dτ  from node i to j (i + 1, if not given), L_k the Lagrange
basis on the nodes whose slopes are known. L_k may be a polynomial in λ = ln(α/σ) (exponential Adams: the part that is
linear in x is exact), in τ itself (classical Adams), or in the step's number (the constant coefficients of textbooks).

eta > 0 adds Langevin noise, x0 form and λ only:  x_j = (σ_j/σ_i)·e^{−ηh}·x_i + Σ_k W_k·D_{i−k} + σ_j·√(1 − e^{−2ηh})·z,
W_k = (1 + η)·α_j·∫ e^{(1+η)(l−λ_j)}·L_k(l) dl. Sources: Hochbruck & Ostermann 2010 (exponential integrators),
doi:10.1017/S0962492910000048; Xue et al. 2023 (SA-Solver), arXiv:2309.05019, eq. 14, η = τ².
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np

from unfog.diffusion.nodes import Nodes

FORMS = ("x0", "eps", "flow")
VARIABLES = ("logsnr", "own", "step")
# Exact for polynomials to degree 95; e^u over ±40 to the last bits. Closed forms cancel at small h.
_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(48)


def slope(nodes: Nodes, i: int, form: str) -> tuple[float, float]:
    """p, q of H at node i."""
    alpha, sigma = float(nodes.alpha[i]), float(nodes.sigma[i])
    if form == "x0":
        return 0.0, 1.0
    return 1.0 / sigma, -(alpha + (sigma if form == "flow" else 0.0)) / sigma


def scale(nodes: Nodes, i: int, form: str) -> float:
    """g at node i."""
    alpha, sigma = float(nodes.alpha[i]), float(nodes.sigma[i])
    return {"x0": sigma, "eps": alpha, "flow": alpha + sigma}[form]


def own(nodes: Nodes, i: int, form: str) -> float:
    """τ at node i; infinite where its form has no such place (σ = 0 in x0, α = 0 in eps)."""
    above, below = float(nodes.alpha[i]), float(nodes.sigma[i])
    if form != "x0":
        above, below = below, scale(nodes, i, form)
    return above / below if below else math.inf


def width(nodes: Nodes, i: int, j: int | None = None) -> float:
    """h = λ_j − λ_i."""
    return float(nodes.half[i + 1 if j is None else j] - nodes.half[i])


def kernel(nodes: Nodes, i: int, form: str, eta: float = 0.0, j: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """κ(u) = g_j·dτ/dλ at λ_i + u, 0 ≤ u ≤ h; both λ must be finite."""
    last = i + 1 if j is None else j
    alpha, sigma = float(nodes.alpha[last]), float(nodes.sigma[last])
    half, h = float(nodes.half[i]), width(nodes, i, j)
    if form == "x0":
        return lambda u: (1.0 + eta) * alpha * np.exp((1.0 + eta) * (u - h))
    if form == "eps":
        return lambda u: -sigma * np.exp(h - u)
    return lambda u: -0.25 * (alpha + sigma) / np.cosh(0.5 * (half + u)) ** 2


def lagrange(places: Sequence[float], at: np.ndarray) -> np.ndarray:
    """L_k(at), (len(places), len(at)): 1 at places[k], 0 at the others."""
    out = np.ones((len(places), len(at)))
    for k, own_place in enumerate(places):
        for place in (*places[:k], *places[k + 1 :]):
            out[k] *= (at - place) / (own_place - place)
    return out


def usable(nodes: Nodes, i: int, form: str, variable: str) -> bool:
    """Whether node i has a finite place in `variable`, and a slope."""
    if variable == "logsnr":
        return math.isfinite(nodes.half[i])
    return math.isfinite(own(nodes, i, form))


def weights(
    nodes: Nodes, i: int, among: Sequence[int], form: str, variable: str = "logsnr", eta: float = 0.0, j: int | None = None
) -> list[float]:
    """W of the step from node i to j for slopes known at the nodes `among` (j too, in a corrector)."""
    last = i + 1 if j is None else j
    if variable == "logsnr":
        h = width(nodes, i, j)
        places = [width(nodes, i, n) / h for n in among]
    else:
        start, h = own(nodes, i, form), own(nodes, last, form) - own(nodes, i, form)
        places = [(own(nodes, n, form) - start) / h if variable == "own" else float(n - i) for n in among]
    at, measure = 0.5 * (_POINTS + 1.0), 0.5 * h * _WEIGHTS
    density = kernel(nodes, i, form, eta, j)(h * at) if variable == "logsnr" else scale(nodes, last, form)
    return [float(value) for value in lagrange(places, at) @ (measure * density)]


def moment(nodes: Nodes, i: int, power: int, form: str, eta: float = 0.0, j: int | None = None) -> float:
    """∫ κ(u)·u^m/m! du from node i to j: the exact weight of the m-th derivative in λ at node i."""
    h = width(nodes, i, j)
    u = 0.5 * h * (_POINTS + 1.0)
    values = kernel(nodes, i, form, eta, j)(u) * u**power
    return float(0.5 * h * (_WEIGHTS @ values) / math.factorial(power))


def keep(nodes: Nodes, i: int, form: str, eta: float = 0.0, j: int | None = None) -> tuple[float, float]:
    """What the step from node i to j keeps of x, and the noise that it draws."""
    last = i + 1 if j is None else j
    factor = scale(nodes, last, form) / scale(nodes, i, form)
    if not eta:
        return factor, 0.0
    loss = eta * width(nodes, i, j)
    return factor * math.exp(-loss), float(nodes.sigma[last]) * math.sqrt(-math.expm1(-2.0 * loss))


def added(terms: Sequence[float], others: Sequence[float], factor: float) -> list[float]:
    """terms + factor·others; the shorter one goes on with zeros."""
    return [a + factor * b for a, b in zip_longest(terms, others, fillvalue=0.0)]

"""The network, the noise and the peers (diffusers, k-diffusion) of parity.py; what of ours runs beside each."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion.grids import make_grid
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, sample
from unfog.diffusion.predictions import Prediction
from unfog.diffusion.samplers import make_plan
from unfog.diffusion.schedules import EDM, Cosine, Linear

SHAPE = (4, 2, 2)
BATCH = 2
# x is kept in one of three coordinate systems: α² + σ² = 1, α = 1, α + σ = 1.
SPACES: dict[str, Any] = {"vp": Cosine(), "ve": EDM(sigma_max=1e6), "flow": Linear()}
Change = Callable[[Plan, Nodes, Any], Plan]  # our plan, its nodes, the schedule -> the plan with a peer's rule in it
OUR_NAMES = {"epsilon": "eps", "v_prediction": "v", "flow_prediction": "flow"}


class Tape:
    """Noise by stream number, the same for both sides."""

    def normal(self, shape: Sequence[int], stream: int, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(7919 + stream)
        return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64).to(dtype)


class Network:
    """v(x, log-SNR) of fixed random weights; x has α² + σ² = 1. Any prediction is read off it."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(3)
        count = math.prod(SHAPE)

        def weights(*shape: int, scale: float) -> Tensor:
            return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(torch.float32).to(dtype)

        self.into, self.level = weights(count, 32, scale=1.2 * count**-0.5), weights(32, scale=1.0)
        self.out = weights(32, count, scale=1.2 * 32**-0.5)

    def __call__(self, kind: str, x: Tensor, level: float) -> Tensor:
        """kind: a key of OUR_NAMES or "x0"; level = σ/α, inf for pure noise."""
        logsnr = -20.0 if level == math.inf else min(max(-2.0 * math.log(max(level, 1e-9)), -20.0), 20.0)
        v = (torch.tanh(x.flatten(1) @ self.into + (0.1 * logsnr) * self.level) @ self.out).reshape(x.shape)
        a, s = unit(level)
        if kind == "v_prediction":
            return v
        if kind == "epsilon":
            return s * x + a * v
        return a * x - s * v if kind == "x0" else (s - a) * x + (a + s) * v


def unit(level: float) -> tuple[float, float]:
    """α, σ of σ/α = level with α² + σ² = 1."""
    return (0.0, 1.0) if level == math.inf else (1.0 / math.hypot(1.0, level), level / math.hypot(1.0, level))


@dataclass
class Peer:
    """A peer made ready: the levels σ/α it visits, its coordinates, its network's prediction, and its run."""

    levels: list[float]
    space: str
    kind: str
    sample: Callable[[Tensor, Network], Tensor]


def distinct(values: Sequence[float]) -> list[float]:
    """Without repetitions; some peers end with a step to where they stand, or to its neighbour in float32."""
    return [value for i, value in enumerate(values) if i == 0 or value < values[i - 1] * (1.0 - 1e-6)]


def flow_level(place: float) -> float:
    return place / (1.0 - place) if place < 1.0 else math.inf


def ours(
    name: str, options: dict[str, Any], peer: Peer, x: Tensor, network: Network,
    change: Change = lambda plan, nodes, schedule: plan,
) -> Tensor:  # fmt: skip
    """Our final sample on the peer's levels; `change`: what a demonstration alters in the plan."""
    schedule, levels = SPACES[peer.space], peer.levels
    if peer.space == "flow":  # σ/α may be infinite; the place σ/(α + σ) is the time
        times = [1.0 if level == math.inf else level / (1.0 + level) for level in levels]
        grid = make_grid("custom", schedule, len(times) - 1, start=times[0], end=times[-1], times=times)
    else:
        grid = make_grid("custom", schedule, len(levels) - 1, levels=levels)
    prediction = Prediction(OUR_NAMES[peer.kind])

    def denoise(x: Tensor, t: float) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        norm = math.hypot(alpha, sigma)
        inside = x if peer.space == "vp" else x / norm
        level = sigma / alpha if alpha else math.inf
        return prediction.to_x0(network(peer.kind, inside, level), inside, alpha / norm, sigma / norm)

    return sample(change(make_plan(name, schedule, grid, **options), Nodes.of(schedule, grid), schedule), denoise, x, Tape())


def start(peer: Peer, dtype: torch.dtype) -> Tensor:
    """Unit noise, as wide as the marginal of unit data at the first level."""
    a, s = unit(peer.levels[0])
    width = {"vp": 1.0, "ve": 1.0 / a if a else math.inf, "flow": 1.0 / (a + s)}[peer.space]
    return Tape().normal(SHAPE, 0, dtype=torch.float64).mul(width).to(dtype)


def reference(peer: Peer) -> Tensor:
    """The probability-flow ODE dx/dφ = v (α = cos φ, σ = sin φ) by Runge–Kutta 4, 600 steps in log-SNR; float64."""
    network, x = Network(torch.float64), start(peer, torch.float64)
    a, s = unit(peer.levels[0])
    x = x * {"vp": 1.0, "ve": a, "flow": a + s}[peer.space]

    def angle(logsnr: float) -> float:
        return math.atan(math.exp(-0.5 * logsnr))

    def slope(x: Tensor, u: float) -> Tensor:  # dx/du
        return network("v_prediction", x, math.exp(-0.5 * u)) * (-0.25 / math.cosh(0.5 * u))

    first, last = peer.levels[0], peer.levels[-1]
    u = -20.0 if first == math.inf else -2.0 * math.log(first)
    end = 20.0 if last == 0.0 else -2.0 * math.log(last)
    if first == math.inf:  # beyond ±20 the network is told the same level: one Euler step in φ is exact enough
        x = x + (angle(u) - 0.5 * math.pi) * network("v_prediction", x, first)
    h = (end - u) / 600
    for _ in range(600):
        one = slope(x, u)
        two = slope(x + 0.5 * h * one, u + 0.5 * h)
        three = slope(x + 0.5 * h * two, u + 0.5 * h)
        x = x + h / 6.0 * (one + 2.0 * two + 2.0 * three + slope(x + h * three, u + h))
        u += h
    if last == 0.0:
        return x - angle(u) * network("v_prediction", x, math.exp(-0.5 * u))
    a, s = unit(last)
    return x / {"vp": 1.0, "ve": a, "flow": a + s}[peer.space]


# ---- diffusers

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon"}
SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
LEADING, TRAILING = {"timestep_spacing": "leading"}, {"timestep_spacing": "trailing"}
KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}
Configs = dict[str, dict[str, Any]]
# Peers that read the table of ᾱ; with levels from a list of σ/α; multistep in log-SNR; with equal steps in log-SNR.
TABLE: Configs = {"linear": LINEAR | LEADING, "scaled": SCALED | TRAILING, "cosine": COSINE | TRAILING}
SIGMAS: Configs = {"linear": LINEAR, "scaled karras": SCALED | KARRAS, "scaled exponential": SCALED | EXPONENTIAL}
EPS: Configs = {"linear": LINEAR, "scaled": SCALED | TRAILING, "scaled leading": SCALED | LEADING}
PLAIN: Configs = {"linear": LINEAR, "scaled": SCALED | TRAILING, "cosine": COSINE}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
MULTISTEP: Configs = {"linear": LINEAR, "scaled karras": SCALED | KARRAS, "flow": FLOW_SIGMAS}
EVEN: Configs = {
    "linear exponential": LINEAR | EXPONENTIAL,
    "scaled exponential": SCALED | EXPONENTIAL,
    "cosine exponential": COSINE | EXPONENTIAL,
}
EDMS: Configs = {
    "edm karras": {"sigma_data": 1.0, "prediction_type": "v_prediction"},
    "edm exponential": {"sigma_data": 1.0, "prediction_type": "v_prediction", "sigma_schedule": "exponential"},
    "edm rho 3": {"sigma_data": 1.0, "prediction_type": "v_prediction", "rho": 3.0, "sigma_max": 500.0},
}
FLOWS: Configs = {f"flow shift {shift}": {"shift": shift} for shift in (1.0, 3.0, 0.5)}
ANGLES: Configs = {"even angles": {"power": 1.0}, "squared angles": {"power": 2.0}, "root of angles": {"power": 0.7}}


def diffusers_peer(
    name: str, config: dict[str, Any], steps: int, dtype: torch.dtype,
    step_options: dict[str, Any], stream: Callable[[int], int], every: int,
) -> Peer:  # fmt: skip
    import diffusers

    made = getattr(diffusers, name)
    if "dummy" in made.__module__:  # LMS, where scipy is not installed
        made = getattr(importlib.import_module("diffusers.schedulers.scheduling_lms_discrete"), name)
    module = sys.modules[made.__module__]
    if name == "IPNDMScheduler":
        config = dict(config)
        angles = config.pop("top", 0.99) * (1.0 - np.arange(steps + 1) / steps) ** config.pop("power") * (0.5 * math.pi)
        config["trained_betas"] = np.sin(angles).tolist()
    if name == "LMSDiscreteScheduler" and not hasattr(module, "integrate"):
        module.integrate = SimpleNamespace(quad=quad)  # type: ignore[attr-defined]
    peer = made(**config)
    peer.set_timesteps(steps)
    if hasattr(peer, "set_begin_index"):
        peer.set_begin_index(0)
    if dtype == torch.float64:
        for key, value in list(vars(peer).items()):
            if isinstance(value, Tensor) and value.dtype == torch.float32 and key != "timesteps":
                setattr(peer, key, value.double())
        if hasattr(peer, "sigmas_interpol"):
            widen_middles(peer)
    flow = name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
    kind = "flow_prediction" if flow else config.get("prediction_type", "v_prediction")
    bars = getattr(peer, "alphas_cumprod", None)

    def bar_level(t: int) -> float:
        bar = float(bars[t])  # type: ignore[index]
        return math.sqrt(float(1.0 - bars[t]) / bar)  # type: ignore[index]

    if name == "IPNDMScheduler":
        # Its tables hold σ and α = √(1 − σ²), each rounded; both sides are told σ/√(1 − σ²).
        table = [float(b) / math.sqrt(1.0 - float(b) ** 2) if b < 1.0 else math.inf for b in peer.betas]
        if dtype == torch.float64:
            peer.alphas = (1.0 - peer.betas**2) ** 0.5
        levels, space, at = table, "vp", lambda i: table[i]
    elif hasattr(peer, "sigmas"):
        raw = [float(value) for value in peer.sigmas]
        raw = [flow_level(value) for value in raw] if flow else raw
        scaled = "scale_model_input" in vars(made) and "sigma" in inspect.getsource(made.scale_model_input)
        space = "flow" if flow else "ve" if scaled else "vp"
        levels = distinct(raw[:-1][::every] + raw[-1:])

        def at(i: int) -> float:
            if hasattr(peer, "sigmas_interpol") and not peer.state_in_first_order:
                return float(peer.sigmas_interpol[i - 1 if "Ancestral" in name else i])
            return raw[i]
    else:
        levels, space = [*distinct([bar_level(int(t)) for t in peer.timesteps]), 0.0], "vp"
        at = lambda i: bar_level(int(peer.timesteps[i]))  # noqa: E731

    def run(x: Tensor, network: Network) -> Tensor:
        drawn = [0]

        def draw(shape: Sequence[int], dtype: torch.dtype = torch.float32, **_: Any) -> Tensor:
            drawn[0] += 1
            return Tape().normal(shape[1:], stream(drawn[0] - 1), dtype=dtype)

        before = getattr(module, "randn_tensor", None)
        module.randn_tensor = draw  # type: ignore[attr-defined]
        try:
            for i, t in enumerate(peer.timesteps):
                level = at(i)
                inside = peer.scale_model_input(x, t) if hasattr(peer, "scale_model_input") else x
                if flow:
                    a, s = unit(level)
                    inside = x * (a + s)
                x = peer.step(network(kind, inside, level), t, x, return_dict=False, **step_options)[0]
        finally:
            module.randn_tensor = before  # type: ignore[attr-defined]
        return x

    return Peer(levels, space, kind, run)


def widen_middles(peer: Any) -> None:
    """What KDPM2 derives from its levels, again in float64."""
    levels = torch.tensor([*distinct([float(value) for value in peer.sigmas if value > 0.0]), 0.0], dtype=torch.float64)
    after = torch.cat([levels[1:], levels[:1] * 0.0])
    up = (after**2 * (levels**2 - after**2) / levels**2) ** 0.5
    up[-1] = 0.0
    down = (after**2 - up**2) ** 0.5
    tables = {"sigmas_interpol": (levels * levels.roll(1)) ** 0.5}
    if hasattr(peer, "sigmas_up"):
        tables = {"sigmas_interpol": (levels * down) ** 0.5, "sigmas_up": up, "sigmas_down": down}
    for key, table in tables.items():
        setattr(peer, key, torch.cat([table[:1], table[1:].repeat_interleave(2), table[-1:]]))


def quad(function: Callable[[float], Any], low: float, high: float, epsrel: float = 0.0) -> tuple[float, float]:
    """What LMS needs of scipy: the integral of a polynomial."""
    places, weights = np.polynomial.legendre.leggauss(12)
    low, high = float(low), float(high)
    at = 0.5 * (high - low) * places + 0.5 * (high + low)
    return 0.5 * (high - low) * sum(w * float(function(u)) for u, w in zip(at.tolist(), weights.tolist(), strict=True)), 0.0


# ---- k-diffusion

KS: dict[str, Callable[[Any, int], Tensor]] = {
    "karras": lambda k, steps: k.get_sigmas_karras(steps, 0.002, 80.0),
    "exponential": lambda k, steps: k.get_sigmas_exponential(steps, 0.03, 14.6),
    "vp": lambda k, steps: k.get_sigmas_vp(steps),
}


def k_peer(
    name: str, schedule: str, steps: int, dtype: torch.dtype, options: dict[str, Any], stream: Callable[[int], int]
) -> Peer:
    from k_diffusion import sampling

    sigmas = KS[schedule](sampling, steps).to(dtype)

    def run(x: Tensor, network: Network) -> Tensor:
        drawn = [0]

        def draw(*_: Any) -> Tensor:
            drawn[0] += 1
            return Tape().normal(SHAPE, stream(drawn[0] - 1), dtype=x.dtype)

        def model(y: Tensor, sigma: Tensor) -> Tensor:
            level = float(sigma[0])
            return network("x0", y * unit(level)[0], level)

        function = getattr(sampling, name)
        given = dict(options)
        if "noise_sampler" in inspect.signature(function).parameters:
            given["noise_sampler"] = draw
        if "s_churn" in given:
            # The first step's churn would start above the grid: keep it out, on both sides.
            given |= {"s_churn": given["s_churn"] * steps, "s_tmax": 0.99 * float(sigmas[0])}
        before, torch.randn_like = torch.randn_like, draw  # type: ignore[assignment]
        try:
            return function(model, x, sigmas, disable=True, **given)
        finally:
            torch.randn_like = before

    # Ours reads x0 off a "v" network in these coordinates; the peer is given the same x0.
    return Peer([float(value) for value in sigmas], "ve", "v_prediction", run)

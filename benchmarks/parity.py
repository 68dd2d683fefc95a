"""Our samplers beside the peers' (diffusers, k-diffusion): same network, same noise, same noise levels; how far apart they end.

    pip install -e '.[bench]' && python benchmarks/parity.py [--quick]        writes benchmarks/results/parity.json

Ours gets the very levels σ/α that the peer visits (grid "custom") and the noise that the peer draws. The figure is
max|ours − peer| / max|peer| of the final samples, in float32 (the verdict: at most 1e-5, or listed in DIFFERENCES with the
reason and a demonstration) and in float64 with the peer's tables widened (peers that round x to float32 stay near 1e-7).
k-diffusion is optional: it is used if `import k_diffusion` works. Exit status 1 if a pair differs without being listed.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import logging
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unfog.diffusion import multistep
from unfog.diffusion.grids import make_grid
from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row, sample
from unfog.diffusion.predictions import Prediction
from unfog.diffusion.samplers import dpm_solver, heun, make_plan
from unfog.diffusion.schedules import EDM, Cosine, Linear

TOLERANCE = 1e-5
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


# ---- what is compared


@dataclass(frozen=True)
class Pair:
    """peer: shown; make(schedule, steps, dtype) -> Peer; options(steps, peer) of our sampler `ours`."""

    peer: str
    ours: str
    schedules: tuple[str, ...]
    make: Callable[[str, int, torch.dtype], Peer]
    options: Callable[[int, Peer], dict[str, Any]] = lambda steps, peer: {}
    steps: tuple[int, ...] = (5, 10, 25, 50)


PAIRS: list[Pair] = []


def add(
    label: str, ours: str, cls: str, configs: Configs, more: dict[str, Any] | None = None,
    options: dict[str, Any] | Callable[[int, Peer], dict[str, Any]] | None = None,
    step_options: dict[str, Any] | None = None, stream: Callable[[int], int] = lambda k: k + 1,
    every: int = 1, steps: tuple[int, ...] = (5, 10, 25, 50),
) -> None:  # fmt: skip
    def make(schedule: str, steps: int, dtype: torch.dtype) -> Peer:
        return diffusers_peer(cls, configs[schedule] | (more or {}), steps, dtype, step_options or {}, stream, every)

    given = options if callable(options) else lambda steps, peer: options or {}
    PAIRS.append(Pair(f"diffusers {label}", ours, tuple(configs), make, given, steps))


def add_k(
    name: str, ours: str, options: dict[str, Any] | None = None, label: str = "",
    ours_options: Callable[[int, Peer], dict[str, Any]] = lambda steps, peer: {}, stream: Callable[[int], int] = lambda k: k + 1,
) -> None:  # fmt: skip
    def make(schedule: str, steps: int, dtype: torch.dtype) -> Peer:
        return k_peer(f"sample_{name}", schedule, steps, dtype, options or {}, stream)

    PAIRS.append(Pair(f"k-diffusion {name}{label and ' ' + label}", ours, tuple(KS), make, ours_options))


def both(k: int) -> int:
    """The k-th draw of a peer with two evaluations a step that draws at the end of the step."""
    return 2 * k + 2


MIN, KEEP = {"final_sigmas_type": "sigma_min"}, {"lower_order_final": False}
DDIM = {"clip_sample": False}
for eta in (0.0, 1.0):
    add(f"DDIM eta {eta:g}", "ddim", "DDIMScheduler", TABLE, DDIM, {"eta": eta}, {"eta": eta})
add("DDIM, steps that do not divide 1000", "ddim", "DDIMScheduler", {"scaled": SCALED | TRAILING}, DDIM, steps=(7, 30))
add("DDPM", "ddpm", "DDPMScheduler", TABLE, DDIM)
add("LCM", "lcm", "LCMScheduler", TABLE, {"timestep_scaling": 1e6})
PLMS = {"skip_prk_steps": True, "set_alpha_to_one": True}
EPSILON = {"prediction_type": "epsilon"}
BARS: Configs = {"linear": LINEAR | LEADING, "scaled": SCALED | TRAILING | EPSILON, "cosine": COSINE | LEADING | EPSILON}
add("PNDM (PLMS)", "ipndm", "PNDMScheduler", BARS, PLMS)
add("PNDM (PLMS) of v", "ipndm", "PNDMScheduler", {"scaled": SCALED | TRAILING}, PLMS)
add("IPNDM", "ipndm", "IPNDMScheduler", ANGLES)
add("IPNDM from pure noise", "ipndm", "IPNDMScheduler", {"even angles": {"power": 1.0, "top": 1.0}})
add("Euler", "euler", "EulerDiscreteScheduler", SIGMAS)
add(
    "Euler ancestral",
    "ddpm",
    "EulerAncestralDiscreteScheduler",
    {"linear": LINEAR, "scaled": SCALED | TRAILING, "cosine": COSINE},
)
add("EDM Euler", "euler", "EDMEulerScheduler", EDMS)
add("Heun", "heun", "HeunDiscreteScheduler", SIGMAS)
add("Heun, a ratio below 0.01", "heun", "HeunDiscreteScheduler", {"cosine": COSINE | TRAILING}, steps=(5,))
add("KDPM2", "dpm_2", "KDPM2DiscreteScheduler", SIGMAS)
add("KDPM2 ancestral", "dpm_2_a", "KDPM2AncestralDiscreteScheduler", SIGMAS, stream=both)
add("LMS 4", "lms", "LMSDiscreteScheduler", SIGMAS, options={"order": 4})
add("flow Euler", "euler", "FlowMatchEulerDiscreteScheduler", FLOWS)
add("flow Heun", "heun", "FlowMatchHeunDiscreteScheduler", FLOWS)
DPM = "DPMSolverMultistepScheduler"
add("DPM-Solver++ 1", "euler", DPM, MULTISTEP, {"solver_order": 1})
EPS_FORM, SDE_FORM = {"algorithm_type": "dpmsolver"} | MIN | KEEP, {"algorithm_type": "sde-dpmsolver++"}
for theirs, kind in (("midpoint", "midpoint"), ("heun", "exact")):
    use, same = {"solver_type": theirs}, {"kind": kind}
    add(f"DPM-Solver++ 2M {theirs}", "dpmpp_2m", DPM, MULTISTEP, use, same)
    add(f"DPM-Solver 2M {theirs}", "dpm_2m", DPM, EPS, use | EPS_FORM, same)
    add(f"SDE-DPM-Solver++ 2M {theirs}", "dpmpp_2m_sde", DPM, MULTISTEP, use | SDE_FORM, same)


def published(steps: int, peer: Peer) -> dict[str, Any]:
    return {"kind": "published", "ramp_down": steps < 15}


THIRD = {"solver_order": 3, "solver_type": "heun"}  # solver_type: of its second step, which has order 2
add("DPM-Solver++ 3M", "dpmpp_3m", DPM, MULTISTEP, THIRD, published)
add("DPM-Solver++ 3M, midpoint start", "dpmpp_3m", DPM, MULTISTEP, {"solver_order": 3}, published)
add("DPM-Solver 1", "euler", DPM, EPS, {"solver_order": 1} | EPS_FORM)
add("DPM-Solver 3M", "deis", DPM, EPS, THIRD | EPS_FORM, {"order": 3})
add("SDE-DPM-Solver++ 1", "ddpm", DPM, MULTISTEP, {"solver_order": 1} | SDE_FORM)
add("SDE-DPM-Solver++ 3M", "dpmpp_3m_sde", DPM, MULTISTEP, THIRD | SDE_FORM, published)
ONE = "DPMSolverSinglestepScheduler"
ODD, THIRDS = (5, 11, 25, 51), (4, 10, 25, 52)
add("DPM-Solver++ 2S", "dpmpp_2s", ONE, EVEN, {"lower_order_final": True}, every=2, steps=ODD)
add("DPM-Solver 2S", "dpm_2", ONE, EVEN, {"lower_order_final": True, "algorithm_type": "dpmsolver"} | MIN, every=2, steps=ODD)
add("DPM-Solver++ 3S", "dpmpp_3s", ONE, EVEN, {"lower_order_final": True, "solver_order": 3}, every=3, steps=THIRDS)
for order in (1, 2, 3):
    for kind in ("bh1", "bh2"):
        end = MIN if kind == "bh1" else {}
        use, same = {"solver_order": order, "solver_type": kind} | end, {"order": order, "kind": kind, "ramp_down": True}
        add(f"UniPC {order} {kind}", "unipc", "UniPCMultistepScheduler", PLAIN if end else MULTISTEP, use, same)
    add(f"DEIS {order}", "deis", "DEISMultistepScheduler", MULTISTEP, {"solver_order": order} | KEEP, {"order": order})
add(
    "UniPC 2 bh1 to sigma 0",
    "unipc",
    "UniPCMultistepScheduler",
    MULTISTEP,
    {"solver_type": "bh1"},
    {"kind": "bh1", "ramp_down": True},
)
for order, tau in ((1, 0), (1, 1), (2, 0), (2, 1)):
    add(f"SA-Solver {order}, {order} tau {tau}", "sa_solver", "SASolverScheduler", PLAIN,
        {"predictor_order": order, "corrector_order": order, "tau_func": lambda t, tau=tau: tau} | KEEP,
        {"order": order, "corrector": order, "tau": float(tau)})  # fmt: skip

add_k("euler", "euler")
add_k("euler_ancestral", "ddpm")
add_k("heun", "heun")
CHURN = 0.1  # of the steps
add_k("heun", "heun", {"s_churn": CHURN, "s_noise": 1.003}, "with churn", lambda steps, peer: {
    "churn": CHURN * (len(peer.levels) - 1), "s_noise": 1.003, "s_max": 0.99 * peer.levels[0]}, lambda k: 2 * k)  # fmt: skip
add_k("dpm_2", "dpm_2")
add_k("dpm_2_ancestral", "dpm_2_a", stream=both)
add_k("lms", "lms", ours_options=lambda steps, peer: {"order": 4})
add_k("dpmpp_2s_ancestral", "dpmpp_2s_a", stream=both)
add_k("dpmpp_2m", "dpmpp_2m")
for theirs, kind in (("midpoint", "midpoint"), ("heun", "exact")):
    add_k("dpmpp_2m_sde", "dpmpp_2m_sde", {"solver_type": theirs}, theirs, lambda steps, peer, kind=kind: {"kind": kind})
add_k("dpmpp_2m_sde", "dpmpp_2m_sde", {"eta": 0.5}, "eta 0.5", lambda steps, peer: {"eta": 0.5})
add_k("dpmpp_sde", "dpmpp_sde", {"eta": 0.0}, "eta 0", lambda steps, peer: {"eta": 0.0})
add_k("dpmpp_3m_sde", "dpmpp_3m_sde", ours_options=lambda steps, peer: {"kind": "published"})
add_k("dpmpp_3m_sde", "dpmpp_3m", {"eta": 0.0}, "eta 0", lambda steps, peer: {"kind": "published"})


# ---- what may differ, and why

# How a difference is shown, for each case:
NEARER = "nearer"  # errors of both against a fine solution of the ODE
ROUNDING = "rounding"  # gone (1e-6) once the peer's tables are float64; what each side's float32 moves its own result by
NAN = "nan"  # the peer's result is not a number
CHANGED = "changed"  # gone (1e-6 in float64) with the peer's rule in our plan: CHANGES

CANCELS = "σ_down = √(σ_to² − σ_up²), or the same in ᾱ, cancels in the peer's float32 where a step removes most of the noise"
# By peer, peer @ schedule, or peer @ schedule @ steps.
DIFFERENCES: dict[str, tuple[str, str]] = {
    "diffusers DDIM eta 1 @ cosine": (ROUNDING, CANCELS),
    "diffusers Euler ancestral @ cosine": (ROUNDING, CANCELS),
    "diffusers KDPM2 ancestral @ linear": (ROUNDING, "five wide steps magnify float32's rounding, on both sides"),
    "k-diffusion dpm_2_ancestral @ vp": (ROUNDING, "five wide steps magnify float32's rounding, on both sides"),
    "diffusers DDIM, steps that do not divide 1000": (
        NEARER, "the peer steps by ⌊1000/steps⌋ indices, not to where it evaluates next; ours go there"),
    "diffusers IPNDM from pure noise": (
        NEARER, "at α = 0 the peer leaves x0 out of its first step and keeps ε for the next; ours takes D and starts anew"),
    "diffusers PNDM (PLMS)": (CHANGED, "the peer's first step is Heun's, with one evaluation more; ours is of first order"),
    "diffusers PNDM (PLMS) of v": (NEARER, "the peer extrapolates the network's v and then turns it into ε; ours extrapolates ε"),
    "diffusers flow Heun": (CHANGED, "the peer's trapezoid is in flow time, ours (EDM's) in σ/α; both are of second order"),
    "diffusers Heun, a ratio below 0.01": (CHANGED, "below 0.01 ours takes the trapezoid in α/σ: EDM's weights grow as σ̂_i/σ̂_j"),
    "k-diffusion heun with churn @ vp @ 5": (CHANGED, "as in Heun: churn raises the last σ̂_i until the ratio is below 0.01"),
    "diffusers DPM-Solver++ 3M, midpoint start": (
        CHANGED, "where it lowers the order to 2 the peer takes midpoint weights, ours exact ones (the peer's solver_type heun)"),
    "diffusers DPM-Solver 3M": (CHANGED, "the peer takes half the second derivative; ours in ε, deis, all of it"),
    "diffusers SDE-DPM-Solver++ 3M": (CHANGED, "the peer has −½ for +½ in the weight of D2; k-diffusion agrees with ours"),
    "diffusers DPM-Solver++ 3S": (CHANGED, "the peer's second stage has midpoint weights, ours the published exact ones"),
    "diffusers DPM-Solver 2S": (ROUNDING, "in ε form e^h multiplies the rounding of λ and x, from pure noise by up to 1e4"),
    "diffusers UniPC 2 bh1 to sigma 0": (NAN, "the peer multiplies B(h) = −∞ by 0"),
    "diffusers DEIS 1 @ flow": (ROUNDING, "α = 1 − f and λ rounded in the peer's float32 near pure noise"),
    "diffusers DEIS 2 @ flow": (ROUNDING, "as DEIS 1, and closed forms that cancel"),
    "diffusers DEIS 3": (ROUNDING, "its closed forms cancel in float32, the more the steps; on flow as DEIS 1"),
    "diffusers SA-Solver 2, 2 tau 0": (CHANGED, "the peer weighs the slope with h²/2, not with its exact integral"),
    "diffusers SA-Solver 2, 2 tau 1": (CHANGED, "the peer weighs the slope with h²/2, not with its exact integral"),
}  # fmt: skip
NOT_COMPARED = {
    "k-diffusion dpmpp_sde with noise, diffusers DPMSolverSDE": "their noise is a Brownian path in σ, ours the path of the SDE",
    "k-diffusion dpm_fast, dpm_adaptive": "their levels are chosen by error or mix orders",
    "diffusers DPMSolverSinglestep on uneven levels": "its stages are where the list has them; ours are even in log-SNR",
    "diffusers PNDM with its Runge–Kutta start": "not a plan of ours",
}


def sa_slope(tau: float) -> Change:
    """The slope weighted with (1 + τ²)·α_j·h²/2, in predictor and corrector."""

    def change(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
        b = plan.b.copy()
        before = after = np.zeros(plan.b.shape[1])  # what changes in the last prediction and in its correction
        for i in range(nodes.steps):
            h = multistep.width(nodes, i)
            look, better = np.zeros_like(before), np.zeros_like(before)
            if math.isfinite(h):
                more = (1.0 + tau**2) * nodes.alpha[i + 1] * h * h / 2.0 - multistep.moment(nodes, i, 1, "x0", tau**2)
                better[:2] = np.array([more, -more]) / h
                if i:
                    look[:2] = np.array([more, -more]) / multistep.width(nodes, i - 1)
            b[i] += look + plan.a[i] * (after - np.append(0.0, before[:-1]))
            before, after = look, better
        return replace(plan, b=b)

    return change


def plms_start(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    """The second time evaluated twice: the step to it by the mean of two slopes, the first of which is not used again."""
    total = plan.b.sum(axis=1).tolist()
    many = [[], [0.5, 0.5], [1.5, 0.0, -0.5], [23 / 12, -16 / 12, 0.0, 5 / 12], [55 / 24, -59 / 24, 37 / 24, 0.0, -9 / 24]]
    rows = [Row(plan.t[0], A=plan.a[0], B=(total[0],), p=plan.p[0], q=plan.q[0])]
    for k in range(1, plan.nfe + 1):
        at, step = min(k, max(k - 1, 1)), k - 1  # where row k evaluates, and the step that it takes
        weights = many[k] if k < len(many) else [55 / 24, -59 / 24, 37 / 24, -9 / 24]
        rows.append(Row(plan.t[at], plan.a[step], [w * total[step] for w in weights], p=plan.p[at], q=plan.q[at]))
    return Plan.of("plms", rows, plan.end)


def flow_trapezoid(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    b = plan.b.copy()
    for i in range(nodes.steps - 1):
        share = 0.5 * nodes.sigma[i] / nodes.sigma[i + 1]
        b[2 * i + 1, :2] = b[2 * i + 1].sum() * np.array([share, 1.0 - share])
    return replace(plan, b=b)


def any_ratio(options: Callable[[Nodes], dict[str, Any]]) -> Change:
    """Heun without our rule for small ratios."""

    def change(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
        before, heun._SMALL_RATIO = heun._SMALL_RATIO, 0.0
        try:
            return make_plan("heun", schedule, nodes.t, **options(nodes))
        finally:
            heun._SMALL_RATIO = before

    return change


def midpoint_start(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    second, b = dpm_solver.plan(schedule, nodes.t).b, plan.b.copy()
    for i in {1, nodes.steps - 2} if nodes.steps < 15 else {1}:
        b[i] = 0.0
        b[i, :2] = second[i]
    return replace(plan, b=b)


def wrong_sign(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    """D2 counted α_j less, where the order is 3."""
    b = plan.b.copy()
    for i in range(2, nodes.steps - (2 if nodes.steps < 15 else 1)):
        h, one, two = (multistep.width(nodes, i - back) for back in range(3))
        first, second = np.array([1.0, -1.0, 0.0]) * h / one, np.array([0.0, 1.0, -1.0]) * h / two
        b[i, :3] -= nodes.alpha[i + 1] * (first - second) * h / (one + two)
    return replace(plan, b=b)


def midpoint_stage(plan: Plan, nodes: Nodes, schedule: Any) -> Plan:
    look = plan.B.copy()
    look[1::3, 0], look[1::3, 1] = look[1::3].sum(axis=1), 0.0
    return replace(plan, B=look)


CHANGES: dict[str, Change] = {
    "diffusers PNDM (PLMS)": plms_start,
    "diffusers flow Heun": flow_trapezoid,
    "diffusers Heun, a ratio below 0.01": any_ratio(lambda nodes: {}),
    "k-diffusion heun with churn": any_ratio(
        lambda nodes: {"churn": CHURN * nodes.steps, "s_noise": 1.003, "s_max": 0.99 * nodes.sigma[0]}
    ),
    "diffusers DPM-Solver++ 3M, midpoint start": midpoint_start,
    "diffusers DPM-Solver 3M": lambda plan, nodes, schedule: dpm_solver._plan("3M", 3, "eps", schedule, nodes.t, "published"),
    "diffusers SDE-DPM-Solver++ 3M": wrong_sign,
    "diffusers DPM-Solver++ 3S": midpoint_stage,
    "diffusers SA-Solver 2, 2 tau 0": sa_slope(0.0),
    "diffusers SA-Solver 2, 2 tau 1": sa_slope(1.0),
}


def third_order_weight(h: float) -> tuple[float, float]:
    """Weight of D2, over α, in a third-order SDE step of length h in λ: diffusers', and the integral's (kind "published")."""
    import diffusers

    peer = diffusers.DPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++")
    peer.sigmas, peer._step_index = torch.exp(h * torch.arange(3.0, -1.0, -1.0, dtype=torch.float64)), 2
    zero = torch.zeros(1, 1, dtype=torch.float64)
    # Results 4, 1, 0 at even steps: D0 = 0, D1 = −1 + ½·(−1 + 3) = 0, D2 = ½·(−1 + 3) = 1. α = σ = √½ at the end.
    got = peer.multistep_dpm_solver_third_order_update([zero + 4.0, zero + 1.0, zero], sample=zero, noise=zero)
    return float(got) * math.sqrt(2.0), 0.5 - 0.5 / h - math.expm1(-2.0 * h) / (4.0 * h * h)


@dataclass
class Outcome:
    """One pair: float32 and float64 differences by schedule and number of steps, and what shows a listed difference."""

    pair: Pair
    cases: list[dict[str, Any]] = field(default_factory=list)

    def worst(self, key: str, listed: bool | None = None) -> float:
        values = [case[key] for case in self.cases if listed is None or bool(case["difference"]) == listed]
        return max((math.inf if value is None else value for value in values), default=0.0)


def relative(a: Tensor, b: Tensor) -> float | None:
    """max|a − b|/max|b|; None if that is not a number."""
    value = float((a.double() - b.double()).abs().max() / b.double().abs().max())
    return float(f"{value:.2e}") if math.isfinite(value) else None


def compare(pair: Pair, steps: Sequence[int]) -> Outcome:
    outcome = Outcome(pair)
    for schedule in pair.schedules:
        for count in steps:
            keys = (f"{pair.peer} @ {schedule} @ {count}", f"{pair.peer} @ {schedule}", pair.peer)
            listed = next((DIFFERENCES[key] for key in keys if key in DIFFERENCES), None)
            case: dict[str, Any] = {"schedule": schedule, "steps": count, "difference": listed and listed[0]}
            mine, theirs = {}, {}
            for dtype in (torch.float32, torch.float64):
                peer, network = pair.make(schedule, count, dtype), Network(dtype)
                options, x = pair.options(count, peer), start(peer, dtype)
                theirs[dtype] = peer.sample(x, network)
                mine[dtype] = ours(pair.ours, options, peer, x, network)
                case[str(dtype)[6:]] = relative(mine[dtype], theirs[dtype])
            single, double = torch.float32, torch.float64
            case["options"] = options
            if case["difference"] == ROUNDING:
                case["ours_moved"], case["peer_moved"] = (relative(side[single], side[double]) for side in (mine, theirs))
                if case["float32"] is not None and case["float32"] <= TOLERANCE:
                    case["difference"] = None  # the reason holds for other cases of this pair
            if case["difference"] == CHANGED:
                changed = ours(pair.ours, options, peer, x, network, CHANGES[pair.peer])
                case["changed"] = relative(changed, theirs[double])
            if case["difference"] in (NEARER, CHANGED) and not ("sde" in pair.ours or options.get("churn") or options.get("tau")):
                exact = reference(peer)
                case["ours_to_exact"], case["peer_to_exact"] = (relative(side[double], exact) for side in (mine, theirs))
            outcome.cases.append(case)
    return outcome


def shown(case: dict[str, Any]) -> bool:
    """Whether a case that lists a difference bears it out; what lists none must agree."""
    single, double, kind = case["float32"], case["float64"], case["difference"]
    if kind == NAN:
        return single is None
    if kind == ROUNDING:
        return double is not None and double <= 1e-6
    if kind == CHANGED:
        return case["changed"] is not None and case["changed"] <= 1e-6
    return kind == NEARER or (single is not None and single <= TOLERANCE)


def figure(value: float | None) -> str:
    return "nan" if value is None or not math.isfinite(value) else f"{value:.1e}"


def demonstrations(outcome: Outcome) -> list[str]:
    """One line for each figure that bears a difference out, by schedule and steps, worst or all."""
    lines = []
    texts = {
        ("ours_to_exact", "peer_to_exact"): "error against the exact ODE, ours | peer",
        ("ours_moved", "peer_moved"): "what float32 moves, ours | peer",
        ("changed",): "left with the peer's rule in ours",
    }
    for keys, text in texts.items():
        cases = [case for case in outcome.cases if keys[0] in case]
        for schedule in dict.fromkeys(case["schedule"] for case in cases):
            here = [case for case in cases if case["schedule"] == schedule]
            figures = (f"{case['steps']}: {' | '.join(figure(case[key]) for key in keys)}" for case in here)
            lines.append(f"{text}, {schedule}, by steps  " + "  ".join(figures))
    if CHANGES.get(outcome.pair.peer) is wrong_sign:
        weights = (f"{exact:.4f} | {theirs:.4f}" for theirs, exact in map(third_order_weight, (1.0, 0.1, 0.01)))
        lines.append("weight of D2 for h = 1, 0.1, 0.01, the integral | peer  " + "  ".join(weights))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 and 10 steps only")
    parser.add_argument("--only", default="", help="pairs whose name contains this; nothing is written")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "parity.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    versions: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("diffusers", "k_diffusion"):
        try:
            module = __import__(name)
            if name == "k_diffusion":
                __import__("k_diffusion.sampling")
            else:
                module.utils.logging.set_verbosity_error()
            versions[name] = getattr(module, "__version__", "source")
        except ImportError as error:
            print(f"{name} is left out: {error}")
    logging.disable(logging.WARNING)
    began, outcomes = time.perf_counter(), []
    print(f"{'peer':44} {'ours':14} {'float32':>8} {'float64':>8}  cases, verdict")
    for pair in PAIRS:
        if pair.peer.split()[0].replace("-", "_") not in versions or arguments.only not in pair.peer:
            continue
        outcome = compare(pair, pair.steps[:2] if arguments.quick else pair.steps)
        outcomes.append(outcome)
        differing = [case for case in outcome.cases if not shown(case)]
        listed = sorted({case["difference"] for case in outcome.cases if case["difference"]})
        verdict = f"{len(differing)} UNEXPLAINED" if differing else "differs: " + ", ".join(listed) if listed else "equal"
        print(f"{pair.peer:44} {pair.ours:14} {figure(outcome.worst('float32')):>8} {figure(outcome.worst('float64')):>8}"
              f"  {len(outcome.cases)}, {verdict}", flush=True)  # fmt: skip
        for case in differing:
            print(f"    {case['schedule']}, {case['steps']} steps: {figure(case['float32'])}, {figure(case['float64'])}")
        for line in demonstrations(outcome):
            print(f"    {line}")
    cases = [case for outcome in outcomes for case in outcome.cases]
    failures = sum(not shown(case) for case in cases)
    equal = [case["float32"] for case in cases if not case["difference"] and shown(case)]
    print(f"{len(outcomes)} pairs, {len(cases)} cases: {len(equal)} equal (at most {figure(max(equal, default=0.0))}), "
          f"{len(cases) - len(equal) - failures} with a stated difference, {failures} unexplained; "
          f"{time.perf_counter() - began:.0f} s")  # fmt: skip
    if not arguments.only:
        report = {
            "versions": versions, "tolerance": TOLERANCE, "quick": arguments.quick,
            "pairs": [{"peer": o.pair.peer, "ours": o.pair.ours, "float32": o.worst("float32"), "float64": o.worst("float64"),
                       "equal_float32": o.worst("float32", False), "cases": o.cases} for o in outcomes],
            "differences": {key: {"shown_by": how, "reason": why} for key, (how, why) in DIFFERENCES.items()},
            "not_compared": NOT_COMPARED,
        }  # fmt: skip
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, ensure_ascii=False, default=str).replace("Infinity", "null")
        arguments.out.write_text(text + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Which sampler of ours stands beside which of the peers', with which options on which schedules: PAIRS, for parity.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from parity_peers import (
    ANGLES,
    COSINE,
    EDMS,
    EPS,
    EVEN,
    FLOWS,
    KS,
    LEADING,
    LINEAR,
    MULTISTEP,
    PLAIN,
    SCALED,
    SIGMAS,
    TABLE,
    TRAILING,
    Configs,
    Peer,
    diffusers_peer,
    k_peer,
)


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

"""Samplers: each turns a schedule and a grid into a plan. One file a family, one line in SAMPLERS a sampler.

`make_plan(name, schedule, grid, **options)` is the way in; it also accepts the names that other tools use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfog.diffusion.lookup import call
from unfog.diffusion.plan import Plan
from unfog.diffusion.samplers import ddim, ddpm, dpm_solver, euler, heun
from unfog.diffusion.schedules import Schedule
from unfog.errors import unknown


@dataclass(frozen=True)
class Sampler:
    """One entry of SAMPLERS.

    plan(schedule, grid, **its named options) -> Plan. order: of the global error. nfe_per_step: evaluations a
    grid interval. stochastic: draws noise by default. aliases: names in other tools. source: where it was
    published.
    """

    plan: Callable[..., Plan]
    order: int
    nfe_per_step: int
    stochastic: bool
    aliases: tuple[str, ...]
    source: str


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim.plan, 1, 1, False, ("DDIMScheduler",), "arXiv:2010.02502"),
    "euler": Sampler(
        euler.plan,
        1,
        1,
        False,
        (
            "k_euler",
            "flow_euler",
            "euler_discrete",
            "EulerDiscreteScheduler",
            "FlowMatchEulerDiscreteScheduler",
        ),
        "arXiv:2206.00364",
    ),
    "ddpm": Sampler(
        ddpm.plan,
        1,
        1,
        True,
        (
            "ancestral",
            "euler_a",
            "k_euler_a",
            "euler_ancestral",
            "DDPMScheduler",
            "EulerAncestralDiscreteScheduler",
        ),
        "arXiv:2006.11239",
    ),
    "heun": Sampler(
        heun.plan,
        2,
        2,
        False,
        ("k_heun", "edm", "heun_discrete", "HeunDiscreteScheduler"),
        "arXiv:2206.00364",
    ),
    "dpmpp_2m": Sampler(
        dpm_solver.plan,
        2,
        1,
        False,
        ("dpm++_2m", "k_dpmpp_2m", "dpm_solver++", "dpm_solver_multistep", "DPMSolverMultistepScheduler"),
        "arXiv:2211.01095",
    ),
}


def _plain(name: str) -> str:
    """A name without case and punctuation, "++" read as "pp"."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("++", "pp"))


def sampler_name(name: str) -> str:
    """The key in SAMPLERS that `name`, or a name from another tool, stands for;

    UserError with the nearest if none.
    """
    plain = _plain(str(name))
    for key, entry in SAMPLERS.items():
        if plain in {_plain(known) for known in (key, *entry.aliases)}:
            return key
    raise unknown("sampler", name, SAMPLERS)


def make_plan(name: str, schedule: Schedule, grid: np.ndarray | Sequence[float], **options: Any) -> Plan:
    """The plan of sampler `name` on `grid`, steps + 1 falling times; unknown names and options are errors."""
    key = sampler_name(name)
    return call(
        SAMPLERS[key].plan, f"sampler {key!r}", 2, schedule, np.asarray(grid, dtype=np.float64), **options
    )

"""Samplers: each turns a schedule and a grid into a plan. One file a family, one line in SAMPLERS a sampler.

`make_plan(name, schedule, grid, **options)` is the way in; it also accepts the names that other tools use.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unfog.checks import call
from unfog.diffusion.grids import check_grid
from unfog.diffusion.plan import Plan
from unfog.diffusion.samplers import (
    adams,
    auto,
    ddim,
    ddpm,
    dpm_solver,
    euler,
    heun,
    lcm,
    repaint,
    restart,
    sa_solver,
    sde_singlestep,
    singlestep,
    unipc,
)
from unfog.diffusion.schedules import Schedule
from unfog.errors import unknown


@dataclass(frozen=True)
class Sampler:
    """One entry of SAMPLERS.

    plan(schedule, grid, **its named options) -> Plan. order: of the global error with the default options (0: none is
    claimed). nfe_per_step: evaluations a grid interval. stochastic: draws noise by default. aliases: names in other
    tools. source: where it was published.
    """

    plan: Callable[..., Plan]
    order: int
    nfe_per_step: int
    stochastic: bool
    aliases: tuple[str, ...]
    source: str


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SAMPLERS: dict[str, Sampler] = {
    "auto": Sampler(auto.plan, 3, 1, False, (), "tools/tune_auto.py"),
    "ddim": Sampler(ddim.plan, 1, 1, False, _names("DDIMScheduler"), "arXiv:2010.02502"),
    "euler": Sampler(
        euler.plan, 1, 1, False,
        _names("k_euler flow_euler euler_discrete EulerDiscreteScheduler FlowMatchEulerDiscreteScheduler EDMEulerScheduler"),
        "arXiv:2206.00364",
    ),
    "ddpm": Sampler(
        ddpm.plan, 1, 1, True,
        _names("ancestral euler_a k_euler_a euler_ancestral DDPMScheduler EulerAncestralDiscreteScheduler"),
        "arXiv:2006.11239",
    ),
    "heun": Sampler(
        heun.plan, 2, 2, False,
        _names("k_heun edm flow_heun heun_discrete HeunDiscreteScheduler FlowMatchHeunDiscreteScheduler"),
        "arXiv:2206.00364",
    ),
    "restart": Sampler(restart.plan, 1, 2, True, _names("edm_restart"), "arXiv:2306.14878"),
    "repaint": Sampler(repaint.plan, 1, 5, True, _names("resample time_travel"), "arXiv:2201.09865"),
    "dpm_2": Sampler(singlestep.dpm_2, 2, 2, False, _names("k_dpm_2 dpm2 KDPM2DiscreteScheduler"), "arXiv:2206.00927"),
    "dpm_2_a": Sampler(
        singlestep.dpm_2_a, 1, 2, True,
        _names("dpm2_a dpm_2_ancestral k_dpm_2_a KDPM2AncestralDiscreteScheduler"),
        "arXiv:2206.00927",
    ),
    "dpm_3": Sampler(singlestep.dpm_3, 3, 3, False, _names("dpm_solver_3"), "arXiv:2206.00927"),
    "dpm_2m": Sampler(dpm_solver.noise_form, 2, 1, False, _names("dpm_solver dpm_solver_2m"), "arXiv:2206.00927"),
    "dpmpp_2s": Sampler(
        singlestep.dpmpp_2s, 2, 2, False, _names("dpm++_2s DPMSolverSinglestepScheduler"), "arXiv:2211.01095"
    ),
    "dpmpp_2s_a": Sampler(
        singlestep.dpmpp_2s_a, 1, 2, True, _names("dpm++_2s_a dpmpp_2s_ancestral k_dpmpp_2s_a"), "arXiv:2211.01095"
    ),
    "dpmpp_3s": Sampler(singlestep.dpmpp_3s, 3, 3, False, _names("dpm++_3s"), "arXiv:2211.01095"),
    "dpmpp_sde": Sampler(
        sde_singlestep.plan, 1, 2, True, _names("dpm++_sde k_dpmpp_sde DPMSolverSDEScheduler"), "arXiv:2211.01095"
    ),
    "dpmpp_2m": Sampler(
        dpm_solver.plan, 2, 1, False,
        _names("dpm++_2m k_dpmpp_2m dpm_solver++ dpm_solver_multistep DPMSolverMultistepScheduler"),
        "arXiv:2211.01095",
    ),
    "dpmpp_3m": Sampler(dpm_solver.third, 3, 1, False, _names("dpm++_3m k_dpmpp_3m"), "arXiv:2211.01095"),
    "dpmpp_2m_sde": Sampler(
        dpm_solver.sde, 1, 1, True, _names("dpm++_2m_sde k_dpmpp_2m_sde sde_dpmsolver++"), "arXiv:2211.01095"
    ),
    "dpmpp_3m_sde": Sampler(dpm_solver.sde_third, 1, 1, True, _names("dpm++_3m_sde k_dpmpp_3m_sde"), "arXiv:2211.01095"),
    "unipc": Sampler(unipc.plan, 3, 1, False, _names("uni_pc unipc_bh2 UniPCMultistepScheduler"), "arXiv:2302.04867"),
    "sa_solver": Sampler(sa_solver.plan, 1, 1, True, _names("SASolverScheduler"), "arXiv:2309.05019"),
    "exp_adams": Sampler(adams.plan, 3, 1, False, _names("eab exponential_adams"), "arXiv:2211.01095"),
    "deis": Sampler(adams.deis, 3, 1, False, _names("tab_deis deis_3m DEISMultistepScheduler"), "arXiv:2204.13902"),
    "lms": Sampler(adams.lms, 3, 1, False, _names("k_lms LMSDiscreteScheduler"), "arXiv:2202.09778"),
    "ipndm": Sampler(adams.ipndm, 2, 1, False, _names("plms pndm IPNDMScheduler PNDMScheduler"), "arXiv:2202.09778"),
    "flow_adams": Sampler(adams.flow_adams, 3, 1, False, _names("flow_ab velocity_adams"), "arXiv:2210.02747"),
    "lcm": Sampler(lcm.plan, 0, 1, True, _names("consistency LCMScheduler"), "arXiv:2310.04378"),
}  # fmt: skip


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
    return call(SAMPLERS[key].plan, f"sampler {key!r}", 2, schedule, check_grid(grid), **options)

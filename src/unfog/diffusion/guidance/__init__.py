"""Guidance: each turns a denoiser into a denoiser. One file each, one line in GUIDANCES.

They are put around one another from the network outwards in this order, each where it is wanted:

    perturbed → cfg | rescale | zero_star | apg | auto | composed → energy | dps | posterior → threshold → infill

so that what must hold of the result (the data's range, the known part) is set last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unfog.checks import call, lookup
from unfog.diffusion.denoisers import Denoiser
from unfog.diffusion.guidance.apg import apg
from unfog.diffusion.guidance.auto import Autoguidance
from unfog.diffusion.guidance.cfg import ClassifierFree
from unfog.diffusion.guidance.composed import Composed
from unfog.diffusion.guidance.energy import Energy, dps
from unfog.diffusion.guidance.infill import Infill
from unfog.diffusion.guidance.perturbed import Perturbed
from unfog.diffusion.guidance.posterior import Posterior
from unfog.diffusion.guidance.rescale import rescale
from unfog.diffusion.guidance.threshold import Threshold
from unfog.diffusion.guidance.zero_star import zero_star

GUIDANCES: dict[str, Callable[..., Denoiser]] = {
    "perturbed": Perturbed,
    "cfg": ClassifierFree,
    "rescale": rescale,
    "zero_star": zero_star,
    "apg": apg,
    "auto": Autoguidance,
    "composed": Composed,
    "energy": Energy,
    "dps": dps,
    "posterior": Posterior,
    "threshold": Threshold,
    "infill": Infill,
}


def guide(name: str, denoiser: Denoiser, **options: Any) -> Denoiser:
    """The guidance of GUIDANCES under `name` around `denoiser`; unknown names and options are UserErrors."""
    return call(lookup(GUIDANCES, name, "guidance"), f"guidance {name!r}", 1, denoiser, **options)

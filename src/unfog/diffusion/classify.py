"""Which of several conditions an item fits best, by the denoiser's own errors; nothing is trained for it.

    ln p(k | x0) = const − β · mean over t of ln ‖x0 − D(α·x0 + σ·ε, t, c_k)‖²

At each noise level every condition is given the same noise, so that what they differ by is what the condition tells.
Source: Li et al. 2023, arXiv:2303.16203 (the diffusion classifier), whose sum of squared errors of the noise is −ln of a bound on
the density. Deviation: logarithms, so that levels of large and of small errors count alike, as a wrong condition costs a like
share of each; β, how sure a difference makes, is measured and not implied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.noise import Noise
from unfog.diffusion.processes import expand

LEVELS = tuple(-3.0 + 0.25 * k for k in range(24))  # ln(σ/α)
# Of emoji-64 and its five styles on 100 held-out pictures: the likeliest β, with which the right one has 0.87 on average
SHARPNESS = 200.0
_STREAM = 1 << 35  # far from those of samplers and of likelihoods


def classify(denoiser: Denoiser, x0: Tensor, conds: Sequence[Cond], sharpness: float = SHARPNESS,
             levels: Sequence[float] = LEVELS) -> Tensor:  # fmt: skip
    """The probability of each condition, (B, K), for items x0 (B, *D); equal ones at first.

    conds: K of them, each of batch 1 for all items. levels: ln(σ/α). An item's answer does not depend on the others.
    """
    schedule, batch, count = denoiser.process.schedule, len(x0), len(conds)
    keys = conds[0].keys()
    told = {key: torch.cat([cond[key].expand(batch, *cond[key].shape[1:]) for cond in conds]) for key in keys}
    total = torch.zeros(count, batch, dtype=torch.float64)
    for place, level in enumerate(levels):
        t = schedule.time(torch.full((batch,), -2.0 * level, dtype=torch.float64))
        noise = Noise([0] * batch).normal(x0.shape[1:], _STREAM + place).to(x0)
        x_t = expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise
        found = denoiser(torch.cat([x_t] * count), t.repeat(count).to(x0.device), told)
        error = (found - torch.cat([x0] * count)).double().square().flatten(1).mean(1)
        total += error.clamp_min(1e-30).log().reshape(count, batch).cpu()
    return (-sharpness / len(levels) * total.T).softmax(1).float()

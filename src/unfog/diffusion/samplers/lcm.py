"""LCM: jump to the denoised result, and noise it anew for the next level.

    x_j = α_j·D + σ_j·z

order 1 in law for an exact denoiser only as steps → ∞ of its own error: each step forgets x · 1 NFE a step
· stochastic, but for one step · also known as: multistep consistency sampling
· not to be confused with: DDPM, which keeps the part of the noise that x still holds
· source: Song et al. 2023, arXiv:2303.01469, Alg. 1; Luo et al. 2023 (LCM), arXiv:2310.04378, Alg. 3. Meant for
networks distilled to return a sample instead of a mean; for others its limit is not the data's distribution.
"""

from __future__ import annotations

import numpy as np

from unfog.diffusion.nodes import Nodes
from unfog.diffusion.plan import Plan, Row
from unfog.diffusion.schedules import Schedule


def plan(schedule: Schedule, grid: np.ndarray) -> Plan:
    """A consistency-sampling plan."""
    nodes = Nodes.of(schedule, grid)
    rows = [Row(float(nodes.t[i]), 0.0, (float(nodes.alpha[i + 1]),), float(nodes.sigma[i + 1])) for i in range(nodes.steps)]
    return Plan.of("lcm", rows, float(nodes.t[-1]))

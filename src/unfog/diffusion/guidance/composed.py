"""Several conditions at once, each with its own scale; a negative scale pushes away from its condition.

    D = D_u + Σ_k scale_k·(D_k − D_u)

One condition is classifier-free guidance. Source: Liu et al. 2022, arXiv:2206.01714, eq. 11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from unfog.diffusion.denoisers import Cond, Denoiser
from unfog.diffusion.processes import Process
from unfog.errors import UserError


class Composed:
    """conds: what each part asks for, batch B or 1; scales: one number each, 0 = off (then it is not asked).

    uncond: the empty condition. The condition given in the call is one part more, with scale `own` (default: none).
    """

    def __init__(
        self, denoiser: Denoiser, conds: Sequence[Cond], scales: Sequence[float], uncond: Cond, own: float = 0.0
    ) -> None:
        if len(conds) != len(scales) or not all(math.isfinite(s) for s in (*scales, own)):
            raise UserError(f"guidance 'composed': need one finite scale for each of the {len(conds)} conditions")
        self.denoiser, self.uncond, self.own = denoiser, uncond, own
        self.parts = [(cond, float(scale)) for cond, scale in zip(conds, scales, strict=True) if scale]

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def __call__(self, x_t: Tensor, t: float | Tensor, cond: Cond | None = None) -> Tensor:
        """Guided x0 (B, *D)."""
        parts = [*self.parts, *([(cond, self.own)] if cond is not None and self.own else [])]
        rest = 1.0 - sum(scale for _, scale in parts)

        def ask(given: Cond) -> Tensor:
            wide = {key: value.expand(len(x_t), *value.shape[1:]) for key, value in given.items()}
            return self.denoiser(x_t, t, wide)

        terms = [ask(given) * scale for given, scale in parts]
        if not terms or abs(rest) > 1e-12:
            terms.append(ask(self.uncond) * rest)
        out = terms[0]
        for term in terms[1:]:
            out = out + term
        return out

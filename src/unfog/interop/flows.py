"""The noise of Stable Diffusion 3 and Flux: rectified flow, and which of its levels a folder's own steps visit.

    x_t = (1 − σ)·x0 + σ·ε,   the network says ε − x0 and is told σ;   a named sampler walks these σ, then 0:

    σ_k    n even steps from 1 to the least (SD 3), or to 1/n (Flux)
    shift  σ ← s·σ/(1 + (s − 1)·σ), s from the file, or e^μ with μ on a line through the number of the picture's patches

`auto` has its own levels. Source: Esser et al. 2024, arXiv:2403.03206, eq. 23; the line: Black Forest Labs 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfog.diffusion.grids import check_grid
from unfog.errors import UserError, shown, unknown

CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
LINE = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
RHO = 7.0


@dataclass(frozen=True)
class FlowSteps:
    """One folder's levels. settings: what its file says. even: n even steps end at 1/n, as Flux's do."""

    where: Path
    settings: Mapping[str, Any]
    even: bool = False

    def check(self) -> None:
        """Raises UserError for a file that is no rectified flow's, or asks for what there is not."""
        name, get = self.settings.get("_class_name"), self.settings.get
        if not isinstance(name, str) or name not in CLASSES:
            raise UserError(f"{self.where}: _class_name {shown(name)} is not known here; give a folder with {CLASSES[0]}")
        count = get("num_train_timesteps", 1000)
        if type(count) is not int or not 3 <= count <= 100_000:
            raise UserError(f"{self.where}: num_train_timesteps must be a whole number from 3, got {shown(count)}")
        for key, usual in {"shift": 1.0, **LINE}.items():
            value = get(key)
            value = usual if value is None else value
            if type(value) not in (int, float) or not -20.0 <= value <= 1e6 or (key == "shift" and value <= 0.0):
                raise UserError(f"{self.where}: {key} must be a number, got {shown(value)}; get the folder again")
        if self._number("base_image_seq_len") >= self._number("max_image_seq_len"):
            raise UserError(f"{self.where}: max_image_seq_len must be above base_image_seq_len; get the folder again")
        kind = get("time_shift_type", "exponential")
        if kind not in ("exponential", "linear"):
            raise UserError(f"{self.where}: {unknown('time_shift_type', kind, ('exponential', 'linear'))}")
        end = get("shift_terminal")
        if end is not None and not (type(end) in (int, float) and 0.0 <= end < 1.0):
            raise UserError(f"{self.where}: shift_terminal must be a number in [0, 1), got {shown(end)}")
        for key in ("invert_sigmas", "use_beta_sigmas"):
            if get(key):
                raise UserError(f"{self.where}: {key} is not read; set it to false, and choose --sampler")

    def _number(self, key: str) -> float:
        value: Any = self.settings.get(key)
        return float(LINE[key] if value is None else value)

    def shift(self, patches: int) -> float:
        """s of the steps of a picture of so many patches."""
        if not self.settings.get("use_dynamic_shifting"):
            return float(self.settings.get("shift") or 1.0)
        low, high, base, top = (self._number(key) for key in LINE)
        mu = base + (top - base) / (high - low) * (patches - low)
        if self.settings.get("time_shift_type", "exponential") == "exponential":
            return math.exp(mu)
        if mu <= 0.0:
            raise UserError(f"{self.where}: its shift for {patches} patches is {mu:.3g}, not above 0; choose another size")
        return mu

    def levels(self, steps: int, patches: int) -> np.ndarray:
        """The σ of so many steps, falling from 1, without the 0 at their end."""
        get, s = self.settings.get, self.shift(patches)

        def moved(sigma: Any) -> Any:
            return s * sigma / (1.0 + (s - 1.0) * sigma)

        least = 1.0 / int(get("num_train_timesteps", 1000))
        # the range of a fixed shift is shifted, too, before its levels are: so these networks' own steps are
        end = 1.0 / steps if self.even else least if get("use_dynamic_shifting") else moved(least)
        levels = moved(np.linspace(1.0, end, steps))
        if get("shift_terminal") and levels[-1] < 1.0:
            levels = 1.0 - (1.0 - levels) * (1.0 - float(get("shift_terminal") or 0.0)) / (1.0 - levels[-1])
        if get("use_karras_sigmas"):
            levels = np.linspace(levels[0] ** (1 / RHO), levels[-1] ** (1 / RHO), steps) ** RHO
        elif get("use_exponential_sigmas"):
            levels = np.geomspace(levels[0], levels[-1], steps)
        return levels

    def grid(self, patches: Callable[[Sequence[int]], int]) -> Callable[..., np.ndarray]:
        """The grid of (sampler, steps, shape of x0); patches: how many a shape has."""

        def found(sampler: str, steps: int, shape: Sequence[int]) -> np.ndarray:
            levels = self.levels(steps, patches(shape))
            return check_grid(np.append(np.clip(levels, 0.0, 1.0), 0.0))

        return found

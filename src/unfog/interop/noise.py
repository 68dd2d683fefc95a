"""What a folder's scheduler_config.json says, in our words: schedule, prediction, and the grid that its own steps visit.

Its settings win. A named sampler walks the folder's own grid, with diffusers' rounding, so that both end in the same picture;
"auto" has its own levels.

    leading    index offset + k·⌊N/n⌋, k < n       (DPM-Solver, UniPC, DEIS: ⌊N/(n+1)⌋, k from 1 to n)
    trailing   index N·k/n − 1 rounded, k from 1 to n
    linspace   n even steps from 0 to N − 1         (the same: n + 1, without the lowest)

Source of the names: Lin et al. 2023, arXiv:2305.08891, table 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unfog.diffusion import make_grid
from unfog.diffusion.grids import check_grid
from unfog.diffusion.schedules import Schedule, Table
from unfog.errors import UserError, shown, unknown

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
CLASSES = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
           "HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
           "DPMSolverSDEScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "KDPM2DiscreteScheduler",
           "KDPM2AncestralDiscreteScheduler", "LCMScheduler", "TCDScheduler", "SASolverScheduler")  # fmt: skip
# These of theirs divide the range by one step more.
MULTISTEP = ("dpmpp_2m", "dpmpp_3m", "dpm_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "deis", "sa_solver", "dpmpp_2s",
             "dpmpp_3s")  # fmt: skip


@dataclass(frozen=True)
class Steps:
    """One folder's noise. settings: what its file says. fixed_offset: 1, whatever stands there: diffusers' SD 1 and 2."""

    where: Path
    settings: Mapping[str, Any]
    fixed_offset: bool = False

    @property
    def zero(self) -> bool:
        """Whether the file states zero terminal SNR."""
        return bool(self.settings.get("rescale_betas_zero_snr"))

    def schedule(self) -> Table:
        """α and σ. Raises UserError for what is no schedule."""
        table = self.plain()
        return table.zero_terminal_snr() if self.zero else table

    def plain(self) -> Table:
        """The same without zero terminal SNR, whatever is stated."""
        name, get = self.settings.get("_class_name"), self.settings.get
        if not isinstance(name, str) or name not in CLASSES:
            raise UserError(f"{self.where}: _class_name {shown(name)} is not known; give a folder with DDIMScheduler, say")
        count = get("num_train_timesteps", 1000)
        if type(count) is not int or not 3 <= count <= 100_000:
            raise UserError(f"{self.where}: num_train_timesteps must be a whole number from 3, got {shown(count)}")
        start, end, kind = get("beta_start", 0.0001), get("beta_end", 0.02), get("beta_schedule", "linear")
        try:
            given = get("trained_betas")
            if given is not None:
                table = Table(tuple(given))
            elif kind == "linear":
                table = Table.linear(count, start, end)
            elif kind == "scaled_linear":
                table = Table.scaled_linear(count, start, end)
            elif kind == "squaredcos_cap_v2":
                table = Table.cosine(count)
            else:
                raise unknown("beta_schedule", kind, ("linear", "scaled_linear", "squaredcos_cap_v2"))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.where}: {error}" if isinstance(error, UserError) else f"{self.where}: its betas are no "
                            "numbers in (0, 1); get the folder again") from None  # fmt: skip
        return table

    def prediction(self) -> str | None:
        """What the network predicts; None where the file does not say."""
        said = self.settings.get("prediction_type")
        if said is None:
            return None
        if not isinstance(said, str) or said not in PREDICTIONS:
            raise UserError(f"{self.where}: {unknown('prediction_type', said, PREDICTIONS)}")
        return PREDICTIONS[said]

    def grid(self, schedule: Schedule) -> Callable[..., np.ndarray]:
        """The grid of (sampler, steps), whatever the shape of x0."""
        return lambda sampler, steps, shape=(): self._table(schedule, sampler, steps)

    def _table(self, schedule: Any, sampler: str, steps: int) -> np.ndarray:
        get, count, many = self.settings.get, schedule.count, sampler in MULTISTEP
        if get("final_sigmas_type", "zero") == "sigma_min" and sampler != "ddim":
            end = 1.0 / count
        elif sampler == "ddim" and not get("set_alpha_to_one", get("_class_name") != "PNDMScheduler"):
            end = 1.0 / count  # the level of index 0, at which diffusers stops
        else:
            end = 0.0
        if get("use_karras_sigmas"):
            levels = np.exp(-0.5 * schedule.knots.numpy())
            grid = make_grid("karras", schedule, steps, sigma_min=float(levels[0]), sigma_max=float(levels[-1]), end=end)
            return np.append(np.rint(grid[:-1] * count) / count, end)  # they ask at whole indices
        spacing = get("timestep_spacing", "leading" if sampler in ("ddim", "ddpm") else "linspace")
        if spacing == "leading":
            step = count // (steps + 1 if many else steps)
            offset = 1 if self.fixed_offset else int(get("steps_offset", 0))
            places = (np.arange(steps) + many)[::-1] * step + offset
        elif spacing == "trailing":
            places = np.rint(np.arange(count, 0, -count / steps)[:steps]) - 1
        elif spacing == "linspace":
            places = np.linspace(0, count - 1, steps + many)[::-1][:steps]
            if many or sampler in ("ddim", "ddpm"):
                places = np.rint(places)  # the others ask between indices, at σ/α on the line between theirs
            else:
                levels = np.interp(places, np.arange(count), np.exp(-0.5 * schedule.knots.numpy()).clip(max=4096.0))
                return check_grid(np.append(schedule.time(-2.0 * np.log(levels)), end))
        else:
            raise UserError(f"{self.where}: {unknown('timestep_spacing', spacing, ('leading', 'trailing', 'linspace'))}")
        times = (np.minimum(places, count - 1) + 1.0) / count
        if times[-1] <= end:  # their last step stays where it is
            times = times[:-1]
        return check_grid(np.append(times, end))

"""`unfog average`: a model of other averaged weights, from what a run kept."""

from __future__ import annotations

from pathlib import Path

from unfog.cli.options import Real, Whole


def average(run: Path, /, *, out: Path, ema: Real = 0.1, at: Whole | None = None) -> None:
    """Make a model of a run's weights averaged over more or less of it, or of an earlier moment, without training anew.

    Try:
      unfog average my-run --ema 0.05 --out sharper
      unfog average my-run --at 2000 --out early

    Parameters
    ----------
    run
        The run's folder.
    out
        The model folder to write.
    ema
        Width of the average, as a share of the run: 0.05 keeps little of the past, 0.2 much.
    at
        The step to stop at; without it, the last that was kept.
    """
    from unfog.errors import UserError
    from unfog.requests import AverageRequest, check

    request = check(AverageRequest, {"run": run, "out": out, "ema": ema, "at": at})
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give a training run's")
    from unfog.training.averages import average

    step = average(request)
    print(f"{out}: weights averaged with width {ema:g}, after step {step}")

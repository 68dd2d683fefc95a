"""`unfog forecast`: what comes after a table of time series, or what is missing in it, as quantiles."""

from __future__ import annotations

import json as json_
import sys
import time as clock
from pathlib import Path

from unfog.cli.options import Flag, Repeated, Whole
from unfog.errors import UserError


def forecast(
    table: Path,
    /,
    *,
    horizon: Whole | None = None,
    samples: Whole = 200,
    quantiles: str = "0.025,0.1,0.5,0.9,0.975",
    time: str | None = None,
    target: Repeated = None,
    covariates: Repeated = None,
    seasons: str | None = None,
    fill: Flag = False,
    score: Flag = False,
    limit: Whole | None = None,
    model: str = "series-m",
    seed: Whole = 0,
    out: Path | None = None,
    plot: Path | None = None,
) -> None:
    """Forecast time series, or fill their missing values, with quantiles from samples of a diffusion model.

    The table is a CSV file with even time steps: a column of times and a column a variate (forecast together), or the three
    columns series,time,value (each series on its own). Empty cells are missing values. Horizons beyond a model's window are
    sampled on from each sample's own steps, window by window.

    Try:
      unfog forecast table.csv --horizon 24 --out quantiles.csv --plot forecast.png
      unfog forecast table.csv --fill --out filled.csv
      unfog forecast table.csv --horizon 12 --target sales --covariates price
      unfog forecast table.csv --horizon 12 --score

    Parameters
    ----------
    table
        A CSV file.
    horizon
        Steps to forecast, 1 to 10000; without it, as many as is usual for the table's time steps.
    samples
        Samples to draw, 2 to 10000.
    quantiles
        What to write, numbers between 0 and 1 parted by commas.
    time
        The column of times; without it, time, date, timestamp, ...
    target
        A column to forecast. Repeatable; without it, all that are no covariates.
    covariates
        A column that is known ahead: the table then has `horizon` rows more, in which the targets are empty. Repeatable.
    seasons
        Seasons in steps, such as 12 or 24,168; without it, by the times.
    fill
        Fill missing values instead; all others stay as they are.
    score
        Hold back the last `horizon` rows, forecast them, and print CRPS, MASE and coverage beside the seasonal naive forecast.
    limit
        Refuse horizons longer than this.
    model
        The name of a shipped model (see `unfog models`) or a model folder.
    seed
        Sample k is a function of seed + k.
    out
        The CSV file to write; without it, it is printed.
    plot
        A .png to draw.
    """
    from unfog.requests import ForecastRequest, check

    given = {"table": table, "model": model, "horizon": horizon, "limit": limit, "samples": samples, "time": time,
             "target": target or [], "covariates": covariates or [], "fill": fill, "score": score, "seed": seed}  # fmt: skip
    given |= {
        "quantiles": _numbers("quantiles", quantiles),
        "seasons": [int(m) for m in _numbers("seasons", seasons or "", True)],
    }
    request = check(ForecastRequest, given)
    if plot is not None and plot.suffix.lower() != ".png":
        raise UserError(f"--plot: {plot} does not end in .png; give a .png file")
    from unfog.cli.output import check_folder
    from unfog.files import write_atomic
    from unfog.forecasting import answer, drawn, written

    for file in (out, plot):
        if file is not None:
            check_folder(file.parent)
            if file.is_dir():
                raise UserError(f"--{'out' if file is out else 'plot'}: {file} is a folder; give a file")
    began = clock.monotonic()
    made = answer(request)
    for name, why in made.skipped.items():
        print(f"unfog: left out {why} {name}", file=sys.stderr)
    if request.score:
        for row in made.scores:
            print(json_.dumps(row))
    else:
        text = written(made)
        if out is None:
            print(text, end="")
        else:
            write_atomic(out, text.encode())
            print(out)
    if plot is not None:
        write_atomic(plot, drawn(made))
        print(plot, file=sys.stdout if out is not None or request.score else sys.stderr)
    print(f"{request.samples} samples of {len(made.parts)} table{'s' * (len(made.parts) != 1)} in "
          f"{clock.monotonic() - began:.1f} s", file=sys.stderr)  # fmt: skip


def _numbers(name: str, text: str, whole: bool = False) -> list[float]:
    found = []
    for part in text.split(",") if text.strip() else []:
        try:
            found.append(float(int(part)) if whole else float(part))
        except ValueError:
            kind = "whole numbers" if whole else "numbers"
            raise UserError(f"--{name}: {part.strip()[:40]!r} is no number; give {kind} parted by commas") from None
    return found
